"""Runs of `ivl3 train` as processes: started, watched, told to end, killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from safetensors.numpy import load_file

from tests.models.small import checkpoint

ENVIRONMENT = {"IVL3_DEBUG": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
PATIENCE = 300.0  # seconds for anything to happen


def write_data(root: Path, lines: int = 24) -> Path:
    """A JSONL file of questions about images of several shapes, and about none."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(lines):
        turns = [
            {"from": "human", "value": f"What is {number}?"},
            {"from": "gpt", "value": f"It is {number}. " * (1 + number % 4)},
        ]
        record = {"conversations": turns}
        if number % 3:
            shape = (30, 30 + 20 * (number % 5), 3)
            Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(root / f"{number}.png")
            record["image"] = f"{number}.png"
            turns[0]["value"] = "<image>\n" + turns[0]["value"]
        records.append(json.dumps(record))
    (root / "train.jsonl").write_text("\n".join(records))
    return root / "train.jsonl"


def write_pairs(root: Path, lines: int = 12) -> Path:
    """A JSONL file of preference pairs about images and about none."""
    rng = np.random.default_rng(1)
    records = []
    for number in range(lines):
        record = {"question": f"What is {number}?", "chosen": f"It is {number}.", "rejected": "I do not know that."}
        if number % 3:
            Image.fromarray(rng.integers(0, 256, (30, 60, 3)).astype(np.uint8)).save(root / f"{number}.png")
            record |= {"image": f"{number}.png", "question": "<image>\n" + record["question"]}
        records.append(json.dumps(record))
    (root / "pairs.jsonl").write_text("\n".join(records))
    return root / "pairs.jsonl"


def write_recipe(file: Path, annotation: Path, **sections) -> Path:
    """A recipe of many short steps with everything random switched on; `sections` update its sections."""
    fields = {
        "output": str(file.parent / "run"),
        "model": {"checkpoint": str(checkpoint()), "drop_path": 0.1},
        "data": {
            "annotation": str(annotation), "rows": 4, "tokens": 200, "tiles": 6, "segments": 4, "positions": "v2pe",
        },
        "train": {"steps": 30, "learning_rate": 1e-3, "warmup_steps": 2, "average": 0.9},
        "save": {"every": 2},
    }  # fmt: skip
    for name, section in sections.items():
        fields[name] = fields.get(name, {}) | section if isinstance(section, dict) else section
    file.write_text(yaml.safe_dump(fields))
    return file


def start(recipe: Path, output: Path, *options: str, devices: int = 1) -> subprocess.Popen:
    """One process of a run with so many fake devices."""
    environment = os.environ | ENVIRONMENT | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-m", "ivl3_jax.cli.main", "train", "--config", str(recipe), "--output", str(output)]
    return subprocess.Popen(
        [*command, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def start_together(recipe: Path, output: Path, processes: int, *options: str, devices: int) -> list[subprocess.Popen]:
    """All processes of a run that has so many devices together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    each = devices // processes
    return [
        start(recipe, output, f"--distributed={address},{number},{processes}", *options, devices=each)
        for number in range(processes)
    ]


def finish(*runs: subprocess.Popen, code: int = 0) -> list[str]:
    """What processes printed, once they have ended as they should."""
    try:
        # All at once: one that waits for a reader of what it prints keeps the others waiting.
        with ThreadPoolExecutor(len(runs)) as readers:
            said = list(readers.map(lambda run: run.communicate(timeout=PATIENCE)[0], runs))
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [code] * len(runs), "\n".join(said)
    return said


def await_step(run: subprocess.Popen, output: Path, step: int) -> None:
    """Waits until a step has been reported."""
    deadline = time.monotonic() + PATIENCE
    while steps_of(output)[-1:] < [step]:
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline, f"step {step} did not come"
        time.sleep(0.02)


def kill(run: subprocess.Popen) -> None:
    """As when a machine is switched off."""
    run.send_signal(signal.SIGKILL)
    run.communicate()


def metrics(output: Path) -> list[dict]:
    """Whole lines of a run's metrics.jsonl."""
    file = output / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def steps_of(output: Path) -> list[int]:
    return [line["step"] for line in metrics(output) if "loss" in line]


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in metrics(output) if "loss" in line]


def weights(directory: Path) -> dict[str, np.ndarray]:
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


def assert_same_run(output: Path, expected: Path) -> None:
    """Every step once, and the same losses, parameters and average to the bit."""
    assert steps_of(output) == steps_of(expected)
    assert losses(output) == losses(expected)
    for name in ("checkpoint", "checkpoint-average"):
        found, wanted = weights(output / name), weights(expected / name)
        assert found.keys() == wanted.keys() and len(found)
        for tensor, value in wanted.items():
            assert found[tensor].tobytes() == value.tobytes(), tensor
