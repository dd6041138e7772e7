"""Checkpoints with unmerged LoRA adapters, as InternVL's own fine-tuning writes them, read as if they were merged.

Under the names of peft each adapted weight W [out, in] is `base_layer.weight`, beside `lora_A.default.weight` [r, in]
and `lora_B.default.weight` [out, r]. The merged weight is W + alpha / r · B A (Hu et al. 2021), with alpha = 2 r.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ivl3_jax.conversion.safetensors_file import SafetensorsDirectory, TensorInfo

SCALE = 2.0  # alpha / r
ADAPTER = re.compile(r"^(.*)\.lora_([AB])\.default\.weight$")


def open_weights(directory: str | Path) -> SafetensorsDirectory:
    """The tensors of a checkpoint directory, adapters merged where it has any; a context manager.

    Raises:
        FileNotFoundError, ValueError: as `SafetensorsDirectory` and `LoraDirectory`.
    """
    file = SafetensorsDirectory(directory)
    return LoraDirectory(file) if any(".lora_" in name for name in file.tensors) else file


class LoraDirectory(SafetensorsDirectory):
    """The tensors of a directory with adapters, under the names that a merged checkpoint has."""

    def __init__(self, file: SafetensorsDirectory) -> None:
        """Pairs weights and adapters.

        Raises:
            ValueError: an adapter lacks its other half or its weight, or does not fit them.
        """
        self.directory, self._file = file.directory, file
        self._names: dict[str, str] = {}
        self._adapters: dict[str, dict[str, str]] = {}
        for name, info in file.tensors.items():
            if match := ADAPTER.match(name):
                self._adapters.setdefault(f"{_merged_name(match[1])}.weight", {})[match[2]] = name
            elif ".lora_" in name:
                raise ValueError(f"{info.file}: {name} is an adapter of a kind that cannot be merged; linear ones can")
            elif (other := self._names.setdefault(_merged_name(name), name)) != name:
                raise ValueError(f"{info.file}: {other} and {name} are the same tensor once adapters are merged")
        self.tensors = {new: file.tensors[name] for new, name in self._names.items()}
        for name, halves in self._adapters.items():
            _check(name, {half: file.tensors[of].shape for half, of in halves.items()}, self.tensors, file.directory)

    def __exit__(self, *exception: object) -> None:
        self._file.__exit__(*exception)

    def read(self, name: str, width: int, rows: range, columns: range) -> np.ndarray:
        """A block of a tensor seen as a matrix, merged in at least float32 and rounded once."""
        block = self._file.read(self._names[name], width, rows, columns)
        if name not in self._adapters:
            return block
        a, b = self._adapters[name]["A"], self._adapters[name]["B"]
        rank = range(self._file.tensors[a].shape[0])
        wide = np.promote_types(block.dtype, np.float32)
        down, up = self._file.read(a, width, rank, columns), self._file.read(b, len(rank), rows, rank)
        delta = up.astype(wide) @ down.astype(wide)
        return (block.astype(wide) + wide.type(SCALE) * delta).astype(block.dtype)


def _merged_name(name: str) -> str:
    return name.replace(".base_model.model.", ".").replace(".base_layer.", ".")


def _check(
    name: str, halves: Mapping[str, tuple[int, ...]], tensors: Mapping[str, TensorInfo], directory: Path
) -> None:
    if len(halves) < 2:
        (half,) = halves
        raise ValueError(f"{directory}: {name} has lora_{half}, but no lora_{'B' if half == 'A' else 'A'}")
    if name not in tensors:
        raise ValueError(f"{directory}: there is an adapter of {name}, but not the weight itself")
    a, b, shape = halves["A"], halves["B"], tensors[name].shape
    if len(a) != 2 or len(b) != 2 or (b[0], a[1]) != shape or a[0] != b[1]:
        raise ValueError(
            f"{directory}: lora_A {list(a)} and lora_B {list(b)} do not fit {name} {list(shape)}; they must be "
            "[r, in] and [out, r]"
        )
