"""The method of `schedule` on kernels whose work is known: read before every table of kernels."""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ivl3_jax.bench.schedule import Kernel, cycles_of
from ivl3_jax.kernels.tpu_chips import CHIPS

# ms, 4096^3 on a v5e, in JAX's guide to matrix products in Pallas. Small blocks show what the method leaves out.
MEASURED = {(128, 128, 128): 11.8, (512, 1024, 1024): 0.889}


def matmul(m: int, k: int, n: int):
    """A product [4096, 4096] x [4096, 4096] in bf16 by blocks, accumulated in f32 over the last axis of the grid."""

    def kernel(x, y, out, total):
        @pl.when(pl.program_id(2) == 0)
        def _():
            total[...] = jnp.zeros_like(total)

        total[...] += jnp.dot(x[...], y[...], preferred_element_type=jnp.float32)

        @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
        def _():
            out[...] = total[...].astype(out.dtype)

    run = pl.pallas_call(
        kernel,
        grid=(4096 // m, 4096 // n, 4096 // k),
        in_specs=[pl.BlockSpec((m, k), lambda i, j, c: (i, c)), pl.BlockSpec((k, n), lambda i, j, c: (c, j))],
        out_specs=pl.BlockSpec((m, n), lambda i, j, c: (i, j)),
        out_shape=jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16),
        scratch_shapes=[pltpu.VMEM((m, n), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=64 << 20
        ),
        name="matmul",
    )
    return run, [jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)] * 2


def looped(trips: int):
    """exp2(x_i) y for `trips` row blocks i of 128 in an inner loop; x [12, trips * 128, 256], y [256, 256]."""

    def kernel(x, y, out):
        def block(i, _):
            rows = pl.ds(pl.multiple_of(i * 128, 128), 128)
            left = jnp.exp2(x[0, rows, :]).astype(jnp.bfloat16)
            out[0, rows, :] = jnp.dot(left, y[...], preferred_element_type=jnp.float32)

        jax.lax.fori_loop(0, trips, block, None)

    shape = (12, trips * 128, 256)
    block = pl.BlockSpec((1, *shape[1:]), lambda i: (i, 0, 0))
    run = pl.pallas_call(
        kernel,
        grid=(12,),
        in_specs=[block, pl.BlockSpec((256, 256), lambda i: (0, 0))],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        name="looped",
    )
    return run, [jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((256, 256), jnp.bfloat16)]


@dataclass(frozen=True)
class Known:
    """A kernel whose products and exponentials were counted right; `measured`: ms on a chip, where that is known."""

    what: str
    kernel: Kernel
    measured: float | None = None


def check(chips: list[str]) -> Iterator[Known]:
    """Reads kernels of known work.

    Raises:
        AssertionError: what is counted is not the work that is known.
    """
    for chip in chips:
        blocks = {(512, 512, 512), (1024, 512, 1024), (512, 1024, 1024)} | (MEASURED.keys() if chip == "v5e" else set())
        for m, k, n in sorted(blocks):
            # Zeroing and writing out happen once for each block of the result.
            guards = {"matmul": {0: k / 4096, 1: k / 4096}} if k > 128 else {}
            (kernel,) = cycles_of(matmul, m, k, n, chip=chip, guards=guards)
            measured = MEASURED.get((m, k, n)) if chip == "v5e" else None
            yield _checked(Known(f"4096³ by {m}, {k}, {n}", kernel, measured), 4096.0**3, 0)
        (kernel,) = cycles_of(looped, 8, chip=chip)
        yield _checked(Known("exp2 and product in a loop of 8", kernel), 12 * 1024 * 256.0**2, 12 * 1024 * 256.0)


def _checked(known: Known, products: float, exps: float) -> Known:
    kernel, cores = known.kernel, CHIPS[known.kernel.chip].cores
    pushed = sum(region.slots["EUP"] * region.runs for region in kernel.program.regions) * cores * 1024
    for name, counted, there in (("products", kernel.products * cores, products), ("exponentials", pushed, exps)):
        if counted != there:
            raise AssertionError(f"{known.what} on {kernel.chip}: {counted:.0f} {name} counted, not {there:.0f}")
    return known
