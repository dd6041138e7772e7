"""A step's time, by walking its schedule: one line of compute, and beside it links, memory moves, the host's memory.

The compiler has put the instructions in order; each takes its place on the line of compute, and what is asynchronous
runs on lanes of its own, for which the line waits only where the end is awaited. A loop is walked twice: its first
iteration, and one that follows another, which counts for all the rest.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence, Set
from dataclasses import dataclass, field

from ivl3_jax.chips import Chip
from ivl3_jax.lab.calibration import Calibration
from ivl3_jax.lab.collectives import SEND, Collective, Network, inside, kind_of, table
from ivl3_jax.lab.hlo import HOST, Computation, Instruction, Module
from ivl3_jax.lab.places import place
from ivl3_jax.lab.topology import PlacedMesh
from ivl3_jax.lab.work import FREE, operations, traffic

Array = tuple[str, tuple[int, ...]]  # dtype as HLO writes it, sizes
KernelSeconds = Callable[[str, Sequence[Array], Sequence[Array]], float | None]

COMPUTE, ICI, DMA, HOST_LANE, DCN = "compute", "ici", "dma", "host", "dcn"
SMALL = 64  # bytes: flags and indices beside what is moved
MOVES = ("copy", "slice", "dynamic-slice", "dynamic-update-slice")
AND_OTHERS = ", and others"  # a collective that the compiler has made of several has the place of one
DEPTH = 8  # instructions that are followed back to one that has a name
PRODUCT = 0.05  # the part of an instruction's time from which its products make it one of them


@dataclass(frozen=True)
class Event:
    """What a lane does.

    Attributes:
        name: of the instruction. start: in seconds from the iteration's beginning. seconds: how long. lane: on which.
        scope: where in the traced program it comes from. place: that in words.
        kind: a part as in `Timeline.parts`, or a collective's kind. axes, bytes: of a collective.
    """

    name: str
    start: float
    seconds: float
    lane: str
    scope: str
    place: str = ""
    kind: str = ""
    axes: tuple[str, ...] = ()
    bytes: int = 0


@dataclass(frozen=True)
class Loop:
    """A loop of the program: its scope, iterations, seconds of one, and what happens in one."""

    scope: str
    trips: int
    seconds: float
    events: tuple[Event, ...] = field(repr=False)


@dataclass(frozen=True)
class Timeline:
    """A step as the compiler has scheduled it.

    Attributes:
        seconds: of the step. parts: seconds of the line of compute, which add up to it: `products`, `other compute`,
            `kernels`, `memory moves` and `exposed communication`.
        busy: seconds of each lane beside it. collectives: most bytes first. loops: in order.
        warnings: what the walk could not read.
    """

    seconds: float
    parts: dict[str, float]
    busy: dict[str, float]
    collectives: tuple[Collective, ...]
    loops: tuple[Loop, ...]
    warnings: tuple[str, ...]


def walk(
    module: Module, placed: PlacedMesh, kernel_seconds: KernelSeconds, calibration: Calibration | None = None
) -> Timeline:
    """Predicts the time of a compiled step.

    Args:
        module: its text, read. placed: the mesh that it was compiled for.
        kernel_seconds: what one call of a Pallas kernel takes, of (name, operands, results), each as (dtype, shape);
            None where it is not known, which counts as nothing and is warned of.
    """
    walker = _Walker(module, placed, kernel_seconds, calibration or Calibration())
    walker.run(module.entry, 1)
    walker.wait(max(walker.lanes.values(), default=0.0), "exposed communication")
    return Timeline(
        walker.now,
        dict(walker.parts),
        dict(walker.busy),
        tuple(table(walker.collectives)),
        tuple(walker.loops),
        tuple(dict.fromkeys(walker.warnings)),
    )


class Cost:
    """Seconds of what the line of compute does itself."""

    def __init__(self, module: Module, chip: Chip, calibration: Calibration) -> None:
        self.module = module
        self.peak = chip.teraflops * 1e12
        self.products, self.vectors = calibration.products, calibration.vectors
        self.hbm = chip.gigabytes * 1e9 * calibration.hbm
        self.clock = chip.ghz * 1e9

    def __call__(self, computation: Computation, instruction: Instruction) -> tuple[str, float]:
        """What an instruction is (`products`, `other compute` or `memory moves`), and how long it takes.

        The compiler's estimate adds the vector work of a fusion to its products. A core issues both in the same cycles,
        so that the longer of the two counts, or the bytes that are moved.
        """
        estimate = (instruction.estimated_cycles or 0) / self.clock
        bare = operations(self.module, computation, instruction) / self.peak
        moved = traffic(self.module, computation, instruction) / self.hbm
        if bare and bare > PRODUCT * estimate:
            return "products", max(bare / self.products, self.vectors * (estimate - bare), moved)
        kind = "memory moves" if instruction.opcode in (*MOVES, "transpose", "concatenate", "pad") else "other compute"
        return kind, max(self.vectors * estimate, moved)


class _Walker:
    """The walk's state: the time on the line of compute, when each lane is free, what is under way."""

    def __init__(
        self, module: Module, placed: PlacedMesh, kernel_seconds: KernelSeconds, calibration: Calibration
    ) -> None:
        self.module, self.kernel_seconds = module, kernel_seconds
        chip = placed.topology.chip
        self.network, self.cost = Network(placed, calibration), Cost(module, chip, calibration)
        self.hbm, self.host = chip.gigabytes * 1e9 * calibration.hbm, chip.pcie * 1e9 * calibration.host
        self.now = 0.0
        self.lanes: dict[Hashable, float] = {}
        self.flight: dict[str, float] = {}  # by name of the start, or channel: when it is done
        self.around: Set[str] = frozenset()  # channels with pieces in the computations that are walked
        self.parts: dict[str, float] = defaultdict(float)
        self.busy: dict[str, float] = defaultdict(float)
        self.collectives: list[Collective] = []
        self.loops: list[Loop] = []
        self.events: list[Event] | None = None  # of the iteration that is being drawn
        self.begun = 0.0
        self.loop = ""  # the scope of the loop that is walked
        self.warnings: list[str] = []

    def run(self, computation: Computation, weight: float) -> None:
        """Walks a computation; `weight` is how often it stands for."""
        self.computation = computation
        pieces, around = self._pieces(computation), self.around
        self.around = around | {each.channel for carried in pieces.values() for each in carried}
        for instruction in computation.instructions:
            self.weight, self.computation = weight, computation
            opcode = instruction.opcode
            if opcode in FREE or opcode in ("partition-id", "replica-id", "iota"):
                continue
            if opcode == "while":
                self._loop(instruction, weight)
            elif opcode in ("call", "conditional"):
                for name in instruction.called[:1]:
                    self.run(self.module.computations[name], weight)
            elif opcode.endswith(("-done", "-update")):
                self._done(instruction)
            elif opcode in ("send", "recv"):
                self._transfer(instruction)
            elif kind_of(instruction):
                self._collective(instruction)
            elif opcode.endswith("-start"):
                self._start(instruction)
            elif instruction in pieces:
                self._piece(computation, instruction, pieces, around)
            elif instruction.target == "tpu_custom_call":
                self._kernel(computation, instruction)
            elif opcode != "custom-call" or instruction.estimated_cycles:
                self._compute(computation, instruction)
        self.around = around

    def wait(self, until: float, part: str) -> None:
        if until > self.now:
            self.parts[part] += (until - self.now) * self.weight
            self.now = until

    def _spend(self, seconds: float, part: str, instruction: Instruction, lane: str = COMPUTE) -> None:
        self._draw(self.now, seconds, lane, instruction, part)
        self.parts[part] += seconds * self.weight
        self.now += seconds

    def _draw(
        self,
        start: float,
        seconds: float,
        lane: str,
        instruction: Instruction,
        kind: str,
        axes: tuple[str, ...] = (),
        size: int = 0,
    ) -> None:
        if self.events is not None and seconds:
            where = self._place(instruction, kind)
            self.events.append(
                Event(instruction.name, start - self.begun, seconds, lane, instruction.op_name, where, kind, axes, size)
            )

    def _place(self, instruction: Instruction, kind: str) -> str:
        """Where an instruction comes from, in words; of one without a name, where what goes into it does."""
        for _ in range(DEPTH):
            if instruction.op_name.startswith("jit") or not instruction.operands:
                break
            instruction = self.computation.by_name.get(instruction.operands[0], instruction)
        return place(instruction.op_name, self.module.frames.get(instruction.frame, ()), kind, self.loop)

    def _compute(self, computation: Computation, instruction: Instruction) -> None:
        if not any(shape.dims for shape in instruction.shapes):
            return  # the scalar unit's, which costs nothing here
        part, seconds = self.cost(computation, instruction)
        self._spend(seconds, part, instruction)

    def _kernel(self, computation: Computation, instruction: Instruction) -> None:
        operands = [
            (shape.dtype, shape.dims)
            for name in instruction.operands
            if name in computation.by_name
            for shape in computation.by_name[name].shapes
        ]
        results = [(shape.dtype, shape.dims) for shape in instruction.shapes]
        seconds = self.kernel_seconds(instruction.name, operands, results)
        if seconds is None:
            self.warnings.append(f"{instruction.name}: no cost of this kernel is known; it counts as nothing")
        self._spend(seconds or 0.0, "kernels", instruction)

    def _loop(self, instruction: Instruction, weight: float) -> None:
        trips = self.module.trips(instruction)
        if trips is None:
            self.warnings.append(f"{instruction.name}: the number of iterations cannot be read; 1 is taken")
            trips = 1
        if not trips:
            return
        body = self.module.computations[instruction.attribute(r"body=%?([\w.\-<>]+)") or ""]
        around, self.loop = self.loop, instruction.op_name
        self._iterate(instruction, body, trips, weight)
        self.loop = around

    def _iterate(self, instruction: Instruction, body: Computation, trips: int, weight: float) -> None:
        self.run(body, weight)
        if trips == 1:
            return
        outer, began = (self.events, self.begun), self.now
        self.events, self.begun = [], self.now
        lanes, flight = dict(self.lanes), dict(self.flight)
        self.run(body, weight * (trips - 1))
        seconds = self.now - began
        self.loops.append(Loop(instruction.op_name, trips, seconds, tuple(self.events)))
        self.events, self.begun = outer
        later = seconds * (trips - 2)
        self.now += later
        # What was begun before the loop goes on beside it.
        self.lanes = {lane: free + later * (free != lanes.get(lane)) for lane, free in self.lanes.items()}
        self.flight = {name: done + later * (done != flight.get(name)) for name, done in self.flight.items()}

    def _collective(self, instruction: Instruction) -> None:
        asynchronous = instruction.opcode.endswith("-start")
        kind = kind_of(instruction) or ""
        done = self._launch(instruction, kind, asynchronous, self.now, instruction)
        if asynchronous:
            self.flight[instruction.name] = done
        else:
            self.wait(done, "exposed communication")

    def _launch(
        self, instruction: Instruction, kind: str, asynchronous: bool, earliest: float, outer: Instruction
    ) -> float:
        """Puts a collective, which `outer` is or carries, on its links; returns when it is done."""
        named = instruction if instruction.op_name else outer
        seconds = self.network.seconds(instruction, kind)
        links: tuple[Hashable, ...] = self.network.links(instruction)
        span = self.network.span(instruction)
        lane = DCN if span.slices > 1 and not span.rings else ICI
        links = (DCN,) if lane == DCN else links
        start = max([earliest, *(self.lanes.get(link, 0.0) for link in links)])
        self.lanes.update(dict.fromkeys(links, start + seconds))
        self.busy[lane] += seconds * self.weight
        axes, size = self.network.axes(instruction), self.network.message(instruction, kind)
        self._draw(start, seconds, lane, named, kind, axes, size)
        if axes:
            where = self._place(named, kind) + (AND_OTHERS if len(instruction.operands) > 1 else "")
            self.collectives.append(
                Collective(kind, axes, self.weight, size, asynchronous, named.op_name, seconds, where)
            )
        return start + seconds

    def _transfer(self, instruction: Instruction) -> None:
        """To or from another slice, each way a lane; where the hosts reduce, a ring's two passes over the slices."""
        size = max((shape.bytes for shape in instruction.shapes), default=0)
        slices = self.network.placed.topology.slices
        passes = 2 * (slices - 1) / slices if "ALL_REDUCE" in instruction.attributes else 1.0
        seconds = passes * size / self.network.dcn
        self._start_on((DCN, instruction.opcode), instruction, seconds, DCN)
        if instruction.opcode == "send":
            between = self.network.between_slices
            scope, where = instruction.op_name, self._place(instruction, SEND)
            self.collectives.append(Collective(SEND, between, self.weight, size, True, scope, seconds, where))

    def _start(self, instruction: Instruction) -> None:
        """A move of memory, or an asynchronous call."""
        if instruction.opcode == "async-start":
            found = inside(self.module, instruction)
            done = self.now
            for each in found:
                done = max(done, self._launch(each, kind_of(each) or "", True, self.now, instruction))
            self.flight[instruction.name] = done
            return
        shapes = [shape for shape in instruction.shapes if shape.bytes > SMALL]
        whole = instruction.opcode == "copy-start"
        moved = min((shape.bytes for shape in shapes), default=0) if not whole else shapes[0].bytes if shapes else 0
        if not any(shape.space == HOST for shape in shapes):
            self._start_on(DMA, instruction, moved / self.hbm, DMA)
            return
        # The way between a chip and its host has two directions, each a lane.
        update = instruction.opcode == "dynamic-update-slice-start"
        out = update or (whole and shapes[0].space == HOST)
        self._start_on((HOST_LANE, out), instruction, moved / self.host, HOST_LANE)

    def _start_on(self, key: Hashable, instruction: Instruction, seconds: float, lane: str) -> None:
        start = max(self.now, self.lanes.get(key, 0.0))
        self.lanes[key] = self.flight[instruction.name] = start + seconds
        self.busy[lane] += seconds * self.weight
        self._draw(start, seconds, lane, instruction, "memory moves" if lane != DCN else SEND)

    def _done(self, instruction: Instruction) -> None:
        moved = instruction.opcode.removesuffix("-done") in MOVES
        for name in instruction.operands[:1]:
            if name in self.flight:
                if instruction.opcode.endswith("-update"):
                    self.flight[instruction.name] = self.flight[name]
                else:
                    self.wait(self.flight[name], "memory moves" if moved else "exposed communication")

    def _pieces(self, computation: Computation) -> dict[Instruction, list[Instruction]]:
        """Fusions that carry collectives, in whole or in part."""
        found = {}
        for each in computation.instructions:
            if each.opcode == "fusion" and (carried := inside(self.module, each)):
                found[each] = carried
        return found

    def _piece(
        self,
        computation: Computation,
        instruction: Instruction,
        pieces: dict[Instruction, list[Instruction]],
        around: Set[str],
    ) -> None:
        """A fusion that begins, carries on or ends collectives, which their channels name.

        A loop may carry on what is begun before it and ends after it: channels of `around`.
        """
        last: dict[str, Instruction] = {}
        count: Counter[str] = Counter()
        for fusion, carried in pieces.items():
            for each in carried:
                last[each.channel] = fusion
                count[each.channel] += 1
        began = self.now
        if operations(self.module, computation, instruction) or instruction.estimated_cycles:
            self._compute(computation, instruction)
        for each in pieces[instruction]:
            if each.channel in around and each.channel in self.flight:
                continue
            if each.channel not in self.flight:
                scattered = "scatter" in instruction.called[0] and kind_of(each) == "all-reduce"
                kind = "reduce-scatter" if scattered else kind_of(each) or ""
                self.flight[each.channel] = self._launch(each, kind, count[each.channel] > 1, began, instruction)
            if last[each.channel] is instruction:
                self.wait(self.flight.pop(each.channel), "exposed communication")
