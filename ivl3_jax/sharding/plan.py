"""A sharding plan is data: the mesh, and for each component where its logical axes go."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import jax
import yaml
from jax.sharding import AxisType, Mesh, PartitionSpec

from ivl3_jax.sharding import plan_file
from ivl3_jax.sharding.axes import ACTIVATION_AXES, COMPONENTS, MESH_AXES, PARAMETER_AXES
from ivl3_jax.sharding.context import GATHER, Context, zigzag
from ivl3_jax.sharding.mesh import arranged
from ivl3_jax.sharding.pipeline import Pipeline, Schedule
from ivl3_jax.sharding.plan_file import Table
from ivl3_jax.sharding.remat import POLICIES, Remat

OFFLOADED = ("optimizer",)


@dataclass(frozen=True)
class Rules:
    """Two tables from logical axis to mesh axes; an axis that a table leaves out is not sharded.

    `parameters` says how weights, gradients and optimizer state are stored, `activations` how values in flight are laid
    out. A weight in use takes the activations table: where the two differ, it is gathered just before the product.
    """

    parameters: Table = field(default_factory=dict)
    activations: Table = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.parameters.items())), tuple(sorted(self.activations.items()))))

    def parameter(self, *axes: str | None) -> PartitionSpec:
        """Layout of a stored parameter whose dimensions have these logical axes."""
        return _spec(self.parameters, axes)

    def activation(self, *axes: str | None) -> PartitionSpec:
        """Layout of an activation, or of a weight in use, whose dimensions have these logical axes."""
        return _spec(self.activations, axes)

    def whole(self, *axes: str) -> Self:
        """The rules with activations that are not spread along these logical axes."""
        kept = {axis: to for axis, to in self.activations.items() if axis not in axes}
        return dataclasses.replace(self, activations=kept)

    def without(self, *mesh_axes: str) -> Self:
        """The rules of what is computed apart in each place along some mesh axes: no activation is spread over them."""
        table = {axis: tuple(name for name in to if name not in mesh_axes) for axis, to in self.activations.items()}
        return dataclasses.replace(self, activations={axis: to for axis, to in table.items() if to})


@dataclass(frozen=True)
class ShardingPlan:
    """The mesh shape, one set of rules for each component, and what else a plan says.

    Attributes:
        name: for reports.
        mesh: size of each mesh axis, in `MESH_AXES` order when built; absent means 1.
        vision, projector, decoder: their rules.
        remat: policy of the layer scan by component (`vision`, `decoder`): a `Remat`, or the name of one: `none` saves
            every intermediate, `dots` what linear layers give and attention needs, `full` only what goes into layers.
        offload: what lives in the host's memory between steps: nothing, or `optimizer`, the moments.
        compiler: XLA options by chip (v5e, v5p, ...), over those in `sharding.compiler`; None takes one of these away.
        pipeline: of the decoder's layers, over the mesh axis `stage`.
        context: attention in the decoder where its `sequence` is sharded.
    """

    name: str = "single"
    mesh: Mapping[str, int] = field(default_factory=dict)
    vision: Rules = field(default_factory=Rules)
    projector: Rules = field(default_factory=Rules)
    decoder: Rules = field(default_factory=Rules)
    remat: Mapping[str, str | Remat] = field(default_factory=dict)
    offload: tuple[str, ...] = ()
    compiler: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    pipeline: Pipeline = Pipeline()
    context: Context = GATHER

    @classmethod
    def read(cls, name_or_file: str | Path, mesh: Mapping[str, int] | None = None) -> Self:
        """Reads a plan shipped in configs/sharding/ by name, or any YAML file; `mesh` overrides axis sizes.

        Raises:
            FileNotFoundError: neither exists; the message lists the shipped plans.
            ValueError: not YAML, or unknown keys, axes or policies, with the file and what is allowed.
        """
        file, fields = plan_file.read_fields(name_or_file, _PLAN_FIELDS)
        return cls.from_dict({"name": file.stem} | fields, str(file)).with_mesh(mesh)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], where: str = "plan") -> Self:
        """Builds and checks a plan from plain data; `where` is named in errors."""
        fields = plan_file.known(fields, _PLAN_FIELDS, where, "")
        rules = {}
        for component in COMPONENTS:
            tables = plan_file.known(fields.get(component), ["parameters", "activations"], where, component)
            rules[component] = Rules(
                plan_file.table(tables.get("parameters"), PARAMETER_AXES, where, f"{component}.parameters"),
                plan_file.table(tables.get("activations"), ACTIVATION_AXES, where, f"{component}.activations"),
            )
        remat = plan_file.known(fields.get("remat"), ["vision", "decoder"], where, "remat")
        name = fields.get("name", "plan")
        if not isinstance(name, str):
            raise ValueError(f"{where}: name is {name!r}; it must be text")
        plan = cls(
            name=name,
            vision=rules["vision"],
            projector=rules["projector"],
            decoder=rules["decoder"],
            remat={
                component: plan_file.remat(policy, where, f"remat.{component}") for component, policy in remat.items()
            },
            offload=plan_file.names(fields.get("offload"), OFFLOADED, where, "offload"),
            compiler=plan_file.compiler(fields.get("compiler"), where),
            pipeline=plan_file.pipeline(fields.get("pipeline"), where),
            context=plan_file.context(fields.get("context"), where),
        )
        return plan.with_mesh(fields.get("mesh"), where)

    def with_mesh(self, mesh: Mapping[str, int] | None, where: str = "plan") -> Self:
        """The same plan on a mesh of other sizes; axes not named keep theirs. `where` is named in errors."""
        mesh = plan_file.known(mesh, MESH_AXES, where, "mesh")
        for axis, size in mesh.items():
            plan_file.count(size, where, f"mesh.{axis}")
        return dataclasses.replace(self, mesh={**self.mesh, **mesh})

    def yaml(self) -> str:
        """The plan as a file that `read` reads."""
        return yaml.safe_dump(plan_file.written(self), sort_keys=False, default_flow_style=None, width=120)

    def remat_of(self, component: str) -> Remat:
        """The policy of `vision` or `decoder`."""
        policy = self.remat.get(component, "none")
        return policy if isinstance(policy, Remat) else POLICIES[policy]

    @property
    def mesh_shape(self) -> tuple[int, ...]:
        return tuple(self.mesh.get(axis, 1) for axis in MESH_AXES)

    @property
    def devices(self) -> int:
        return math.prod(self.mesh_shape)

    @property
    def schedule(self) -> Schedule | None:
        """That of the pipeline, None where the mesh has one stage."""
        stages = self.mesh.get("stage", 1)
        if stages == 1:
            return None
        return Schedule(stages, self.pipeline.microbatches or stages, self.pipeline.repeats)

    def make_mesh(self, devices: list | None = None) -> Mesh:
        """The plan's mesh, with explicit axes, over `devices` (default: the first of this process's backend).

        Raises:
            ValueError: fewer devices than the mesh has places, or of several slices that `data` does not divide over.
        """
        devices = jax.devices() if devices is None else devices
        if len(devices) < self.devices:
            shape = " x ".join(
                f"{axis} {size}" for axis, size in zip(MESH_AXES, self.mesh_shape, strict=True) if size > 1
            )
            raise ValueError(f"plan {self.name!r} needs {self.devices} devices ({shape}); there are {len(devices)}")
        types = (AxisType.Explicit,) * len(MESH_AXES)
        return Mesh(arranged(self.mesh_shape, devices[: self.devices]), MESH_AXES, axis_types=types)

    def size(self, mesh_axes: tuple[str, ...]) -> int:
        """Number of shards over these mesh axes."""
        return math.prod(self.mesh.get(axis, 1) for axis in mesh_axes)

    def padded_vocab(self, vocab: int) -> int:
        """Rows of the embedding table as stored: `vocab` rounded up so that every table of the plan divides it."""
        shards = [self.size(table.get("vocab", ())) for table in (self.decoder.parameters, self.decoder.activations)]
        return -(-vocab // math.lcm(*shards)) * math.lcm(*shards)

    @property
    def chunks(self) -> tuple[int, ...]:
        """The order in which the decoder holds the chunks of a row; (0,) where it is the row's own."""
        shards = self.size(self.decoder.activations.get("sequence", ()))
        return zigzag(shards) if self.context.order == "zigzag" and shards > 1 else (0,)

    def for_heads(self, kv_heads: int) -> Self:
        """The plan with the decoder's kv heads replicated where `kv_heads` does not divide over their mesh axes."""

        def keep(table: Table) -> Table:
            divides = kv_heads % self.size(table.get("kv_heads", ())) == 0
            return {axis: to for axis, to in table.items() if axis != "kv_heads" or divides}

        rules = Rules(keep(self.decoder.parameters), keep(self.decoder.activations))
        return dataclasses.replace(self, decoder=rules)


_PLAN_FIELDS = [field.name for field in dataclasses.fields(ShardingPlan)]


def _spec(table: Table, axes: tuple[str | None, ...]) -> PartitionSpec:
    return PartitionSpec(*(table.get(axis or "") or None for axis in axes))
