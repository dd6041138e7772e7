"""Parameters from a checkpoint directory, straight into their places on the devices."""

import dataclasses
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import SingleDeviceSharding

from ivl3_jax.config import InternVLConfig
from ivl3_jax.conversion.layout import CHUNK_BYTES, Index
from ivl3_jax.conversion.lora import open_weights
from ivl3_jax.conversion.names import (
    ALONE,
    IGNORED,
    Parameter,
    canonical,
    layout_of,
    parameters,
    parameters_alone,
)
from ivl3_jax.conversion.safetensors_file import SafetensorsDirectory

LISTED = 8  # names shown in a message
ALIGNMENT = 64  # bytes
READERS = min(4, os.cpu_count() or 1)  # threads


def read_params(directory: str | Path, abstract: Mapping[str, Any], config: InternVLConfig) -> dict[str, Any]:
    """Reads every parameter, each process only the slices that its devices hold, parameter by parameter.

    Host memory beyond the result: at most one device's slice of the parameter at hand, and a few megabytes.

    Args:
        directory: in the original layout, or in `-hf` with either style of prefixes.
        abstract: nested dictionary of ShapeDtypeStructs with shardings. Its dtypes are those of the result; a padded
            vocabulary is filled up with zeros.
        config: of this checkpoint, see `resolve_tying`.

    Returns:
        A nested dictionary of jax.Arrays like `abstract`.

    Raises:
        FileNotFoundError: no safetensors weights, or a shard is missing.
        ValueError: tensors are missing, surplus or misshapen, of an unsupported dtype, or a file is broken.
    """
    leaves = flatten_dict(abstract, sep="/")
    with open_weights(directory) as file:
        expected = {parameter.path: parameter for parameter in parameters(config, layout_of(file.tensors))}
        if leaves.keys() != expected.keys():
            raise ValueError(f"the parameters do not fit the config: {sorted(leaves.keys() ^ expected.keys())}")
        names = match_names(file, config)
        # Copying lets other threads run; each has a block of its own in memory.
        with ThreadPoolExecutor(READERS) as threads:
            arrays = {path: _place(file, names, expected[path], leaf, threads) for path, leaf in leaves.items()}
        return unflatten_dict(arrays, sep="/")


def resolve_tying(directory: str | Path, config: InternVLConfig) -> InternVLConfig:
    """The config with `tie_embeddings` as the weights have it.

    A checkpoint whose config ties the output projection to the embedding, but which holds an unequal projection, is
    untied: transformers writes `tie_word_embeddings` as true by default.
    """
    if not config.decoder.tie_embeddings:
        return config
    with open_weights(directory) as file:
        names, (table, head) = _spellings(file), _table_and_head(config, layout_of(file.tensors))
        if head not in names or table not in names or _equal(file, names[head], names[table]):
            return config
    return _untied(config)


def _untied(config: InternVLConfig) -> InternVLConfig:
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, tie_embeddings=False))


def _table_and_head(config: InternVLConfig, layout: str) -> tuple[str, str]:
    """The names of the embedding table and of the output projection that an untied model has."""
    names = {parameter.path: parameter.tensors[0] for parameter in parameters(_untied(config), layout)}
    return names["decoder/embed/table"], names["decoder/head/kernel"]


def match_names(file: SafetensorsDirectory, config: InternVLConfig, component: str | None = None) -> dict[str, str]:
    """Finds the tensors of a model in a checkpoint and checks that they are all there, fit, and are all there is.

    Args:
        component: the only one that the checkpoint holds, see `names.parameters_alone`; by default it holds all.

    Returns:
        From each canonical name to the name in the files.
    """
    names, layout = _spellings(file), "original" if component else layout_of(file.tensors)
    expected = parameters_alone(config, component) if component else parameters(config, layout)
    wanted = {name: parameter for parameter in expected for name in parameter.tensors}
    _, head = _table_and_head(config, layout)
    if component:
        head = head.removeprefix(ALONE["decoder"])
    missing = [name for name in wanted if name not in names]
    surplus = [names[name] for name in names if name not in wanted and not IGNORED.search(name)]
    if config.decoder.tie_embeddings and head in names:
        surplus.remove(names[head])
    complaints = []
    if missing:
        complaints.append(f"Missing tensors, {len(missing)}: {_some(missing)}")
        if missing == [head]:
            nested = layout == "original" and not component
            field = "llm_config.tie_word_embeddings" if nested else "tie_word_embeddings"
            complaints.append(
                f"If the embedding table is the output projection too, set {field} to true in config.json; else the "
                "weights are not whole: a shard was lost, or its index is wrong"
            )
    if surplus:
        complaints.append(f"Tensors without a place in the model, {len(surplus)}: {_some(surplus)}")
    if complaints:
        raise ValueError(f"{file.directory} does not fit its config.json. {'. '.join(complaints)}")
    for name, parameter in wanted.items():
        info, shape = file.tensors[names[name]], parameter.layout.their_shape
        if info.shape != shape:
            raise ValueError(
                f"{info.file}: tensor {names[name]} has shape {list(info.shape)}; by config.json it is {list(shape)}"
            )
        file.dtype(names[name])
    return names


