"""What the scripts of tpu/ print with --dry-run, and what they say of a wrong file of names."""

import shutil
import subprocess

import pytest

from tests.tpu.job import AWKWARD, NAMES, SCRIPTS, TPU

WHERE = "--project=my-project --zone=europe-west4-b"
SSH = "gcloud compute tpus tpu-vm ssh"
STATE = f"""\
gcloud compute tpus queued-resources list {WHERE} --filter='name~/first$' --format='value(state.state)'
gcloud compute tpus tpu-vm describe first {WHERE} --format='value(state)'
"""
CREATE = f"""\
gcloud compute tpus queued-resources create first {WHERE} --accelerator-type=v5litepod-16 \
--runtime-version=v2-alpha-tpuv5-lite --node-id=first --spot
# then, until they say ACTIVE and READY:
{STATE}"""
SETUP = f"""\
mkdir -p ROOT/.cache
git -C ROOT archive --prefix=ivl3_jax/ --output=ROOT/.cache/first.tar.gz COMMIT
gcloud compute tpus tpu-vm scp ROOT/.cache/first.tar.gz first:ivl3_jax.tar.gz {WHERE} --worker=all
{SSH} first {WHERE} --worker=all --command='flock -n ivl3.lock true || \
{{ echo '\\''a run is going on here; tpu/stop.sh ends it'\\'' >&2; exit 1; }}; rm -rf ivl3_jax && \
tar xzf ivl3_jax.tar.gz && bash ivl3_jax/tpu/worker_setup.sh tpu 2026-01-02T03:04:05+00:00 '\\'''\\'''
"""
RUN = f"""\
{SSH} first {WHERE} --worker=all --command='bash ivl3_jax/tpu/worker_run.sh --config recipe.yaml \
--output gs://my-bucket/runs/first --distributed auto'
"""
FILES = "gcloud storage objects list 'gs://my-bucket/runs/first/**' --format='value(name)'\n"
DELETE = f"""\
gcloud compute tpus queued-resources delete first {WHERE} --force --quiet
gcloud compute tpus queued-resources list {WHERE}
gcloud compute tpus tpu-vm list {WHERE}
"""
PRINTED = {
    "create": CREATE,
    "setup": SETUP,
    "run": RUN,
    "follow": f"{SSH} first {WHERE} --worker=0 --command='tail -n 100 -F ivl3.log'\n",
    "status": f"""{STATE}{FILES}{SSH} first {WHERE} --worker=all --command='echo "$(hostname): \
$(flock -n ivl3.lock true && echo idle || echo running): $(tail -n 1 ivl3.log 2>/dev/null)"'
""",
    "stop": f"""\
{SSH} first {WHERE} --worker=all --command='flock -n ivl3.lock true || kill -TERM "$(cat ivl3.pid)"'
{SSH} first {WHERE} --worker=all --command='flock -w 600 ivl3.lock true || \
{{ echo "still running after ten minutes" >&2; exit 1; }}; tail -n 1 ivl3.log'
""",
    "resume": f"""\
# every minute:
{STATE}{SSH} first {WHERE} --worker=all --command='flock -n ivl3.lock true && echo idle || echo running'
# where no worker runs, to see whether the run is done:
{FILES}# if it is not, and the TPU was preempted:
{DELETE}{CREATE}# then:
{SETUP}{RUN}""",
    "delete": DELETE,
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_prints_the_commands_and_runs_none(job, script):
    done = job.script(script, "--dry-run")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == PRINTED[script].replace("ROOT", str(job.root)).replace("COMMIT", job.commit)
    assert job.calls() == []
    assert not (job.root / ".cache").exists()


@pytest.mark.parametrize("names", [NAMES, AWKWARD], ids=["plain", "awkward"])
def test_what_a_dry_run_prints_can_be_pasted(job, names):
    job.name(names)
    job.ok("create")
    for script in ("setup", "run", "delete"):
        printed = job.ok(f"{script} --dry-run")
        before = len(job.calls())
        assert job.bash("-c", printed).returncode == 0
        pasted, before = job.calls()[before:], len(job.calls())
        if script == "delete":
            job.set(lives=[["ACTIVE"]])
            job.ok("create")
            before = len(job.calls())
        job.wait()
        job.ok(script)
        assert job.calls()[before:] == pasted


def test_follow_shows_the_log_of_a_worker(job):
    job.name(NAMES | {"SLICES": "2"})
    for arguments, expected in (
        ("", f"{SSH} first-0 {WHERE} --worker=0 "),
        ("3", f"{SSH} first-0 {WHERE} --worker=3 "),
        ("all 1", f"{SSH} first-1 {WHERE} --worker=all "),
    ):
        assert job.ok(f"follow {arguments} --dry-run").startswith(expected)


@pytest.mark.parametrize("variable", [name for name in NAMES if name != "CREATE_OPTIONS"])
def test_a_missing_name_is_told_with_file_and_variable(job, variable):
    job.name({key: value for key, value in NAMES.items() if key != variable})
    for script in SCRIPTS:
        done = job.script(script, "--dry-run", **{variable: "of-the-environment"})
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"{script}.sh: error: tpu/names.sh: {variable} is missing; it is ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"RUN_DIR": "runs/first"}, "tpu/names.sh: RUN_DIR is 'runs/first'; it must be gs://BUCKET/DIRECTORY"),
        ({"RUN_DIR": "gs://my-bucket"}, "tpu/names.sh: RUN_DIR is 'gs://my-bucket'; it must be gs://BUCKET/DIRECTORY"),
        ({"SLICES": "two"}, "tpu/names.sh: SLICES is 'two'; it must be a whole number of at least 1"),
        ({"RECIPE": "new.yaml"}, "tpu/names.sh: RECIPE is 'new.yaml', which commit"),
    ],
)
def test_a_wrong_name_is_told_with_file_variable_and_value(job, names, message):
    job.name(NAMES | names)
    done = job.script("setup")
    assert done.returncode == 1
    assert done.stderr.startswith(f"setup.sh: error: {message}") and done.stderr.count("\n") == 1
    assert job.calls() == []


