"""From a recipe to a trained checkpoint: the pieces put together, begun or gone on with."""

import dataclasses
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from ivl3_jax.conversion.adapter_writer import save_adapter
from ivl3_jax.conversion.checkpoint import save
from ivl3_jax.data.loader import Loader, identity
from ivl3_jax.data.records import Pair
from ivl3_jax.data.settings import open_feed
from ivl3_jax.data.stream import Feed
from ivl3_jax.hf_config import to_hf
from ivl3_jax.models.model import Model
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.training.bad_steps import BadSteps
from ivl3_jax.training.beginning import Beginning
from ivl3_jax.training.config import Recipe
from ivl3_jax.training.interruption import Interrupted, Interruption
from ivl3_jax.training.loop import averaged, train
from ivl3_jax.training.placing import Placement
from ivl3_jax.training.processor import check_room
from ivl3_jax.training.progress import Clock, Progress
from ivl3_jax.training.reference import Reference, ReferenceModel, precomputed
from ivl3_jax.training.states import Saved, States, barrier, dtypes, gathered
from ivl3_jax.training.step import TrainState
from ivl3_jax.training.trained import rates, split
from ivl3_jax.training.watching import Look, held_out_loss, profiler
from ivl3_jax.training.writers import Writer, figures, open_writers

# Settings that may change when a run goes on without a word: they change nothing of what is computed.
FREE = ("output", "distributed", "sharding", "save", "watch", "data.workers", "data.ahead", "train.log_every")
LOOKED_AT = 100  # samples of each source, for whether there are preference pairs


def run_recipe(
    recipe: Recipe,
    *,
    tell: Callable[[str], None] = lambda line: None,
    report: Callable[[Progress], None] = lambda progress: None,
    looks: Sequence[Look] = (),
) -> str | None:
    """Trains as the recipe says, from the newest state in its output directory if there is one.

    The directory receives `states/`, `metrics.jsonl`, `run.json` and, at the end, `checkpoint/` in the `-hf` layout and
    `checkpoint-average/`. A sample that is skipped is told in a warning, with its file and line, and counted.

    Args:
        tell: takes a line about what happens now. report: takes the progress of reported steps.
        looks: look at the model now and then, see `WatchRecipe.every`.

    Returns:
        The directory of the checkpoint; None if the process was told to end before, with its state saved.

    Raises:
        ValueError, OSError: a file is missing or faulty, or settings do not fit one another; before any training.
    """
    output = epath.Path(recipe.output)
    checkpoint = output / "checkpoint"
    before = read_run(output)
    if (checkpoint / "SHA256SUMS").exists():
        check_finished(recipe, before)
        tell(f"the run in {output} is finished")
        return str(checkpoint)
    check_exports(output)
    plan = ShardingPlan.read(recipe.sharding.plan, recipe.sharding.mesh)
    beginning = Beginning.of(recipe.model, plan, recipe.train.seed, recipe.train.adapters)
    check_room(recipe.data, beginning.config)
    feed = open_feed(recipe.data, beginning.processor, recipe.train.seed, pairs=recipe.train.preference is not None)
    check_pairs(recipe, feed)
    data = recipe.data
    place = Placement(plan, beginning.mesh, data.rows, data.tokens, parts=recipe.train.accumulate)
    output.mkdir(parents=True, exist_ok=True)
    began = before["began"] if before else time.time()

    def loader(state: Mapping[str, Any] | None) -> Loader:
        return Loader(feed, streams=place.rows, workers=data.workers, ahead=data.ahead, state=state)

    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        states = stack.enter_context(closing(States(output / "states", recipe.save)))
        like = beginning.state(recipe.train)
        warn_of_rounding(like, recipe)
        saved = states.newest(like, lambda facts: check_same(recipe, beginning, like, facts))
        step = int(saved.state.step) if saved else 0
        if step > recipe.train.steps:
            raise ValueError(f"train.steps is {recipe.train.steps}; the newest state in {output} is of step {step}")
        batches = stack.enter_context(closing(loader(saved.data if saved else None)))
        write_run(output, recipe, began)
        if saved is not None:
            tell(f"going on from step {step} in {output}")
        try:
            reference = make_reference(recipe, beginning, place, loader, feed, tell, interruption)
        except Interrupted as told:
            tell(f"{told} in {output}; the same command goes on from there")
            return None
        model = beginning.model() if saved is None else beginning.with_params(saved.state.params)
        writers = open_writers(recipe.watch, str(output), step) if jax.process_index() == 0 else []
        for writer in writers:
            stack.enter_context(closing(writer))
        keeper = RunKeeper(recipe, beginning, states, batches, like, writers)
        if recipe.watch.held_out is not None:
            looks = [held_out_loss(recipe, beginning, place, recipe.watch.held_out), *looks]
        at_step = stack.enter_context(profiler(recipe.watch, str(output)))

        def report_all(progress: Progress) -> None:
            for skip in batches.take_skips():
                warnings.warn(f"skipped: {skip.message}", stacklevel=2)
            skipped = {"skipped": dict(batches.skipped)} if batches.skipped else {}
            for writer in writers:
                writer.write(progress.step, figures(progress) | skipped)
            report(progress)

        trained, state = train(
            model,
            batches,
            recipe.train,
            state=saved.state if saved else None,
            reference=reference,
            place=place,
            keeper=keeper,
            bad=BadSteps(recipe.train, str(output / "bad")),
            sources=tuple(part.source.name for part in feed.parts),
            began=began,
            productive=saved.facts["productive"] if saved else 0.0,
            report=report_all,
            look=Looker(recipe, looks, writers, at_step),
            told_to_end=interruption.due,
        )
        states.wait()
        if int(state.step) < recipe.train.steps:
            tell(f"told to end: step {int(state.step)} is saved in {output}; the same command goes on from there")
            return None
        if state.average is not None:
            export(averaged(trained, state), output / "checkpoint-average")
        if beginning.adapters:
            export(trained, output / "adapter", save_adapter)
        export(trained, checkpoint)
    return str(checkpoint)


