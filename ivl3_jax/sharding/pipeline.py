"""What a plan says of a pipeline, and which stage works on what when."""

from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Pipeline:
    """The field `pipeline` of a plan; without effect where the mesh has one stage.

    Attributes:
        microbatches: into how many a batch, or a part of one, is cut; a multiple of the stages. None: as many as these.
        repeats: how often a microbatch goes round all stages; each time every stage applies another run of layers.
    """

    microbatches: int | None = None
    repeats: int = 1


@dataclass(frozen=True)
class Schedule:
    """The circular schedule (interleaved: Narayanan et al. 2021, arXiv 2104.04473, section 2.2), forward only.

    The layers are cut into stages * repeats runs; stage s has the runs s, s + stages, s + 2 stages, ... Microbatches go
    in groups of `stages`: a group passes all its repeats before the next one enters. What leaves the last stage is thus
    wanted by the first one in the very next iteration and never waits.
    """

    stages: int
    microbatches: int
    repeats: int

    @property
    def owned(self) -> int:
        """Microbatches whose rows one stage holds outside the pipeline."""
        return self.microbatches // self.stages

    @property
    def iterations(self) -> int:
        """Of the loop; all but microbatches * repeats of them are a stage's bubble."""
        return self.microbatches * self.repeats + self.stages - 1

    def work(self, t: jax.Array, stage: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """In iteration t: whether `stage` has work, with which of its runs, on which microbatch; int32 scalars."""
        S, R, n = self.stages, self.repeats, self.microbatches * self.repeats
        step = t - stage
        place = jax.numpy.clip(step, 0, n - 1)
        return (step >= 0) & (step < n), place // S % R, place // (S * R) * S + place % S

    def exchange(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Before iteration t: whether the first stage takes a new microbatch and gives a finished one; which slot."""
        S, R = self.stages, self.repeats
        return t % (S * R) < S, (t // (S * R) * S + t % S) % self.owned
