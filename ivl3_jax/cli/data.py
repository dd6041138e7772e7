"""`ivl3 data`: work on data sets, a subcommand each."""

from ivl3_jax.cli.subcommands import dispatch

HELP = """Works on data sets: `inspect` shows what training would see, `shard` packs sources with their images.
ivl3 data inspect meta.json --model InternVL3-1B-hf
"""

SUBCOMMANDS = {"shard": "ivl3_jax.cli.data_shard", "inspect": "ivl3_jax.cli.data_inspect"}


def run(argv: list[str]) -> int:
    """Runs a subcommand and returns its exit code."""
    return dispatch("ivl3 data", SUBCOMMANDS, argv)
