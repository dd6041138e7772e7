"""Stopped at any moment and gone on with, on any number of hosts and workers, a run gives what it would have given."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from ivl3_jax.data import Loader
from tests.data.trainer import open_data, steps, write_data

ROOT = Path(__file__).parents[2]
COUNT, LONG = 40, 500
HOSTS = (1, 2, 4)
SETTINGS = [(1, 3), (2, 1), (4, 0), (1, 1), (2, 2), (1, 0)]  # of hosts, which are all in one process, and workers


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_data(root)
    return root


@pytest.fixture(scope="session")
def expected(data, processor):
    """The digest of each batch, and the state after it, of a run that nothing stops."""
    return run(data, processor, COUNT)


def run(data, processor, count, hosts=1, workers=0, state=None):
    return list(islice(steps(open_data(data, processor), hosts, workers, state), count))


def test_what_is_compared_has_everything_in_it(expected):
    """Several passes, faults before and after packing, and samples that wait: else the tests below show little."""
    streams = expected[-1][1]["streams"].values()
    assert len({digest for digest, _ in expected}) == COUNT
    skipped = [stream["skipped"] for stream in streams]
    drawn = sum(stream["drawn"] for stream in streams)
    assert {reason for counts in skipped for reason in counts} == {"line", "image"}
    assert drawn > 4 * (61 + 37 + 18)
    assert all(stream["waiting"] for stream in streams)


@pytest.mark.parametrize("seed", range(50))
def test_stopped_anywhere(data, processor, expected, seed):
    rng = np.random.default_rng(seed)
    stop, before, after = int(rng.integers(1, COUNT - 6)), int(rng.choice(HOSTS)), int(rng.choice(HOSTS))
    state = expected[stop - 1][1]
    if seed % 2:  # stopped twice, and on other hosts before
        state = run(data, processor, 3, before, state=state)[-1][1]
        stop += 3
    state = json.loads(json.dumps(state))
    assert run(data, processor, 3, after, state=state) == expected[stop : stop + 3]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    "hosts", [pytest.param(n, marks=pytest.mark.long if n > 2 else pytest.mark.slow) for n in HOSTS]
)
def test_gone_on_with_any_hosts_and_workers(data, processor, expected, hosts, workers):
    assert run(data, processor, 3, hosts, workers, expected[8][1]) == expected[9:12]


def children(process: int) -> set[int]:
    """The processes that one has started, and theirs."""
    try:
        tasks = Path(f"/proc/{process}/task").iterdir()
        found = {int(child) for task in tasks for child in (task / "children").read_text().split()}
    except OSError:  # it has ended
        return set()
    return found.union(*map(children, found))


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited for nothing"
        time.sleep(0.002)


def check_killed(data, directory, output, expected, kills):
    """Kills a trainer so many times, lets it end, and compares all that it wrote."""
    rng, log = np.random.default_rng(kills), output / "batches.jsonl"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    log.touch()

    def written():
        return log.read_bytes().count(b"\n")

    def start():
        hosts, workers = SETTINGS[rng.integers(len(SETTINGS))]
        arguments = map(str, (data, directory, output, len(expected), hosts, workers))
        return subprocess.Popen([sys.executable, "-m", "tests.data.trainer", *arguments], cwd=ROOT, env=environment)

    for _ in range(kills):
        before, more = written(), int(rng.integers(0, 3))
        with start() as process:
            wait_for(lambda enough=before + more, running=process: written() >= enough or running.poll() is not None)
            time.sleep(rng.random() * (0.05 if more else 2))  # in the middle of a batch, or before the first
            workers = children(process.pid)
            process.kill()
        assert process.returncode == -signal.SIGKILL, f"ended by itself after {written()} of {len(expected)} batches"
        wait_for(lambda left=workers: not any(map(is_running, left)))
    with start() as process:
        assert process.wait() == 0
    reached = -1
    for line in map(json.loads, log.read_text().splitlines()):
        assert line["digest"] == expected[line["step"]][0], line
        assert line["step"] in (reached, reached + 1)  # killed before its state was saved, a batch is made again
        reached = line["step"]
    assert reached == len(expected) - 1
    assert json.loads((output / "state.json").read_text()) == {"step": len(expected), "data": expected[-1][1]}


@pytest.mark.slow
def test_a_killed_worker_ends_the_run(data, processor):
    loader = Loader(open_data(data, processor), workers=2)
    next(loader)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(RuntimeError, match="terminated unexpectedly with exit code -9"):
        list(islice(loader, 100))
    loader.close()


@pytest.mark.slow
def test_killed_three_times(data, directory, expected, tmp_path):
    check_killed(data, directory, tmp_path, expected, 3)


@pytest.mark.long
def test_killed_fifty_times(data, directory, processor, tmp_path):
    check_killed(data, directory, tmp_path, run(data, processor, LONG), 50)
