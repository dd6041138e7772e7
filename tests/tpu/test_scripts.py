"""What the scripts of tpu/ do to a Google Cloud that is made of directories."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tpu.job import AWKWARD, NAMES, SCRIPTS, TPU, WAIT


def test_create_waits_until_the_tpu_is_ready(job):
    job.set(
        lives=[["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]],
        unready={"first": "CREATING"},
    )
    job.set(events=[{}, {}, {}, {"unready": {}}])
    lines = job.ok("create").splitlines()
    assert [line.split(" is ")[1] for line in lines[:-1]] == ["WAITING_FOR_RESOURCES", "PROVISIONING", "CREATING"]
    assert lines[-1] == "first is READY, and costs money until tpu/delete.sh"


def test_create_waits_for_every_slice(job):
    job.name(NAMES | {"SLICES": "2"})
    job.set(unready={"first-1": "CREATING"}, events=[{}, {"unready": {}}])
    assert " first is CREATING\n" in job.ok("create")


def test_create_called_again_goes_on_waiting(job):
    job.set(request=["PROVISIONING", "ACTIVE"])
    job.ok("create")
    assert job.calls("queued-resources", "create") == []


def test_create_waits_through_a_failure_of_the_network(job):
    job.set(lives=[["PROVISIONING", "PROVISIONING", "ACTIVE"]])
    job.set(events=[{"failing": "list"}, {}, {"failing": None}])
    job.ok("create")
    assert len(job.calls("queued-resources", "create")) == 1


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_create_ends_where_a_request_has_failed(job, state):
    job.set(lives=[["PROVISIONING", state]])
    done = job.script("create")
    assert done.returncode == 1
    assert "state: ..." in done.stderr  # why, from `describe`
    assert done.stderr.splitlines()[-1].startswith(f"create.sh: error: first is {state} and will not become ready; ")


def test_setup_installs_the_last_commit_on_every_worker(job):
    (job.root / "recipe.yaml").write_text("train: {steps: 7}\n")
    job.name(NAMES | {"EXTRAS": "tpu,gcs", "PREPARE": "echo $((1 + 1)) >prepared"})
    job.ok("create")
    done = job.script("setup")
    assert done.returncode == 0
    assert "setup.sh: warning: changes since the last commit are not sent" in done.stderr
    for worker in (0, 1):
        home = job.home(worker)
        assert (home / "ivl3_jax/recipe.yaml").read_text() == "train: {}\n"
        assert not (home / "ivl3_jax/tpu/names.sh").exists()
        assert (home / "prepared").read_text() == "2\n"
        assert (
            (home / "uv")
            .read_text()
            .splitlines()[-1]
            .endswith("--exclude-newer 2026-01-02T03:04:05+00:00 --editable ./ivl3_jax[tpu,gcs]")
        )
    # Once more, after a file was removed: the new commit is there, and nothing of the old one.
    job.git("rm", "-q", "my recipes/it's one.yaml")
    job.git("commit", "-q", "-a", "-m", "second")
    job.ok("setup")
    assert (job.home(1) / "ivl3_jax/recipe.yaml").read_text() == "train: {steps: 7}\n"
    assert not (job.home(1) / "ivl3_jax/my recipes").exists()
    assert job.script("setup", "nonsense").stderr == "setup.sh: error: nonsense is not a commit\n"


def test_arguments_arrive_as_they_were_written(job):
    job.name(AWKWARD)
    job.ok("create", "setup", "run")
    job.wait()
    assert (job.home() / "prepared").read_text() == "0|two  words|"
    options = "\n".join(AWKWARD["TRAIN_OPTIONS"])
    expected = f"train\n--config\n{AWKWARD['RECIPE']}\n--output\n{AWKWARD['RUN_DIR']}\n--distributed\nauto\n{options}\n"
    assert [(job.home(worker) / "arguments").read_text() for worker in (0, 1)] == [expected] * 2


def test_a_run_outlives_the_connection_and_is_alone(job):
    job.train(f"echo here; {WAIT}")
    job.ok("create", "setup", "run")
    job.wait()
    os.kill(int((job.home() / "ivl3.pid").read_text()), signal.SIGHUP)
    assert job.ok("status").count("running: here") == 2
    done = job.script("run")
    assert done.returncode == 1 and "a run is going on here already; tpu/stop.sh ends it" in done.stderr
    done = job.script("setup")
    assert done.returncode == 1 and "a run is going on here; tpu/stop.sh ends it" in done.stderr
    assert (job.home() / "ivl3_jax/recipe.yaml").exists()


def test_a_process_that_a_run_left_behind_is_not_the_run(job):
    job.train("/bin/sleep 100 & echo $! >~/left; exit 1")
    job.ok("create", "setup", "run")
    job.wait()
    assert job.ok("status").count("idle: ") == 2
    for worker in (0, 1):
        os.kill(int((job.home(worker) / "left").read_text()), signal.SIGKILL)


def test_the_end_of_a_run_stands_in_the_log(job):
    job.train("echo a mistake >&2; exit 3")
    job.ok("create", "setup", "run")
    job.wait()
    job.ok("run")  # the next log is added to it
    job.wait()
    log = (job.home(1) / "ivl3.log").read_text()
    assert log.count("a mistake\n") == 2 and log.count("ivl3 train ended, exit code 3\n") == 2
    said = job.ok("status")
    assert "first: READY\ngs://my-bucket/runs/first: not done\n" in said
    assert said.count("idle: == ") == 2 and said.count("exit code 3") == 2


def test_stop_lets_the_run_save(job):
    job.train(f"trap 'save steps 1; echo saved; exit 0' TERM; {WAIT}")
    job.ok("create", "setup", "run")
    job.wait()
    assert job.ok("stop").count("ivl3 train ended, exit code 0") == 2
    assert (job.cloud / "bucket/my-bucket/runs/first/steps/1").exists()
    assert job.ok("stop").count("exit code 0") == 2  # nothing runs: nothing to do


def test_every_slice_of_several_is_served(job):
    job.name(NAMES | {"SLICES": "2"})
    job.ok("create", "setup", "run")
    job.wait()
    (create,) = job.calls("queued-resources", "create")
    assert "--node-count=2" in create and "--node-prefix=first" in create and not any("node-id" in w for w in create)
    for node in ("first-0", "first-1"):
        assert [(job.home(worker, node) / "arguments").exists() for worker in (0, 1)] == [True, True]
    assert job.ok("status").count("idle: ") == 4


def test_delete_removes_the_tpu_and_lists_what_is_left(job):
    job.ok("create")
    assert job.ok("delete") == "NAME  STATE\nNAME  STATUS\n"
    assert not job.home().exists()
    assert job.script("delete").returncode == 1  # there is none


def test_the_scripts_can_be_called():
    for script in SCRIPTS:
        assert os.access(TPU / f"{script}.sh", os.X_OK)


def test_shellcheck_has_nothing_to_say():
    beside = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (extra: dev)")
    files = sorted(str(file.relative_to(TPU.parent)) for file in TPU.glob("*.sh") if not file.name.startswith("names"))
    done = subprocess.run([shellcheck, "-x", *files], cwd=TPU.parent, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout
