"""A bucket to test with: gs:// served from memory, through the same libraries as the real one."""

import pytest
from etils.epath import backend
from fsspec import register_implementation
from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    protocol = ("gcs", "gs")
    store = {}
    pseudo_dirs = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("gs://").strip("/")


@pytest.fixture
def bucket():
    """Puts bytes at gs:// paths."""
    register_implementation("gcs", Bucket, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
    Bucket.store.clear()
    yield lambda path, data: Bucket().pipe_file(path, data)
    backend.fsspec_backend._get_filesystem.cache_clear()
    register_implementation("gcs", "gcsfs.GCSFileSystem", clobber=True)
