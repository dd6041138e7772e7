"""`ivl3 convert`: a checkpoint from one PyTorch layout to the other."""

from typing import Literal

from ivl3_jax.cli import UsageError
from ivl3_jax.cli.arguments import parse

HELP = """Converts a checkpoint between the original layout and transformers' `-hf`.
ivl3 convert InternVL3-1B InternVL3-1B-hf --layout hf
"""


def settings(
    source: str,
    destination: str,
    *,
    layout: Literal["hf", "original"] = "hf",
    dtype: Literal["bfloat16", "float32", "float16", "float64"] | None = None,
    max_shard_gb: float = 5.0,
) -> None:
    """The options of `ivl3 convert`.

    Args:
        source: checkpoint directory in either layout.
        destination: directory to write; it must not exist, or be empty, or hold an interrupted conversion.
        layout: of the destination, `original` for the authors' remote code.
        dtype: of all tensors; by default each keeps its own, and the conversion is exact.
        max_shard_gb: a larger checkpoint is split into several files.
    """


def run(argv: list[str]) -> int:
    """Converts with a progress bar; returns 0."""
    chosen = parse(
        settings,
        argv,
        prog="ivl3 convert",
        description="Writes a checkpoint in another layout, a tensor at a time, with its tokenizer files.",
        example="ivl3 convert InternVL3-1B InternVL3-1B-hf --layout hf",
    )
    if not chosen.max_shard_gb > 0:
        raise UsageError(f"--max-shard-gb is {chosen.max_shard_gb}; it must be more than 0")
    from ivl3_jax.cli.writing import bars
    from ivl3_jax.conversion.convert import convert

    with bars() as report:
        convert(
            chosen.source,
            chosen.destination,
            layout=chosen.layout,
            dtype=chosen.dtype,
            max_shard_bytes=chosen.max_shard_gb * 1e9,
            report=report,
        )
    print(f"{chosen.destination} holds the checkpoint in the {chosen.layout} layout")
    return 0
