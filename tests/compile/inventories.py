"""The collectives of train steps as today's compiler makes them, kept so that a change shows as a readable difference.

    python -m tests.compile.inventories [NAME ...]

writes those named, or all, for the libtpu that is installed: a JSON file in tests/compile/inventories/. Default options
of the compiler, which takes a minute or two for each; those named `-trained` have the options of `ivl3 train`, with
which it takes two or three times as long. Read the difference before you commit it.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

DIRECTORY = Path(__file__).parent / "inventories"
SIZES = {"1b": (2048, 4), "8b": (4096, 8), "78b": (8192, 12)}  # positions and tiles of a row
# On 64 chips of v5p, a row for each shard of rows.
PLANS = {
    "fsdp_tensor": {"tensor": 2},
    "sequence": {"tensor": 2},
    "context": {"context": 4},
    "pipeline": {"stage": 4},
}
NAMES = [f"{size}-{plan}" for size in SIZES for plan in PLANS] + ["1b-fsdp_tensor-trained", "1b-context-trained"]


def file_of(name):
    """Where the inventory of a step is kept for the libtpu that is installed."""
    return DIRECTORY / f"libtpu-{version('libtpu')}" / f"{name}.json"


def found(name):
    """The step's inventory, by compiling it."""
    from ivl3_jax.lab.case import Case, batch_of, fitted, model_of
    from ivl3_jax.lab.compile import compile_step
    from ivl3_jax.lab.inventory import inventory
    from ivl3_jax.lab.prediction import predict
    from ivl3_jax.lab.topology import Topology
    from ivl3_jax.sharding.plan import ShardingPlan

    size, plan, *trained = name.split("-")
    model, config = model_of(size)
    topology = Topology.read("v5p:4x4x4")
    plan = fitted(ShardingPlan.read(plan), topology, PLANS[plan])
    tokens, tiles = SIZES[size]
    shape = batch_of(plan, topology, rows_per_chip=None, tokens=tokens, tiles=tiles)
    case = Case(model, config, plan, topology, shape)
    compiled = compile_step(config, plan, topology.make_mesh(plan), shape, options=None if trained else {})
    return inventory(predict(case, compiled).timeline)


def written(inventory):
    """As it is kept: a line each."""
    rows = ",\n".join(f" {json.dumps(key)}: {json.dumps(row)}" for key, row in inventory.items())
    return f"{{\n{rows}\n}}\n"


if __name__ == "__main__":
    from ivl3_jax.cli.main import set_platform_defaults

    set_platform_defaults()
    for name in sys.argv[1:] or NAMES:
        file = file_of(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(written(found(name)))
        print(file, flush=True)
