"""`ivl3 bench`: measures this project's own parts, a subcommand each."""

from ivl3_jax.cli.subcommands import dispatch

HELP = """Measures attention and cross-entropy kernels on this machine, or on TPUs by the compiler's own schedule.
ivl3 bench kernels --chips v5p,v6e --against splash
"""

SUBCOMMANDS = {"kernels": "ivl3_jax.cli.bench_kernels"}


def run(argv: list[str]) -> int:
    """Runs a subcommand and returns its exit code."""
    return dispatch("ivl3 bench", SUBCOMMANDS, argv)
