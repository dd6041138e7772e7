"""What the engine has on the devices: weights, cache, table of visual tokens, and the programs that use them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from ivl3_jax.inference.programs import Piece, Told, programs_of
from ivl3_jax.inference.request import MOST_LOGPROBS, Row
from ivl3_jax.inference.sampling import GREEDY, Draws, Seen
from ivl3_jax.kernels.decoding import Places
from ivl3_jax.layers.linear import Linear
from ivl3_jax.layers.stack import unstack
from ivl3_jax.models.model import Model


@dataclass(frozen=True)
class Part:
    """A piece of one prompt: what `Piece` has for one row; `told` without the last."""

    tokens: np.ndarray
    positions: np.ndarray
    visual: np.ndarray
    pages: Sequence[int]
    filled: int
    end: float
    told: Sequence[int]


@dataclass(frozen=True)
class Flight:
    """A step that was sent off: its rows, and what it will tell of them."""

    rows: tuple[Row, ...]
    told: Told


class Device:
    """Takes lists of the host's, and fills them up to the few shapes that programs are compiled for."""

    def __init__(self, model: Model, *, pages: int, page: int, tiles: int, int8: Collection[str] = ()) -> None:
        """A cache of so many pages of `page` positions, a table with room for so many tiles; `int8` as in `Engine`."""
        self.page, self.mesh, self.config = page, model.mesh, model.config
        self._everywhere = NamedSharding(self.mesh, PartitionSpec())
        self._width, self._draws = 0, None
        with jax.set_mesh(self.mesh):
            module = nnx.merge(model.graphdef, model.params)
            module.serve()
            module.decoder.layers = unstack(module.decoder.layers)
            if "weights" in int8:
                for part in _linears(module.decoder):
                    part.to_int8()
            if self.mesh.devices.flat[0].platform == "cpu":
                for part in _linears(module.decoder):
                    part.put_outputs_first()
            graphdef, self._params = nnx.split(module)
            self.programs = programs_of(graphdef)
            kind = "int8" if "cache" in int8 else "plain"
            self._cache = self.programs.cache(self._params, kind=kind, pages=pages, page=page)
            shape = tiles, self.config.tile_tokens, self.config.decoder.width
            self._table = jnp.zeros(shape, module.dtype, device=self._everywhere)

    def grow(self, pages: int) -> None:
        """Makes the cache one of so many pages."""
        more = ((0, pages - self._cache[0].keys.shape[0]), (0, 0), (0, 0))
        with jax.set_mesh(self.mesh):
            self._cache = jax.tree.map(lambda x: jnp.pad(x, more), self._cache)

    def encode(self, tiles: Sequence[np.ndarray], places: Sequence[int]) -> None:
        """Puts the visual tokens of tiles into places of the table, in groups of powers of two."""
        start = 0
        while start < len(tiles):
            group = slice(start, start + (1 << ((len(tiles) - start).bit_length() - 1)))
            with jax.set_mesh(self.mesh):
                self._table = self.programs.tiles(
                    self._params, self._table, np.stack(tiles[group]), np.array(places[group], np.int32)
                )
            start = group.stop

    def prefill(self, parts: Sequence[Part], size: int, rows: int) -> jax.Array:
        """Writes pieces of prompts, of at most `size` positions; returns hidden states [rows, M, D] as `Piece` says."""
        width = fitting(max((part.filled + size) // self.page for part in parts), least=16, factor=4)
        piece = Piece(
            tokens=_filled([part.tokens for part in parts], (rows, size), 0, np.int32),
            positions=_filled([part.positions for part in parts], (rows, size), 0, np.float32),
            visual=_filled([part.visual for part in parts], (rows, size), -1, np.int32),
            places=Places(
                _filled([part.pages[:width] for part in parts], (rows, width), 0, np.int32),
                _filled([part.filled for part in parts], (rows,), 0, np.int32),
            ),
            ends=_filled([part.end for part in parts], (rows,), 1, np.float32),
            told=self._told(parts, rows),
        )
        with jax.set_mesh(self.mesh):
            hidden, self._cache = self.programs.prefill(self._params, self._cache, self._table, piece)
        return hidden

    def first(self, hidden: jax.Array, of: Sequence[int], rows: Sequence[Row]) -> Told:
        """The next token of rows, each going on from the hidden state with the number in `of`."""
        size = fitting(len(rows))
        numbers = _filled([row.drawn for row in rows], (size,), 0, np.int32)
        sources = _filled(of, (size,), 0, np.int32)
        with jax.set_mesh(self.mesh):
            return self.programs.first(
                self._params, hidden, sources, _draws(rows, size), numbers, _seen(rows, size), wanted=_wanted(rows)
            )

    def weigh(
        self, hidden: jax.Array, rows: Sequence[int], columns: Sequence[int], tokens: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """Log-probabilities float32 [n, K] of tokens behind n of the hidden states [R, M, D]."""
        size = fitting(len(rows))
        width = fitting(max(map(len, tokens)), least=2)
        with jax.set_mesh(self.mesh):
            found = self.programs.weigh(
                self._params,
                hidden,
                _filled(rows, (size,), 0, np.int32),
                _filled(columns, (size,), 0, np.int32),
                _filled(tokens, (size, width), 0, np.int32),
            )
        return np.asarray(found)

    def next(self, rows: Sequence[Row], before: Flight | None) -> Flight:
        """Sends a step off, which writes each row's last token and draws the next.

        before: the step before, of the same rows, if nobody has heard yet what it tells.
        """
        if before is None:
            if not self._width / 4 < len(rows) <= self._width:  # few sizes, and not another with every row that ends
                self._width = fitting(len(rows))
            self._draws = jax.device_put(_draws(rows, self._width), self._everywhere)
            tokens = _filled([row.answer[-1] for row in rows], (self._width,), 0, np.int32)
            tokens = jax.device_put(tokens, self._everywhere)
        else:
            tokens = before.told.tokens
        size = (self._width,)
        places = Places(
            _filled(
                [row.pages for row in rows], (*size, fitting(max(len(row.pages) for row in rows), least=4)), 0, np.int32
            ),
            _filled([row.filled for row in rows], size, 0, np.int32),
        )
        positions = _filled([row.position(row.filled) for row in rows], size, 0, np.float32)
        numbers = _filled([row.drawn for row in rows], size, 0, np.int32)
        with jax.set_mesh(self.mesh):
            told, self._cache = self.programs.next(
                self._params,
                self._cache,
                tokens,
                positions,
                places,
                self._draws,
                numbers,
                _seen(rows, self._width, slice(-1 if before is None else None)),
                wanted=_wanted(rows),
            )
        return Flight(tuple(rows), told)

    @staticmethod
    def _told(parts: Sequence[Part], rows: int) -> np.ndarray:
        most = max(len(part.told) for part in parts)
        told = np.zeros((rows, 1 + (most and fitting(most, least=4, factor=4))), np.int32)
        for number, part in enumerate(parts):
            told[number, : len(part.told)] = part.told
            told[number, -1] = len(part.tokens) - 1
        return told

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copies pages."""
        size = (fitting(len(sources)),)
        with jax.set_mesh(self.mesh):
            self._cache = self.programs.copy(
                self._cache, _filled(sources, size, 0, np.int32), _filled(targets, size, 0, np.int32)
            )


def fitting(count: int, least: int = 1, factor: int = 2) -> int:
    """The smallest of `least`, `least` · `factor`, ... that is not below `count`."""
    size = least
    while size < count:
        size *= factor
    return size


def _linears(module: nnx.Module) -> list[Linear]:
    return [part for _, part in nnx.iter_graph(module) if isinstance(part, Linear)]


def _filled(rows: Sequence[Any], shape: tuple[int, ...], fill: float, dtype: Any) -> np.ndarray:
    """The rows, numbers or lists, as an array of this shape."""
    array = np.full(shape, fill, dtype)
    for number, row in enumerate(rows):
        array[number if np.ndim(row) == 0 else (number, slice(len(row)))] = row
    return array


def _draws(rows: Sequence[Row], size: int) -> Draws:
    """How rows draw; those that fill up are greedy."""
    more = size - len(rows)
    samplings = [row.ticket.request.sampling for row in rows] + [GREEDY] * more
    return Draws.of(samplings, [row.ticket.request.first_sample + row.sample for row in rows] + [0] * more)


def _seen(rows: Sequence[Row], size: int, told: slice = slice(None)) -> Seen | None:
    """What stands before what the device adds, where any row cares; `told` is the part of the answers that does."""
    if not any(row.ticket.request.sampling.penalised for row in rows):
        return None
    texts = [[*row.ticket.request.prompt.tokens, *row.answer[told]] for row in rows]
    begins = [len(row.ticket.request.prompt) for row in rows]
    width = fitting(max(map(len, texts)), least=256)
    return Seen(_filled(texts, (size, width), -1, np.int32), _filled(begins, (size,), 0, np.int32))


def _wanted(rows: Sequence[Row]) -> int | None:
    """How many of the most likely tokens are told: two programs, not one for every number."""
    return None if all(row.ticket.request.logprobs is None for row in rows) else MOST_LOGPROBS
