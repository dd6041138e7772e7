"""Attention of single queries against a paged cache by the schedule."""

import jax
import jax.numpy as jnp

from ivl3_jax.kernels.tpu_decoding_attention import BLOCK, CORES, paged_attention
from ivl3_jax.lab.kernels.problems import Decoding
from ivl3_jax.lab.kernels.schedule import Kernel, cycles_of

PAGE = 128


def our_program(problem: Decoding):
    B, S, N, K, H = problem.B, problem.S, problem.N, problem.K, problem.H
    pages = jax.ShapeDtypeStruct((B * S // PAGE, PAGE, K * H), jnp.bfloat16)
    table, lengths = jax.ShapeDtypeStruct((B, S // PAGE), jnp.int32), jax.ShapeDtypeStruct((B,), jnp.int32)
    return paged_attention, [jax.ShapeDtypeStruct((B, 1, N, H), jnp.bfloat16), pages, pages, table, lengths]


def ours(problem: Decoding, chip: str) -> tuple[list[Kernel], str]:
    """The kernel, with rows that are full."""
    rows = -(-problem.B // CORES.get(chip, 1))
    del rows
    kernels = cycles_of(our_program, problem, chip=chip, traffic={"paged_attention": problem.bytes})
    return kernels, f"{BLOCK} positions at once, pages of {PAGE}"
