"""`ivl3 lab`: what a sharding plan does on a TPU slice, without the slice; a subcommand each."""

from importlib.util import find_spec

from ivl3_jax.cli.subcommands import dispatch

HELP = """Tells whether a plan fits a TPU slice, how fast, and which is best, without a TPU (extra tpu).
ivl3 lab compile --model 8b --plan fsdp --topology v5e:16x16 --tokens 8192 --tiles 12
"""

SUBCOMMANDS = {
    "compile": "ivl3_jax.cli.lab_compile",
    "search": "ivl3_jax.cli.lab_search",
    "compare": "ivl3_jax.cli.lab_compare",
    "run": "ivl3_jax.cli.lab_run",
}


def run(argv: list[str]) -> int:
    """Runs a subcommand and returns its exit code.

    Raises:
        ValueError: it compiles, and the compiler is not installed.
    """
    if argv and argv[0] in SUBCOMMANDS and argv[0] != "run" and find_spec("libtpu") is None:
        raise ValueError(
            f"ivl3 lab {argv[0]} needs the TPU compiler, though no TPU; install it: pip install 'ivl3-jax[tpu]'"
        )
    return dispatch("ivl3 lab", SUBCOMMANDS, argv)
