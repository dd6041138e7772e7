"""`ivl3 data shard`: the sources of a meta file, with their images, as ArrayRecord shards."""

import dataclasses
import os
import sys
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeRemainingColumn

from ivl3_jax.cli import UsageError
from ivl3_jax.cli.arguments import parse

HELP = """Writes the sources of a meta file as ArrayRecord shards with their images in them.
ivl3 data shard meta.json shards/ --faults skip
"""
META = "meta.json"


def settings(meta: str, output: str, *, shard_mb: float = 512.0, faults: Literal["raise", "skip"] = "raise") -> None:
    """The options of `ivl3 data shard`.

    Args:
        meta: InternVL's meta file.
        output: directory to write: shards for each source, and a meta.json that lists them.
        shard_mb: a shard is closed once it has as many megabytes.
        faults: what a bad sample does: `raise` ends the command, `skip` leaves it out and counts it by reason.
    """


def run(argv: list[str]) -> int:
    """Writes the shards with a progress bar and says what was left out; returns 0."""
    chosen = parse(
        settings,
        argv,
        prog="ivl3 data shard",
        description="Packs lines and images into shards that are read by number, from disk or from gs://.",
        example="ivl3 data shard meta.json shards/ --faults skip",
    )
    if not chosen.shard_mb > 0:
        raise UsageError(f"--shard-mb is {chosen.shard_mb}; it must be more than 0")
    from ivl3_jax.data.files import is_remote
    from ivl3_jax.data.meta import read_meta, write_meta
    from ivl3_jax.data.shard_writer import SKIPPED, write_shards

    if is_remote(chosen.output):
        raise UsageError(
            f"output is {chosen.output!r}; write to a directory and copy it there, such as with gcloud storage"
        )
    output, specs, sharded = Path(chosen.output), read_meta(chosen.meta), []
    _check_free(output)
    with Progress("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        for spec in specs:
            directory = quote(spec.name, safe=" ")
            task = progress.add_task(spec.name)
            try:
                written = write_shards(
                    spec,
                    output / directory,
                    shard_bytes=chosen.shard_mb * 1e6,
                    faults=chosen.faults,
                    report=partial(_show, progress, task),
                )
            except KeyboardInterrupt:
                progress.stop()
                print("interrupted; the same command continues after the last complete shard", file=sys.stderr)
                raise
            root = spec.root if is_remote(spec.root) else os.path.abspath(spec.root)
            repeat = max(1, spec.repeat)  # a fraction has been taken
            entry = dataclasses.replace(spec, root=root, annotation=directory, repeat=repeat, length=written.samples)
            sharded.append((entry, written))
    write_meta(output / META, [entry for entry, _ in sharded])
    for entry, written in sharded:
        size = sum(shard.bytes for shard in written.shards)
        print(f"{entry.name}: {written.samples} samples, {size / 1e6:.1f} MB, shards: {len(written.shards)}")
        if written.skipped:
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(written.skipped.items()))
            print(f"{entry.name}: left out: {reasons}; see {output / entry.annotation / SKIPPED}")
    print(f"{output / META} lists the sources")
    return 0


def _show(progress: Progress, task: TaskID, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)


def _check_free(output: Path) -> None:
    """Refuses to write over a meta file that another hand wrote.

    Raises:
        ValueError: there is one.
    """
    from ivl3_jax.data.meta import read_meta
    from ivl3_jax.data.shards import FILE

    file = output / META
    if file.exists() and not all((Path(spec.annotation) / FILE).exists() for spec in read_meta(file)):
        raise ValueError(f"{file} lists other data and would be written over; choose another directory")
