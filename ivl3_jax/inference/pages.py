"""Who has which page of the KV cache, and which pages hold a beginning that is known."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

NOBODY = 0  # the page that positions are written to which belong to no row


class Pages:
    """The pages 1 .. count - 1 of a cache.

    A full page is known by a name, see `page_names`, and may be in several rows. One that no row has any more stays
    known until its room is needed, the longest unused first.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, NOBODY, -1))
        self._users = [0] * count
        self._page_of: dict[bytes, int] = {}
        self._name_of: dict[int, bytes] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Pages that no row has."""
        return len(self._free) + len(self._unused)

    def grow(self, count: int) -> None:
        """Makes `count` of them."""
        self._free = [*range(count - 1, self.count - 1, -1), *self._free]
        self._users += [0] * (count - self.count)
        self.count = count

    def find(self, names: Sequence[bytes]) -> list[int]:
        """The pages of the longest beginning of `names` that is known; they are the caller's too from now on."""
        found: list[int] = []
        for name in names:
            if (page := self._page_of.get(name)) is None:
                break
            found.append(page)
        self.share(found)
        return found

    def share(self, pages: Sequence[int]) -> None:
        """Gives pages that are known or in a row to one more."""
        for page in pages:
            self._users[page] += 1
            self._unused.pop(page, None)

    def take(self, count: int) -> list[int] | None:
        """So many pages with nothing in them, or None if there are fewer."""
        if count > self.available:
            return None
        taken = []
        for _ in range(count):
            if not self._free:
                page, _ = self._unused.popitem(last=False)
                del self._page_of[self._name_of.pop(page)]
                self._free.append(page)
            taken.append(self._free.pop())
        for page in taken:
            self._users[page] = 1
        return taken

    def name(self, page: int, name: bytes) -> None:
        """Makes what a full page holds known. A second page of the same content stays unknown."""
        if name not in self._page_of and page not in self._name_of:
            self._page_of[name], self._name_of[page] = page, name

    def drop(self, pages: Sequence[int]) -> None:
        """Takes pages, in the order of their row, from one row."""
        for page in reversed(pages):  # the end of a row is forgotten before its beginning
            self._users[page] -= 1
            if self._users[page] == 0:
                if page in self._name_of:
                    self._unused[page] = None
                else:
                    self._free.append(page)


def page_names(
    tokens: np.ndarray, positions: np.ndarray, visual: np.ndarray, digests: Sequence[bytes], tile_tokens: int, page: int
) -> list[bytes]:
    """Names for the full pages of a row: equal where everything up to their end is equal, pictures included.

    Args:
        tokens, positions, visual: [n], as in `Encoded`. digests: of the row's tiles.
    """
    names: list[bytes] = []
    tiles, places = np.divmod(visual, tile_tokens)
    for start in range(0, len(tokens) // page * page, page):
        here = slice(start, start + page)
        name = hashlib.blake2b(names[-1] if names else b"", digest_size=16)
        for array in (tokens, positions, places, tiles < 0):
            name.update(array[here].tobytes())
        for tile in np.unique(tiles[here]):
            name.update(digests[tile] if tile >= 0 else b"")
        names.append(name.digest())
    return names


def digest(tile: np.ndarray) -> bytes:
    """What a tile is known by, uint8 [size, size, 3]."""
    return hashlib.blake2b(np.ascontiguousarray(tile), digest_size=16).digest()
