"""`ivl3 assemble`: a checkpoint to begin training with, out of a published ViT and a published language model."""

from dataclasses import dataclass

from ivl3_jax.cli import UsageError
from ivl3_jax.cli.arguments import parse

HELP = """Puts a published ViT, a published language model and a fresh projector together, for `ivl3 train`.
ivl3 assemble --vision InternViT-300M-448px-V2_5 --decoder Qwen2.5-0.5B --output assembled
"""


@dataclass(frozen=True)
class Assembly:
    """The options of `ivl3 assemble`.

    Attributes:
        vision: directory of an InternViT as it is published.
        decoder: directory of a language model as it is published (Qwen2.5, InternLM2 or 3), with its tokenizer.
        output: directory to write, in the `-hf` layout; it must not exist, or be empty, or hold an interrupted attempt.
        seed: of the projector, and of rows that the table of embeddings lacks.
        vision_layers: how many layers of the ViT are taken, from the first on; by default all.
        max_shard_gb: a larger checkpoint is split into several files.
    """

    vision: str
    decoder: str
    output: str
    seed: int = 0
    vision_layers: int | None = None
    max_shard_gb: float = 5.0

    def __post_init__(self) -> None:
        if not self.max_shard_gb > 0:
            raise UsageError(f"--max-shard-gb is {self.max_shard_gb}; it must be more than 0")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed is {self.seed}; it must be at least 0 and below 2**63")


def run(argv: list[str]) -> int:
    """Assembles with a progress bar; returns 0."""
    chosen = parse(
        Assembly,
        argv,
        prog="ivl3 assemble",
        description="Writes the checkpoint that the recipes pretrain and mlp_warmup begin with: tensors bit by bit as "
        "they are published, InternVL's tokens added to the tokenizer and the vocabulary, a projector drawn at random.",
        example="ivl3 assemble --vision InternViT-300M-448px-V2_5 --decoder Qwen2.5-0.5B --output assembled",
    )
    from ivl3_jax.cli.writing import bars
    from ivl3_jax.conversion.assembly import assemble

    with bars() as report:
        config = assemble(
            chosen.vision,
            chosen.decoder,
            chosen.output,
            seed=chosen.seed,
            vision_layers=chosen.vision_layers,
            max_shard_bytes=chosen.max_shard_gb * 1e9,
            report=report,
        )
    print(
        f"{chosen.output} holds a checkpoint of {config.vision.layers} ViT layers and {config.decoder.layers} decoder "
        f"layers, with a vocabulary of {config.decoder.vocab}; try: ivl3 train --model.checkpoint {chosen.output}"
    )
    return 0
