"""Rotary position embeddings (Su et al. 2021) at float positions, as V2PE (arXiv 2412.09616) needs them."""

import jax
import jax.numpy as jnp
import numpy as np

from ivl3_jax.layers.parameter import accumulation_dtype

Rope = tuple[jax.Array, jax.Array]


def inverse_frequencies(head_dim: int, theta: float, dtype: jnp.dtype) -> np.ndarray:
    """theta^(-2i / head_dim) for i < head_dim / 2, rounded step by step in `dtype` as PyTorch does."""
    exponents = np.arange(0, head_dim, 2).astype(dtype) / np.asarray(head_dim, dtype)
    return (1.0 / np.asarray(theta, dtype) ** exponents).astype(dtype)


def rope_table(positions: jax.Array, head_dim: int, theta: float, dtype: jnp.dtype) -> Rope:
    """Cosines and sines of the rotation angles.

    Args:
        positions: [B, S], any real numbers. Never rounded to less than float32: bf16 holds integers to 256 only.
        dtype: of the activations that will be rotated.

    Returns:
        (cos, sin), each [B, S, head_dim / 2] in `dtype`.
    """
    accumulate = accumulation_dtype(dtype)
    angles = positions.astype(accumulate)[..., None] * inverse_frequencies(head_dim, theta, accumulate)
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def apply_rope(x: jax.Array, rope: Rope) -> jax.Array:
    """Rotates x [B, S, N, H]; the pairs are (i, i + H/2), the half-rotation of Qwen, Llama and InternLM."""
    cos, sin = (table[:, :, None, :] for table in rope)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