def export(model: Model, directory: epath.Path, save: Callable[..., None] = save) -> None:
    """Writes a checkpoint in the `-hf` layout in place of an earlier one; to a bucket by way of a local directory."""
    first = jax.process_index() == 0
    if not str(directory).startswith("gs://"):
        partial = directory.with_name(f"{directory.name}.partial")
        if first and partial.exists():
            partial.rmtree()
        barrier(f"room for {directory.name}")
        save(model, partial)
        if first:
            if directory.exists():
                directory.rmtree()
            partial.rename(directory)
        barrier(f"{directory.name} is written")
        return
    with tempfile.TemporaryDirectory() as local:
        save(model, Path(local) / "checkpoint")
        if first:
            # SHA256SUMS last, by which a finished run is known.
            files = sorted((Path(local) / "checkpoint").iterdir(), key=lambda file: file.name == "SHA256SUMS")
            directory.mkdir(parents=True, exist_ok=True)
            for file in files:
                epath.Path(file).copy(directory / file.name, overwrite=True)


def check_exports(output: epath.Path) -> None:
    """Refuses to train where the results would take the place of something else."""
    for name in ("checkpoint", "checkpoint-average", "adapter"):
        directory = output / name
        marks = ("SHA256SUMS", "adapter_config.json")
        if directory.exists() and any(directory.iterdir()) and not any((directory / mark).exists() for mark in marks):
            raise ValueError(f"{directory} holds something that no run wrote; choose another output, or remove it")


def check_pairs(recipe: Recipe, feed: Feed) -> None:
    """Refuses preference training on data without a pair, as far as the first samples tell."""
    if recipe.train.preference is None:
        return
    for part in feed.parts:
        for number in range(min(len(part.source), LOOKED_AT)):
            with suppress(ValueError, OSError):  # faulty samples are told of when they come
                if isinstance(part.source[number], Pair):
                    return
    raise ValueError(
        f"train.preference is set, and none of the first {LOOKED_AT} samples of any source in data is a preference "
        "pair (a line with `chosen` and `rejected`); leave train.preference out, or give pairs"
    )


def warn_of_rounding(like: TrainState, recipe: Recipe) -> None:
    """Warns where updates round away: bfloat16 has 8 binary digits."""
    moving, _ = split(like.params, rates(like.params, recipe.train.components))
    if any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(moving)):
        warnings.warn(
            "model.param_dtype is bfloat16 and so is what is trained: changes of less than a 256th of a parameter are "
            "lost; float32 keeps them",
            stacklevel=2,
        )


class RunKeeper:
    """Keeps states on disk, with the data's."""

    def __init__(
        self,
        recipe: Recipe,
        beginning: Beginning,
        states: States,
        batches: Loader,
        like: TrainState,
        writers: Sequence[Writer],
    ) -> None:
        self._recipe, self._states, self._batches, self._like = recipe, states, batches, like
        self._facts = {"recipe": plain(recipe), "config": shapes(beginning)}
        self._writers = writers

    def due(self, step: int) -> bool:
        return self._recipe.save.every is not None and step % self._recipe.save.every == 0

    def keep(self, state: TrainState, clock: Clock) -> None:
        self._states.save(state, gathered(self._batches.state), self._facts | {"productive": clock.productive})
        for writer in self._writers:
            writer.sync()

    def back(self, clock: Clock) -> TrainState:
        self._states.wait()
        saved: Saved | None = self._states.newest(self._like)
        if saved is None:
            raise ValueError("no state has been saved yet to go back to; lower save.every, or use on_bad_step: skip")
        clock.productive = saved.facts["productive"]
        return saved.state


