"""What `ivl3 lab compile`, `search` and `compare` are asked with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ivl3_jax.training.config import TrainConfig

if TYPE_CHECKING:
    from ivl3_jax.lab.calibration import Calibration
    from ivl3_jax.lab.case import Case
    from ivl3_jax.lab.store import Store
    from ivl3_jax.lab.topology import Topology
    from ivl3_jax.sharding.plan import ShardingPlan


@dataclass(frozen=True)
class Setting:
    """A model's train step on a slice.

    Attributes:
        model: a published size, such as 8b, or a directory with a config.json.
        topology: chips, such as v5e:16x16 or v5p:8x8x16.
        slices: of that shape, joined by the data center's network; data takes them.
        tokens: positions of a row, visual ones included.
        tiles: of a row.
        documents: equal segments that a row is taken to hold; attention is none between them.
        train: what is trained and how, as in a recipe.
        param_dtype: of stored parameters. dtype: of the computation.
        cache: where compiled steps are kept; by default ~/.cache/ivl3_jax/lab.
        calibration: a YAML file of constants, from real profiles.
    """

    model: str
    topology: str
    slices: int = 1
    tokens: int = 8192
    tiles: int = 0
    documents: int = 1
    train: TrainConfig = field(default_factory=TrainConfig)
    param_dtype: str = "float32"
    dtype: str = "bfloat16"
    cache: Path | None = None
    calibration: Path | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "documents", "slices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.tiles < 0:
            raise ValueError(f"tiles is {self.tiles}; it must be at least 0")

    def case(self, plan: "ShardingPlan", rows_per_chip: float | None = None) -> "Case":
        """The case of a plan whose mesh has as many places as the slice has chips.

        Raises:
            ValueError, OSError: the model or the slice does not exist, or they do not fit together.
        """
        from ivl3_jax.lab.case import Case, batch_of, model_of

        model, config = model_of(self.model)
        if self.tiles * config.tile_tokens > self.tokens:
            needed = self.tiles * config.tile_tokens
            raise ValueError(
                f"tiles is {self.tiles}, whose {needed} visual tokens do not fit into rows of {self.tokens} tokens"
            )
        topology = self.slice()
        shape = batch_of(
            plan,
            topology,
            rows_per_chip=rows_per_chip,
            tokens=self.tokens,
            tiles=self.tiles,
            parts=self.train.accumulate,
        )
        dtypes = self.param_dtype, self.dtype
        return Case(model, config, plan, topology, shape, self.documents, self.train, *dtypes)

    def slice(self) -> "Topology":
        from ivl3_jax.lab.topology import Topology

        return Topology.read(self.topology, self.slices)

    def constants(self) -> "Calibration":
        from ivl3_jax.lab.calibration import Calibration

        return Calibration.read(self.calibration) if self.calibration else Calibration()

    def store(self) -> "Store":
        from ivl3_jax.lab.store import Store, default_directory

        return Store(self.cache or default_directory())


@dataclass(frozen=True)
class Question(Setting):
    """A plan, and a model's train step on a slice.

    Attributes:
        plan: a shipped sharding plan, or a YAML file.
        mesh: sizes of the plan's axes; what is left of the chips goes to fsdp.
        rows_per_chip: rows of a step for each chip, may be a fraction; null is a row for each shard of rows.
    """

    plan: str = "fsdp"
    mesh: Mapping[str, int] = field(default_factory=dict)
    rows_per_chip: float | None = None

    def asked(self) -> "Case":
        """The case that is asked about.

        Raises:
            ValueError, OSError: as `case`, or the plan does not exist, or its mesh does not fit the slice.
        """
        from ivl3_jax.lab.case import fitted
        from ivl3_jax.sharding.plan import ShardingPlan

        plan = fitted(ShardingPlan.read(self.plan), self.slice(), self.mesh)
        return self.case(plan, self.rows_per_chip)
