"""`ivl3 data`: work on data sets, a subcommand each.

A subcommand is a module as those of `ivl3` are, see `ivl3_jax.cli.main`.
"""

import importlib
import sys

from ivl3_jax.cli import UsageError

HELP = """Works on data sets: `inspect` shows what training would see, `shard` packs sources with their images.
ivl3 data inspect meta.json --model InternVL3-1B-hf
"""

SUBCOMMANDS = {"shard": "ivl3_jax.cli.data_shard", "inspect": "ivl3_jax.cli.data_inspect"}


def run(argv: list[str]) -> int:
    """Runs a subcommand and returns its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = ["usage: ivl3 data COMMAND ...", ""]
        for name, module in SUBCOMMANDS.items():
            summary, example = importlib.import_module(module).HELP.strip().splitlines()
            lines += [f"  {name:<8} {summary}", f"  {'':<8} example: {example}"]
        print("\n".join(lines), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] not in SUBCOMMANDS:
        raise UsageError(f"{argv[0]!r} is not a command of ivl3 data; there are {', '.join(SUBCOMMANDS)}")
    return importlib.import_module(SUBCOMMANDS[argv[0]]).run(argv[1:])
