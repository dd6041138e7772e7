"""The processor that a recipe's model is trained with; read without loading weights, or jax."""

from pathlib import Path

from ivl3_jax.config import InternVLConfig
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.settings import DataRecipe
from ivl3_jax.hf_config import read_config
from ivl3_jax.training.config import ModelRecipe


def open_config(recipe: ModelRecipe) -> InternVLConfig:
    """The configuration of a checkpoint, of a directory, or of a published size.

    Raises:
        ValueError, OSError: there is none, or it is faulty.
    """
    if recipe.checkpoint is not None:
        return read_config(recipe.checkpoint)
    assert recipe.size is not None  # ModelRecipe sees to it
    return read_config(recipe.size) if Path(recipe.size).is_dir() else InternVLConfig.preset(recipe.size)


def open_processor(recipe: ModelRecipe) -> Processor:
    """The processor of a checkpoint, or of the tokenizer's directory for a fresh model.

    Raises:
        ValueError, OSError: a file is missing or faulty, or the tokenizer does not belong to a model of that size.
    """
    if recipe.checkpoint is not None:
        return Processor.from_directory(recipe.checkpoint)
    assert recipe.tokenizer is not None  # as above
    return Processor.from_directory(recipe.tokenizer, config=open_config(recipe))


def check_room(data: DataRecipe, config: InternVLConfig) -> None:
    """Raises a ValueError if rows are longer than the decoder takes."""
    most = config.decoder.longest_row
    if data.tokens > most:
        raise ValueError(f"data.tokens is {data.tokens}; the decoder takes {most} positions at most")
