"""Reading files wherever they are, and writing them so that they are complete or not there."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from typing import BinaryIO


def is_remote(path: str) -> bool:
    """Whether a path is a URL, such as gs://bucket/a.jpg, rather than one of the file system."""
    return "://" in path


def require_file(path: str | os.PathLike) -> None:
    """Raises an OSError unless a local path leads to a regular file; reading a pipe or a device may never end."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory, not a file", os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is a pipe or a device, not a file", os.fspath(path))


def read_bytes(path: str) -> bytes:
    """A whole file, local or remote.

    Raises:
        OSError: it cannot be read; a remote path is named in the message.
        ModuleNotFoundError: what reads gs:// is not installed.
    """
    if not is_remote(path):
        with open(path, "rb") as stream:
            return stream.read()
    from etils import epath  # late: it takes long to import, and most files are local

    try:
        return epath.Path(path).read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(2, "No such file", path) from error
    except ImportError as error:
        raise ModuleNotFoundError(str(error), name="gcsfs") from error
    except Exception as error:  # every library has its own types for what goes wrong on the way
        raise OSError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


@contextlib.contextmanager
def replacing(file: str | os.PathLike) -> Iterator[BinaryIO]:
    """A stream into a file that takes the place of `file` once it is complete; after an error nothing has changed.

    Several processes may do so at once: the last wins, and who reads an earlier one goes on reading it.

    Raises:
        OSError: the directory is missing or cannot be written to.
    """
    unfinished = f"{os.fspath(file)}.{secrets.token_hex(4)}.unfinished"
    try:
        with open(unfinished, "xb") as stream:
            yield stream
        os.replace(unfinished, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise
