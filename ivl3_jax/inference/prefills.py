"""Prompts on their way into the cache: what is known of them is looked up, the rest is computed piece by piece."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from ivl3_jax.inference.device import Device, Part, fitting
from ivl3_jax.inference.pages import Pages, page_names
from ivl3_jax.inference.request import Limits, Row, Ticket, known
from ivl3_jax.inference.tile_table import TileTable


@dataclass(eq=False)
class Prefill:
    """A prompt, with what was answered before where it had to give way, that is to be filled into the cache.

    Attributes:
        rows: the answers that go on from it, all of one length.
        pages: that it has, in order; none while it waits. filled: positions of them that are filled.
        names: of its full pages, once they were asked for. coming: those that it computes for others too.
    """

    ticket: Ticket
    rows: list[Row]
    pages: list[int] = field(default_factory=list)
    filled: int = 0
    names: list[bytes] | None = None
    coming: frozenset[bytes] = frozenset()

    def __post_init__(self) -> None:
        self.tokens, self.positions, self.visual = known(self.ticket.request.prompt, self.rows[0].answer)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def untold(self) -> dict[int, int]:
        """The places behind which something is still to be weighed, by their number among all of them."""
        weighed = self.ticket.request.weighed
        missing = np.flatnonzero(np.isnan(self.ticket.weights).any(1))
        return {int(number): weighed.places[number] for number in missing} if weighed else {}


class Prefills:
    """Those that wait for room, first come, first served, and those that are being filled."""

    def __init__(self, device: Device, pages: Pages, limits: Limits, tiles: int) -> None:
        """tiles: places of the device's table."""
        self.waiting: deque[Prefill] = deque()
        self.filling: list[Prefill] = []
        self._device, self._pages, self._limits = device, pages, limits
        self._tiles = TileTable(tiles)
        self._config = device.config

    def __bool__(self) -> bool:
        return bool(self.waiting or self.filling)

    def drop_unwanted(self) -> Iterator[Row]:
        """Takes out, and yields, the rows that nobody wants any more."""
        for prefill in [*self.filling, *self.waiting]:
            for row in [row for row in prefill.rows if not row.wanted]:
                prefill.rows.remove(row)
                yield row
            if not prefill.rows:
                if prefill in self.filling:
                    self.give_way(prefill)
                self.waiting.remove(prefill)

    def admit(self, rows: int, alone: bool) -> bool:
        """Gives pages to those that wait, while there is room for their rows and their pages.

        Args:
            rows: places for rows that are free. alone: whether no row runs, so that nothing else can be waited for.

        Returns:
            Whether it was pages that the next one lacked.
        """
        rows -= sum(len(prefill.rows) for prefill in self.filling)
        while self.waiting and len(self.waiting[0].rows) <= rows:
            prefill = self.waiting[0]
            total = -(-len(prefill) // self._limits.page)
            # The last position is computed in any case: what follows is drawn from it. So are those that are weighed.
            names = self._names(prefill)[: min([len(prefill) - 1, *prefill.untold.values()]) // self._limits.page]
            found = self._pages.find(names)
            if any(name in other.coming for other in self.filling for name in names[len(found) :][:1]):
                self._pages.drop(found)
                return False  # what comes next is being computed for another
            spare = 0 if alone and not self.filling else len(prefill.rows)
            if total - len(found) + spare > self._pages.available:
                self._pages.drop(found)
                return True
            prefill.pages = found + (self._pages.take(total - len(found)) or [])
            prefill.filled = len(found) * self._limits.page
            if prefill.ticket.reused is None:
                prefill.ticket.reused = prefill.filled
            self.filling.append(self.waiting.popleft())
            prefill.coming = frozenset(names[len(found) :])
            rows -= len(prefill.rows)
        return False

    def advance(self) -> tuple[dict[int, Prefill], jax.Array]:
        """Computes one piece of what is being filled.

        Returns:
            The prompts that it completes, by their number among the hidden states [R, M, D] that come with them.
        """
        size = self._size(self.filling[0])
        together = [prefill for prefill in self.filling if self._size(prefill) == size][: self._limits.piece // size]
        ends = [min(len(prefill), prefill.filled + size) for prefill in together]
        self._encode(together, ends)
        parts = [self._part(prefill, end) for prefill, end in zip(together, ends, strict=True)]
        rows = 1 if len(together) == 1 else self._limits.piece // size
        hidden = self._device.prefill(parts, size, rows)
        self._weigh(together, ends, hidden)
        done = {}
        for number, (prefill, end) in enumerate(zip(together, ends, strict=True)):
            prefill.filled = end
            self.remember(prefill)
            if end == len(prefill):
                self.filling.remove(prefill)
                done[number] = prefill
        return done, hidden

    def _weigh(self, prefills: Sequence[Prefill], ends: Sequence[int], hidden: jax.Array) -> None:
        """Weighs what the next pieces, which end there, tell of, by their hidden states [R, M, D]."""
        rows, columns, tokens, into = [], [], [], []
        for row, (prefill, end) in enumerate(zip(prefills, ends, strict=True)):
            weighed = prefill.ticket.request.weighed
            for column, number in enumerate(self._told(prefill, end)):
                rows.append(row)
                columns.append(column)
                tokens.append(weighed.tokens if weighed else ())
                into.append(prefill.ticket.weights[number])
        if not rows:
            return
        for weights, found in zip(into, self._device.weigh(hidden, rows, columns, tokens), strict=False):
            weights[:] = found[: len(weights)]

    @staticmethod
    def _told(prefill: Prefill, end: int) -> dict[int, int]:
        """What is told of the next piece, which ends there: places in it by their number."""
        here = {number: place - prefill.filled for number, place in prefill.untold.items() if place < end}
        return {number: place for number, place in here.items() if place >= 0}

    def give_way(self, prefill: Prefill) -> None:
        """Takes the pages from one that is being filled; it waits before all others."""
        self.filling.remove(prefill)
        self.remember(prefill)
        self._pages.drop(prefill.pages)
        prefill.pages, prefill.filled = [], 0
        self.waiting.appendleft(prefill)

    def remember(self, known: Prefill) -> None:
        """Makes the content of pages that are full known."""
        full = known.filled // self._limits.page
        for page, name in zip(known.pages[:full], self._names(known), strict=False):
            self._pages.name(page, name)

    def _names(self, prefill: Prefill) -> list[bytes]:
        if prefill.names is None:
            # Cached keys of a row whose frequencies depend on its length belong to that row alone.
            alone = self._config.decoder.stretches(int(prefill.positions[-1]) + 1)
            text, digests = (prefill.tokens, prefill.positions, prefill.visual), prefill.ticket.digests
            prefill.names = [] if alone else page_names(*text, digests, self._config.tile_tokens, self._limits.page)
        return prefill.names

    def _size(self, prefill: Prefill) -> int:
        """Positions of the next piece, filled up to one of a few sizes."""
        rest = len(prefill) - prefill.filled
        return min(fitting(rest, least=self._limits.page), self._limits.piece)

    def _part(self, prefill: Prefill, end: int) -> Part:
        here = slice(prefill.filled, end)
        visual = prefill.visual[here].copy()
        each = self._config.tile_tokens
        for tile in np.unique(visual[visual >= 0] // each):
            place = self._tiles.place(prefill.ticket.digests[tile])
            mine = prefill.visual[here] // each == tile
            visual[mine] = place * each + prefill.visual[here][mine] % each
        return Part(
            prefill.tokens[here],
            prefill.positions[here],
            visual,
            prefill.pages,
            prefill.filled,
            float(prefill.positions[-1]) + 1,
            [*self._told(prefill, end).values()],
        )

    def _encode(self, prefills: Sequence[Prefill], ends: Sequence[int]) -> None:
        """Encodes the tiles of the next pieces that are not in the table, and with them some that come after."""
        needed: dict[bytes, np.ndarray] = {}
        coming: dict[bytes, np.ndarray] = {}
        for prefill, end in zip(prefills, ends, strict=True):
            numbers = prefill.visual[prefill.filled :] // self._config.tile_tokens
            soon = set(numbers[: end - prefill.filled].tolist())
            for tile in dict.fromkeys(numbers[numbers >= 0].tolist()):
                name = prefill.ticket.digests[tile]
                (needed if tile in soon else coming)[name] = prefill.ticket.request.prompt.tiles[tile]
        missing = {name: tile for name, tile in needed.items() if name not in self._tiles}
        if not missing:
            return
        for name in needed:
            if name in self._tiles:
                self._tiles.place(name)
        more = -len(missing) % self._limits.tiles_at_once
        more = min(more, self._tiles.places - len(needed))
        later = [name for name in coming if name not in self._tiles and name not in missing][:more]
        missing |= {name: coming[name] for name in later}
        places = self._tiles.add(list(missing), keep=needed)
        tiles = list(missing.values())
        for start in range(0, len(tiles), self._limits.tiles_at_once):
            group = slice(start, start + self._limits.tiles_at_once)
            self._device.encode(tiles[group], places[group])
