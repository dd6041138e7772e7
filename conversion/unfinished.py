"""A directory that is complete or not there: filled beside its place, marked as unfinished, and renamed at last."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ivl3_jax.conversion.checksums import sha256
from ivl3_jax.hf_config import UNFINISHED


class Unfinished:
    """A directory being filled, with the sums of the files that are complete.

    Attributes:
        path: where files go meanwhile.
        done: SHA-256 of each complete file by its name.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any] | None) -> None:
        self.path, self._identity, self.done = path, identity, dict[str, str]()

    def finish(self, name: str, digest: str) -> None:
        """Notes that a file is complete and on the disk."""
        self.done[name] = digest
        self.mark()

    def mark(self) -> None:
        """Writes down what is being written, and which files are complete."""
        new = self.path / f"{UNFINISHED}.new"
        new.write_text(json.dumps({"identity": self._identity, "done": self.done}, indent=1), encoding="utf-8")
        new.replace(self.path / UNFINISHED)

    def resume(self) -> None:
        """Keeps those complete files of an earlier attempt at the same that are what was written, removes the rest."""
        earlier: dict[str, str] = {}
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads((self.path / UNFINISHED).read_text(encoding="utf-8"))
            earlier = found["done"] if self._identity is not None and found["identity"] == self._identity else {}
        for file in list(self.path.iterdir()):
            if file.name in earlier and sha256(file) == earlier[file.name]:
                self.done[file.name] = earlier[file.name]
            else:
                file.unlink()


@contextmanager
def unfinished(directory: Path, identity: Mapping[str, Any] | None) -> Iterator[Unfinished]:
    """Fills `directory` under the name `directory.unfinished`, and renames it if the block ends well.

    If it does not, the complete files stay for the next attempt with an equal `identity`; those of another attempt are
    removed. Without an identity nothing can be resumed and nothing stays.

    Args:
        directory: must not exist, or be empty.
        identity: what is being written, in JSON's types.

    Raises:
        FileExistsError: `directory` holds something, the other name is taken by something else, or another process is
            writing there.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not empty; choose another directory, or remove it first")
    path = directory.with_name(f"{directory.name}.unfinished")
    if path.exists() and not (path / UNFINISHED).is_file():
        raise FileExistsError(f"{path} is in the way, and is no unfinished checkpoint; move or remove it")
    path.mkdir(parents=True, exist_ok=True)
    filling = Unfinished(path, json.loads(json.dumps(identity)))
    with _opened(path) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(f"{path}: another process is writing there") from None
        try:
            filling.resume()
            filling.mark()
            yield filling
            (path / UNFINISHED).unlink()
            for file in (file for file in path.iterdir() if file.name not in filling.done):
                _sync(file)
            if directory.exists():
                directory.rmdir()
            path.rename(directory)
        except BaseException:
            if path.exists() and (identity is None or not filling.done):
                shutil.rmtree(path, ignore_errors=True)
            raise
    _sync(directory.parent)


def _sync(path: Path) -> None:
    with _opened(path) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
