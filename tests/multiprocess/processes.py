"""Running a script as several processes of one JAX program, which have four devices together."""

import os
import socket
import subprocess
import sys


def run_together(script, *arguments, processes=2):
    """Runs it with an address, the process's number and `arguments`; [(stdout, stderr)] of all, which must succeed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={4 // processes}"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": "."}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, address, str(number), *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    try:
        said = [run.communicate(timeout=600) for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0] * processes, said
    return said
