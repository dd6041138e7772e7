"""The real train step compiled ahead of time for a topology, by JAX's public calls only; no array is made.

Without a TPU the variables of `ivl3_jax.libtpu` must be set before jax is imported, as the `ivl3` command does.
"""

import dataclasses
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax

from ivl3_jax.batch import empty_batch
from ivl3_jax.chips import Chip
from ivl3_jax.config import InternVLConfig
from ivl3_jax.lab.topology import PlacedMesh
from ivl3_jax.models.adapters import with_adapters
from ivl3_jax.models.model import abstract_model
from ivl3_jax.sharding.compiler import Options, fewer_options, options_of
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.training.config import TrainConfig
from ivl3_jax.training.loop import objective_of
from ivl3_jax.training.placing import batch_layout
from ivl3_jax.training.step import abstract_state, make_step

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
AMOUNT = r"([\d.]+)\s*([KMGT]?)(?:i?B)?\b"
COMPLAINT = re.compile(r"^[WE]\d{4} [\d:.]+\s+\d+ ([\w.]+):\d+\] (.*)$")


@dataclass(frozen=True)
class BatchShape:
    """A step's batch: rows of the whole step, positions and tiles of a row, segments of a row."""

    rows: int
    tokens: int
    tiles: int = 0
    segments: int = 8


@dataclass(frozen=True)
class Memory:
    """Bytes of one chip's HBM.

    Attributes:
        parameters, optimizer: their shards, without what the plan keeps on the host. batch: likewise.
        temporaries: everything else that the step has at its fullest: activations, gathered weights, gradients.
            `Prediction.memory` tells the activations apart.
        total: the step at its fullest, padding of layouts included: what the compiler itself holds against the HBM
            when it refuses a step. Its sizes of arguments and temporaries add up to more.
    """

    parameters: int
    optimizer: int
    batch: int
    temporaries: int
    total: int


@dataclass(frozen=True)
class Shortage:
    """Memory that was not enough. `kind`: HBM or VMEM. Bytes, None where the compiler does not say."""

    kind: str
    wanted: int | None
    available: int | None
    message: str


@dataclass(frozen=True)
class Compiled:
    """What came of compiling a step.

    Attributes:
        text: the scheduled module in HLO, "" where the compiler gave up for want of memory.
        memory: of one chip; None likewise. shortage: memory that is not enough, found by the compiler or by the sum.
        trace_seconds, compile_seconds: what tracing with lowering, and compiling took.
        complaints: warnings of the compiler, each once.
        options: those that it was given.
    """

    text: str
    memory: Memory | None
    shortage: Shortage | None
    trace_seconds: float
    compile_seconds: float
    complaints: tuple[str, ...]
    options: Options


