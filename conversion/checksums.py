"""SHA256SUMS of a checkpoint directory: for `sha256sum -c SHA256SUMS`, and for `ivl3 convert` before it reads one."""

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from ivl3_jax.hf_config import UNFINISHED

FILE = "SHA256SUMS"
LINE = re.compile(r"^([0-9a-fA-F]{64}) [ *](?:\./)*(\S.*)$")


def sha256(file: Path) -> str:
    """The SHA-256 of a file's content as hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_checksums(directory: Path, known: Mapping[str, str]) -> None:
    """Lists every file of a directory but the model card, which is for people to edit; `known` sums are not redone."""
    there = {file.name for file in directory.iterdir() if file.is_file() and file.suffix != ".md"}
    files = sorted(there - {FILE, UNFINISHED})
    lines = [f"{known.get(name) or sha256(directory / name)}  {name}\n" for name in files]
    (directory / FILE).write_text("".join(lines), encoding="utf-8")


def check_weights(directory: Path, report: Callable[[int, int], None]) -> None:
    """Compares the safetensors files of a directory with its SHA256SUMS, if it has one.

    `report` takes the bytes compared so far, and those of all.

    Raises:
        ValueError: a file is not what was written, or the list cannot be read.
    """
    listed = directory / FILE
    if not listed.is_file():
        return
    expected = {}
    for number, line in enumerate(listed.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        match = LINE.match(line)
        if match is None:
            raise ValueError(f"{listed}:{number}: {line[:100]!r} is not a SHA-256 in hexadecimal and a file name")
        expected[match[2]] = match[1].lower()
    # A weight file that is missing is for the index to tell; the other files a user may change.
    weights = sorted(directory.glob("*.safetensors"))
    files = [file for file in weights if file.name in expected]
    if len(files) < len(weights):
        absent = ", ".join(file.name for file in weights if file not in files)
        raise ValueError(f"{listed} does not list {absent}; complete it, or remove it")
    total, done = sum(file.stat().st_size for file in files), 0
    for file in files:
        report(done, total)
        if sha256(file) != expected[file.name]:
            raise ValueError(
                f"{file} is not the file that {FILE} lists: it was damaged or changed since; fetch it again, or remove "
                f"{FILE} if the change is meant"
            )
        done += file.stat().st_size
        report(done, total)
