"""What kernels are measured on: the shapes of InternVL3."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Attention:
    """B rows of S positions, N query heads of H elements over K kv heads.

    `segments` are lengths of a packed row, in which attention is causal; without any it is bidirectional. What padding
    behind them sees differs between implementations, and with it their errors.
    """

    name: str
    B: int
    S: int
    N: int
    K: int
    H: int
    segments: tuple[int, ...] = ()

    @property
    def causal(self) -> bool:
        return bool(self.segments)

    @property
    def title(self) -> str:
        heads = f"{self.N}/{self.K}" if self.K < self.N else str(self.N)
        how = f", {len(self.segments)} segment{'s' * (len(self.segments) > 1)}" if self.causal else ""
        return f"attention {self.B} x {self.S:,}, {heads} heads of {self.H}{how}"

    @property
    def ids(self) -> np.ndarray | None:
        """int32 [B, S], 0 behind the last segment; None where there is one segment of everything."""
        if not self.causal:
            return None
        row = np.repeat(np.arange(1, len(self.segments) + 1, dtype=np.int32), self.segments)
        return np.tile(np.pad(row, (0, self.S - len(row))), (self.B, 1))

    def flops(self, backward: bool) -> float:
        """Of what has to be computed: 4 per element, query and key that it sees, and 2.5 times that backward.

        Source: Dao 2023 (FlashAttention-2), section 4.1.
        """
        pairs = sum(n * (n + 1) / 2 for n in self.segments) if self.causal else self.S**2
        return 4.0 * self.B * self.N * self.H * pairs * (3.5 if backward else 1)

    def operands(self, dtype) -> tuple[jax.Array, ...]:
        """q [B, S, N, H], and k and v [B, S, K, H], normal."""
        return _normal(dtype, *((self.B, self.S, heads, self.H) for heads in (self.N, self.K, self.K)))

    def on_a_cpu(self) -> "Attention":
        """What a CPU does in about a second."""
        return self._with_positions(4096) if self.causal else replace(self, B=min(self.B, 2))

    def for_errors(self) -> "Attention":
        """What the oracle, which holds all scores, does anywhere: one row and two kv heads."""
        K = min(2, self.K)
        return replace(self, B=1, K=K, N=self.N // self.K * K)._with_positions(1025)

    def _with_positions(self, most: int) -> "Attention":
        if most >= self.S:
            return self
        # Ends that grow in proportion leave no padding, which implementations treat unlike.
        ends = [end * most // self.S for end in np.cumsum((0, *self.segments))]
        return replace(self, S=most, segments=tuple(int(n) for n in np.diff(ends) if n))


@dataclass(frozen=True)
class Loss:
    """Cross-entropy of T positions of D elements against V words."""

    name: str
    T: int
    D: int
    V: int = 151674

    @property
    def title(self) -> str:
        return f"cross-entropy {self.T:,} x {self.D:,} x {self.V:,}"

    def flops(self, backward: bool) -> float:
        """Of the product that gives logits, and the two that give gradients."""
        return 2.0 * self.T * self.D * self.V * (3 if backward else 1)

    def operands(self, dtype) -> tuple[jax.Array, ...]:
        """x [T, D] and w [D, V], so that logits are of the size of 1."""
        x, w = _normal(dtype, (self.T, self.D), (self.D, self.V))
        return x, w * jnp.asarray(self.D**-0.5, dtype)

    def targets(self) -> tuple[jax.Array, jax.Array]:
        """Labels int32 [T], spread evenly, and weights float32 [T], all 1."""
        return jnp.asarray(np.linspace(0, self.V - 1, self.T).astype(np.int32)), jnp.ones(self.T)

    def on_a_cpu(self) -> "Loss":
        return replace(self, T=min(self.T, 256))

    def for_errors(self) -> "Loss":
        return replace(self, T=min(self.T, 256), V=min(self.V, 8192))


@dataclass(frozen=True)
class Decoding:
    """One query of each of B rows against a cache of S positions of K kv heads of H elements."""

    name: str
    B: int
    S: int
    N: int
    K: int
    H: int

    @property
    def title(self) -> str:
        return f"{self.B} rows of {self.S:,} positions in the cache, {self.N}/{self.K} heads of {self.H}"

    @property
    def bytes(self) -> float:
        """Of the cache in bfloat16, which has to be read."""
        return 2.0 * 2 * self.B * self.S * self.K * self.H

    def flops(self, backward: bool) -> float:
        return 4.0 * self.B * self.S * self.N * self.H

    def operands(self, dtype) -> tuple[jax.Array, ...]:
        """q [B, 1, N, H], and k and v [B, S, K, H], normal."""
        (B, S, N, K, H) = self.B, self.S, self.N, self.K, self.H
        return _normal(dtype, (B, 1, N, H), (B, S, K, H), (B, S, K, H))

    def on_a_cpu(self) -> "Decoding":
        return self

    def for_errors(self) -> "Decoding":
        return replace(self, B=2, S=1024)


def _normal(dtype, *shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for shape in shapes)


# The first row of 20 segments that the packer makes of 2,000 samples of text, images and videos
# (benchmarks/packing_speed.py, seed 0, a look-ahead of 20).
PACKED = (
    *(2364, 1482, 1349, 2389, 285, 421, 2414, 240, 248, 288),
    *(259, 303, 234, 101, 183, 2603, 241, 262, 518, 200),
)

PROBLEMS: dict[str, Attention | Loss | Decoding] = {
    problem.name: problem
    for problem in (
        Attention("vit-6b", 13, 1025, 25, 25, 128),
        Attention("vit-300m", 13, 1025, 16, 16, 64),
        Attention("packed", 1, 16384, 28, 4, 128, PACKED),
        Attention("causal", 1, 16384, 28, 4, 128, (16384,)),
        Loss("loss-1b", 16384, 896),
        Loss("loss-2b", 16384, 1536),
        Loss("loss-8b", 16384, 3584),
        Decoding("decoding", 8, 16384, 28, 4, 128),
    )
}