def compile_step(
    config: InternVLConfig,
    plan: ShardingPlan,
    placed: PlacedMesh,
    shape: BatchShape,
    train: TrainConfig | None = None,
    *,
    param_dtype: str = "float32",
    dtype: str = "bfloat16",
    options: Options | None = None,
) -> Compiled:
    """Compiles the train step of a model under a plan.

    Args:
        placed: the plan's mesh. train: what is trained and how; `accumulate` cuts the rows into parts.
        options: of the compiler; by default `options_of` the chip and the plan. Either way those for which the compiler
            gives a step up are left out, see `fewer_options`.

    Raises:
        ValueError: the plan does not fit the model or the batch, or the compiler refuses an option.
    """
    train, mesh = train or TrainConfig(), placed.mesh
    chosen = options_of(placed.topology.chip.name, plan) if options is None else dict(options)
    before = time.perf_counter()
    graphdef, params = abstract_model(config, plan, mesh, param_dtype=param_dtype, dtype=dtype)
    if train.adapters:
        graphdef, params = with_adapters(graphdef, params, train.adapters, plan, mesh)
    state = abstract_state(params, train, plan, mesh)
    batch, reference = _abstract_batch(config, plan, placed, shape, train)
    with jax.set_mesh(mesh):
        step: Any = make_step(
            graphdef, params, objective_of(train), train, config.tile_tokens, plan=plan, options=chosen
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        lowered = step.trace(state, batch, reference, key).lower(lowering_platforms=("tpu",))
        traced, said = time.perf_counter(), []
        try:
            with _stderr(said):
                done = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if found := fewer_options(error, chosen):  # as the train step itself does
                fewer, why = found
                again = compile_step(
                    config, plan, placed, shape, train, param_dtype=param_dtype, dtype=dtype, options=fewer
                )
                return dataclasses.replace(again, complaints=(why, *again.complaints))
            refused, seconds = _shortage(_known(str(error), plan, placed.topology.chip)), time.perf_counter() - traced
            return Compiled("", None, refused, traced - before, seconds, _complaints(said), chosen)
    seconds = time.perf_counter() - traced
    memory = _memory(done.memory_analysis(), state, batch)
    shortage = _beyond(memory, placed.topology.chip)
    return Compiled(done.as_text(), memory, shortage, traced - before, seconds, _complaints(said), chosen)


def _abstract_batch(
    config: InternVLConfig, plan: ShardingPlan, placed: PlacedMesh, shape: BatchShape, train: TrainConfig
) -> tuple[Any, Any]:
    """Shapes, dtypes and layouts of a batch [A, B, ...], and of the reference's log-probabilities, None without."""
    parts = train.accumulate
    layout = batch_layout(plan, placed.mesh, shape.rows, shape.tokens, parts)
    one = empty_batch(1, shape.tokens, shape.tiles, shape.segments, config.vision.image_size)
    batch = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(
            (parts, shape.rows // parts, *x.shape[1:]), x.dtype, sharding=sharding
        ),
        one,
        layout,
    )
    if train.preference is None:
        return batch, None
    return batch, jax.ShapeDtypeStruct(batch.source_id.shape, "float32", sharding=layout.source_id)


def _memory(analysis: Any, state: Any, batch: Any) -> Memory:
    total = analysis.peak_memory_in_bytes
    parameters, inputs = shard_bytes(state.params), shard_bytes(batch)
    optimizer = shard_bytes(state) - parameters
    return Memory(parameters, optimizer, inputs, total - parameters - optimizer - inputs, total)


def _beyond(memory: Memory, chip: Chip) -> Shortage | None:
    """The compiler refuses a step for its temporaries alone: arguments and temporaries may still be too much."""
    available = int(chip.hbm * 2**30)
    if memory.total <= available:
        return None
    told = f"the step needs {memory.total / 2**30:.2f} GiB of HBM with its arguments; {chip.name} has {chip.hbm} GiB"
    return Shortage("HBM", memory.total, available, told)


def shard_bytes(tree: Any) -> int:
    """Bytes of one device's shards of abstract arrays, without those that the host's memory keeps."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.sharding.memory_kind != "pinned_host"]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _known(message: str, plan: ShardingPlan, chip: Chip) -> str:
    """The message, unless the compiler does not know one of the plan's options, which is a ValueError."""
    if option := re.search(r"No such compile option: '(\S+)'", message):
        place = f"plan {plan.name!r}: compiler.{chip.name}"
        raise ValueError(f"{place} has {option[1]!r}, which this libtpu does not know; leave it out, or give it null")
    return message


def _shortage(message: str) -> Shortage:
    """What a compiler's error says of memory.

    Raises:
        ValueError: it says something else.
    """
    words = " ".join(message.split())
    kind = "VMEM" if re.search("vmem", words, re.IGNORECASE) else "HBM"
    if "RESOURCE_EXHAUSTED" not in words and "Ran out of memory" not in words:
        raise ValueError(f"the compiler refuses the step: {words[:600]}")
    wanted = re.search(rf"(?:Used|requires?d?[^.]*?\(|[Ss]ize:?|with size|allocation of) ?{AMOUNT}", words)
    room = re.search(rf"(?:of|available HBM \(|[Ll]imit(?: of)?:?|exceed\w* .{{0,40}}?limit \() ?{AMOUNT}", words)
    return Shortage(kind, _bytes(wanted), _bytes(room), words[:600])


def _bytes(found: re.Match[str] | None) -> int | None:
    return None if found is None else int(float(found[1]) * UNITS[found[2]])


@contextmanager
def _stderr(lines: list[str]) -> Iterator[None]:
    """Collects what is written to the process's standard error meanwhile: the compiler writes from C++."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines.extend(file.read().decode(errors="replace").splitlines())


def _complaints(lines: list[str]) -> tuple[str, ...]:
    found = (COMPLAINT.match(line) for line in lines)
    return tuple(dict.fromkeys(match[2].strip() for match in found if match))
