"""The answer to a case: whether it compiles and fits, and what the schedule says of its time.

No TPU takes part: every figure follows from the text of the compiled module and from `calibration`.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ivl3_jax.config import InternVLConfig
from ivl3_jax.lab.calibration import Calibration
from ivl3_jax.lab.case import Case
from ivl3_jax.lab.compile import Compiled, compile_step
from ivl3_jax.lab.hlo import Module
from ivl3_jax.lab.kernel_time import kernel_seconds
from ivl3_jax.lab.saved import saved_bytes
from ivl3_jax.lab.timeline import Timeline, walk
from ivl3_jax.models.model import Params, abstract_model
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.training.config import TrainConfig
from ivl3_jax.training.flops import StepFlops

MEMORY = ("parameters", "optimizer", "batch", "activations", "temporaries")


@dataclass(frozen=True)
class Prediction:
    """What is found of a case.

    Attributes:
        case: it. compiled: what the compiler made of it. timeline: its schedule, None where it ran out of memory.
        operations: floating-point, that the step needs on each chip: products only, forward and backward, nothing that
            is computed twice, attention between positions that see each other (`training.flops`).
        calibration: by which the schedule was timed.
        saved: bytes of a chip that hold activations between the forward and the backward pass, see `lab.saved`.
    """

    case: Case
    compiled: Compiled
    timeline: Timeline | None
    operations: float
    calibration: Calibration = field(default_factory=Calibration)
    saved: int = 0

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of a chip by `MEMORY`, which add up to the step at its fullest; {} where the compiler gave up.

        `activations` are those kept for the backward pass, as if they were all there when the step is at its fullest,
        which the compiler does not say; `temporaries` everything else that is made in the step: weights that are
        gathered, gradients, what a layer works on.
        """
        memory = self.compiled.memory
        if memory is None:
            return {}
        activations = max(0, min(self.saved, memory.temporaries))
        rest = memory.temporaries - activations
        sizes = memory.parameters, memory.optimizer, memory.batch, activations, rest
        return dict(zip(MEMORY, sizes, strict=True))

    @property
    def fits(self) -> bool:
        return self.compiled.shortage is None

    @property
    def seconds(self) -> float | None:
        """Of a step."""
        return None if self.timeline is None else self.timeline.seconds

    @property
    def utilisation(self) -> float | None:
        """Model FLOPs utilisation: `operations` a second over the chip's bf16 peak."""
        peak = self.case.topology.chip.teraflops * 1e12
        return None if self.seconds is None else self.operations / self.seconds / peak

    @property
    def rate(self) -> float | None:
        """Tokens a second and chip, visual ones included."""
        return None if self.seconds is None else self.case.tokens / self.seconds / self.case.topology.chips


def predict(case: Case, compiled: Compiled, calibration: Calibration | None = None) -> Prediction:
    """Walks the schedule of a case that was compiled.

    Raises:
        ValueError: the plan does not fit the slice.
    """
    calibration = calibration or Calibration()
    placed = case.topology.make_mesh(case.plan)
    timeline, saved = None, 0
    if compiled.text:
        module = Module.read(compiled.text)
        kernels = kernel_seconds(case.topology.chip.name, case.documents, calibration)
        timeline, saved = walk(module, placed, kernels, calibration), saved_bytes(module)
    return Prediction(case, compiled, timeline, operations(case) / case.topology.chips, calibration, saved)


def compile_case(case: Case) -> Compiled:
    """Compiles a case; takes a minute or so.

    Raises:
        ValueError: the plan does not fit the model, the slice or the batch.
    """
    placed = case.topology.make_mesh(case.plan)
    return compile_step(
        case.config, case.plan, placed, case.batch, case.train, param_dtype=case.param_dtype, dtype=case.dtype
    )


def operations(case: Case) -> float:
    """Operations that a step needs on all chips together, see `training.flops.StepFlops`.

    Every position that is no visual token is taken to be trained on.
    """
    rows, tokens, tiles = case.batch.rows, case.batch.tokens, case.batch.tiles
    document = tokens / case.documents
    return _step_flops(case.config, case.train)(
        positions=rows * tokens,
        tokens=rows * max(0, tokens - tiles * case.config.tile_tokens),
        attended=rows * case.documents * document * (document + 1) / 2,
        tiles=rows * tiles,
    )


@cache
def _shapes(config: InternVLConfig) -> Params:
    alone = ShardingPlan()
    return abstract_model(config, alone, alone.make_mesh())[1]


def _step_flops(config: InternVLConfig, train: TrainConfig) -> StepFlops:
    return StepFlops(config, _shapes(config), train.components)


def summary(prediction: Prediction) -> dict[str, Any]:
    """The answer in JSON's types, one row of a table."""
    case, compiled, timeline = prediction.case, prediction.compiled, prediction.timeline
    memory = compiled.memory
    return {
        "model": case.model,
        "plan": case.plan.name,
        "mesh": case.mesh,
        "topology": case.topology.name,
        "chips": case.topology.chips,
        "rows": case.batch.rows,
        "tokens": case.batch.tokens,
        "tiles": case.batch.tiles,
        "fits": prediction.fits,
        "gibibytes": None if memory is None else round(memory.total / 2**30, 2),
        "hbm_gibibytes": case.topology.chip.hbm,
        "step_seconds": prediction.seconds,
        "mfu": prediction.utilisation,
        "tokens_per_second_per_chip": prediction.rate,
        "teraflops_per_chip": prediction.operations / 1e12,
        "parts": {} if timeline is None else timeline.parts,
        "busy": {} if timeline is None else timeline.busy,
        "shortage": None if compiled.shortage is None else compiled.shortage.message,
        "compile_seconds": round(compiled.trace_seconds + compiled.compile_seconds, 1),
    }