class Looker:
    """Calls the looks at the steps at which they are due, and writes down what they see."""

    def __init__(
        self, recipe: Recipe, looks: Sequence[Look], writers: Sequence[Writer], at_step: Callable[[int], None]
    ) -> None:
        """`at_step` is called after every step."""
        self._steps = recipe.train.steps
        self._every = recipe.watch.every or max(1, self._steps // 10)
        self._looks, self._writers, self._at_step = looks, writers, at_step

    def __call__(self, model: Model, step: int) -> None:
        self._at_step(step)
        if step % self._every and step != self._steps:
            return
        seen: dict[str, Any] = {}
        for look in self._looks:
            seen |= look(model, step)
        for writer in self._writers if seen else ():
            writer.write(step, {"seen": seen})


def make_reference(
    recipe: Recipe,
    beginning: Beginning,
    place: Placement,
    loader: Callable[[Mapping[str, Any] | None], Loader],
    feed: Feed,
    tell: Callable[[str], None],
    interruption: Interruption,
) -> Reference | None:
    """The reference of a preference run, None for others.

    Raises:
        Interrupted: told to end while log-probabilities were computed.
    """
    preferences = recipe.train.preference
    if preferences is None:
        return None
    if not preferences.precompute:
        return ReferenceModel(beginning.model())
    tell("log-probabilities of the reference model, for all steps")
    identified = identity(feed) | {
        "model": plain(recipe.model),
        "data": plain(recipe.data) | {"workers": 0, "ahead": 0},
    }
    file = str(epath.Path(recipe.output) / "reference.npz")
    steps = recipe.train.steps
    return precomputed(
        file,
        beginning.model,
        loader,
        place,
        steps,
        identified,
        report=lambda done: tell(f"reference: {done} of {steps} steps"),
        told_to_end=interruption.due,
    )


def check_same(recipe: Recipe, beginning: Beginning, like: TrainState, facts: Mapping[str, Any]) -> None:
    """Refuses to go on with another model or with what the state has no room for; warns of other settings."""
    ours, theirs = shapes(beginning), facts["config"]
    if ours != theirs:
        names = ", ".join(name for name in ours if ours[name] != theirs.get(name))
        raise ValueError(f"{recipe.output} holds states of another model ({names}); choose another directory")
    changed = "; ".join(differences(facts["recipe"], plain(recipe)))
    if dtypes(like) != facts["dtypes"]:
        raise ValueError(
            f"{recipe.output} holds states of other arrays than these settings need ({changed}); go on with the "
            "settings from before, or choose another directory"
        )
    if changed:
        warnings.warn(f"{recipe.output} goes on with other settings than before: {changed}", stacklevel=2)


def shapes(beginning: Beginning) -> dict[str, Any]:
    """What the shapes of all parameters follow from, but for a plan's padding."""
    return plain(to_hf(beginning.config) | {"adapters": dict(beginning.adapters)})


def check_finished(recipe: Recipe, before: Mapping[str, Any] | None) -> None:
    """Refuses an output directory with the checkpoint of something else."""
    changed = differences(before["recipe"], plain(recipe)) if before else ["it has no run.json"]
    if changed:
        raise ValueError(
            f"output {recipe.output} already holds a checkpoint, of other settings ({'; '.join(changed)}); choose "
            "another directory or remove it"
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ, `name was, now is`, but for those in `FREE`."""
    found = []
    for name in {**before, **now}:
        path, old, new = f"{prefix}{name}", before.get(name), now.get(name)
        if path in FREE or old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{path}.")
        else:
            found.append(f"{path} was {json.dumps(old)}, now {json.dumps(new)}")
    return found


def plain(settings: Any) -> Any:
    """A dataclass in JSON's types."""
    return json.loads(json.dumps(settings, default=dataclasses.asdict))


def read_run(output: epath.Path) -> dict[str, Any] | None:
    """What `write_run` wrote, None if nothing.

    Raises:
        ValueError: it is no JSON any more.
    """
    file = output / "run.json"
    if not file.exists():
        return None
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged ({error}); remove it, and the run goes on without its first time"
        ) from None


def write_run(output: epath.Path, recipe: Recipe, began: float) -> None:
    """The settings of a run, and when it was first started."""
    if jax.process_index() == 0:
        partial = output / "run.json.partial"
        partial.write_text(json.dumps({"began": began, "recipe": plain(recipe)}, indent=1) + "\n")
        partial.replace(output / "run.json")
