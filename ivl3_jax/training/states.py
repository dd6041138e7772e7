"""Saved states of a run: written in the background, complete or invisible, checked when read, fit for any plan."""

import json
import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from ivl3_jax.training.config import SaveRecipe
from ivl3_jax.training.step import TrainState

FORMAT = 1


class Saved(NamedTuple):
    """What was read: the state, that of the data of all hosts, and what else was saved with them."""

    state: TrainState
    data: Mapping[str, Any]
    facts: Mapping[str, Any]


class States:
    """The states in a directory, a local one or `gs://`.

    A state is a subdirectory named by its step, which orbax renames into place when all of it is written. With it lies
    a checksum of every array, taken before it was written: TensorStore reads a flipped bit without a word.
    """

    def __init__(self, directory: str | Path, save: SaveRecipe) -> None:
        """`save` says which states are kept."""
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs every file it touches
        self.directory = epath.Path(directory)
        if not str(directory).startswith("gs://"):
            self.directory = self.directory.resolve()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=save.keep,
            keep_period=save.keep_every,
            cleanup_tmp_directories=True,
            create=True,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    @property
    def steps(self) -> list[int]:
        """Steps of the states there are, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, data: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Begins to write a state, and returns once its arrays may change.

        Args:
            state: on the mesh. data: of all hosts, in JSON's types. facts: likewise, what `newest` gives back.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        sums = {name: [int(part) for part in value] for name, value in jax.device_get(checksums(state)).items()}
        described = {"format": FORMAT, "checksums": sums, "dtypes": dtypes(state), **facts}
        items = {"state": ocp.args.StandardSave(state), "data": ocp.args.JsonSave(dict(data))}
        self._manager.save(step, args=ocp.args.Composite(**items, facts=ocp.args.JsonSave(described)))

    def newest(self, like: TrainState, check: Callable[[Mapping[str, Any]], None] = lambda facts: None) -> Saved | None:
        """The newest state that is not damaged, laid out as `like`; None if there is none at all.

        A damaged one is told of in a warning, moved aside to `damaged-STEP`, and the one before is read.

        Args:
            like: shapes, dtypes and shardings; the padding of a vocabulary may differ from that of the state.
            check: looks at what was saved with a state, `dtypes` among it, before it is read, and raises a ValueError
                if it does not fit.

        Raises:
            ValueError: every state is damaged, or the newest is of a later version; or what `check` raises.
            OSError, RuntimeError: a state cannot be reached, or not held; it stays where it is.
        """
        for step in reversed(self.steps):
            try:
                return self._read(step, like, check)
            except _Damaged as error:
                moved = self._set_aside(step)
                warnings.warn(
                    f"{self.directory / str(step)} is damaged and was moved to {moved}: {error}", stacklevel=2
                )
        if any(self.directory.glob("damaged-*")):
            raise ValueError(f"every state in {self.directory} is damaged; start anew in another directory")
        return None

    def _read(self, step: int, like: TrainState, check: Callable[[Mapping[str, Any]], None]) -> Saved:
        facts = _together(lambda: self._restore(step, facts=ocp.args.JsonRestore()).facts)
        if facts["format"] > FORMAT:
            told = f"has format {facts['format']}; this version reads {FORMAT} and before"
            raise ValueError(f"{self.directory / str(step)} {told}")
        check(facts)
        # Not strict: another plan may pad the vocabulary to another size, with zeros.
        state = ocp.args.StandardRestore(like, strict=False)
        found = _together(lambda: self._restore(step, state=state, data=ocp.args.JsonRestore()))
        for name, value in jax.device_get(checksums(found.state)).items():
            if [int(part) for part in value] != facts["checksums"].get(name):
                raise _Damaged(f"{name} has another checksum than when it was saved")
        return Saved(found.state, found.data, facts)

    def _restore(self, step: int, **items: Any) -> Any:
        """Reads what this process needs, without the others: in orbax's barriers they would wait for one that fails."""
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(me, {me}, f"process {me}")
        options = ocp.CompositeOptions(multiprocessing_options=alone)
        handler = ocp.CompositeCheckpointHandler(composite_options=options)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
            return reader.restore(self.directory / str(step), args=ocp.args.Composite(**items))

    def _set_aside(self, step: int) -> str:
        """Renames a state, and returns its new name."""
        names = (f"damaged-{step}{number}" for number in ("", *(f"-{n}" for n in range(2, 1000))))
        free = next(name for name in names if not (self.directory / name).exists())
        barrier(f"a name for damaged {step}")
        if jax.process_index() == 0:
            (self.directory / str(step)).rename(self.directory / free)
        barrier(f"damaged {step}")
        self._manager.reload()
        return free

    def wait(self) -> None:
        """Returns when everything is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the threads that write."""
        self._manager.wait_until_finished()
        self._manager.close()


