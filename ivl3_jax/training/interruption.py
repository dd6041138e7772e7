"""Being told to end: SIGTERM, as a preempted machine gets it, lets the step in hand be finished and saved."""

import signal
from types import FrameType, TracebackType
from typing import Self

import jax
from jax.experimental import multihost_utils


class Interrupted(Exception):
    """A process was told to end, and what it had done is saved."""


class Interruption:
    """While entered, SIGTERM does not end the process but makes `due` true.

    With several processes, jax's preemption service passes the signal on from the one that got it, and all of them are
    due at the same step.
    """

    def __enter__(self) -> Self:
        self._told, self._asked = False, 0
        self._before = None
        if jax.process_count() == 1:
            try:
                self._before = signal.signal(signal.SIGTERM, self._tell)
            except ValueError:  # not in the main thread: whoever runs this one handles signals
                self._before = None
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def due(self, step: int) -> bool:
        """Whether to save and end after this step; asked by all processes at the same steps."""
        if jax.process_count() == 1:
            return self._told
        # Its own count, which rises through all phases of a run: the steps of training begin anew behind a reference's.
        self._asked += 1
        return multihost_utils.reached_preemption_sync_point(self._asked)
