"""The jitted programs of generation."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ivl3_jax.inference.sampling import Sampling, choose
from ivl3_jax.models.internvl import InternVL


class Programs:
    """Prefill and one step against a cache, of a model whose decoder layers lie apart; parameters are an argument."""

    def __init__(self, graphdef: nnx.GraphDef) -> None:
        self._graphdef = graphdef
        self.visual = jax.jit(self._encode_tiles)
        self.start = jax.jit(self._prefill, static_argnames=("capacity", "sampling"))
        self.next = jax.jit(self._step, static_argnames="sampling", donate_argnames="cache")

    def _module(self, params: Any) -> InternVL:
        return nnx.merge(self._graphdef, params)

    def _encode_tiles(self, params: Any, tiles: jax.Array) -> jax.Array:
        return self._module(params).visual_tokens(tiles[None])[0]

    def _prefill(
        self,
        params: Any,
        tokens: jax.Array,
        visual_index: jax.Array,
        visual: jax.Array,
        positions: jax.Array,
        lengths: jax.Array,
        key: jax.Array,
        *,
        capacity: int,
        sampling: Sampling,
    ) -> tuple[jax.Array, Any]:
        module = self._module(params)
        place = jnp.arange(tokens.shape[1])
        x = module.merge(module.decoder.embed(tokens, module.dtype), visual, visual_index)
        segment_ids = (place < lengths[:, None]).astype(jnp.int32)
        x, cache = module.decoder.prefill(x, positions, segment_ids, capacity)
        last = x[jnp.arange(x.shape[0]), lengths - 1][:, None]
        return self._token(module, last, key, 0, sampling), cache

    def _step(
        self,
        params: Any,
        token: jax.Array,
        cache: Any,
        positions: jax.Array,
        lengths: jax.Array,
        key: jax.Array,
        number: int,
        *,
        sampling: Sampling,
    ) -> tuple[jax.Array, Any]:
        module = self._module(params)
        x = module.decoder.embed(token[:, None], module.dtype)
        x, cache = module.decoder.step(x, positions[:, None], cache, lengths)
        return self._token(module, x, key, number, sampling), cache

    def _token(self, module: InternVL, x: jax.Array, key: jax.Array, number: int, sampling: Sampling) -> jax.Array:
        logits = module.decoder.logits(module.decoder.norm(x))[:, 0]
        return choose(logits, sampling, jax.random.fold_in(key, number))


@functools.lru_cache(maxsize=8)
def programs_of(graphdef: nnx.GraphDef) -> Programs:
    """Those of a graph, the same each time: a model that is asked now and then while it is trained compiles once."""
    return Programs(graphdef)
