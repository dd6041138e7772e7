"""Rotary position embeddings (Su et al. 2021) at float positions, as V2PE (arXiv 2412.09616) needs them."""

import jax
import jax.numpy as jnp
import numpy as np

Rope = tuple[jax.Array, jax.Array]


def inverse_frequencies(head_dim: int, theta: float, dtype: jnp.dtype) -> np.ndarray:
    """theta^(-2i / head_dim) for i < head_dim / 2, rounded step by step in `dtype` as PyTorch does."""
    exponents = np.arange(0, head_dim, 2).astype(dtype) / np.asarray(head_dim, dtype)
    return (1.0 / np.asarray(theta, dtype) ** exponents).astype(dtype)


def dynamic_inverse_frequencies(
    length: jax.Array, head_dim: int, theta: float, factor: float, trained: int, dtype: jnp.dtype
) -> jax.Array:
    """`inverse_frequencies` stretched for rows beyond the trained length: dynamic NTK, a pure function of the length.

    theta grows by (factor · length / trained - (factor - 1))^(head_dim / (head_dim - 2)), as in transformers and in
    InternLM's own code; up to `trained` positions it stays.

    Args:
        length: [B], positions of each row.

    Returns:
        [B, head_dim / 2] in `dtype`.
    """
    plain = inverse_frequencies(head_dim, theta, dtype)
    beyond = jnp.maximum(length, trained).astype(dtype)  # no power of a negative number, not even where it is not used
    stretch = (factor * beyond / trained - (factor - 1)) ** (head_dim / (head_dim - 2))
    exponents = np.arange(0, head_dim, 2).astype(dtype) / np.asarray(head_dim, dtype)
    stretched = 1 / (theta * stretch[:, None]) ** exponents
    return jnp.where(length[:, None] > trained, stretched, plain)


def rope_table(positions: jax.Array, inverse_frequencies: np.ndarray | jax.Array, dtype: jnp.dtype) -> Rope:
    """Cosines and sines of the rotation angles.

    Args:
        positions: [B, S], any real numbers. Never rounded to less than float32: bf16 holds integers to 256 only.
        inverse_frequencies: [head_dim / 2], or [B, head_dim / 2].
        dtype: of the activations that will be rotated.

    Returns:
        (cos, sin), each [B, S, head_dim / 2] in `dtype`.
    """
    positions = positions.astype(inverse_frequencies.dtype)[..., None]
    angles = positions * (inverse_frequencies if inverse_frequencies.ndim == 1 else inverse_frequencies[:, None])
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def apply_rope(x: jax.Array, rope: Rope) -> jax.Array:
    """Rotates x [B, S, N, H]; the pairs are (i, i + H/2), the half-rotation of Qwen, Llama and InternLM."""
    cos, sin = (jnp.concatenate([table, table], axis=-1)[:, :, None] for table in rope)
    turned = jnp.einsum("bsnh,hk->bsnk", x, quarter_turn(x.shape[-1]).astype(x.dtype), precision="highest")
    return x * cos + turned * sin


def quarter_turn(head_dim: int) -> np.ndarray:
    """[H, H]: (first, second) times it is (-second, first), exactly, as every sum has one term that is not 0.

    A product, since a TPU makes it beside the projection before it, while halves of heads that are cut apart and joined
    are moved between layouts.
    """
    half = np.eye(head_dim // 2)
    return np.block([[np.zeros_like(half), half], [-half, np.zeros_like(half)]])
