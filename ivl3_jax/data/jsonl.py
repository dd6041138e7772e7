"""InternVL's JSONL: one record a line, see `data.conversations` for what a record is."""

import os
import weakref
from typing import Any

from ivl3_jax.data.conversations import parse_line
from ivl3_jax.data.faults import Fault
from ivl3_jax.data.line_index import LineIndex
from ivl3_jax.data.sources import RecordSource, SourceSpec

LONGEST = 16 << 20  # bytes of a line; a whole data set may be in one line by mistake


class JsonlSource(RecordSource):
    """The lines of a file, each read from disk when it is asked for; memory does not grow with the file."""

    def __init__(self, spec: SourceSpec, number: int = 0) -> None:
        """Opens the file and its index, which is built where there is none; see `LineIndex`.

        Raises:
            OSError: the file cannot be opened.
            ValueError: it has no lines.
        """
        self._index = LineIndex.open(spec.annotation)
        self._descriptor = os.open(spec.annotation, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        super().__init__(spec, number, len(self._index))

    def record(self, index: int) -> tuple[dict[str, Any], str]:
        start, end = self._index.span(index)
        where = f"{self.spec.annotation}:{self._index.line_number(index)}"
        # With a byte more to see that it is longer. Blank lines that follow belong to the span and do not count.
        line = os.pread(self._descriptor, min(end - start, LONGEST + 1), start).partition(b"\n")[0]
        if len(line) > LONGEST:
            raise Fault("line", f"{where}: the line has more than {LONGEST} bytes; it must be one record")
        return parse_line(line, where), where