def test_without_a_file_of_names_the_example_is_pointed_to(job):
    (job.root / "tpu/names.sh").unlink()
    done = job.script("create")
    assert done.returncode == 1
    expected = "create.sh: error: tpu/names.sh does not exist; copy tpu/names.sh.example there and fill it in\n"
    assert done.stderr == expected


def test_the_example_is_complete(job):
    shutil.copy(TPU / "names.sh.example", job.root / "tpu/names.sh")
    (job.root / "configs").mkdir()
    (job.root / "configs/finetune.yaml").write_text("train: {}\n")
    job.git("add", ".")
    job.git("commit", "-q", "-m", "recipe")
    for script in SCRIPTS:
        job.ok(f"{script} --dry-run")
    assert job.git("status", "--porcelain") == ""


def test_the_recipe_of_the_example_is_in_the_checkout():
    names = (TPU / "names.sh.example").read_text()
    assert "RECIPE=configs/finetune.yaml" in names
    assert (TPU.parent / "configs/finetune.yaml").is_file()


def test_git_ignores_files_of_names():
    if subprocess.run(["git", "rev-parse"], cwd=TPU, capture_output=True).returncode:
        pytest.skip("not a git checkout")
    ignored = [subprocess.run(["git", "check-ignore", "-q", f"tpu/{name}"], cwd=TPU.parent).returncode == 0
               for name in ("names.sh", "names-second.sh", "names.sh.example")]  # fmt: skip
    assert ignored == [True, True, False]


def test_another_file_of_names(job):
    job.name(NAMES | {"NAME": "second"}, "tpu/names-second.sh")
    done = job.script("delete", "--dry-run", IVL3_NAMES="tpu/names-second.sh")
    assert done.stdout.startswith("gcloud compute tpus queued-resources delete second ")
    done = job.script("delete", "--dry-run", IVL3_NAMES="tpu/third.sh")
    assert done.stderr.startswith("delete.sh: error: tpu/third.sh does not exist")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_first_comment_and_wrong_arguments_are_refused(job, script):
    assert job.ok(f"{script} --help").startswith(f"tpu/{script}.sh [")
    for wrong in (["--dryrun"], ["1", "2", "3"]):
        done = job.script(script, *wrong)
        assert done.returncode == 1 and done.stderr.startswith(f"{script}.sh: error: {wrong[-1]} is ")
    assert job.calls() == []
