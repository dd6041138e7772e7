"""Cycles of Pallas kernels on TPUs, read from the compiler's own schedule; no TPU takes part.

Method, the same for every kernel and every chip: a program is compiled ahead of time for one device of a TPU topology
in a process of its own, whose compiler dumps the final VLIW bundles. Per region of straight code the cycles are its
bundles, or what its busiest matrix unit needs for its products where that is more; a kernel's cycles are the sum over
regions times how often each is executed: grid steps of one core from the compiler's loop test, inner loops likewise or
as the caller says. The HBM bound is the bytes of blocks that the pipeline moves over the bandwidth; the larger counts.
It is a lower bound on the time, good where steps are long: late DMA and start-up are not in it. A utilisation above
100 % is refused. That of the matrix unit counts all products that it makes, those with padding and zeros included.

v5p has two cores that are one device (megacore): cycles are those of the core that has most grid steps, and the
utilisation is that core's.
"""

import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivl3_jax.bench.bundles import SLOTS, Program, count_runs, read_program
from ivl3_jax.kernels.tpu_chips import CHIPS
from ivl3_jax.kernels.tpu_work import Array
from ivl3_jax.libtpu import WITHOUT_TPU

_CALL = re.compile(
    r'%(\S+) = (\S.*?) custom-call\([^\n]*custom_call_target="tpu_custom_call", '
    r"operand_layout_constraints={(.*?)}, \w+="
)
_TYPE = re.compile(r"\b([a-z]+\d+)\[([\d,]*)\]")


@dataclass(frozen=True)
class Kernel:
    """One kernel's schedule.

    `memory` are the cycles that its HBM traffic takes, None where that is not known; `operands` and `results` what the
    compiled program calls it with.
    """

    name: str
    chip: str
    program: Program
    compute: float
    memory: float | None
    around: float  # the XLA fusions of the same program, by the compiler's estimate
    operands: list[Array]
    results: list[Array]

    @property
    def cycles(self) -> float:
        return max(self.compute, self.memory or 0)

    @property
    def milliseconds(self) -> float:
        return self.cycles / CHIPS[self.chip].ghz / 1e6

    @property
    def products(self) -> float:
        """Multiply-adds of the matrix units of one core, padding's included."""
        return sum(region.rows * region.runs for region in self.program.regions) * CHIPS[self.chip].array ** 2

    @property
    def utilisation(self) -> float:
        """Of the matrix units."""
        return (
            self.products
            / CHIPS[self.chip].array ** 2
            * CHIPS[self.chip].row_cycles
            / CHIPS[self.chip].units
            / self.cycles
        )

    def use(self, unit: str) -> float:
        """The part of a unit's slots that is filled."""
        slots = sum(region.slots[unit] * region.runs for region in self.program.regions)
        return slots / self.program.capacity[unit] / self.cycles

    def describe(self) -> str:
        """Regions of 16 bundles or more, one line each, and what may be jumped over."""
        lines = [
            f"  {r.first:6d} {'>' * r.depth:3} bundles {r.bundles:6d} x {r.runs:8.1f}  matrix {r.busy:6d}  "
            + " ".join(
                f"{unit.lower()} {100 * r.slots[unit] / self.program.capacity[unit] / r.cycles:.0f}%"
                for unit in SLOTS[1:9]
                if r.slots[unit]
            )
            for r in self.program.regions
            if r.bundles >= 16
        ]
        spans = [
            f"{kind} {i}: {s.first}..{s.last} x {s.runs:g}"
            for kind in ("loops", "guards")
            for i, s in enumerate(getattr(self.program, kind))
        ]
        return "\n".join([f"{self.name} on {self.chip}: {self.cycles:.0f} cycles", *lines, *(f"  {s}" for s in spans)])


