"""The jitted programs of generation; each compiles once for every shape of its operands."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec

from ivl3_jax.inference.sampling import Alternatives, Draws, Seen, alternatives, choose
from ivl3_jax.kernels.decoding import AnyCache, Places
from ivl3_jax.models.internvl import InternVL
from ivl3_jax.sharding.local import on_shards

Caches = list[AnyCache]


class Piece(NamedTuple):
    """The next positions of B prompts, S of each, filled up at their ends.

    Attributes:
        tokens: int32 [B, S]. positions: float32 [B, S].
        visual: int32 [B, S], the row of the table of visual tokens that a position takes, or -1.
        places: where they go.
        ends: float32 [B], the last position of each whole prompt plus one.
        told: int32 [B, M], the places among these S whose hidden states are told, the last that is not filling behind
            all others.
    """

    tokens: Any
    positions: Any
    visual: Any
    places: Places
    ends: Any
    told: Any


class Told(NamedTuple):
    """What a step tells of each of B rows: the next token, int32 [B], and log-probabilities where they were wanted."""

    tokens: jax.Array
    alternatives: Alternatives | None


class Programs:
    """Those of a model whose decoder layers lie apart; its parameters are an argument."""

    def __init__(self, graphdef: nnx.GraphDef) -> None:
        self._graphdef = graphdef
        self.cache = jax.jit(self._cache, static_argnames=("kind", "pages", "page"))
        self.tiles = jax.jit(self._tiles, donate_argnums=1)
        self.prefill = jax.jit(self._prefill, donate_argnums=1)
        self.first = jax.jit(self._first, static_argnames="wanted")
        self.weigh = jax.jit(self._weigh)
        self.next = jax.jit(self._next, static_argnames="wanted", donate_argnums=1)
        self.copy = jax.jit(self._copy, donate_argnums=0)

    def _module(self, params: Any) -> InternVL:
        return nnx.merge(self._graphdef, params)

    def _cache(self, params: Any, *, kind: str, pages: int, page: int) -> Caches:
        """An empty cache."""
        module = self._module(params)
        return module.decoder.new_cache(kind, pages, page, module.dtype)

    def _tiles(self, params: Any, table: jax.Array, tiles: jax.Array, slots: jax.Array) -> jax.Array:
        """Encodes tiles uint8 [t, size, size, 3] into places of the table of visual tokens [slots, tile tokens, D]."""
        visual = self._module(params).visual_tokens(tiles[None])[0]
        visual = visual[: len(tiles) * table.shape[1]].reshape(-1, *table.shape[1:]).astype(table.dtype)

        def put(n: jax.Array, table: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice_in_dim(table, lax.dynamic_slice_in_dim(visual, n, 1), slots[n], axis=0)

        return lax.fori_loop(0, len(tiles), put, table)

    def _prefill(self, params: Any, cache: Caches, table: jax.Array, piece: Piece) -> tuple[jax.Array, Caches]:
        """Fills the cache; also returns the hidden states [B, M, D] at each row's `told`."""
        module = self._module(params)
        x = module.decoder.embed(piece.tokens, module.dtype)
        # All rows take from one table: they are one row here.
        visual, shape = table.reshape(1, -1, table.shape[2]), x.shape
        x = module.merge(x.reshape(1, -1, shape[2]), visual, piece.visual.reshape(1, -1)).reshape(shape)
        x, cache = module.decoder.extend(x, piece.positions, piece.ends, cache, piece.places)
        return jnp.take_along_axis(x, piece.told[:, :, None], axis=1), cache

    def _first(
        self,
        params: Any,
        hidden: jax.Array,
        rows: jax.Array,
        draws: Draws,
        numbers: jax.Array,
        seen: Seen | None,
        *,
        wanted: int | None,
    ) -> Told:
        """The first token of answers: `rows` int32 [B] says which of hidden [R, M, D] each goes on from, at its end."""
        return self._told(self._module(params), hidden[rows, -1], draws, numbers, seen, wanted)

    def _weigh(self, params: Any, hidden: jax.Array, rows: jax.Array, columns: jax.Array, tokens: jax.Array) -> Any:
        """Log-probabilities [n, K] of `tokens` int32 [n, K] behind hidden [R, M, D] at `rows` and `columns` [n]."""
        decoder = self._module(params).decoder
        logits = decoder.logits(decoder.norm(hidden[rows, columns][:, None]))[:, 0]

        def local(logits: jax.Array, tokens: jax.Array) -> jax.Array:
            return jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), tokens, axis=1)

        whole = PartitionSpec()
        return on_shards(local, in_specs=[whole] * 2, out_specs=whole)(logits, tokens)

    def _next(
        self,
        params: Any,
        cache: Caches,
        tokens: jax.Array,
        positions: jax.Array,
        places: Places,
        draws: Draws,
        numbers: jax.Array,
        seen: Seen | None,
        *,
        wanted: int | None,
    ) -> tuple[Told, Caches]:
        """One step of B rows: writes `tokens` int32 [B] at `positions` float32 [B], and draws those that follow.

        wanted: how many of the most likely tokens are told with their log-probabilities; None tells of none.
        """
        module = self._module(params)
        x = module.decoder.embed(tokens[:, None], module.dtype)
        x, cache = module.decoder.extend(x, positions[:, None], positions + 1, cache, places)
        if seen is not None:
            seen = Seen(jnp.concatenate([seen.tokens, tokens[:, None]], axis=1), seen.begins)
        return self._told(module, x[:, 0], draws, numbers, seen, wanted), cache

    def _told(
        self,
        module: InternVL,
        hidden: jax.Array,
        draws: Draws,
        numbers: jax.Array,
        seen: Seen | None,
        wanted: int | None,
    ) -> Told:
        logits = module.decoder.logits(module.decoder.norm(hidden[:, None]))[:, 0]

        def local(logits: jax.Array, *rest: Any) -> Any:
            draws, numbers = Draws(*rest[:7]), rest[7]
            tokens = choose(logits, draws, numbers, Seen(*rest[8:]) if rest[8:] else None)
            return tokens, *(() if wanted is None else alternatives(logits, tokens, wanted))

        operands = logits, *draws, numbers, *(seen or ())
        whole = PartitionSpec()
        out = (whole,) * (1 if wanted is None else 4)
        tokens, *told = on_shards(local, in_specs=[whole] * len(operands), out_specs=out)(*operands)
        return Told(tokens, Alternatives(*told) if told else None)

    def _copy(self, cache: Caches, sources: jax.Array, targets: jax.Array) -> Caches:
        """Copies pages, int32 [n] each."""

        def one(n: jax.Array, x: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice_in_dim(x, lax.dynamic_slice_in_dim(x, sources[n], 1), targets[n], axis=0)

        return jax.tree.map(lambda x: lax.fori_loop(0, len(sources), lambda n, x: one(n, x), x), cache)


@functools.lru_cache(maxsize=8)
def programs_of(graphdef: nnx.GraphDef) -> Programs:
    """Those of a graph, the same each time: a model that is asked now and then while it is trained compiles once."""
    return Programs(graphdef)
