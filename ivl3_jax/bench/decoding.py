"""Attention of single queries against a paged cache by the schedule."""

import jax
import jax.numpy as jnp

from ivl3_jax.bench.problems import Decoding
from ivl3_jax.bench.schedule import Kernel, cycles_of
from ivl3_jax.kernels.tpu_decoding_attention import BLOCK, CORES, paged_attention

PAGE = 128


def our_program(problem: Decoding):
    """One query of each row, and the cache in pages."""
    B, S, N, K, H = problem.B, problem.S, problem.N, problem.K, problem.H
    pages = jax.ShapeDtypeStruct((B * S // PAGE, PAGE, K * H), jnp.bfloat16)
    table, lengths = jax.ShapeDtypeStruct((B, S // PAGE), jnp.int32), jax.ShapeDtypeStruct((B,), jnp.int32)
    return paged_attention, [jax.ShapeDtypeStruct((B, 1, N, H), jnp.bfloat16), pages, pages, table, lengths]


def ours(problem: Decoding, chip: str) -> tuple[list[Kernel], str]:
    """The kernel, with rows that are full."""
    rows = -(-problem.B // CORES.get(chip, 1))  # of a core
    pages, blocks = BLOCK // PAGE, problem.S // BLOCK
    # The loops over: the pages of a core's first block, those of a row behind an empty one, blocks, the pages of the
    # next block, those of the next row's first, and the copies that are waited for.
    trips = pages / rows, 0, blocks, pages * (blocks - 1) / blocks, pages * (rows - 1) / rows / blocks, pages
    kernels = cycles_of(
        our_program,
        problem,
        chip=chip,
        trips={"paged_attention": dict(enumerate(map(float, trips)))},
        traffic={"paged_attention": problem.bytes},
    )
    return kernels, f"{BLOCK} positions at once, pages of {PAGE}"
