"""A Google Cloud of directories, for the scripts of tpu/: stands in for `gcloud`, `sleep` and, on workers, `uv`.

Called as `fake_cloud.py gcloud ARGUMENTS...`. All of it lies in $FAKE_CLOUD:

    state.json     "request": the states that the queued resource has still to go through, or null where there is none;
                   "lives": the same for the requests to come; "events": what happens at each following `sleep`;
                   "life": how many requests there were; "unready": the states of TPUs that are not READY;
                   "failing": a command that fails, as with the network down
    calls          the arguments of every call of gcloud, one JSON list a line
    vms/NODE/N/    the home directory of a worker; commands by ssh run in it, as processes of this machine
    bucket/        gs://
    train          the script that `ivl3 train` is on a worker
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
WORKERS = 2
IVL3 = """#!/usr/bin/env bash
[[ $1 == train ]] || { echo "ivl3 0"; exit; }
printf '%s\\n' "$@" >~/arguments
exec "$FAKE_CLOUD/train"
"""


def load() -> dict:
    return json.loads((CLOUD / "state.json").read_text())


def store(state: dict) -> None:
    written = CLOUD / f"state.{os.getpid()}"
    written.write_text(json.dumps(state))
    written.replace(CLOUD / "state.json")  # a run on a worker may be reading it


def option(argv: list[str], name: str) -> str | None:
    return next((word.partition("=")[2] for word in argv if word.startswith(f"--{name}=")), None)


def homes() -> list[Path]:
    return sorted((CLOUD / "vms").glob("*/*"))


def runs(home: Path) -> bool:
    with open(home / "ivl3.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def power_off() -> None:
    """Ends what runs on the workers, and takes their disks."""
    for home in homes():
        if runs(home):
            os.kill(int((home / "ivl3.pid").read_text()), signal.SIGKILL)
        while runs(home):
            time.sleep(0.01)
    shutil.rmtree(CLOUD / "vms", ignore_errors=True)


def create(argv: list[str]) -> int:
    state = load()
    if state["request"]:
        print("ERROR: ALREADY_EXISTS", file=sys.stderr)
        return 1
    count = int(option(argv, "node-count") or 1)
    names = [f"{option(argv, 'node-prefix')}-{n}" for n in range(count)] if count > 1 else [option(argv, "node-id")]
    state |= {"request": state["lives"].pop(0), "life": state["life"] + 1, "nodes": names}
    store(state)
    for name in names:
        for worker in range(WORKERS):
            (CLOUD / "vms" / name / str(worker)).mkdir(parents=True)
    return 0


def queued_state(argv: list[str]) -> int:
    state = load()
    if option(argv, "filter") is None:
        print("NAME  STATE")
    elif state["request"]:
        print(state["request"][0])
        state["request"] = state["request"][1:] or state["request"]
        store(state)
    return 0


def delete(argv: list[str]) -> int:
    state = load()
    if not state["request"]:
        print("ERROR: NOT_FOUND", file=sys.stderr)
        return 1
    power_off()
    store(state | {"request": None})
    return 0


def workers(argv: list[str], node: str) -> list[Path]:
    chosen = option(argv, "worker")
    there = sorted((CLOUD / "vms" / node).glob("*"))
    return there if chosen == "all" else [home for home in there if home.name == chosen]


def scp(argv: list[str]) -> int:
    source, (node, _, name) = argv[4], argv[5].partition(":")
    for home in workers(argv, node):
        shutil.copy(source, home / name)
    return 0


def ssh(argv: list[str]) -> int:
    there, codes = workers(argv, argv[4]), []
    for home in there:
        print(f"SSH: Attempting to connect to worker {home.name}...", file=sys.stderr)
        environment = os.environ | {"HOME": str(home)}
        done = subprocess.run(["bash", "-c", option(argv, "command")], cwd=home, env=environment, check=False)
        codes.append(done.returncode)
    return max(codes) if there else 1


def node_state(argv: list[str]) -> int:
    print(load()["unready"].get(argv[4], "READY"))
    return 0


def objects(argv: list[str]) -> int:
    where = argv[3].removeprefix("gs://").removesuffix("/**")
    for file in sorted((CLOUD / "bucket" / where).rglob("*")):
        if file.is_file():
            print(file.relative_to(CLOUD / "bucket" / where.partition("/")[0]))
    return 0


GCLOUD = {
    ("compute", "tpus", "queued-resources", "create"): create,
    ("compute", "tpus", "queued-resources", "list"): queued_state,
    ("compute", "tpus", "queued-resources", "describe"): lambda argv: print("state: ..."),
    ("compute", "tpus", "queued-resources", "delete"): delete,
    ("compute", "tpus", "tpu-vm", "describe"): node_state,
    ("compute", "tpus", "tpu-vm", "list"): lambda argv: print("NAME  STATUS"),
    ("compute", "tpus", "tpu-vm", "scp"): scp,
    ("compute", "tpus", "tpu-vm", "ssh"): ssh,
    ("storage", "objects", "list"): objects,
}


def gcloud(argv: list[str]) -> int:
    with open(CLOUD / "calls", "a") as calls:
        calls.write(json.dumps(argv) + "\n")
    name, command = next((name, command) for name, command in GCLOUD.items() if tuple(argv[: len(name)]) == name)
    if load().get("failing") == name[-1]:
        print("ERROR: the network is down", file=sys.stderr)
        return 1
    return command(argv) or 0


def sleep(argv: list[str]) -> int:
    """Takes no time, but waits until each run has ended or says that it waits (~/waits); then comes the next event."""
    for home in homes():
        while runs(home) and not (home / "waits").exists():
            time.sleep(0.01)
    state = load()
    event = state["events"].pop(0) if state["events"] else None
    store(state)
    if event == "preempted":
        power_off()
        store(state | {"request": ["SUSPENDING", "SUSPENDED"]})
    elif event:
        store(state | event)
    return 0


def uv(argv: list[str]) -> int:
    bin_ = Path.home() / "ivl3_venv/bin"
    bin_.mkdir(parents=True, exist_ok=True)
    with open(Path.home() / "uv", "a") as calls:
        calls.write(" ".join(argv) + "\n")
    (bin_ / "ivl3").write_text(IVL3)
    (bin_ / "ivl3").chmod(0o755)
    return 0


if __name__ == "__main__":
    sys.exit({"gcloud": gcloud, "sleep": sleep, "uv": uv}[sys.argv[1]](sys.argv[2:]))
