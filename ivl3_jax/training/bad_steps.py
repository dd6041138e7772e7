"""Steps that were not applied: their batch is written out, and the run ends, goes on or goes back."""

import io
import warnings
from collections.abc import Callable

import jax
import numpy as np
from etils import epath

from ivl3_jax.batch import Batch
from ivl3_jax.training.config import TrainConfig
from ivl3_jax.training.step import Metrics, TrainState


class BadSteps:
    """Decides what becomes of a step that was not applied."""

    def __init__(self, config: TrainConfig, directory: str | None = None) -> None:
        """`directory`: receives the batches, `step-N.npz`; None writes none."""
        self._config, self._directory, self.steps = config, directory, []

    def handle(
        self, step: int, metrics: Metrics, batch: Batch, state: TrainState, back: Callable[[], TrainState]
    ) -> TrainState:
        """The state to go on with after a bad step.

        Args:
            batch: this process's rows of it. state: the newest, which the bad step did not change.
            back: gives the last saved one.

        Raises:
            ValueError: the run is to end.
        """
        self.steps.append(step)
        loss, norm = float(metrics.loss), float(metrics.grad_norm)
        finite = np.isfinite(loss) and np.isfinite(norm)
        usual = "" if not finite else f", above {self._config.spike} times its moving average"
        said = f"the loss is {loss} at step {step} (gradient norm {norm}){usual}; the step was not applied"
        if self._directory is not None:
            said += f", its batch is in {self._write(step, batch)}"
        if self._config.on_bad_step == "stop":
            raise ValueError(f"{said}. Try a lower learning_rate, or train.on_bad_step: skip")
        if len(self.steps) > self._config.most_bad_steps:
            raise ValueError(f"{said}. It is bad step number {len(self.steps)}, more than train.most_bad_steps allows")
        warnings.warn(said, stacklevel=2)
        if self._config.on_bad_step == "skip":
            return state
        # The data go on: the same ones would lead to the same place.
        return back()._replace(step=state.step)

    def _write(self, step: int, batch: Batch) -> str:
        assert self._directory is not None
        directory = epath.Path(self._directory)
        directory.mkdir(parents=True, exist_ok=True)
        process = f"-process-{jax.process_index()}" if jax.process_count() > 1 else ""
        file = directory / f"step-{step}{process}.npz"
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **batch._asdict())
        file.write_bytes(buffer.getvalue())
        return str(file)
