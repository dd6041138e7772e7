"""Two checkpoints beside each other, in any layout and dtype: configs, weights, outputs, tokenizers. No PyTorch."""

import dataclasses
import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from ivl3_jax.batch import Batch
from ivl3_jax.config import InternVLConfig
from ivl3_jax.conversion import parity, tolerances
from ivl3_jax.conversion.checkpoint import load
from ivl3_jax.conversion.comparison import Difference, Report, compare, mismatch
from ivl3_jax.conversion.names import parameters
from ivl3_jax.conversion.reader import resolve_tying
from ivl3_jax.conversion.weight_comparison import WeightComparison
from ivl3_jax.data.tile_bounds import tile_bounds
from ivl3_jax.data.tokenizer import Tokenizer
from ivl3_jax.data.tokenizer_training import SPECIALS
from ivl3_jax.hf_config import read_config

# What a forward pass does not depend on: how training starts, and whose class the decoder is in files.
WITHOUT_EFFECT = (
    "vision.layer_scale",
    "vision.drop_path",
    "vision.initializer_range",
    "decoder.initializer_range",
    "decoder.family",
)

TEXTS = {
    "English": "What is written here? It's the number 1729, and below it a word.",
    "Chinese": "图中写着什么数字？请用中文回答。",
    "code": "def f(x):\n    return {'a': x ** 2}  # 3.14\n\n\tEND",
    "marks": "naïve café – “quotes”, emoji 🙂, spaces    and\u00a0a tab\t.",
    "chat": "<|im_start|>user\n<img><IMG_CONTEXT></img>\nHi<|im_end|>\n<|im_start|>assistant\n",
}


def compare_checkpoints(
    first: str | Path,
    second: str | Path,
    *,
    outputs: bool = False,
    tolerance: float = 0.0,
    tokens: int = 512,
    tiles: int = 3,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Compares two checkpoint directories, a tensor at a time.

    Args:
        first, second: in either layout. A difference is relative to the second.
        outputs: also compare every layer's output and the logits on the same input, both models in float32.
        tolerance: what the relative difference of a weight may be, 0 for the same values; and of an output, where
            `tolerances.STACK` is the least.
        tokens, tiles, seed: of that input, see `parity.example_batch`.
        say: is told what is being done.

    Raises:
        FileNotFoundError, ValueError: one of them cannot be read.
    """
    directories = Path(first), Path(second)
    configs = [resolve_tying(directory, read_config(directory)) for directory in directories]
    if outputs:
        parity.check_length(configs[0], tokens, tiles)
    facts, differences = _configs(*configs)
    facts = {"first": str(first), "second": str(second)} | facts
    verdict: dict[str, str] = {}
    if unlike := _unlike(*configs):
        facts["architecture"] = f"different, so that no weights were compared: {unlike}"
        verdict = {"inequality": "NOT equal, different architectures"}
    else:
        weights = WeightComparison(tolerance)
        differences += weights.compare(directories, configs, say)
        facts |= weights.facts()
        verdict = weights.verdict()
        if outputs:
            batch = parity.example_batch(configs[0], tokens, tiles, seed)
            differences += _outputs(directories, batch, max(tolerance, tolerances.STACK["float32"]), say)
            facts["input"] = f"{tokens} text tokens, {tiles} tiles, seed {seed}"
    say("tokenizers")
    told, found = _tokenizers(directories, configs)
    title = " and ".join(directory.resolve().name for directory in directories)
    return Report(f"{title} compared", facts | told, differences + found, **verdict)


def _configs(first: InternVLConfig, second: InternVLConfig) -> tuple[dict[str, str], list[Difference]]:
    ours, theirs = dict(_fields(first)), dict(_fields(second))
    unequal = [name for name in ours if ours[name] != theirs[name]]
    described = ", ".join(f"{name} {ours[name]} / {theirs[name]}" for name in unequal)
    differences = [
        mismatch("config", name, [ours[name]], [theirs[name]]) for name in unequal if name not in WITHOUT_EFFECT
    ]
    without = "" if differences or not unequal else "; no forward pass depends on that"
    return {"config": f"different in {described}{without}" if unequal else "the same"}, differences


def _fields(config: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted name."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{place}{field.name}.")
        else:
            yield place + field.name, value


def _unlike(first: InternVLConfig, second: InternVLConfig) -> str:
    """The parameters that one of them lacks, or that have another shape; empty if there are none."""
    ours, theirs = ({p.path: p.shape for p in parameters(config)} for config in (first, second))
    paths = [path for path in (ours | theirs) if ours.get(path) != theirs.get(path)]
    shown = [f"{path} {_shape(ours.get(path))} / {_shape(theirs.get(path))}" for path in paths[:4]]
    return ", ".join(shown) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")


def _shape(shape: Sequence[int] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _outputs(
    directories: tuple[Path, Path], batch: Batch, tolerance: float, say: Callable[[str], None]
) -> list[Difference]:
    """Every layer's output and the logits, one model in memory at a time.

    One batch is for both: a model finds its visual positions by their index, not by the id of the image token.
    """
    found = []
    for directory in directories:
        say(f"outputs of {directory}")
        with jax.default_matmul_precision("highest"):
            found.append(parity.run(load(directory, "float32", parity.PLAN), batch))
        gc.collect()
    return compare("outputs", found[0], found[1], tolerance)


def _tokenizers(
    directories: tuple[Path, Path], configs: Sequence[InternVLConfig]
) -> tuple[dict[str, str], list[Difference]]:
    tokenizers = [_tokenizer(directory) for directory in directories]
    ours, theirs = tokenizers
    if ours is None or theirs is None:
        there = [str(d) for d, tokenizer in zip(directories, tokenizers, strict=True) if tokenizer is not None]
        return {"tokenizer": f"only in {there[0]}, not compared" if there else "in neither"}, []
    differences = [
        mismatch("tokenizer", f"ids of {name}", ours.encode(text), theirs.encode(text)) for name, text in TEXTS.items()
    ]
    ids = [[t.id(token) if token in t else None for token in SPECIALS] for t in (ours, theirs)]
    bounds = [
        tile_bounds(directory, config.vision.image_size, config.tile_tokens)
        for directory, config in zip(directories, configs, strict=True)
    ]
    differences += [
        mismatch("tokenizer", "special tokens", *ids),
        mismatch("tokenizer", "first and last tokens", [ours.bos_id, *ours.eos_ids], [theirs.bos_id, *theirs.eos_ids]),
        mismatch("tokenizer", "tiles of an image", *bounds),
    ]
    return {}, differences


def _tokenizer(directory: Path) -> Tokenizer | None:
    try:
        return Tokenizer.from_directory(directory)
    except FileNotFoundError:
        return None
