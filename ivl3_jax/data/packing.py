"""Packing samples into rows of two budgets, tokens and tiles, out of a bounded number that wait.

InternVL's own algorithm keeps partly filled rows and closes them by their tiles; text counts as a tile there. Here
samples wait, and whenever enough wait for several rows, one is made of those that fill it best. Text costs no tile.
Only sizes are looked at, so pixels are decoded afterwards, and nothing is drawn at random: the rows follow from the
order in which samples come.
"""

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

LOOKED_AT = 128  # items that are taken as they came, at most; the time of a row does not grow with what waits


@dataclass(frozen=True)
class Budget:
    """What a row has room for: S positions, T tiles, G segments."""

    tokens: int
    tiles: int
    segments: int


class Item(NamedTuple):
    """A sample that waits: what it is known by, unique and growing from one to the next, and its size."""

    key: int
    tokens: int
    tiles: int
    segments: int


class Packer:
    """Takes items, and gives rows of them.

    Items are chosen by the budget that is scarce among those waiting. If tokens: the item that has waited longest, then
    the largest that fits, again and again. If tiles: one of those with the most, for which there is room least often;
    then those that have waited longest until little room is left, so that what waits keeps its mixture; then a set of
    items that fills the tiles exactly where there is one, then text. Every few rows begin with the item that has waited
    longest whatever is scarce, so that none waits for ever.
    """

    def __init__(self, budget: Budget, lookahead: float, waiting: Sequence[Item] = (), rows: int = 0) -> None:
        """`lookahead`: a row is made when this many rows could be filled.

        `waiting`, `rows`: of an earlier packer, the items in order.
        """
        self.budget, self.lookahead, self.rows = budget, lookahead, rows
        self._turn = max(8, round(2 * lookahead))  # rows from one that begins with the longest waiting to the next
        self._waiting: dict[int, Item] = {}
        self._order: deque[int] = deque()  # keys as they came; some may have been taken since
        # By tiles, then ascending (tokens, -key): of equal ones the last in the list has waited longest.
        self._by_tiles: list[list[tuple[int, int]]] = [[] for _ in range(budget.tiles + 1)]
        self._tokens = self._tiles = self._segments = 0
        for item in waiting:
            self._enter(item)

    @property
    def waiting(self) -> list[Item]:
        """The items that no row has yet, in the order in which they came."""
        return list(self._waiting.values())

    @property
    def ready(self) -> bool:
        """Whether enough items wait to choose a row's among them."""
        room = self.budget
        tiles = self._tiles / room.tiles if room.tiles else 0.0
        # Where segments are scarce short samples would pile up until their tokens filled so many rows.
        return max(self._tokens / room.tokens, tiles, self._segments / room.segments) >= self.lookahead

    def add(self, item: Item) -> None:
        """Takes an item.

        Raises:
            ValueError: the item fits no row.
        """
        room = self.budget
        if not (item.tokens <= room.tokens and item.tiles <= room.tiles and item.segments <= room.segments):
            raise ValueError(f"{item} does not fit into a row of {room}")
        self._enter(item)

    def row(self) -> list[Item]:
        """The items of a row, in the order in which they came, none if none wait."""
        if not self._waiting:
            return []
        while self._order[0] not in self._waiting:
            self._order.popleft()
        scarce_tiles = self._tiles * self.budget.tokens >= self._tokens * self.budget.tiles > 0
        self.rows += 1
        first = self._waiting[self._order[0]]
        if scarce_tiles and self.rows % self._turn:
            same = self._by_tiles[self._most_tiles()]
            first = self._waiting[-same[len(same) // 2][1]]  # neither short nor long, so that both kinds stay
        row = [self._take(first)]
        if scarce_tiles:
            self._fill_in_order(row)
            self._fill_tiles(row)
            self._fill_tokens(row, 0)
        else:
            self._fill_tokens(row, self.budget.tiles)
        return sorted(row)

    def _enter(self, item: Item) -> None:
        self._waiting[item.key] = item
        self._order.append(item.key)
        insort(self._by_tiles[item.tiles], (item.tokens, -item.key))
        self._tokens += item.tokens
        self._tiles += item.tiles
        self._segments += item.segments

    def _take(self, item: Item) -> Item:
        del self._waiting[item.key]
        same = self._by_tiles[item.tiles]
        del same[bisect_right(same, (item.tokens, -item.key)) - 1]
        self._tokens -= item.tokens
        self._tiles -= item.tiles
        self._segments -= item.segments
        return item

    def _room(self, row: list[Item]) -> Budget:
        tokens, tiles, segments = (sum(sizes) for sizes in list(zip(*row, strict=True))[1:])
        return Budget(self.budget.tokens - tokens, self.budget.tiles - tiles, self.budget.segments - segments)

    def _most_tiles(self) -> int:
        """Of any waiting item, 0 if none waits."""
        return next((tiles for tiles in range(self.budget.tiles, 0, -1) if self._by_tiles[tiles]), 0)

    def _largest(self, room: Budget, tiles: int) -> Item | None:
        """The largest waiting item of so many tiles that fits."""
        same = self._by_tiles[tiles]
        at = bisect_right(same, (room.tokens, 1))
        while at:  # rarely more than once: only pairs have more than one segment
            at -= 1
            item = self._waiting[-same[at][1]]
            if item.segments <= room.segments:
                return item
        return None

    def _fill_tokens(self, row: list[Item], most_tiles: int) -> None:
        """Adds the largest item by tokens that fits, of at most so many tiles, until none does."""
        room = self._room(row)
        while room.segments > 0 and room.tokens > 0:
            kinds = range(min(most_tiles, room.tiles) + 1)
            fitting = [item for tiles in kinds if (item := self._largest(room, tiles)) is not None]
            if not fitting:
                return
            item = self._take(max(fitting, key=lambda item: (item.tokens, -item.key)))
            row.append(item)
            room = Budget(room.tokens - item.tokens, room.tiles - item.tiles, room.segments - item.segments)

    def _fill_in_order(self, row: list[Item]) -> None:
        """Adds items with tiles as they came, as long as any kind of them would still fit behind."""
        room, most, chosen = self._room(row), self._most_tiles(), []
        for item in islice(self._waiting.values(), LOOKED_AT if most < room.tiles else 0):
            if not item.tiles or item.tiles > room.tiles - most:
                continue
            if item.tokens <= room.tokens and item.segments <= room.segments:
                chosen.append(item)
                room = Budget(room.tokens - item.tokens, room.tiles - item.tiles, room.segments - item.segments)
        row += [self._take(item) for item in chosen]

    def _fill_tiles(self, row: list[Item]) -> None:
        """Adds items with tiles so that as many tiles as possible are filled."""
        room = self._room(row)
        for tiles in self._exact(room):
            item = self._largest(room, tiles)
            if item is not None:
                row.append(self._take(item))
                room = Budget(room.tokens - item.tokens, room.tiles - tiles, room.segments - item.segments)
        for tiles in range(room.tiles, 0, -1):  # what the tokens did not allow
            while tiles <= room.tiles and (item := self._largest(room, tiles)) is not None:
                row.append(self._take(item))
                room = Budget(room.tokens - item.tokens, room.tiles - tiles, room.segments - item.segments)

    def _exact(self, room: Budget) -> list[int]:
        """Tile counts of waiting items, largest first, whose sum is the largest possible that fits."""
        # reachable[i]: bit s is set if the kinds from i on can sum to s, each as often as items of it wait.
        kinds = [t for t in range(room.tiles, 0, -1) if self._by_tiles[t] and self._by_tiles[t][0][0] <= room.tokens]
        mask = (1 << (room.tiles + 1)) - 1
        reachable = [1]
        for tiles in reversed(kinds):
            sums, count, step = reachable[-1], len(self._by_tiles[tiles]), 1
            while count > 0:
                step = min(step, count)
                sums |= (sums << (tiles * step)) & mask
                count -= step
                step *= 2
            reachable.append(sums)
        reachable.reverse()
        left, chosen = reachable[0].bit_length() - 1, []
        for place, tiles in enumerate(kinds):
            count = min(len(self._by_tiles[tiles]), left // tiles)
            while count and not reachable[place + 1] >> (left - count * tiles) & 1:
                count -= 1
            chosen += [tiles] * count
            left -= count * tiles
        return chosen
