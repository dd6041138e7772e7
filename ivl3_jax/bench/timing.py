"""Kernels by the clock, on the device at hand: what the seams choose there, beside others that can do the same."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from ivl3_jax.bench import peers
from ivl3_jax.bench.problems import Attention, Decoding, Loss

ROUNDS = 5
SECONDS = 0.2  # that a round takes at least
PRODUCT = {"cpu": 2048}  # rows of the matrix product that gives the ceiling; elsewhere 8,192


@dataclass(frozen=True)
class Timing:
    """One pass of one implementation on the device at hand.

    Attributes:
        problem, title, part: what was timed. implementation: what did it, a name in `peers.PEERS`; of "ours", in
            brackets, what the seam chose.
        milliseconds: the median of some rounds; None where it cannot do this, as `why` says.
        teraflops: a second, of what has to be computed. ceiling: the part that is of a large matrix product's rate.
        error: of the result, or of the worst gradient, from the oracle in float32, as root mean squares, on a smaller
            problem of the same kind.
    """

    problem: str
    title: str
    part: str
    implementation: str
    milliseconds: float | None = None
    teraflops: float | None = None
    ceiling: float | None = None
    error: float | None = None
    why: str = ""


def measure(
    problem: Attention | Loss | Decoding, against: Sequence[str] = (), say: Callable[[str], None] = lambda text: None
) -> Iterator[Timing]:
    """Times a problem in bfloat16; on a CPU a smaller one in float32.

    Args:
        against: names in `peers.PEERS`. say: told what is being timed.
    """
    on_cpu = jax.default_backend() == "cpu"
    dtype = jnp.float32 if on_cpu else jnp.bfloat16
    problem = problem.on_a_cpu() if on_cpu else problem
    most = _ceiling(dtype)
    mesh = jax.make_mesh((1,), ("device",), (AxisType.Auto,), devices=jax.devices()[:1])
    for part, backward in (("forward", False), ("both", True)):
        if backward and isinstance(problem, Decoding):
            return
        for name in ("ours", *against):
            say(f"{problem.title}, {part}: {name}")
            named = problem.name, problem.title, part, name
            try:
                with jax.set_mesh(mesh):
                    took = _seconds(*_program(problem, name, dtype, backward))
                    far = error(problem.for_errors(), name, dtype, backward)
            except (ValueError, NotImplementedError, RuntimeError, ImportError) as refusal:
                if name == "ours":
                    raise
                yield Timing(*named, why=(str(refusal).strip() or type(refusal).__name__).splitlines()[0][:200])
                continue
            rate = problem.flops(backward) / took
            if name == "ours":
                named = (*named[:3], f"ours ({peers.choice(problem, dtype, mesh)})")
            yield Timing(*named, took * 1e3, rate / 1e12, rate / most, far)


def _program(problem, name: str, dtype, backward: bool) -> tuple[Callable, tuple[Any, ...]]:
    """A compiled pass of an implementation, and what to call it with."""
    run, operands = peers.PEERS[name](problem), peers.operands(problem, name, dtype)
    if not backward:
        return jax.jit(run), operands

    def both(d_out, *operands):
        out, pull = jax.vjp(run, *operands)
        return out, pull(d_out)

    out = jax.eval_shape(run, *operands)
    d_out = jnp.asarray(np.random.default_rng(1).standard_normal(out.shape), out.dtype)
    return jax.jit(both), (d_out, *operands)


def error(problem: peers.Problem, name: str, dtype, backward: bool) -> float:
    """Of an implementation, from the oracle in float32, as `Timing.error`; a mesh has to be set."""
    run, operands = _program(problem, name, dtype, backward)
    reference, same = _program(problem, "oracle", dtype, backward)
    with jax.default_matmul_precision("highest"):
        exact = jax.tree.leaves(reference(*(x.astype(jnp.float32) for x in same)))
    found = jax.tree.leaves(run(*operands))
    return max(_distance(one, other) for one, other in zip(found, exact, strict=True))


def _distance(found: jax.Array, exact: jax.Array) -> float:
    found, exact = (np.asarray(x, np.float64) for x in (found, exact))
    return float(np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)))


def _ceiling(dtype) -> float:
    """Operations a second of a large matrix product on the device at hand."""
    n = PRODUCT.get(jax.default_backend(), 8192)
    x = jnp.ones((n, n), dtype)
    return 2 * n**3 / _seconds(jax.jit(lambda x, y: x @ y), (x, x))


def _seconds(run: Callable[..., Any], operands: tuple[Any, ...]) -> float:
    """Of a call: the median of some rounds of as many calls as fill a fifth of a second."""

    def of(calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            result = run(*operands)
        jax.block_until_ready(result)
        return (time.perf_counter() - began) / calls

    jax.block_until_ready(run(*operands))
    calls = max(1, round(SECONDS / of(1)))
    return statistics.median(of(calls) for _ in range(ROUNDS))
