"""tpu/resume.sh: a run that goes on until it is done, and no longer."""

import pytest

from tests.tpu.job import WAIT

FIRST_LIFE = 'grep -q \'"life": 1\' "$FAKE_CLOUD/state.json"'


@pytest.mark.slow
def test_resume_asks_for_a_preempted_tpu_again_and_goes_on(job):
    job.train(f"if {FIRST_LIFE}; then save steps 1; {WAIT}; fi; test -e $run/steps/1; save checkpoint SHA256SUMS")
    job.set(lives=[["PROVISIONING", "ACTIVE"], ["WAITING_FOR_RESOURCES", "ACTIVE"]])
    job.set(events=[{}, {}, {}, "preempted"])
    job.ok("resume")
    assert job.verbs() == ["create", "setup", "run", "delete", "create", "setup", "run"]
    # The run is done, and the TPU is still there; called again there is nothing to do.
    assert "the run is done: gs://my-bucket/runs/first/checkpoint. first costs money" in job.ok("resume")
    assert job.verbs()[-1] == "run"
    assert "gs://my-bucket/runs/first: done" in job.ok("status")
    job.ok("delete")


def test_resume_does_not_ask_for_a_tpu_when_the_run_is_done(job):
    job.save("checkpoint/SHA256SUMS")
    job.ok("resume")
    assert job.verbs() == []


def test_a_checkpoint_elsewhere_in_the_run_is_not_its_end(job):
    job.save("steps/checkpoint/SHA256SUMS")
    job.save("checkpoint/config.json")
    job.save("checkpoint/SHA256SUMS.part")
    job.train("save checkpoint SHA256SUMS")
    job.ok("resume")
    assert job.verbs() == ["create", "setup", "run"]


def test_resume_goes_on_after_a_run_that_was_told_to_end(job):
    job.train("[[ ! -e $run/steps/1 ]] || save checkpoint SHA256SUMS; save steps 1; exit 0")
    job.ok("resume")
    assert job.verbs()[:3] == ["create", "setup", "run"]
    assert set(job.verbs()[3:]) <= {"setup", "run"}


def test_resume_leaves_a_run_alone_that_is_going_on(job):
    job.train(f"trap 'save checkpoint SHA256SUMS; exit 0' TERM; {WAIT}")
    job.ok("create", "setup", "run")
    job.wait()
    # Nobody can be asked for a while: not a reason to touch anything.
    job.set(events=[{"failing": "ssh"}, {}, {"failing": "list"}, {"failing": None}, {}, "preempted"])
    job.save("checkpoint/SHA256SUMS")
    done = job.script("resume")
    assert done.returncode == 0 and "the network is down" in done.stderr
    seen = [line.split(" is ")[1] for line in done.stdout.splitlines()[:-1]]
    assert seen == ["RUNNING", "UNREACHABLE", "UNKNOWN", "RUNNING", "SUSPENDING", "SUSPENDED"]
    assert job.verbs() == ["create", "setup", "run"]


@pytest.mark.slow
def test_resume_gives_up_where_nothing_is_saved(job):
    job.train("exit 1")
    done = job.script("resume")
    assert done.returncode == 1
    message = (
        "resume.sh: error: six tries brought nothing new into gs://my-bucket/runs/first; tpu/follow.sh shows the log."
    )
    assert done.stderr.splitlines()[-1] == f"{message} first may still cost money: tpu/delete.sh"
    assert job.verbs() == ["create", *["setup", "run"] * 5]


@pytest.mark.slow
def test_resume_goes_on_as_long_as_something_is_saved(job):
    job.train('[[ $(basename ~) == 0 ]] || exit 1; n=$(ls "$run/steps" 2>/dev/null | wc -l)\n'
              "if ((n < 7)); then save steps $n; exit 1; fi; save checkpoint SHA256SUMS")  # fmt: skip
    job.ok("resume")
    assert job.verbs().count("run") == 8


def test_resume_stays_with_the_commit_that_it_began_with(job):
    job.set(lives=[["ACTIVE"], ["ACTIVE"]], events=[{}, "preempted"])
    commit = 'cd "$FAKE_CLOUD/../checkout"; flock . git commit -q --allow-empty -m more'
    job.train(f"if {FIRST_LIFE}; then {commit}; {WAIT}; fi; save checkpoint SHA256SUMS")
    done = job.script("resume")
    assert done.returncode == 0 and job.git("rev-parse", "HEAD") != job.commit
    sent = [line for line in done.stderr.splitlines() if line.startswith("+ git ")]
    assert len(sent) == 2 and all(line.endswith(job.commit) for line in sent)


def test_resume_asks_again_where_a_request_fails(job):
    job.set(lives=[["FAILED"], ["PROVISIONING", "FAILED"], ["ACTIVE"]])
    job.train("save checkpoint SHA256SUMS")
    job.ok("resume")
    assert job.verbs() == ["create", "delete", "create", "delete", "create", "setup", "run"]


def test_resume_does_not_ask_again_while_it_does_not_know(job):
    """A question that failed is not the answer that there is no TPU."""
    job.set(failing="list", events=[{}, {"failing": None}])
    job.train("save checkpoint SHA256SUMS")
    done = job.script("resume")
    assert done.returncode == 0 and done.stdout.splitlines()[0].endswith("first is UNKNOWN")
    assert job.verbs() == ["create", "setup", "run"]


def test_resume_believes_the_state_of_the_vm_before_that_of_the_queue(job):
    job.set(request=["ACTIVE"], unready={"first": "PREEMPTED"}, lives=[["ACTIVE"]], events=[{"unready": {}}])
    job.train("save checkpoint SHA256SUMS")
    done = job.script("resume")
    assert done.stdout.splitlines()[0].endswith("first is PREEMPTED")
    assert job.verbs()[:2] == ["delete", "create"]
