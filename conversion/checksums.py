"""SHA256SUMS of a checkpoint directory: for `sha256sum -c SHA256SUMS`, and for `ivl3 convert` before it reads one."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from ivl3_jax.hf_config import UNFINISHED

FILE = "SHA256SUMS"
LINE = re.compile(r"^([0-9a-f]{64}) [ *](\S.*)$")


def sha256(file: Path) -> str:
    """The SHA-256 of a file's content as hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_checksums(directory: Path, known: Mapping[str, str]) -> None:
    """Lists every file of a directory but the model card, which is for people to edit; `known` sums are not redone."""
    files = sorted({file.name for file in directory.iterdir() if file.suffix != ".md"} - {FILE, UNFINISHED})
    lines = [f"{known.get(name) or sha256(directory / name)}  {name}\n" for name in files]
    (directory / FILE).write_text("".join(lines), encoding="utf-8")


def check_weights(directory: Path) -> int:
    """Compares the safetensors files of a directory with its SHA256SUMS, if it has one.

    Returns:
        The number of files compared.

    Raises:
        ValueError: a file is not what was written, or the list cannot be read.
    """
    listed = directory / FILE
    if not listed.is_file():
        return 0
    count = 0
    for number, line in enumerate(listed.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        match = LINE.match(line)
        if match is None:
            raise ValueError(f"{listed}:{number}: {line[:100]!r} is not a SHA-256 in hexadecimal and a file name")
        expected, name = match.groups()
        # A weight file that is missing is for the index to tell; the other files a user may change.
        if name.endswith(".safetensors") and name == Path(name).name and (directory / name).is_file():
            count += 1
            if sha256(directory / name) != expected:
                raise ValueError(
                    f"{directory / name} is not the file that {FILE} lists: it was damaged or changed since; fetch it "
                    f"again, or remove {FILE} if the change is meant"
                )
    return count
