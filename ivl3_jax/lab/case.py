"""What is asked of the lab: a model's train step under a plan on a slice."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ivl3_jax.config import PRESETS, InternVLConfig
from ivl3_jax.hf_config import read_config
from ivl3_jax.lab.compile import BatchShape
from ivl3_jax.lab.topology import Topology
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.training.config import TrainConfig


@dataclass(frozen=True)
class Case:
    """A train step that is compiled and timed without a TPU.

    Attributes:
        model: its name, for reports. config: its sizes. plan: on a mesh of the topology's size. topology: the slice.
        batch: of the whole step. documents: equal segments that a row is taken to hold; attention is none between them.
        train: what is trained and how. param_dtype, dtype: of stored parameters, of the computation.
    """

    model: str
    config: InternVLConfig
    plan: ShardingPlan
    topology: Topology
    batch: BatchShape
    documents: int = 1
    train: TrainConfig = field(default_factory=TrainConfig)
    param_dtype: str = "float32"
    dtype: str = "bfloat16"

    @property
    def rows(self) -> float:
        """Of a chip; a row that several chips share counts in part."""
        return self.batch.rows / self.topology.chips

    @property
    def tokens(self) -> int:
        """Positions of a step."""
        return self.batch.rows * self.batch.tokens

    @property
    def mesh(self) -> str:
        """The sizes of the plan's axes, those of 1 left out."""
        sizes = (f"{axis} {size}" for axis, size in self.plan.mesh.items() if size > 1)
        return " x ".join(sizes) or "one chip"

    @property
    def name(self) -> str:
        rows = f"{self.rows:g} row{'s' * (self.rows != 1)} a chip"
        return f"{self.model} under {self.plan.name} ({self.mesh}), {rows}, on {self.topology.name}"

    def facts(self) -> dict[str, Any]:
        """Everything that the answer depends on, in JSON's types."""
        found = dataclasses.asdict(dataclasses.replace(self, topology=None))  # type: ignore[arg-type]
        return json.loads(json.dumps(found | {"topology": self.topology.name}, default=str))


def model_of(name: str) -> tuple[str, InternVLConfig]:
    """The name and sizes of a model: a published size (`8b`, `InternVL3-8B`), or a directory with a config.json.

    Raises:
        ValueError: it is neither.
    """
    for known in PRESETS:
        if name.lower() in (known.lower(), known.lower().rpartition("-")[2]):
            return known, InternVLConfig.preset(known)
    if (Path(name) / "config.json").is_file():
        return Path(name).resolve().name, read_config(name)
    sizes = ", ".join(known.rpartition("-")[2].lower() for known in PRESETS)
    raise ValueError(f"model {name!r} is neither a published size ({sizes}) nor a directory with a config.json")


def fitted(plan: ShardingPlan, topology: Topology, mesh: Mapping[str, int]) -> ShardingPlan:
    """The plan over all chips of a topology: what `mesh` leaves open goes to `fsdp`, and `data` takes the slices.

    Raises:
        ValueError: the sizes given do not divide the number of chips.
    """
    given = dict(mesh)
    if topology.slices > 1 and "data" not in given:
        given["data"] = topology.slices
    if "fsdp" not in given:
        others = plan.with_mesh({**given, "fsdp": 1}, "--mesh").devices
        if topology.chips % others:
            told = " x ".join(f"{axis} {size}" for axis, size in given.items())
            sizes = ", ".join(str(size) for size in range(1, topology.chips + 1) if topology.chips % size == 0)
            raise ValueError(
                f"mesh {told} does not divide the {topology.chips} chips of {topology.name}; the product of its axes "
                f"but `fsdp` can be {sizes}"
            )
        given["fsdp"] = topology.chips // others
    return plan.with_mesh(given, "--mesh")


def batch_of(
    plan: ShardingPlan,
    topology: Topology,
    *,
    rows_per_chip: float | None,
    tokens: int,
    tiles: int,
    segments: int = 8,
    parts: int = 1,
) -> BatchShape:
    """The batch of a step: one row for each shard of rows in each of its parts, or so many for each chip.

    Raises:
        ValueError: that is no whole number of rows.
    """
    shards = plan.size(plan.decoder.activations.get("batch", ()))
    rows = shards * parts if rows_per_chip is None else rows_per_chip * topology.chips
    if rows < 1 or not math.isclose(rows, round(rows), abs_tol=1e-6):
        step = f"{shards / topology.chips:g}"
        raise ValueError(
            f"rows-per-chip {rows_per_chip:g} makes {rows:g} rows on {topology.chips} chips; rows are spread over "
            f"{shards} shards, so that {step}, or a multiple of it, would do"
        )
    return BatchShape(round(rows), tokens, tiles, segments)
