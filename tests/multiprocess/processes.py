"""Running a script as two processes of one JAX program, two devices each."""

import os
import socket
import subprocess
import sys


def run_two(script, *arguments):
    """Runs it with an address, the process's number and `arguments`; [(stdout, stderr)] of both, which must succeed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": "."}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, address, str(number), *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    said = [run.communicate(timeout=200) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    return said
