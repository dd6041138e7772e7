"""Predictions made by hand, without a compiler."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ivl3_jax.config import InternVLConfig
from ivl3_jax.lab.case import Case, batch_of, fitted
from ivl3_jax.lab.collectives import Collective
from ivl3_jax.lab.compile import Compiled, Memory, Shortage
from ivl3_jax.lab.prediction import Prediction
from ivl3_jax.lab.timeline import Event, Loop, Timeline
from ivl3_jax.lab.topology import Topology
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.sharding.remat import POLICIES

GIB = 2**30
FORWARD = "jit(step)/jvp(decoder)/layers/while"
BACKWARD = "jit(step)/transpose(jvp(decoder))/layers/while"
MLP = "decoder layers, forward: MLP"


def case(plan: str = "fsdp", rows: float | None = None, remat: str | None = None, **mesh: int) -> Case:
    """InternVL3-1B on 16 chips of v5e."""
    topology = Topology.read("v5e:4x4")
    chosen = fitted(ShardingPlan.read(plan), topology, mesh)
    if remat is not None:
        chosen = dataclasses.replace(chosen, remat={**chosen.remat, "decoder": POLICIES[remat]})
    shape = batch_of(chosen, topology, rows_per_chip=rows, tokens=2048, tiles=4)
    return Case("InternVL3-1B", InternVLConfig.preset("InternVL3-1B"), chosen, topology, shape)


def collective(
    kind: str, *axes: str, count: float = 24, size: int = 2**20, place: str = MLP, **more: Any
) -> Collective:
    return Collective(kind, axes, count, size, more.get("asynchronous", False), "jit(step)", 1e-4, place)


def timeline(*collectives: Collective, seconds: float = 0.25, loops: tuple[Loop, ...] | None = None) -> Timeline:
    parts = {"products": 0.6 * seconds, "exposed communication": 0.4 * seconds}
    return Timeline(
        seconds, parts, {"ici": 0.1}, collectives, (layer(), layer(BACKWARD)) if loops is None else loops, ()
    )


def layer(scope: str = FORWARD, **more: Any) -> Loop:
    events = (
        Event("fusion.1", 0.0, 3e-4, "compute", scope, MLP, "products"),
        Event("all-gather.1", 1e-4, 2e-4, "ici", scope, f"{MLP}, weights", "all-gather", ("fsdp",), 2**23),
        Event("all-reduce.1", 3e-4, 2e-4, "ici", scope, MLP, "all-reduce", ("tensor",), 2**22),
        Event("copy-start.1", 0.0, 1e-5, "dma", scope, MLP, "memory moves"),
    )
    return Loop(scope, 24, 5e-4, more.get("events", events))


def prediction(
    of: Case | None = None, found: Timeline | None = None, gibibytes: float = 4.0, shortage: Shortage | None = None
) -> Prediction:
    """One that fits, unless it is told what it lacks; without a timeline one for which the compiler gave up."""
    total = int(gibibytes * GIB)
    memory = Memory(GIB // 4, GIB // 2, 2**20, total - GIB * 3 // 4 - 2**20, total)
    compiled = Compiled("text", memory if found else None, shortage, 1.0, 2.0, (), {})
    return Prediction(of or case(), compiled, found, 14e12)


def lacking(wanted: float | None = 29.96) -> Shortage:
    size = None if wanted is None else int(wanted * GIB)
    return Shortage("HBM", size, int(15.75 * GIB), "RESOURCE_EXHAUSTED: Ran out of memory <on> HBM")


FACTS: Mapping[str, str] = {"plans": "12", "held-out error": "mean 11%"}
