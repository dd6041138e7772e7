"""Whether what a command is to write can be written, asked before the work whose result it is."""

import tempfile
from pathlib import Path

from ivl3_jax.cli import UsageError


def check_file(option: str, file: Path | None) -> None:
    """Opens a file as it will be; one that was not there is not left. Null is no file.

    Raises:
        UsageError: it cannot be written.
    """
    if file is None:
        return
    try:
        there = file.is_symlink() or file.exists()
        file.open("ab").close()
        if not there:
            file.unlink()
    except OSError as error:
        raise UsageError(f"option --{option} is {str(file)!r}, which cannot be written: {error.strerror}") from None


def check_directory(option: str, directory: Path) -> None:
    """Makes a directory where it is missing, and a file in it, which is not left.

    Raises:
        UsageError: one of them cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise UsageError(
            f"option --{option} is {str(directory)!r}, a directory in which no file can be made: {error.strerror}"
        ) from None
