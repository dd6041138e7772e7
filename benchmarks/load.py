"""Time and peak memory of loading a checkpoint, beside the model's size and the bound that is promised.

    python benchmarks/load.py CHECKPOINT [--dtype float32] [--plan fsdp_tensor --mesh fsdp=4 tensor=2]

The bound is the model plus three local slices of its largest stacked tensor. Resident memory counts from after jax has
started; the file is read with its pages in the cache or not, as it happens.
"""

import argparse
import math
import os
import resource
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from flax.traverse_util import flatten_dict

import ivl3_jax
from ivl3_jax.sharding.plan import ShardingPlan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--plan", default="single")
    parser.add_argument("--mesh", nargs="*", default=[], metavar="AXIS=SIZE")
    arguments = parser.parse_args()
    sizes = {axis: int(size) for axis, size in (item.split("=") for item in arguments.mesh)}
    plan = ShardingPlan.read(arguments.plan).with_mesh(sizes)
    jax.block_until_ready(jax.numpy.zeros(1))
    before, began = peak(), time.perf_counter()
    model = ivl3_jax.load(arguments.checkpoint, arguments.dtype, plan)
    jax.block_until_ready(model.params)
    seconds = time.perf_counter() - began
    leaves = flatten_dict(model.params, sep="/")
    whole = sum(leaf.nbytes for leaf in leaves.values())
    largest = max(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for name, leaf in leaves.items()
        if "/layers/" in name
    )
    print("| model GB | largest local slice GB | bound GB | peak GB | seconds |\n|---|---|---|---|---|")
    figures = (whole, largest, whole + 3 * largest, peak() - before)
    print("| " + " | ".join(f"{figure / 1e9:.3f}" for figure in figures) + f" | {seconds:.1f} |")


def peak() -> int:
    """Bytes of resident memory at the highest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
