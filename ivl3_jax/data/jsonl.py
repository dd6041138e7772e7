"""InternVL's JSONL: one record a line, see `data.conversations` for what a record is."""

import os
import weakref
from pathlib import Path
from typing import Any

from ivl3_jax.data.conversations import parse_line, to_sample
from ivl3_jax.data.line_index import LineIndex
from ivl3_jax.data.records import Sample
from ivl3_jax.data.sources import RecordSource, SourceSpec


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
        return parse_line(os.pread(self._descriptor, end - start, start), where), where


def read_jsonl(file: str | Path, root: str | Path | None = None, source: int = 0) -> list[Sample]:
    """Reads a whole annotation file of conversations into memory; images stay paths.

    Args:
        file: the JSONL file. Blank lines are passed over.
        root: directory of the image paths, by default that of the file.
        source: number of the data source, given to every sample.

    Returns:
        One `Sample` a line, with `where` = "file:line".

    Raises:
        Fault: a line is not what it should be; the message says file:line, what was found and what would be valid.
        ValueError: a line is a preference pair.
        OSError: the file cannot be opened.
    """
    file = Path(file)
    start, samples = str(file.parent if root is None else root), []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{file}:{number}"
                sample = to_sample(parse_line(line, where), start, source, where)
                if not isinstance(sample, Sample):
                    raise ValueError(f"{where}: is a preference pair; here lines must be conversations")
                samples.append(sample)
    return samples