class _Damaged(Exception):
    """A state that cannot be what was saved."""


# What TensorStore's errors begin with that say nothing about the files themselves.
_UNREACHABLE = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED")


def _together(read: Callable[[], Any]) -> Any:
    """What `read` returns, if it does so in all processes; otherwise all of them raise.

    Raises:
        _Damaged: what damage makes of orbax's and TensorStore's many files, in any process.
        OSError, RuntimeError, MemoryError: no damage, but the state cannot be read, in any process.
    """
    error: Exception | None = None
    found = None
    try:
        found = read()
    except Exception as failure:
        error = failure
        _silence_echoes()
    missing = isinstance(error, FileNotFoundError)
    elsewhere = (
        isinstance(error, OSError | MemoryError | ImportError | NameError | jax.errors.JaxRuntimeError) and not missing
    )
    elsewhere |= str(error).startswith(_UNREACHABLE)
    kind = 0 if error is None else 2 if elsewhere else 1
    if jax.process_count() > 1:
        worst = int(np.max(multihost_utils.process_allgather(np.array(kind))))
        if worst and kind != worst:
            error, kind = OSError("another process could not read the state"), worst
    if error is not None and kind == 2:
        raise error
    if error is not None:
        lines = str(error).strip().splitlines()
        raise _Damaged(lines[0][:200] if lines else type(error).__name__)
    return found


@cache
def _silence_echoes() -> None:
    """Drops what Python prints when a failed read's siblings are freed: thousands of lines that say it again."""
    hook = sys.unraisablehook

    def others(unraised: "sys.UnraisableHookArgs") -> None:
        code = getattr(unraised.object, "cr_code", None)
        if code is None or "orbax" not in Path(code.co_filename).parts:
            hook(unraised)

    sys.unraisablehook = others


def barrier(name: str) -> None:
    """Waits for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def dtypes(state: TrainState) -> dict[str, str]:
    """The dtype of each array, by its path."""
    return {jax.tree_util.keystr(path): str(leaf.dtype) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


@jax.jit
def checksums(tree: Any) -> dict[str, jax.Array]:
    """Two sums of each array's mixed 32-bit words, uint32 [2], by its path.

    They depend neither on the layout nor on zeros at the end, so that they hold under every plan.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): _checksum(leaf) for path, leaf in leaves}


def _checksum(leaf: jax.Array) -> jax.Array:
    word = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(leaf, word).astype(jnp.uint32)
    mixed = words * jnp.uint32(0x9E3779B1)  # odd, so that no bit is lost
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x85EBCA77)
    return jnp.stack([words.sum(dtype=jnp.uint32), (mixed ^ (mixed >> 13)).sum(dtype=jnp.uint32)])


def gathered(data: Mapping[str, Any]) -> dict[str, Any]:
    """The loader states of all processes as one; every process gets it.

    Args:
        data: `Loader.state` of this process.
    """
    if jax.process_count() == 1:
        return dict(data)
    text = np.frombuffer(json.dumps(data).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(text)))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(text)] = text
    every = multihost_utils.process_allgather(padded)
    parts = [json.loads(bytes(row[:length])) for row, length in zip(every, lengths, strict=True)]
    streams = {name: state for part in parts for name, state in part["streams"].items()}
    return {"of": parts[0]["of"], "streams": streams}
