"""The engine in a thread of its own, and how coroutines hear what it says."""

import asyncio
import logging
import threading
import traceback
from collections.abc import AsyncGenerator

from ivl3_jax.inference.engine import Engine
from ivl3_jax.inference.request import Request, Said, Ticket


class Failed(Exception):
    """The engine broke down; nothing can be generated any more."""


class Service:
    """Steps an engine while there is something to do.

    Attributes:
        running: requests that were taken and have not ended.
        failure: why nothing can be generated any more; None while all is well.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.running: set[Ticket] = set()
        self.failure: str | None = None
        self._work, self._leaving = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begins to step."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its step."""
        self._leaving = True
        self._work.set()
        self._thread.join()

    async def answer(self, request: Request) -> AsyncGenerator[tuple[Ticket, Said]]:
        """What is said to a request; leaving the iterator cancels it.

        Raises:
            ValueError: as `Engine.submit`.
            Failed: the engine broke down.
        """
        loop, said = asyncio.get_running_loop(), asyncio.Queue[Said | None]()

        def listen(one: Said | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(said.put_nowait, one)

        if self.failure:
            raise Failed(self.failure)
        submitting = asyncio.ensure_future(asyncio.to_thread(self.engine.submit, request, listen))
        try:
            ticket = await asyncio.shield(submitting)
        except asyncio.CancelledError:
            submitting.add_done_callback(self._dropped)
            raise
        self.running.add(ticket)
        self._work.set()
        left = request.samples
        try:
            if self.failure:  # meanwhile
                raise Failed(self.failure)
            while left:
                one = await said.get()
                if one is None:
                    raise Failed(self.failure)
                left -= one.finish is not None
                yield ticket, one
        finally:
            self.running.discard(ticket)
            ticket.cancel()
            self._work.set()

    def _dropped(self, submitted: "asyncio.Future[Ticket]") -> None:
        """Cancels what was submitted for a client that has left meanwhile."""
        if not submitted.cancelled() and submitted.exception() is None:
            submitted.result().cancel()
            self._work.set()

    def _run(self) -> None:
        while not self._leaving:
            if self.engine.idle:
                self._work.wait()
                self._work.clear()
                continue
            try:
                self.engine.step()
            except Exception:
                logging.getLogger(__name__).exception("the engine broke down")
                self.failure = traceback.format_exc(limit=-3)
                for ticket in list(self.running):
                    if ticket.listener is not None:
                        ticket.listener(None)  # type: ignore[arg-type]
                return
