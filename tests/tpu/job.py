"""A job of the scripts in tpu/: a checkout with its file of names, beside the Google Cloud of fake_cloud.py."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

TPU = Path(__file__).parents[2] / "tpu"
SCRIPTS = ["create", "setup", "run", "follow", "status", "stop", "resume", "delete"]
NAMES = {
    "PROJECT": "my-project",
    "ZONE": "europe-west4-b",
    "NAME": "first",
    "ACCELERATOR_TYPE": "v5litepod-16",
    "RUNTIME_VERSION": "v2-alpha-tpuv5-lite",
    "CREATE_OPTIONS": ["--spot"],
    "RECIPE": "recipe.yaml",
    "RUN_DIR": "gs://my-bucket/runs/first",
}
AWKWARD = NAMES | {
    "RECIPE": "my recipes/it's one.yaml",
    "RUN_DIR": "gs://my-bucket/a run",
    "TRAIN_OPTIONS": ["--model.checkpoint", "a b", "", "$HOME", 'it\'s "it"', "--data.tokens=8 192"],
    "PREPARE": "printf '%s|' \"$(basename \"$PWD\")\" 'two  words' >prepared",
}
# What `ivl3 train` is on a worker. Worker 0 writes; `waits` lets time go on while the run does.
WAIT = "touch ~/waits; while :; do /bin/sleep 0.01; done"
SAVE = 'run=$FAKE_CLOUD/bucket/my-bucket/runs/first; save() { mkdir -p "$run/$1"; touch "$run/$1/$2"; }\n'


class Job:
    """A checkout with names.sh, beside a fake Google Cloud."""

    def __init__(self, directory: Path):
        self.root, self.cloud, self.bin = directory / "checkout", directory / "cloud", directory / "bin"
        self.environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(directory),
            "FAKE_CLOUD": str(self.cloud),
            **{f"GIT_{who}_{what}": "me@here" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
            **{f"GIT_{who}_DATE": "2026-01-02T03:04:05+0000" for who in ("AUTHOR", "COMMITTER")},
        }
        for path in (self.bin, self.cloud / "bucket", self.root / "my recipes"):
            path.mkdir(parents=True)
        for name in ("gcloud", "sleep", "uv"):
            fake = shlex.join([sys.executable, "-ES", str(Path(__file__).with_name("fake_cloud.py")), name])
            (self.bin / name).write_text(f'#!/bin/sh\nexec {fake} "$@"\n')
            (self.bin / name).chmod(0o755)
        shutil.copytree(TPU, self.root / "tpu", ignore=shutil.ignore_patterns("names*.sh"))
        (self.root / ".gitignore").write_text(".cache/\ntpu/names*.sh\n")
        for recipe in ("recipe.yaml", AWKWARD["RECIPE"]):
            (self.root / recipe).write_text("train: {}\n")
        for command in ("git init -q", "git add .", "git commit -q -m first"):
            subprocess.run(command.split(), cwd=self.root, env=self.environment, check=True)
        self.commit = self.git("rev-parse", "HEAD")
        self.name(NAMES)
        self.set(request=None, lives=[["ACTIVE"]], events=[], life=0, unready={})
        self.train("exit 0")

    def git(self, *words: str) -> str:
        command = ["git", *words]
        done = subprocess.run(command, cwd=self.root, env=self.environment, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def name(self, names: dict, file: str = "tpu/names.sh") -> None:
        words = {key: f"({shlex.join(v)})" if isinstance(v, list) else shlex.quote(v) for key, v in names.items()}
        (self.root / file).write_text("".join(f"{key}={value}\n" for key, value in words.items()))

    def set(self, **state) -> None:
        file = self.cloud / "state.json"
        file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | state))

    def train(self, script: str) -> None:
        (self.cloud / "train").write_text(f"#!/usr/bin/env bash\nset -eu\n{SAVE}{script}\n")
        (self.cloud / "train").chmod(0o755)

    def bash(self, *command: str, **more: str) -> subprocess.CompletedProcess:
        # The output goes to files: a pipe would stay open as long as a run that should have let go of it.
        with open(self.cloud / "out", "w+") as out, open(self.cloud / "err", "w+") as err:
            environment = self.environment | more
            done = subprocess.run(
                ["bash", *command], cwd=self.root, env=environment, stdout=out, stderr=err, timeout=300
            )
        done.stdout, done.stderr = ((self.cloud / name).read_text() for name in ("out", "err"))
        return done

    def script(self, name: str, *arguments: str, **more: str) -> subprocess.CompletedProcess:
        return self.bash(f"tpu/{name}.sh", *arguments, **more)

    def ok(self, *names: str) -> str:
        """Runs scripts, none of which may fail; what the last one said."""
        for name in names:
            done = self.script(*name.split())
            assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        return done.stdout

    def calls(self, *verb: str) -> list[list[str]]:
        """The calls of gcloud so far, or those of one verb such as `queued-resources create`."""
        file = self.cloud / "calls"
        calls = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [call for call in calls if not verb or call[2 : 2 + len(verb)] == list(verb)]

    def verbs(self) -> list[str]:
        """What the calls changed, in order; scp and ssh for those of setup.sh and run.sh."""
        named = {"create": "create", "delete": "delete", "scp": "setup"}
        found = []
        for call in self.calls():
            if call[3] == "ssh" and "worker_run.sh" in call[-1]:
                found.append("run")
            elif call[3] in named:
                found.append(named[call[3]])
        return found

    def home(self, worker: int = 0, node: str = "first") -> Path:
        return self.cloud / "vms" / node / str(worker)

    def save(self, name: str) -> None:
        file = self.cloud / "bucket/my-bucket/runs/first" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    def wait(self) -> None:
        """Until every run has ended or waits."""
        subprocess.run([self.bin / "sleep", "0"], env=self.environment, check=True)

    def end(self) -> None:
        for pid in self.cloud.glob("vms/*/*/ivl3.pid"):
            free = subprocess.run(["flock", "-n", pid.with_name("ivl3.lock"), "true"], check=False).returncode == 0
            if not free:
                os.kill(int(pid.read_text()), signal.SIGKILL)
