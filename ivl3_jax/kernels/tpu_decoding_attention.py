"""Attention of a few new queries against a paged cache, for TPUs: each row reads the pages that it has, once.

Decoding is bound by reading the cache. The pages of the next block, or of the next row's first, are on their way to
VMEM while those at hand are computed with; the softmax is online, in float32.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ivl3_jax.kernels.chip import chip

MASKED = -1e30  # finite, so that masked scores never meet in inf - inf
LANES = 128
PAGE = 16  # positions, of which a page has a multiple: whole registers in bfloat16
BLOCK = 1024  # positions read at once; two of them, of 8 heads of 128 keys and values, take 8 MiB of VMEM
VMEM = 32 << 20  # bytes
CORES = {"v5p": 2}  # that share the rows of one device


def paged_attention(
    q: jax.Array, keys: jax.Array, values: jax.Array, table: jax.Array, lengths: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """`oracle.paged_attention`: softmax attention of each row's last S positions to all of its positions before.

    Args:
        q: [B, S, N, H], the queries at positions lengths - S .. lengths - 1 of each row.
        keys, values: [pages, page_size, K·H], with K dividing N, in q's dtype, bfloat16 or float32. The heads of a
            position lie side by side, since a TPU would fill up a last dimension of 64 to 128. Query head n reads kv
            head n // (N // K). A page may be in several rows.
        table: int32 [B, pages of the longest row]; position p of row b lies in page table[b, p // page_size], at
            p % page_size. What is past a row's last page is not looked at.
        lengths: int32 [B], how many positions of each row are filled, those of q included. What lies past it in a page
            is read but counts for nothing. A row of length 0 reads nothing and gives zeros.
        interpret: run the kernel on any platform, slowly.

    Returns:
        [B, S, N, H] in q's dtype; zeros for a query whose position is below 0.

    Raises:
        ValueError: dtypes that differ, a page size that is no multiple of 16, K·H that is no multiple of 128, or heads
            of a size that neither divides 128 nor is a multiple of it.
    """
    B, S, N, H = q.shape
    page, width = keys.shape[1:]
    K = width // H
    _check(q, keys, values, K)
    together = max(1, LANES // H)  # kv heads that share one product
    products, G = K // together, N // K
    rows = together * G * S
    # [B, products, heads together, G, S, H], then each head's queries in that head's lanes, zeros in the others'.
    grouped = q.reshape(B, S, products, together, G, H).transpose(0, 2, 3, 4, 1, 5)
    apart = jnp.eye(together, dtype=q.dtype)
    grouped = jnp.einsum("bphgsd,hl->bphgsld", grouped, apart).reshape(B, products, rows, together * H)

    pages = max(1, min(BLOCK // page, table.shape[1]))
    cores = min(CORES.get(chip() or "", 1), B)
    each = -(-B // cores)

    def row(core, n, *_):
        return jnp.minimum(core * each + n, B - 1), 0, 0, 0

    block = pl.BlockSpec((None, products, rows, together * H), row)
    running = pltpu.VMEM((products, rows, 1), jnp.float32)
    y = pl.pallas_call(
        partial(_kernel, B, S, page, pages, H**-0.5),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(cores, each),
            in_specs=[block, pl.BlockSpec(memory_space=pl.ANY), pl.BlockSpec(memory_space=pl.ANY)],
            out_specs=block,
            scratch_shapes=[
                pltpu.VMEM((2, pages * page, width), keys.dtype),
                pltpu.VMEM((2, pages * page, width), values.dtype),
                pltpu.SemaphoreType.DMA((2, 2)),
                pltpu.SMEM((1,), jnp.int32),
                running,
                running,
                pltpu.VMEM((products, rows, together * H), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(grouped.shape, q.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM),
        interpret=interpret,
        name="paged_attention",
    )(table.reshape(-1), lengths, grouped, keys, values)
    y = y.reshape(B, products, together, G, S, together, H)
    y = jnp.einsum("bphgsld,hl->bsphgd", y, apart)
    return y.reshape(B, S, N, H)


def supports(K: int, H: int, dtype: jnp.dtype) -> bool:
    """Whether `paged_attention` takes K kv heads of H elements in this dtype."""
    return K * H % LANES == 0 and (LANES % H == 0 or H % LANES == 0) and dtype in (jnp.bfloat16, jnp.float32)


def _check(q: jax.Array, keys: jax.Array, values: jax.Array, K: int) -> None:
    H, (page, width) = q.shape[3], keys.shape[1:]
    if not q.dtype == keys.dtype == values.dtype or q.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(
            f"paged_attention: q is {q.dtype}, keys {keys.dtype}, values {values.dtype}; "
            "all must be bfloat16 or all float32"
        )
    if page % PAGE:
        raise ValueError(
            f"paged_attention: page size {page}; it must be a multiple of {PAGE}, such as {-(-page // PAGE) * PAGE}"
        )
    if width % H or q.shape[2] % K:
        raise ValueError(f"paged_attention: {width} elements a position do not fit {q.shape[2]} heads of {H}")
    if not supports(K, H, q.dtype):
        nearest = math.lcm(H, LANES)
        raise ValueError(
            f"paged_attention: {K} kv heads of {H} take {width} elements a position; they must be a multiple of "
            f"{nearest}, and {H} must divide {LANES} or be a multiple of it"
        )


def _kernel(
    B, S, page, pages, scale, table, lengths, q, keys, values, y, k_room, v_room, arrived, turn, top, total, sums
):
    """One row. `turn` holds which of the two rooms its first block goes to, or is already on its way to."""
    core, n = pl.program_id(0), pl.program_id(1)
    row, last_row = core * pl.num_programs(1) + n, jnp.minimum((core + 1) * pl.num_programs(1), B) - 1
    width, positions = table.shape[0] // B, pages * page

    def blocks(row):
        return pl.cdiv(lengths[row], positions)

    def for_pages(row, block, room, do):
        """Does something to the copy of each page that the row has in this block."""

        def one(m, _):
            number = table[row * width + block * pages + m]
            here = pl.ds(pl.multiple_of(m * page, page), page)
            do(pltpu.make_async_copy(keys.at[number], k_room.at[room, here], arrived.at[room, 0]))
            do(pltpu.make_async_copy(values.at[number], v_room.at[room, here], arrived.at[room, 1]))

        lax.fori_loop(0, jnp.clip(pl.cdiv(lengths[row], page) - block * pages, 0, pages), one, None)

    def fetch(row, block, room):
        for_pages(row, block, room, lambda copy: copy.start())

    @pl.when(n == 0)
    def _():
        turn[0] = 0
        fetch(row, 0, 0)

    @pl.when(row <= last_row)
    def _():
        top[...] = jnp.full_like(top, MASKED)
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)
        length, count, first_room = lengths[row], blocks(row), turn[0]
        # An empty row has no block during which the next row's first could be fetched.
        pl.when((count == 0) & (row < last_row))(lambda: fetch(jnp.minimum(row + 1, last_row), 0, first_room))

        def block(j, _):
            room = (first_room + j) % 2
            pl.when(j + 1 < count)(lambda: fetch(row, j + 1, 1 - room))
            pl.when((j + 1 == count) & (row < last_row))(lambda: fetch(jnp.minimum(row + 1, last_row), 0, 1 - room))
            for_pages(row, j, room, lambda copy: copy.wait())
            k, v = k_room[room], v_room[room]
            # Past the row's end lies anything, NaN included, and 0 times that is no 0.
            filled = length - j * positions
            v = jnp.where(lax.broadcasted_iota(jnp.int32, (positions, 1), 0) < filled, v, 0)
            products, rows, lanes = q.shape
            place = lax.broadcasted_iota(jnp.int32, (rows, positions), 1)
            query = filled - S + lax.broadcasted_iota(jnp.int32, (rows, positions), 0) % S
            seen = place <= query
            for g in range(products):
                mine = slice(g * lanes, (g + 1) * lanes)
                scores = jnp.where(seen, _dot(q[g], k[:, mine], 1) * scale, MASKED)
                new_top = jnp.maximum(top[g], scores.max(1, keepdims=True))
                p = jnp.where(seen, jnp.exp(scores - new_top), 0)
                shrink = jnp.exp(top[g] - new_top)
                total[g] = total[g] * shrink + p.sum(1, keepdims=True)
                sums[g] = sums[g] * shrink + _dot(p.astype(v.dtype), v[:, mine], 0)
                top[g] = new_top

        lax.fori_loop(0, count, block, None)
        turn[0] = (first_room + count) % 2
        y[...] = jnp.where(total[...] > 0, sums[...] / total[...], 0).astype(y.dtype)


def _dot(a: jax.Array, b: jax.Array, contract: int) -> jax.Array:
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    numbers = (((1,), (contract,)), ((), ()))
    return lax.dot_general(a, b, numbers, precision=precision, preferred_element_type=jnp.float32)
