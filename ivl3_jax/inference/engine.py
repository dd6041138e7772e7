"""The generation engine: continuous batching over a paged KV cache, beginnings shared, prompts prefilled in pieces."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence

import jax
import numpy as np

from ivl3_jax.data.encoded import Encoded
from ivl3_jax.inference.device import Device, Flight
from ivl3_jax.inference.pages import Pages
from ivl3_jax.inference.prefills import Prefill, Prefills
from ivl3_jax.inference.programs import Told
from ivl3_jax.inference.request import MOST_LOGPROBS, Finish, Limits, NoRoom, Request, Row, Said, Ticket, whole_number
from ivl3_jax.inference.sampling import GREEDY, Sampling
from ivl3_jax.inference.uninterrupted import uninterrupted
from ivl3_jax.models.model import Model

FIRST_POSITIONS = 8192  # of a cache that grows
INT8 = ("weights", "cache")


class Engine:
    """Continues prompts; requests may come and go at any time.

        engine = Engine(model)
        for said in engine.stream(Request(prompt, max_new_tokens=100)):
            ...

    Nothing runs by itself: `step` does the next piece of work, and whoever waits for an answer calls it, or one thread
    that serves many. It holds the decoder's layers one by one: where the model itself is not needed any more, drop it
    to get its memory back.
    """

    def __init__(self, model: Model, limits: Limits | None = None, int8: Collection[str] = ()) -> None:
        """Under the model's plan, see `InternVL.serve`.

        int8: what is kept in eight bits, at a loss (docs/generation.md): `weights`, those of the decoder's linear
        layers, and `cache`, keys and values.

        Raises:
            ValueError: another name is in `int8`.
        """
        if unknown := set(int8) - set(INT8):
            raise ValueError(f"int8 has {', '.join(sorted(unknown))}; it may have {' and '.join(INT8)}")
        self.config, self.mesh, self.limits = model.config, model.mesh, limits or Limits()
        count = 1 + -(-(self.limits.positions or FIRST_POSITIONS) // self.limits.page)
        self._pages = Pages(count)
        longest = -(-self.config.decoder.longest_row // self.limits.page)
        self._most_pages = count if self.limits.positions else 1 + self.limits.rows * longest
        # As many as pieces of prompts may need at once.
        most = 2 * self.limits.piece // self.config.tile_tokens + 2 * self.limits.piece // self.limits.page
        tiles = max(self.limits.tiles, most)
        self._device = Device(model, pages=count, page=self.limits.page, tiles=tiles, int8=int8)
        self._prefills = Prefills(self._device, self._pages, self.limits, tiles)
        self._arrived: deque[Prefill] = deque()
        self._running: list[Row] = []
        self._flight: Flight | None = None
        self._stepping, self._inside = threading.RLock(), False

    @property
    def room(self) -> int:
        """Positions that a prompt and its answer may have."""
        longest = self.config.decoder.longest_row
        return longest if self.limits.positions is None else min(longest, self.limits.positions)

    def left(self, prompt: Encoded) -> int:
        """Tokens that an answer to this prompt may have; below 1 if it does not fit."""
        # Positions and tokens of a prompt differ: several visual ones may share a step, see data/positions.py.
        left, room = self.config.decoder.longest_row - int(prompt.positions[-1]) - 1, self.limits.positions
        return left if room is None else min(left, room - len(prompt))

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._arrived or self._prefills or self._running or self._flight)

    def submit(self, request: Request, listener: Callable[[Said], None] | None = None) -> Ticket:
        """Takes a request, from any thread; its answers are told by the steps that follow.

        Args:
            listener: called with everything that is said, in the thread that calls `step`. It may submit and cancel,
                and must not call `step`.

        Returns:
            At once, unless the cache has to grow for this request alone, which waits for the end of a step.

        Raises:
            ValueError: a number is out of its bounds, prompt and answer pass what the model or the cache takes, or
                there is no memory for a cache that takes them (`NoRoom`).
        """
        self._check(request)
        self._make_fit(request)
        ticket = Ticket(request, listener)
        rows = [Row(ticket, sample) for sample in range(request.samples)]
        for start in range(0, len(rows), self.limits.rows):
            self._arrived.append(Prefill(ticket, rows[start : start + self.limits.rows]))
        return ticket

    def stream(self, request: Request) -> Iterator[Said]:
        """Everything that is said to a request, while it is generated; leaving the iterator cancels it."""
        ticket = self.submit(request)
        try:
            while ticket.unfinished or not ticket.said.empty():
                while ticket.unfinished and ticket.said.empty():
                    self.step()
                yield ticket.said.get()
        finally:
            ticket.cancel()

    def generate(
        self, prompts: Sequence[Encoded], max_new_tokens: int, stop: Collection[int], sampling: Sampling = GREEDY
    ) -> list[list[int]]:
        """The answer of each prompt as token ids, without the stop token that ended it; equal prompts draw differently.

        Raises:
            ValueError: as `submit`, or there is no prompt.
        """
        if not len(prompts):
            raise ValueError("there is no prompt; give at least one")
        asked = [
            Request(prompt, max_new_tokens, sampling, first_sample=number, stop=frozenset(stop))
            for number, prompt in enumerate(prompts)
        ]
        tickets = self.run(asked)
        return [[said.token for said in ticket.all_said() if said.token is not None] for ticket in tickets]

    def run(self, requests: Sequence[Request]) -> list[Ticket]:
        """Works until all that is asked is answered; leaving it with an error or Ctrl-C cancels all.

        Raises:
            ValueError: as `submit`; but for `NoRoom` before anything is done.
        """
        for request in requests:
            self._check(request)
        tickets: list[Ticket] = []
        try:
            for request in requests:
                tickets.append(self.submit(request))
            while any(ticket.unfinished for ticket in tickets):
                self.step()
        finally:
            for ticket in tickets:
                ticket.cancel()
        return tickets

    def step(self) -> None:
        """A piece of prompts, if any waits, and a token of every answer that runs.

        Raises:
            RuntimeError: a listener calls it, within a step.
        """
        with self._stepping, uninterrupted():
            if self._inside:
                raise RuntimeError("a listener calls the engine's step, which tells it something just now")
            self._inside = True
            try:
                self._step()
            finally:
                self._inside = False

    def _step(self) -> None:
        while self._arrived:
            self._prefills.waiting.append(self._arrived.popleft())
        for row in self._prefills.drop_unwanted():
            row.ticket.say(Said(row.sample, finish="cancelled"))
        for row in [row for row in self._running if not row.wanted]:
            self._finish(row, "cancelled")
        self._fill()
        self._decode()

    def _make_fit(self, request: Request) -> None:
        """Grows the cache if it is too small even for this request alone."""
        needed = 1 + self._page_count(request)
        if needed <= self._pages.count:  # which never falls: nobody waits for a step in vain
            return
        with self._stepping, uninterrupted():
            doubled = min(self._most_pages, 2 * self._pages.count - 1)
            sizes = [pages for pages in (doubled, needed) if pages >= needed > self._pages.count]
            if sizes and not any(map(self._grow, sizes)):
                raise NoRoom(
                    f"the prompt has {len(request.prompt)} tokens and the answer may have {request.max_new_tokens}; "
                    "there is no memory for a cache of that size: use fewer or smaller images, or lower max_new_tokens"
                )

    def _grown(self) -> bool:
        """Doubles the cache, unless its size was given, it has room for all rows at their longest, or memory is out."""
        if self._pages.count >= self._most_pages:
            return False
        if not self._grow(min(self._most_pages, 2 * self._pages.count - 1)):
            self._most_pages = self._pages.count
            positions = (self._pages.count - 1) * self.limits.page
            logging.getLogger(__name__).warning(
                "no memory for a larger cache: it stays at %d positions, and rows take turns", positions
            )
            return False
        return True

    def _grow(self, pages: int) -> bool:
        """Makes the cache one of so many pages; False if there is no memory for it."""
        try:
            self._device.grow(pages)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return False
        self._pages.grow(pages)
        return True

    def _fill(self) -> None:
        free, alone = self.limits.rows - len(self._running), not self._running and not self._flight
        while self._prefills.admit(free, alone) and self._grown():
            pass
        if not self._prefills.filling:
            return
        done, hidden = self._prefills.advance()
        if not done:
            return
        of = [number for number, prefill in done.items() for _ in prefill.rows]
        rows = [row for prefill in done.values() for row in prefill.rows]
        for prefill in done.values():
            self._fork(prefill)
        self._running += rows
        for row in [row for row in rows if self._full(row)]:
            self._finish(row, "length")
        drawing = [(number, row) for number, row in zip(of, rows, strict=True) if row in self._running]
        if not drawing:
            return
        of, rows = [number for number, _ in drawing], [row for _, row in drawing]
        told = self._device.first(hidden, of, rows)
        for row in rows:
            row.drawn += 1
        self._hear(rows, told)
        for row in [row for row in rows if row in self._running and not row.pages]:
            self._give_way(row)

    def _fork(self, prefill: Prefill) -> None:
        """Gives the rows of a prompt its pages: those that are full to all of them, and of the last one copies.

        A row that finds no page for its copy has none at all, and waits again after its first token.
        """
        first, *others = prefill.rows
        first.pages, first.filled = prefill.pages, prefill.filled
        full = prefill.filled // self.limits.page
        copies = []
        for row in others:
            own = self._pages.take(len(prefill.pages) - full)
            if own is None:
                continue
            self._pages.share(prefill.pages[:full])
            row.pages, row.filled = prefill.pages[:full] + own, prefill.filled
            copies += own
        if copies:
            self._device.copy(prefill.pages[-1:] * len(copies), copies)

    def _decode(self) -> None:
        before = self._flight
        # What a step tells has to be known before another when rows come or go, or have to.
        if before and (list(before.rows) != self._running or any(self._full(row) for row in self._running)):
            before = self._land()
        while not self._make_room():
            if self._grown():
                continue
            if before:
                before = self._land()  # it may tell of ends
            else:
                self._make_way()
        if not self._running:
            return
        self._flight = self._device.next(self._running, before)
        for row in self._running:
            row.filled += 1
            row.drawn += 1
        if before:
            self._hear(before.rows, before.told)

    def _full(self, row: Row) -> bool:
        return row.drawn >= row.ticket.request.max_new_tokens

    def _land(self) -> Flight | None:
        """Hears the step that is on its way; returns what is then on its way, nothing."""
        if flight := self._flight:
            self._flight = None
            self._hear(flight.rows, flight.told)
        return self._flight

    def _make_room(self) -> bool:
        """A page for the next position of every row; False if there are not enough."""
        for row in self._running:
            if row.filled == len(row.pages) * self.limits.page:
                if (page := self._pages.take(1)) is None:
                    return False
                row.pages += page
        return True

    def _make_way(self) -> None:
        """Takes the pages of what came last; it goes on later from what it has said."""
        if self._prefills.filling:
            self._prefills.give_way(self._prefills.filling[-1])
        else:
            self._give_way(self._running[-1])

    def _give_way(self, row: Row) -> None:
        self._running.remove(row)
        self._leave(row)
        self._prefills.waiting.appendleft(Prefill(row.ticket, [row]))

    def _hear(self, rows: Sequence[Row], told: Told) -> None:
        """Tells what a step drew for rows that still run."""
        tokens = np.asarray(told.tokens)
        likely = None if told.alternatives is None else [np.asarray(x) for x in told.alternatives]
        for number, row in enumerate(rows):
            if row not in self._running:
                continue
            request, token = row.ticket.request, int(tokens[number])
            if token in request.stop:
                self._finish(row, "stop")
                continue
            row.answer.append(token)
            row.ticket.say(self._said(row, token, likely and [x[number] for x in likely]))
            if len(row.answer) == request.max_new_tokens:
                self._finish(row, "length")

    def _said(self, row: Row, token: int, likely: list | None) -> Said:
        count = row.ticket.request.logprobs
        if count is None or likely is None:
            return Said(row.sample, token)
        own, ids, logprobs = likely
        pairs = zip(ids[:count].tolist(), logprobs[:count].tolist(), strict=True)
        return Said(row.sample, token, float(own), tuple(pairs))

    def _finish(self, row: Row, why: Finish) -> None:
        self._running.remove(row)
        self._leave(row)
        row.ticket.say(Said(row.sample, finish=why))

    def _leave(self, row: Row) -> None:
        """Takes the pages of a row, whose content stays known."""
        written = Prefill(row.ticket, [row], row.pages)
        # The last token, and one that was to end the answer, may have been written behind what is known.
        written.filled = min(row.filled, len(written))
        self._prefills.remember(written)
        self._pages.drop(row.pages)
        row.pages, row.filled, row.drawn = [], 0, len(row.answer)

    def _page_count(self, request: Request) -> int:
        return -(-(len(request.prompt) + request.max_new_tokens) // self.limits.page)

    def _check(self, request: Request) -> None:
        whole_number("max_new_tokens", request.max_new_tokens, least=0 if request.weighed else 1)
        whole_number("samples", request.samples, least=1)
        whole_number("first_sample", request.first_sample, least=0)
        if request.logprobs is not None and not 0 <= request.logprobs <= MOST_LOGPROBS:
            raise ValueError(f"logprobs is {request.logprobs}; it must be 0 to {MOST_LOGPROBS}")
        prompt = request.prompt
        if not len(prompt):
            raise ValueError("the prompt is empty; it must have at least one token")
        if request.weighed and not all(0 <= token < self.config.decoder.vocab for token in request.weighed.tokens):
            told = f"tokens {request.weighed.tokens} are weighed; ids are 0 to {self.config.decoder.vocab - 1}"
            raise ValueError(told)
        if request.weighed and request.weighed.places[-1] >= len(prompt):
            raise ValueError(f"place {request.weighed.places[-1]} is weighed; the prompt ends before {len(prompt)}")
        # Not the number of tokens: several visual ones may share a step, see data/positions.py.
        furthest, limit = int(prompt.positions[-1]) + 1, self.config.decoder.longest_row
        if furthest + request.max_new_tokens > limit:
            raise ValueError(
                f"the prompt takes {furthest} positions and the answer may take {request.max_new_tokens}; together "
                f"they pass the {limit} that the model takes: use fewer or smaller images, or a lower max_new_tokens"
            )
        room = self.limits.positions
        if room is not None and self._page_count(request) > -(-room // self.limits.page):
            raise ValueError(
                f"the prompt has {len(prompt)} tokens and the answer may have {request.max_new_tokens}; the cache has "
                f"room for {room}: use fewer or smaller images, a lower max_new_tokens, or a larger cache"
            )
