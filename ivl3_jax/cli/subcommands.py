"""Commands that have subcommands of their own."""

import importlib
import sys
from collections.abc import Mapping

from ivl3_jax.cli import UsageError


def dispatch(command: str, subcommands: Mapping[str, str], argv: list[str]) -> int:
    """Runs a subcommand and returns its exit code; without one prints what there is.

    Args:
        command: as typed, such as "ivl3 data". subcommands: name -> module, which is as those of `ivl3` are, see
            `ivl3_jax.cli.main`.
    """
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"usage: {command} COMMAND ...", ""]
        for name, module in subcommands.items():
            summary, example = importlib.import_module(module).HELP.strip().splitlines()
            lines += [f"  {name:<8} {summary}", f"  {'':<8} example: {example}"]
        print("\n".join(lines), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] not in subcommands:
        raise UsageError(f"{argv[0]!r} is not a command of {command}; there are {', '.join(subcommands)}")
    return importlib.import_module(subcommands[argv[0]]).run(argv[1:])
