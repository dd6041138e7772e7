"""`ivl3 bench`: measures this project's own parts, a subcommand each.

A subcommand is a module as those of `ivl3` are, see `ivl3_jax.cli.main`.
"""

import importlib
import sys

from ivl3_jax.cli import UsageError

HELP = """Measures attention and cross-entropy kernels on this machine, or on TPUs by the compiler's own schedule.
ivl3 bench kernels --chips v5p,v6e --against splash
"""

SUBCOMMANDS = {"kernels": "ivl3_jax.cli.bench_kernels"}


def run(argv: list[str]) -> int:
    """Runs a subcommand and returns its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = ["usage: ivl3 bench COMMAND ...", ""]
        for name, module in SUBCOMMANDS.items():
            summary, example = importlib.import_module(module).HELP.strip().splitlines()
            lines += [f"  {name:<8} {summary}", f"  {'':<8} example: {example}"]
        print("\n".join(lines), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] not in SUBCOMMANDS:
        raise UsageError(f"{argv[0]!r} is not a command of ivl3 bench; there are {', '.join(SUBCOMMANDS)}")
    return importlib.import_module(SUBCOMMANDS[argv[0]]).run(argv[1:])
