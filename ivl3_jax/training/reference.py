"""Log-probabilities of a reference model for preference losses: computed as they are needed, or all beforehand."""

import io
import json
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils

from ivl3_jax.batch import Batch
from ivl3_jax.models.model import Model, Params
from ivl3_jax.training.interruption import Interrupted
from ivl3_jax.training.objectives import answer_log_probs
from ivl3_jax.training.placing import Placement
from ivl3_jax.training.states import gathered

SAVED_EVERY = 100  # steps, while log-probabilities are computed beforehand


class Reference(Protocol):
    """Gives the reference's log-probabilities of the answers of a batch."""

    def __call__(self, step: int, batch: Batch) -> jax.Array:
        """[A, B, G] in at least float32, of the placed batch [A, B, ...] of step number `step`, from 0."""


class ReferenceModel:
    """A model that is kept in memory beside the trained one, without drop-path."""

    def __init__(self, model: Model) -> None:
        self._params, self._log_probs = model.params, jax.jit(partial(_log_probs, model.graphdef))

    def __call__(self, step: int, batch: Batch) -> jax.Array:
        return self._log_probs(self._params, batch)


def _log_probs(graphdef: nnx.GraphDef, params: Params, batch: Batch) -> jax.Array:
    def one(_: None, part: Batch) -> tuple[None, jax.Array]:
        return None, answer_log_probs(nnx.merge(graphdef, params), part)

    return jax.lax.scan(one, None, batch)[1]


class ReferenceTable:
    """Log-probabilities of every step of a run, computed beforehand; batches follow from the seed and the step."""

    def __init__(self, table: np.ndarray, place: Placement) -> None:
        """`table`: float32 [steps, R, G] of all rows."""
        self._table, self._place = table, place

    def __call__(self, step: int, batch: Batch) -> jax.Array:
        return self._place.per_row(self._table[step, self._place.rows])


def precomputed(
    file: str,
    model: Callable[[], Model],
    batches: Callable[[Mapping[str, Any] | None], Any],
    place: Placement,
    steps: int,
    identity: Mapping[str, Any],
    report: Callable[[int], None] = lambda done: None,
    told_to_end: Callable[[int], bool] = lambda step: False,
) -> ReferenceTable:
    """The table of a run, from its file as far as it is there; the rest is computed and written to it.

    Args:
        file: `.npz`; beside the table it has the data's state, so that an interrupted computation goes on.
        model: opens the reference model; not called where nothing is missing.
        batches: opens the run's `Loader` at a state of the data, None for the beginning.
        place: puts batches onto the model's mesh. steps: of the run. identity: what the table depends on.
        report: is told how many steps are done whenever they are written. told_to_end: asked after every step.

    Raises:
        ValueError: the file is of another run, or the data end too early.
        Interrupted: told to end; what was computed is written.
    """
    table, data = _read(file, identity)
    if len(table) < steps:
        opened, reader = model(), batches(data)
        reference = ReferenceModel(opened)
        try:
            with jax.set_mesh(opened.mesh):
                found = list(table)
                while len(found) < steps:
                    found.append(_all_rows(reference(len(found), place(_next(reader, len(found), steps)))))
                    ending = told_to_end(len(found))
                    if ending or len(found) % SAVED_EVERY == 0 or len(found) == steps:
                        _write(file, np.stack(found), gathered(reader.state), identity)
                        report(len(found))
                    if ending:
                        raise Interrupted(
                            f"told to end: the reference's log-probabilities of {len(found)} steps are saved"
                        )
        finally:
            reader.close()
        table = np.stack(found)
    return ReferenceTable(table, place)


def _next(reader: Iterator[Batch], done: int, steps: int) -> Batch:
    batch = next(reader, None)
    if batch is None:
        raise ValueError(f"the data ended after {done} of {steps} steps; lower train.steps")
    return batch


def _all_rows(values: jax.Array) -> np.ndarray:
    """[A, B, G] on the mesh to [R, G] on every host."""
    whole = multihost_utils.process_allgather(values, tiled=True) if jax.process_count() > 1 else values
    return np.asarray(whole).reshape(-1, values.shape[-1])


def _read(file: str, identity: Mapping[str, Any]) -> tuple[np.ndarray, Mapping[str, Any] | None]:
    path = epath.Path(file)
    if not path.exists():
        return np.zeros((0, 0, 0), np.float32), None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as content:
            table, facts = content["table"], json.loads(str(content["facts"]))
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError) as error:
        warnings.warn(f"{file} is damaged and is computed anew: {error}", stacklevel=2)
        return np.zeros((0, 0, 0), np.float32), None
    for name, value in json.loads(json.dumps(identity)).items():
        if facts["identity"].get(name) != value:
            raise ValueError(
                f"{file} is of another run: its {name} is {facts['identity'].get(name)}, here it is {value}; remove it"
            )
    return table, facts["data"]


def _write(file: str, table: np.ndarray, data: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    if jax.process_index() > 0:
        return
    buffer = io.BytesIO()
    np.savez(buffer, table=table, facts=json.dumps({"identity": identity, "data": data}))
    path = epath.Path(file)
    partial_file = path.with_name(f"{path.name}.partial")
    partial_file.write_bytes(buffer.getvalue())
    partial_file.replace(path)