def _spellings(file: SafetensorsDirectory) -> dict[str, str]:
    names: dict[str, str] = {}
    layout = layout_of(file.tensors)
    for name in file.tensors:
        other = names.setdefault(canonical(name, layout), name)
        if other != name:
            raise ValueError(f"{file.directory} holds the same tensor under two names: {other} and {name}")
    return names


def _some(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


def _equal(file: SafetensorsDirectory, first: str, second: str) -> bool:
    a, b = file.tensors[first], file.tensors[second]
    if a.shape != b.shape:
        return False
    rows, width = a.shape
    step = max(1, CHUNK_BYTES // (file.dtype(first).itemsize * width))
    blocks = ((width, range(at, min(at + step, rows)), range(width)) for at in range(0, rows, step))
    return all(np.array_equal(file.read(first, *block), file.read(second, *block)) for block in blocks)


def _place(
    file: SafetensorsDirectory,
    names: Mapping[str, str],
    parameter: Parameter,
    leaf: jax.ShapeDtypeStruct,
    threads: ThreadPoolExecutor,
) -> jax.Array:
    """One parameter as an array laid out as `leaf`; slices that several devices hold are read once."""
    # Only a vocabulary may be larger than the file's; what else does not fit is a fault of the caller.
    padded = parameter.path in ("decoder/embed/table", "decoder/head/kernel")
    if len(leaf.shape) != len(parameter.shape) or any(
        ours < theirs or (ours > theirs and not padded)
        for ours, theirs in zip(leaf.shape, parameter.shape, strict=True)
    ):
        raise ValueError(f"{parameter.path} has shape {leaf.shape}, but the config makes it {parameter.shape}")
    holders = defaultdict(list)
    for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, leaf.shape, strict=True))
        holders[bounds].append(device)
    arrays = []
    for bounds, devices in holders.items():
        values = _read(file, names, parameter, tuple(slice(*bound) for bound in bounds), leaf.dtype, threads)
        for device in devices:
            to = SingleDeviceSharding(device, memory_kind=leaf.sharding.memory_kind)
            arrays.append(jax.device_put(values, to))
        jax.block_until_ready(arrays)
        del values  # before the next slice is allocated
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, arrays)


def _read(
    file: SafetensorsDirectory,
    names: Mapping[str, str],
    parameter: Parameter,
    index: Index,
    dtype: np.dtype,
    threads: ThreadPoolExecutor,
) -> np.ndarray:
    """`parameter[index]` in `dtype`, zeros where it reaches beyond the file's vocabulary."""
    out = _empty_aligned([part.stop - part.start for part in index], np.dtype(dtype))
    inner = index[1:] if parameter.stacked else index
    held = tuple(
        slice(part.start, max(part.start, min(part.stop, size)))
        for part, size in zip(inner, parameter.layout.our_shape, strict=True)
    )
    if held != inner:
        out[...] = 0
    inside = tuple(slice(0, part.stop - part.start) for part in held)
    layers = parameter.tensors[index[0]] if parameter.stacked else parameter.tensors

    def fill(layer: np.ndarray, tensor: str) -> None:
        if layer[inside].size:
            read = partial(file.read, names[tensor], parameter.layout.width)
            parameter.layout.fill(layer[inside], held, read, file.dtype(names[tensor]).itemsize)

    for _ in threads.map(fill, out if parameter.stacked else [out], layers):
        pass  # raises what went wrong
    return out


def _empty_aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that a CPU device takes over as it is; what is not aligned so, it copies."""
    nbytes = math.prod(shape) * dtype.itemsize
    room = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + nbytes].view(dtype).reshape(shape)
