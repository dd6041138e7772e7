import shutil

import pytest

from tests.tpu.job import Job


@pytest.fixture
def job(tmp_path):
    if shutil.which("flock") is None:
        pytest.skip("flock, which the workers have, is not on this machine")
    job = Job(tmp_path)
    yield job
    job.end()
