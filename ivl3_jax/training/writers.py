"""Where the figures of a run go: metrics.jsonl always, TensorBoard and Weights & Biases on request."""

import dataclasses
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from etils import epath

from ivl3_jax.training.config import WatchRecipe
from ivl3_jax.training.progress import Progress


class Writer(Protocol):
    """Takes figures."""

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        """Figures after a step: numbers, or tables of numbers."""

    def sync(self) -> None:
        """What was written so far is to outlive the process."""

    def close(self) -> None:
        """Nothing more comes."""


class JsonLines:
    """One JSON object a line. Lines of steps behind `step`, of an interrupted run, are dropped at the start.

    Buckets cannot be appended to: there the whole file is written again with every saved state.
    """

    def __init__(self, file: str | Path, step: int) -> None:
        path = epath.Path(file)
        kept = []
        if step and path.exists():
            kept = [line for line in path.read_text().splitlines() if _step(line) <= step]
        self._remote = path if str(file).startswith("gs://") else None
        if self._remote is not None:
            path = epath.Path(tempfile.mkdtemp()) / path.name
        self._local = path
        path.write_text("".join(f"{line}\n" for line in kept))
        self._stream = path.open("a")

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(_in_json({"step": step} | dict(figures)), allow_nan=False) + "\n")
        self._stream.flush()

    def sync(self) -> None:
        if self._remote is not None:
            self._remote.write_text(self._local.read_text())

    def close(self) -> None:
        self.sync()
        self._stream.close()


class TensorBoard:
    """Event files of scalars."""

    def __init__(self, directory: str, step: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ValueError(
                "watch.tensorboard needs the package tensorboardX: pip install 'ivl3-jax[watch]', or leave it false"
            ) from None
        self._writer = SummaryWriter(directory, purge_step=step + 1 if step else None)

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        for name, value in flat(figures).items():
            self._writer.add_scalar(name, value, step)

    def sync(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of a project; the same one again when a run goes on."""

    def __init__(self, project: str, output: str) -> None:
        try:
            import wandb
        except ImportError:
            raise ValueError("watch.wandb needs the package wandb: pip install 'ivl3-jax[wandb]'") from None
        name = output.rstrip("/").replace("://", "-").replace("/", "-")
        self._run = wandb.init(project=project, name=name, id=name, resume="allow")

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        self._run.log(flat(figures), step=step)

    def sync(self) -> None:
        pass

    def close(self) -> None:
        self._run.finish()


def open_writers(watch: WatchRecipe, output: str, step: int) -> list[Writer]:
    """The writers of a run that begins behind `step`.

    Raises:
        ValueError: a package is missing.
    """
    writers: list[Writer] = []
    if watch.tensorboard:
        writers.append(TensorBoard(f"{output}/tensorboard", step))
    if watch.wandb is not None:
        writers.append(WeightsAndBiases(watch.wandb, output))
    return [JsonLines(f"{output}/metrics.jsonl", step), *writers]


def figures(progress: Progress) -> dict[str, Any]:
    """What is written of a step's progress: everything but empty tables and the step itself."""
    found = dataclasses.asdict(progress)
    del found["step"]
    return {name: value for name, value in found.items() if value not in ({}, None)}


def flat(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers in tables within tables by names like `sources/coco`."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found[f"{prefix}{name}"] = float(value)
    return found


def _in_json(value: Any) -> Any:
    """Null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _in_json(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # cut off in the middle