def cycles_of(
    make: Callable[..., tuple[Callable, Sequence[Any]]],
    *arguments: Any,
    chip: str,
    trips: Mapping[str, Mapping[int, float]] | None = None,
    guards: Mapping[str, Mapping[int, float] | Callable[[Program], Mapping[int, float]]] | None = None,
    traffic: Mapping[str, float] | None = None,
) -> list[Kernel]:
    """The schedule of every Pallas kernel in a program.

    Args:
        make: a module's function that gives, called with `arguments`, a function of arrays and its abstract operands.
        chip: a name in `CHIPS`.
        trips, guards: by kernel: see `bundles.count_runs`. A guard not given counts as always executed; those of a
            kernel may be found from its program.
        traffic: by kernel: bytes moved between HBM and VMEM, for those that index their blocks by prefetched scalars.

    Raises:
        ValueError: the program does not compile (with the compiler's words), or the reading is impossible.
    """
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task"
        task.write_bytes(pickle.dumps((make, arguments, CHIPS[chip].host)))
        settings = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            **WITHOUT_TPU,
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true",
            "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), os.environ.get("PYTHONPATH", "")]),
        }
        command = [sys.executable, "-m", __spec__.name, str(task)]
        ran = subprocess.run(command, env=settings, capture_output=True, text=True)
        if ran.returncode:
            raise ValueError(
                f"{chip}: {ran.stderr.strip().splitlines()[-1][:600] if ran.stderr.strip() else ran.returncode}"
            )
        text, moved = pickle.loads(task.read_bytes())
        around = float(sum(map(int, re.findall(r' fusion\(.*"estimated_cycles":"(\d+)"', text))))
        kernels = []
        for op, results, operands in _CALL.findall(text):
            # JAX puts the names of transformations around a kernel's own.
            name = max((known for known in moved if known in op), key=len, default=re.sub(r"\.\d+$", "", op))
            dump = _dump(Path(folder), op)
            program = read_program(*dump, CHIPS[chip].row_cycles)
            guarded = (guards or {}).get(name, {})
            count_runs(program, (trips or {}).get(name, {}), guarded(program) if callable(guarded) else guarded)
            compute = sum(region.cycles * region.runs for region in program.regions)
            bytes_ = (traffic or {}).get(name, moved.get(name))
            memory = None if bytes_ is None else CHIPS[chip].reading(bytes_)
            kernel = Kernel(name, chip, program, compute, memory, around, _arrays(operands), _arrays(results))
            if kernel.utilisation > 1 or max(kernel.use(unit) for unit in SLOTS) > 1:
                raise ValueError(f"{name} on {chip}: the reading is impossible\n{kernel.describe()}")
            kernels.append(kernel)
    return kernels


def _arrays(text: str) -> list[Array]:
    """(dtype, shape) of each of the types that HLO text holds."""
    return [(dtype, tuple(map(int, filter(None, sizes.split(","))))) for dtype, sizes in _TYPE.findall(text)]


def _dump(folder: Path, op: str) -> tuple[Path, Path]:
    pattern = re.compile(rf"\d+-{re.escape(op)}-\d+-(final_bundles|final_hlo-static-per-bundle-utilization)\.txt")
    found = {m[1]: path for path in folder.iterdir() if (m := pattern.fullmatch(path.name))}
    if len(found) != 2:
        raise ValueError(f"{op}: the compiler dumped no schedule of it")
    return found["final_bundles"], found["final_hlo-static-per-bundle-utilization"]


def _compile(task: Path) -> None:
    """In a process of its own: replaces the task by the compiled program's text and the bytes that kernels move."""
    import jax
    from jax.experimental import topologies
    from jax.sharding import NamedSharding, PartitionSpec

    make, arguments, topology = pickle.loads(task.read_bytes())
    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    function, operands = make(*arguments)
    mesh = jax.make_mesh((1,), ("x",), (jax.sharding.AxisType.Auto,), devices=[device])
    on = NamedSharding(mesh, PartitionSpec())
    operands = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on) for x in operands]
    with jax.set_mesh(mesh):
        traced = jax.jit(function).trace(*operands)
        text = traced.lower(lowering_platforms=("tpu",)).compile().as_text()
    task.write_bytes(pickle.dumps((text, dict(_traffic(traced.jaxpr.jaxpr)))))


def _traffic(jaxpr):
    """(name, bytes) of every pallas_call: a block is moved when its index changes.

    The bytes are None where more than the grid determines the index.
    """
    import jax
    import jax.extend
    import numpy as np

    for equation in jaxpr.eqns:
        if equation.primitive.name != "pallas_call":
            for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
                if hasattr(value, "eqns"):
                    yield from _traffic(getattr(value, "jaxpr", value))
            continue
        grid, mapping = equation.params["grid_mapping"].grid, equation.params["grid_mapping"]
        if mapping.num_index_operands or not all(isinstance(n, int) for n in grid):
            yield equation.params["name"], None
            continue
        steps = np.indices(grid).reshape(len(grid), -1).astype(np.int32)
        total = 0
        for block in mapping.block_mappings:
            size = np.prod([getattr(n, "block_size", 1) for n in block.block_shape]) * block.array_aval.dtype.itemsize
            index = jax.extend.core.jaxpr_as_fun(block.index_map_jaxpr)
            places = np.stack(np.broadcast_arrays(*jax.vmap(lambda *g, index=index: index(*g))(*steps)))
            total += size * (1 + (places[:, 1:] != places[:, :-1]).any(0).sum())
        yield equation.params["name"], float(total)


if __name__ == "__main__":
    try:
        _compile(Path(sys.argv[1]))
    except Exception as error:
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))
