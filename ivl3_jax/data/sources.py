"""What a data source is: samples by number, and the entry of a meta file that describes it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

from ivl3_jax.data.conversations import to_sample
from ivl3_jax.data.faults import Fault
from ivl3_jax.data.records import Pair, Sample


class Source(Protocol):
    """Samples by number. Cheap to pickle, since worker processes are spawned; several threads may read at a time."""

    @property
    def name(self) -> str:
        """Unique among the sources of a run."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample | Pair:
        """Sample number `index`.

        Raises:
            Fault: there is something wrong with it; the message begins with file:line.
            IndexError: there is no such sample.
        """
        ...


@dataclass(frozen=True)
class SourceSpec:
    """An entry of a meta file, see `data.meta.read_meta` for the names there.

    Attributes:
        name: of the source.
        root: where the paths of images and videos start, a directory or gs://BUCKET/DIRECTORY.
        annotation: a .jsonl or .parquet file, or a directory of shards.
        augment: whether tiles go through JPEG of random quality.
        repeat: below 1 the fraction of its records, from the first on, that is kept; else how often it is repeated,
            which is left to the mixture.
        length: how many records it is said to have, None if that is not said.
        max_tiles: bound of an image's grid in place of the run's, None for that of the run.
    """

    name: str
    root: str
    annotation: str
    augment: bool = False
    repeat: float = 1
    length: int | None = None
    max_tiles: int | None = None


@dataclass(frozen=True)
class Conversations:
    """A source of which preference pairs are faults, for training that would take a rejected answer for a good one."""

    source: Source

    @property
    def name(self) -> str:
        return self.source.name

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[index]
        if isinstance(sample, Pair):
            raise Fault("line", f"{sample.where}: is a preference pair; supervised training takes conversations")
        return sample


class RecordSource(ABC):
    """A source made of records in InternVL's form, whatever file they are in.

    Attributes:
        name: of the source. spec: what it was opened from. number: given to every sample as its `source`.
    """

    def __init__(self, spec: SourceSpec, number: int, records: int) -> None:
        """Takes the leading part of `records` that `spec.repeat` says: int(records · repeat), as the original rounds.

        Raises:
            ValueError: that leaves none.
        """
        self.name, self.spec, self.number = spec.name, spec, number
        self._count = int(records * spec.repeat) if spec.repeat < 1 else records
        if not records:
            raise ValueError(f"{spec.annotation}: has no records; at least one is needed")
        if not self._count:
            raise ValueError(f"{spec.name}.repeat_time is {spec.repeat}, which keeps none of {records} records")

    @abstractmethod
    def record(self, index: int) -> tuple[dict[str, Any], str]:
        """The record `index`, its images as paths or `Stored`, and where it is; faults as those of `Source`."""

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample | Pair:
        if not 0 <= index < self._count:
            raise IndexError(f"source {self.name} has {self._count} samples, and none of number {index}")
        record, where = self.record(index)
        return to_sample(record, self.spec.root, self.number, where)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self.spec, self.number, self._count)


def _reopen(kind: Any, spec: SourceSpec, number: int, count: int) -> RecordSource:
    source: RecordSource = kind(spec, number)
    if len(source) != count:
        raise ValueError(
            f"{spec.annotation}: had {count} samples before, now {len(source)}; leave it alone during a run"
        )
    return source
