"""Speed and memory of reading, writing and converting checkpoints, beside the safetensors library.

    python benchmarks/checkpoint.py [--size InternVL3-2B] [--limit-gb 1.5] [--directory .cache/benchmarks]

A checkpoint of that size with random bfloat16 weights is made in the original layout. Every step runs in a process of
its own, the conversions under a limit of their address space (RLIMIT_AS), far below the checkpoint's size. Files are
read with their pages in the cache. Writing counts with the sync to the disk at its end, and also without. Peak is
resident memory, the process's imports included.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

from ivl3_jax.config import InternVLConfig
from ivl3_jax.conversion import shards
from ivl3_jax.conversion.writer import write_layers

DTYPE = "bfloat16"
STEPS = {
    "read": "ours: read into arrays",
    "their_read": "safetensors: load_file, every page touched",
    "write": "ours: write from arrays",
    "their_write": "safetensors: save_file",
    "to_hf": "ours: convert original to -hf",
    "to_original": "ours: check SHA256SUMS, convert -hf to original",
}
LIMITED = ("to_hf", "to_original")


class Noise:
    """Random bits that are small normal numbers in bfloat16."""

    origin = "random numbers"

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def dtype(self, parameter: object, layer: int) -> np.dtype:
        return np.dtype(DTYPE)

    def chunks(self, tensor: shards.Tensor) -> shards.Chunks:
        bits = np.frombuffer(self._rng.bytes(tensor.nbytes), np.uint16)
        yield ((bits & 0x83FF) | 0x3C00).view(DTYPE).reshape(tensor.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="InternVL3-2B")
    parser.add_argument("--limit-gb", type=float, default=1.5, help="of address space, for conversions")
    parser.add_argument("--directory", type=Path, default=Path(".cache/benchmarks"))
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        if arguments.step in LIMITED:
            limit = int(arguments.limit_gb * 1e9)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        print(json.dumps(run(arguments.step, arguments.directory)))
        return
    work = arguments.directory / f"checkpoint-{arguments.size}"
    shutil.rmtree(work, ignore_errors=True)
    config = InternVLConfig.preset(arguments.size)
    write_layers(Noise(), config, work / "original", layout="original")
    (work / "original/added_tokens.json").write_text(json.dumps({"<IMG_CONTEXT>": config.image_token_id}))
    (work / "original/SHA256SUMS").unlink()  # as published ones have none
    size = sum(file.stat().st_size for file in work.glob("original/*.safetensors"))
    print(
        f"{arguments.size}, {size / 1e9:.2f} GB of {DTYPE}; conversions in {arguments.limit_gb} GB of address space\n"
    )
    print("| step | s | GB/s | GB/s without sync | peak GB |\n|---|---|---|---|---|")
    for step, name in STEPS.items():
        command = [sys.executable, __file__, "--step", step, "--directory", str(work)]
        command += ["--limit-gb", str(arguments.limit_gb)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        seconds, unsynced = found["seconds"], found["seconds"] - found["sync"]
        rates = f"{size / 1e9 / seconds:.2f} | {size / 1e9 / unsynced:.2f}"
        print(f"| {name} | {seconds:.2f} | {rates} | {found['peak'] / 1e9:.2f} |", flush=True)
    shutil.rmtree(work)


def run(step: str, work: Path) -> dict[str, float]:
    """Seconds in all, of them in syncs to the disk, and peak resident bytes of one step in this process."""
    action = prepare(step, work)
    os.sync()
    syncing = 0.0
    sync = os.fsync

    def timed(descriptor: int) -> None:
        nonlocal syncing
        began = time.perf_counter()
        sync(descriptor)
        syncing += time.perf_counter() - began

    os.fsync = timed
    began = time.perf_counter()
    action()
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "sync": syncing, "peak": peak()}


def peak() -> int:
    """Bytes of resident memory at the highest; getrusage would count what the parent process had, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def prepare(step: str, work: Path) -> Callable[[], object]:
    """Imports and inputs of a step; what it returns is measured."""
    if step in ("to_hf", "to_original"):
        from ivl3_jax.conversion.convert import convert

        if step == "to_hf":
            return lambda: convert(work / "original", work / "hf", layout="hf")
        return lambda: convert(work / "hf", work / "again", layout="original")
    if step in ("read", "write"):
        import jax

        import ivl3_jax
        from ivl3_jax.conversion.writer import write_params

        def read() -> ivl3_jax.Model:
            model = ivl3_jax.load(work / "original", DTYPE)
            jax.block_until_ready(model.params)
            return model

        if step == "read":
            jax.block_until_ready(jax.numpy.zeros(1))
            return read
        model = read()
        return lambda: write_params(model.params, model.config, work / "written")
    from safetensors.torch import load_file, save_file

    files = sorted((work / "original").glob("*.safetensors"))

    def their_read() -> dict:
        return {name: tensor.clone() for file in files for name, tensor in load_file(file).items()}

    if step == "their_read":
        return their_read
    tensors = their_read()
    return lambda: save_file(tensors, work / "theirs.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main()
