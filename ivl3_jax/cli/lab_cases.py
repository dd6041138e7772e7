"""What `ivl3 lab compile`, `search` and `compare` are asked with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ivl3_jax.cli.writable import check_directory
from ivl3_jax.training.config import TrainConfig

if TYPE_CHECKING:
    from ivl3_jax.lab.calibration import Calibration
    from ivl3_jax.lab.case import Case
    from ivl3_jax.lab.store import Store
    from ivl3_jax.lab.topology import Topology
    from ivl3_jax.sharding.plan import ShardingPlan

MOST_SLICES = 64
MOST_CHIPS = 2**16  # of all slices; the compiler's list of them alone takes gigabytes beyond

Dtype = Literal["float32", "bfloat16"]  # that TPUs compute with


@dataclass(frozen=True)
class Setting:
    """A model's train step on a slice.

    Attributes:
        model: a published size, such as 8b, or a directory with a config.json.
        topology: chips, such as v5e:16x16 or v5p:8x8x16.
        slices: of that shape, joined by the data center's network; data takes them. At most 64.
        tokens: positions of a row, visual ones included.
        tiles: of a row.
        documents: equal segments that a row is taken to hold, a divisor of tokens; attention is none between them.
        train: what is trained and how, as in a recipe.
        param_dtype: of stored parameters.
        dtype: of the computation.
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
    param_dtype: Dtype = "float32"
    dtype: Dtype = "bfloat16"
    cache: Path | None = None
    calibration: Path | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "documents", "slices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.tiles < 0:
            raise ValueError(f"tiles is {self.tiles}; it must be at least 0")
        if self.slices > MOST_SLICES:
            raise ValueError(f"slices is {self.slices}; it must be at most {MOST_SLICES}")
        if self.tokens % self.documents:
            raise ValueError(
                f"documents is {self.documents}, which does not cut rows of {self.tokens} tokens into equal segments; "
                f"{' or '.join(map(str, _divisors_near(self.documents, self.tokens)))} would"
            )

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

        found = Topology.read(self.topology, self.slices)
        if found.chips > MOST_CHIPS:
            raise ValueError(
                f"slices is {self.slices}: {found.name} has {found.chips:,} chips; it must have at most {MOST_CHIPS:,}"
            )
        return found

    def constants(self) -> "Calibration":
        from ivl3_jax.lab.calibration import Calibration

        return Calibration.read(self.calibration) if self.calibration else Calibration()

    def store(self) -> "Store":
        """Where compiled steps are kept.

        Raises:
            ValueError: nothing can be written there, which is better known before a step is compiled.
        """
        from ivl3_jax.lab.store import Store, default_directory

        directory = self.cache or default_directory()
        check_directory("cache", directory)
        return Store(directory)


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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rows("rows_per_chip", self.rows_per_chip)

    def asked(self) -> "Case":
        """The case that is asked about.

        Raises:
            ValueError, OSError: as `case`, or the plan does not exist, or its mesh does not fit the slice.
        """
        from ivl3_jax.lab.case import fitted
        from ivl3_jax.sharding.plan import ShardingPlan

        plan = fitted(ShardingPlan.read(self.plan), self.slice(), self.mesh)
        return self.case(plan, self.rows_per_chip)


def check_rows(name: str, rows: float | None) -> None:
    """Refuses what is no number of rows for each chip; null is one."""
    if rows is not None and not 0 < rows < math.inf:
        raise ValueError(f"{name} is {rows}; it must be above 0 and finite")


def _divisors_near(number: int, whole: int) -> list[int]:
    """The divisors of a whole number around another that is none, below and above it."""
    small = [n for n in range(1, math.isqrt(whole) + 1) if whole % n == 0]
    divisors = sorted({*small, *(whole // n for n in small)})
    below, above = [n for n in divisors if n < number], [n for n in divisors if n > number]
    return below[-1:] + above[:1]
