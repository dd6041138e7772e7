"""How long the TPU kernels of this package take, by models that need no compiler: for who reads a compiled program.

A kernel's model stands in a file beside it and gives the work of one core: cycles of its vector and matrix units, and
the bytes that the device moves. Its constants are fitted to the compiler's schedule; `ivl3 bench kernels --chips` shows
both. As there, a call takes the longer of the two, and what the schedule leaves out is left out: DMA that comes late,
start-up, and XLA's own operations around the kernel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ivl3_jax.kernels import tpu_cross_entropy_cost, tpu_packed_attention_cost, tpu_vit_attention_cost
from ivl3_jax.kernels.tpu_chips import CHIPS
from ivl3_jax.kernels.tpu_work import Array, Call, Work

MODELS: dict[str, Callable[[Call], Work]] = {
    "packed_attention_forward": tpu_packed_attention_cost.forward,
    "packed_attention_backward": tpu_packed_attention_cost.backward,
    "vit_attention_forward": tpu_vit_attention_cost.forward,
    "vit_attention_backward": tpu_vit_attention_cost.backward,
    "cross_entropy_softmax": tpu_cross_entropy_cost.softmax,
    "cross_entropy_d_w": tpu_cross_entropy_cost.d_w,
}


@dataclass(frozen=True)
class Cost:
    """One call of a kernel on one device.

    Attributes:
        flops: of the products that it makes: 2 for each multiply-add of the blocks that it works on, masked ones and
            what is computed anew included, padding of heads and widths to a matrix unit's size not.
        bytes: moved between HBM and the device.
        cycles, seconds: at the chip's clock, the longer of computing and moving.
    """

    flops: float
    bytes: float
    cycles: float
    seconds: float


def cost(
    name: str, operands: Sequence[Array], results: Sequence[Array], chip: str, documents: int | None = None
) -> Cost | None:
    """What one call of a kernel takes on one device.

    Args:
        name: of the custom call, in which the kernel's own stands: JAX puts those of transformations around it, and
            XLA a number behind.
        operands, results: (dtype, shape) of each, in order, the dtype as HLO (bf16, s32) or NumPy (bfloat16, int32)
            writes it; what a device holds.
        chip: v5e, v5p or v6e.
        documents: of how many equal segments a packed row is made up; None is 1, one causal row, where there is most
            to do. Other kernels do not depend on it. A row that is sharded over its queries, or whose keys come in
            several calls, takes the mean of all.

    Returns:
        None where the kernel is not in `MODELS`.

    Raises:
        ValueError: an unknown chip, fewer than 1 document, or operands that are not those of the kernel, or not in
            bfloat16, for which alone the models hold.
    """
    if chip not in CHIPS:
        raise ValueError(f"chip {chip!r} is unknown; there are {', '.join(CHIPS)}")
    if documents is not None and documents < 1:
        raise ValueError(f"documents is {documents}; a row has at least 1")
    kernel = max((known for known in MODELS if known in name), key=len, default=None)
    if kernel is None:
        return None
    call = Call(kernel, tuple(operands), tuple(results), chip, documents or 1)
    work = MODELS[kernel](call)
    cycles = max(work.cycles, CHIPS[chip].reading(work.bytes))
    return Cost(work.flops, work.bytes, cycles, cycles / CHIPS[chip].ghz / 1e9)
