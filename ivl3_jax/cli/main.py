"""The `ivl3` command: finds the subcommand, prepares the platform, reports a user's mistakes in one line.

A subcommand is a module with `HELP`, a literal string whose first line says what it does and whose second is a call of
it as an example, and `run(argv: list[str]) -> int`, which returns the exit code.
"""

import ast
import difflib
import importlib
import os
import sys
import warnings
from collections.abc import MutableMapping
from glob import glob
from importlib.util import find_spec
from pathlib import Path

import ivl3_jax
from ivl3_jax.cli import UsageError
from ivl3_jax.cli.mistakes import explain
from ivl3_jax.libtpu import WITHOUT_TPU

COMMANDS = {
    "chat": "ivl3_jax.cli.chat",
    "serve": "ivl3_jax.cli.serve",
    "best-of": "ivl3_jax.cli.best_of",
    "rollouts": "ivl3_jax.cli.rollouts",
    "convert": "ivl3_jax.cli.convert",
    "assemble": "ivl3_jax.cli.assemble",
    "parity": "ivl3_jax.cli.parity",
    "train": "ivl3_jax.cli.train",
    "data": "ivl3_jax.cli.data",
    "bench": "ivl3_jax.cli.bench",
    "lab": "ivl3_jax.cli.lab",
    "demo": "ivl3_jax.cli.demo",
}

TPU_DEVICES = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
GPU_DEVICES = ("/dev/nvidia[0-9]*", "/dev/kfd")


def set_platform_defaults(environ: MutableMapping[str, str] = os.environ) -> None:
    """Keeps jax from looking for a TPU that is not there; must run before jax is imported.

    Acts only where libtpu is installed on a machine without a TPU, and never on a variable that is already set.
    """
    if find_spec("libtpu") is None or any(glob(pattern) for pattern in TPU_DEVICES):
        return
    for name, value in WITHOUT_TPU.items():
        environ.setdefault(name, value)
    if not any(glob(pattern) for pattern in GPU_DEVICES):
        environ.setdefault("JAX_PLATFORMS", "cpu")


def main(argv: list[str] | None = None) -> int:
    """Runs `ivl3 ARGV...` and returns its exit code: 0, 1 for a failure, 2 for wrong usage, 130 after Ctrl-C.

    A ValueError or an OSError counts as the user's mistake and is printed without a traceback, and a warning in one
    line; IVL3_DEBUG=1 shows where they came from.
    """
    argv = sys.argv[1:] if argv is None else argv
    set_platform_defaults()
    try:
        with warnings.catch_warnings():
            if os.environ.get("IVL3_DEBUG") != "1":
                warnings.showwarning = _warn
            code = _dispatch(argv)
        sys.stdout.flush()  # here, so that a closed pipe is noticed inside this try
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader went away. Python flushes stdout once more at exit, which must not fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("IVL3_DEBUG") == "1":
            raise
        message = explain(error)
        if message is None:
            raise
        print(f"ivl3: error: {message}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    print(f"ivl3: warning: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


def _dispatch(argv: list[str]) -> int:
    if not argv:
        print(_usage(), file=sys.stderr)
        return 2
    name, *rest = argv
    if name in ("-h", "--help", "help"):
        print(_usage())
    elif name == "--version":
        print(f"ivl3 {ivl3_jax.__version__}")
    elif name in COMMANDS:
        return importlib.import_module(COMMANDS[name]).run(rest)
    else:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        guess = f" Did you mean {nearest[0]}?" if nearest else ""
        raise UsageError(f"{name!r} is not a command; there are {', '.join(COMMANDS)}.{guess}")
    return 0


def _usage() -> str:
    lines = ["usage: ivl3 COMMAND ...", ""]
    for name, module in COMMANDS.items():
        summary, example = _help(module).strip().splitlines()[:2]
        lines += [f"  {name:<8} {summary.strip()}", f"  {'':<8} example: {example.strip()}"]
    return "\n".join([*lines, "", "`ivl3 COMMAND --help` says more. `ivl3 --version` prints the version."])


def _help(module: str) -> str:
    """HELP of a command's module, read from its source: listing the commands imports none of them, nor jax."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "HELP" for t in node.targets):
            return ast.literal_eval(node.value)
    raise AttributeError(f"{module} has no literal HELP")


if __name__ == "__main__":
    sys.exit(main())
