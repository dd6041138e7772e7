"""A directory that is complete, or says that it is not: a mark lies in it from the first file to the last."""

import fcntl
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ivl3_jax.conversion.checksums import sha256
from ivl3_jax.hf_config import UNFINISHED

NEW_MARK = f"{UNFINISHED}.new"


class Unfinished:
    """A directory being filled.

    Attributes:
        path: where.
        done: SHA-256 of each large file that is complete, by its name.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any] | None, files: Collection[str]) -> None:
        """Reads the mark of an earlier attempt, if there is one; nothing is changed.

        `identity` and `files` as of `unfinished`.

        Raises:
            FileExistsError: the directory holds something, and no mark that can be read.
        """
        self.path, self._identity, self._files = path, json.loads(json.dumps(identity)), set(files)
        self.done: dict[str, str] = {}
        self._earlier: set[str] = set()
        there = {file.name for file in path.iterdir()}
        if there:
            self._earlier, self.done = self._read()
        self._foreign = there - self._earlier - {UNFINISHED}

    def _read(self) -> tuple[set[str], dict[str, str]]:
        """The files of the earlier attempt, and those of them that can be gone on from."""
        mark = self.path / UNFINISHED
        if not mark.is_file():
            raise FileExistsError(f"{self.path} exists and is not empty; choose another directory, or remove it first")
        try:
            found = json.loads(mark.read_text(encoding="utf-8"))
            same = self._identity is not None and found["identity"] == self._identity
            return set(found["files"]), dict(found["done"]) if same else {}
        except (ValueError, KeyError, TypeError):
            raise FileExistsError(
                f"{mark} cannot be read, so what is there cannot be gone on from; remove it"
            ) from None

    def finish(self, name: str, digest: str) -> None:
        """Notes that a file is complete and on the disk."""
        self.done[name] = digest
        self.mark()

    def mark(self) -> None:
        """Writes down what is being written, and which files are complete."""
        there = {file.name for file in self.path.iterdir() if file.is_file()}
        files = (there | self._files) - self._foreign - {UNFINISHED, NEW_MARK}
        content = {"identity": self._identity, "files": sorted(files), "done": self.done}
        (self.path / NEW_MARK).write_text(json.dumps(content, indent=1), encoding="utf-8")
        _sync(self.path / NEW_MARK)
        (self.path / NEW_MARK).replace(self.path / UNFINISHED)

    def resume(self, report: Callable[[int, int], None]) -> None:
        """Keeps those complete files of the earlier attempt that are still what was written; removes its others."""
        files = [self.path / name for name in self.done if (self.path / name).is_file()]
        total, seen, kept = sum(file.stat().st_size for file in files), 0, {}
        for file in files:
            report(seen, total)
            seen += file.stat().st_size
            if sha256(file) == self.done[file.name]:
                kept[file.name] = self.done[file.name]
        self.done = kept
        self.remove(self._earlier - kept.keys())
        self.mark()

    def remove(self, names: Collection[str] | None = None) -> None:
        """Removes files of this or the earlier attempt, by default all, the mark too; what is foreign stays."""
        names = {file.name for file in self.path.iterdir()} - self._foreign if names is None else names
        for file in (self.path / name for name in names):
            if file.is_file():
                file.unlink()


@contextmanager
def unfinished(
    directory: Path,
    identity: Mapping[str, Any] | None,
    files: Collection[str],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Unfinished]:
    """Marks a directory as unfinished while the block fills it.

    If the block fails, the large files that are complete stay, with the mark, for the next attempt with an equal
    `identity`; another attempt removes them. Without an identity, or without such a file, nothing stays.

    Args:
        directory: must not exist, or be empty, or be unfinished itself. It may be a link or a mount point.
        identity: what is being written, in JSON's types. files: the names of the large files.
        report: takes the bytes of an earlier attempt compared so far, and those of all.

    Raises:
        FileExistsError: `directory` holds something, or another process is writing there.
    """
    path = Path(os.path.realpath(directory))
    made = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        filling = Unfinished(path, identity, files)
        earlier = bool(filling.done)
        try:
            filling.resume(report)
            earlier = False
            yield filling
            for file in (file for file in path.iterdir() if file.is_file() and file.name not in filling.done):
                _sync(file)
            (path / UNFINISHED).unlink()
            _sync(path)
        except BaseException:
            if not earlier and (identity is None or not filling.done):
                filling.remove()
                if made:
                    with suppress(OSError):
                        path.rmdir()
            raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except NotADirectoryError:
        raise FileExistsError(f"{path} exists and is no directory; choose another name") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not path.exists() or os.fstat(descriptor).st_ino != path.stat().st_ino:
            raise BlockingIOError  # the other process removed what was opened here
        yield
    except BlockingIOError:
        raise FileExistsError(f"{path}: another process is writing there") from None
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
