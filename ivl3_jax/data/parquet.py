"""Parquet files of records, see `data.conversations` for what a record is (extra `parquet`).

A row has the columns of a record. "conversations" is a list of structs or JSON text; "image" a path, the bytes of a
file, a struct of `bytes` and `path` as Hugging Face writes it, or a list of any of these.
"""

from collections import OrderedDict
from threading import Lock
from typing import Any

import numpy as np

from ivl3_jax.data.faults import Fault
from ivl3_jax.data.json_values import parse_json
from ivl3_jax.data.records import Stored
from ivl3_jax.data.sources import RecordSource, SourceSpec

COLUMNS = ("conversations", "image", "video", "clip", "question", "chosen", "rejected")
CACHE = 256 << 20  # bytes of row groups that are kept; the one in use is kept in any case


class ParquetSource(RecordSource):
    """The rows of a file. Reading one reads its whole row group: for shuffled access to large ones make shards."""

    def __init__(self, spec: SourceSpec, number: int = 0) -> None:
        """Reads the footer of the file.

        Raises:
            ValueError: it is no Parquet file, has no rows, or none of the columns of a record.
            OSError: it cannot be opened. ModuleNotFoundError: pyarrow is not installed.
        """
        import pyarrow
        from pyarrow import parquet  # late: it is an extra

        try:
            self._file = parquet.ParquetFile(spec.annotation)
        except pyarrow.ArrowException as error:
            raise ValueError(f"{spec.annotation}: cannot be read as Parquet ({error})") from error
        names = self._file.schema_arrow.names
        self._columns = [name for name in COLUMNS if name in names]
        if not {"conversations", "question"}.intersection(names):
            raise ValueError(
                f"{spec.annotation}: has the columns {', '.join(names)}; it must have conversations, or question, "
                "chosen and rejected; also known are image, video and clip"
            )
        groups = range(self._file.num_row_groups)
        self._ends = np.cumsum([self._file.metadata.row_group(group).num_rows for group in groups])
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = Lock()
        super().__init__(spec, number, self._file.metadata.num_rows)

    def record(self, index: int) -> tuple[dict[str, Any], str]:
        where = f"{self.spec.annotation}:{index + 1}"
        group = int(np.searchsorted(self._ends, index, side="right"))
        begin = int(self._ends[group - 1]) if group else 0
        try:
            (row,) = self._group(group).slice(index - begin, 1).to_pylist()
        except (ValueError, OSError) as error:
            raise Fault("line", f"{where}: its row group cannot be read ({error})") from error
        turns, images = row.get("conversations"), row.get("image")
        if isinstance(turns, str):
            try:
                row["conversations"] = parse_json(turns)
            except ValueError as error:
                raise Fault("line", f"{where}: 'conversations' is text that is not JSON ({error})") from error
        if images is not None:
            several = isinstance(images, list)
            found = [_image(image, f"image {n}") for n, image in enumerate(images if several else [images], 1)]
            row["image"] = found if several else found[0]
        return row, where

    def _group(self, group: int) -> Any:
        """A row group; one thread reads at a time, since readers of Parquet are not made for more."""
        with self._lock:
            if group not in self._kept:
                self._kept[group] = self._file.read_row_group(group, columns=self._columns, use_threads=False)
            self._kept.move_to_end(group)
            while len(self._kept) > 1 and sum(table.nbytes for table in self._kept.values()) > CACHE:
                self._kept.popitem(last=False)
            return self._kept[group]


def _image(found: Any, name: str) -> Any:
    if isinstance(found, bytes):
        return Stored(name, found)
    if isinstance(found, dict):
        path, data = found.get("path"), found.get("bytes")
        return path if data is None else Stored(path or name, data)
    return found
