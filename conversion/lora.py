"""Checkpoints with unmerged LoRA adapters, as InternVL's own fine-tuning and peft write them, read as if merged.

Under the names of peft each adapted weight W [out, in] is `base_layer.weight`, beside `lora_A.NAME.weight` [r, in] and
`lora_B.NAME.weight` [out, r]. The merged weight is W + alpha / r · B A (Hu et al. 2021), with alpha and r of
adapter_config.json; InternVL's fine-tuning, which writes no such file, has alpha = 2 r.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ivl3_jax.conversion.adapter_config import AdapterConfig, read_adapter_config
from ivl3_jax.conversion.safetensors_file import SafetensorsDirectory, TensorInfo
from ivl3_jax.layers.lora import merge

INTERNVL_SCALE = 2.0  # alpha / r
ADAPTER = re.compile(r"^(.*)\.lora_([AB])(?:\.([^.]+))?\.weight$")
WRAPPED = re.compile(r"(^|\.)base_model\.model\.")


def open_weights(directory: str | Path) -> SafetensorsDirectory:
    """The tensors of a checkpoint directory, adapters merged where it has any; a context manager.

    Raises:
        FileNotFoundError, ValueError: as `SafetensorsDirectory` and `LoraDirectory`.
    """
    file = SafetensorsDirectory(directory)
    return LoraDirectory(file) if any(".lora_" in name for name in file.tensors) else file


@dataclass(frozen=True)
class _Adapter:
    """The names of A and B in the files, and the factor of B A."""

    a: str
    b: str
    scale: float


class LoraDirectory(SafetensorsDirectory):
    """The tensors of a directory with adapters, under the names that a merged checkpoint has.

    `dtype` is that in which a weight is stored, `read` gives what is merged wider.
    """

    def __init__(self, file: SafetensorsDirectory) -> None:
        """Pairs weights and adapters.

        Raises:
            ValueError: an adapter lacks its other half or its weight, does not fit them, or is of a kind that cannot be
                merged; there are adapters of several names.
        """
        self.directory, self._file = file.directory, file
        self._names: dict[str, str] = {}
        halves: dict[str, dict[str, str]] = {}
        found: dict[str, str] = {}
        for name, info in file.tensors.items():
            if match := ADAPTER.match(name):
                module, half, adapter = match.groups("")
                halves.setdefault(module, {})[half] = name
                found.setdefault(adapter, name)
            elif ".lora_" in name:
                raise ValueError(
                    f"{info.file}: {name} is part of an adapter that cannot be merged here; those of linear layers "
                    "that have lora_A.NAME.weight and lora_B.NAME.weight alone can"
                )
            elif (other := self._names.setdefault(_merged_name(name), name)) != name:
                raise ValueError(f"{info.file}: {other} and {name} are the same tensor once adapters are merged")
        if len(found) > 1:
            raise ValueError(
                f"{file.directory} holds the adapters {', '.join(sorted(found))}, and which of them is meant is not "
                "stated; valid is one, or none: merge the one with peft, merge_and_unload()"
            )
        self.tensors = {new: file.tensors[name] for new, name in self._names.items()}
        config = read_adapter_config(file.directory)
        self._adapters = {
            f"{_merged_name(module)}.weight": self._pair(module, parts, config) for module, parts in halves.items()
        }

    def _pair(self, module: str, halves: Mapping[str, str], config: AdapterConfig | None) -> _Adapter:
        name = f"{_merged_name(module)}.weight"
        _check(name, {half: self._file.tensors[of].shape for half, of in halves.items()}, self.tensors, self.directory)
        rank, inside = self._file.tensors[halves["A"]].shape[0], WRAPPED.split(module)[-1]
        return _Adapter(halves["A"], halves["B"], config.scale(inside, rank) if config else INTERNVL_SCALE)

    def __exit__(self, *exception: object) -> None:
        self._file.__exit__(*exception)

    def read(self, name: str, width: int, rows: range, columns: range) -> np.ndarray:
        """A block of a tensor seen as a matrix; merged ones in at least float32, for the caller to round once."""
        block = self._file.read(self._names[name], width, rows, columns)
        adapter = self._adapters.get(name)
        if adapter is None:
            return block
        rank = range(self._file.tensors[adapter.a].shape[0])
        down, up = self._file.read(adapter.a, width, rank, columns), self._file.read(adapter.b, len(rank), rows, rank)
        return merge(block, up, down, adapter.scale)


def _merged_name(name: str) -> str:
    return WRAPPED.sub(r"\1", name).replace(".base_layer.", ".")


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
