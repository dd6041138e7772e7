"""Two checkpoints beside each other, in any layout and dtype: configs, weights, outputs, tokenizers. No PyTorch."""

import dataclasses
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ivl3_jax.batch import Batch
from ivl3_jax.config import InternVLConfig
from ivl3_jax.conversion import parity, tolerances
from ivl3_jax.conversion.checkpoint import load
from ivl3_jax.conversion.comparison import Difference, Report, compare, difference, mismatch
from ivl3_jax.conversion.convert import DirectoryLayers
from ivl3_jax.conversion.lora import open_weights
from ivl3_jax.conversion.names import parameters
from ivl3_jax.conversion.reader import resolve_tying
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
        weights = _Weights(tolerance)
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


class _Weights:
    """The comparison of weights, and what can be said of all of them together."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.dtypes: Counter[tuple[str, str]] = Counter()
        self.layers = self.same_bits = self.same_values = self.rounded = 0

    def compare(
        self, directories: tuple[Path, Path], configs: Sequence[InternVLConfig], say: Callable[[str], None]
    ) -> list[Difference]:
        differences = []
        with open_weights(directories[0]) as file, open_weights(directories[1]) as other:
            ours, theirs = DirectoryLayers(file, configs[0]), DirectoryLayers(other, configs[1])
            for parameter in parameters(configs[0]):
                say(f"weights: {parameter.path}")
                for number in range(len(parameter.tensors)):
                    layers = ours.read(parameter, number), theirs.read(parameter, number)
                    layer = number if parameter.stacked else None
                    differences.append(self._layer(parameter.path, layer, *layers))
        return differences

    def _layer(self, path: str, layer: int | None, ours: np.ndarray, theirs: np.ndarray) -> Difference:
        self.layers += 1
        self.dtypes[str(ours.dtype), str(theirs.dtype)] += 1
        if _same_bits(ours, theirs):
            self.same_bits += 1
            return Difference("weights", path, layer, 0.0, 0.0, self.tolerance)
        found = difference("weights", path, layer, ours, theirs, self.tolerance)
        self.same_values += found.relative == 0
        if found.relative != 0 and ours.dtype != theirs.dtype:
            wide, narrow = sorted((ours, theirs), key=lambda array: -array.dtype.itemsize)
            with np.errstate(over="ignore"):  # what float16 cannot hold is not equal, and no cause for a warning
                self.rounded += _same_bits(wide.astype(narrow.dtype), narrow)
        return found

    @property
    def unequal(self) -> int:
        return self.layers - self.same_bits - self.same_values

    def verdict(self) -> dict[str, str]:
        """How the report's verdict begins."""
        if self.same_bits == self.layers:
            return {"equality": "bit-equal", "inequality": "NOT equal, though all weights are"}
        if not self.unequal:
            return {"equality": "equal in value, not in bits", "inequality": "NOT equal, though all weights are"}
        if self.rounded == self.unequal:
            return {"inequality": "NOT equal, weights by rounding to the narrower dtype alone"}
        return {}

    def facts(self) -> dict[str, str]:
        counts = {"bit-equal": self.same_bits, "equal after a cast": self.same_values, "different": self.unequal}
        return {
            "dtypes": "; ".join(a if a == b else f"{a} and {b}, compared in the wider" for a, b in self.dtypes),
            "tensors": ", ".join(f"{count} {what}" for what, count in counts.items() if count),
        }


def _same_bits(ours: np.ndarray, theirs: np.ndarray) -> bool:
    bits = f"u{ours.dtype.itemsize}"
    return ours.dtype == theirs.dtype and np.array_equal(ours.view(bits), theirs.view(bits))


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
