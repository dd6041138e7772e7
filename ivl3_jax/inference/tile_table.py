"""The table of visual tokens on the device: which place holds which tile."""

from collections import OrderedDict
from collections.abc import Collection, Sequence


class TileTable:
    """Places for tiles, known by their digests; the longest unused gives way."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._place_of: OrderedDict[bytes, int] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._place_of

    def place(self, digest: bytes) -> int:
        """Where a tile is that the table has; it counts as used now."""
        self._place_of.move_to_end(digest)
        return self._place_of[digest]

    def add(self, digests: Sequence[bytes], keep: Collection[bytes]) -> list[int]:
        """Places for tiles that the table lacks; those in `keep` stay.

        Raises:
            ValueError: there are not so many places.
        """
        taken = []
        for digest in digests:
            place = len(self._place_of)
            if place == self.places:
                oldest = next((one for one in self._place_of if one not in keep), None)
                if oldest is None:
                    raise ValueError(
                        f"the table of visual tokens has {self.places} places; more tiles are needed at once"
                    )
                place = self._place_of.pop(oldest)
            self._place_of[digest] = place
            taken.append(place)
        return taken
