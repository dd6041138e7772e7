"""`ivl3 best-of`: several answers to each question, and the one that a critic or the majority prefers."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from ivl3_jax.cli import UsageError
from ivl3_jax.cli.arguments import parse
from ivl3_jax.cli.writable import check_directory

T = TypeVar("T")

if TYPE_CHECKING:
    from ivl3_jax.inference.chat import Chat
    from ivl3_jax.inference.scaling.best_of import BestOf, Candidate
    from ivl3_jax.inference.scaling.journal import Journal
    from ivl3_jax.inference.scaling.questions import Question

HELP = """Takes the best of several answers, by a critic of their steps or by majority.
ivl3 best-of InternVL3-8B questions.jsonl --critic VisualPRM-8B --samples 16
"""


def run(argv: list[str]) -> int:
    """Answers one question, or all of a file; returns 0."""
    summary, example = HELP.strip().splitlines()
    best_of(**vars(parse(best_of, argv, prog="ivl3 best-of", description=summary, example=example)))
    return 0


def best_of(
    directory: Path,
    questions: str,
    images: list[str] = [],  # noqa: B006 what jsonargparse shows as the default, and nobody changes
    critic: Path | None = None,
    samples: int = 8,
    temperature: float = 0.6,
    top_p: float = 0.95,
    top_k: int = 0,
    seed: int = 0,
    max_new_tokens: int = 1024,
    prompt: str = "step-by-step",
    max_steps: int = 12,
    output: Path = Path("runs/best-of"),
    root: str = "",
    faults: Literal["raise", "skip"] = "raise",
    system: str = "published",
    critic_system: str = "published",
    dtype: str | None = None,
    plan: str = "single",
    mesh: dict[str, int] = {},  # noqa: B006
    rows: int = 64,
    positions: int | None = None,
    int8: list[str] = [],  # noqa: B006
) -> None:
    """Answers questions several times and takes the best answer.

    Args:
        directory: checkpoint that answers, in either layout.
        questions: a question, or a .jsonl file of them, a line {"image": ..., "question": ..., "answer": ...} each.
        images: of a question that is given here.
        critic: checkpoint that judges the steps of answers by + and -, in the form of VisualPRM; without one the
            majority of final answers decides.
        samples: answers to each question; the first is the greedy one.
        temperature: of the others.
        top_p: the others are drawn from the most likely tokens that make up p.
        top_k: and from the k most likely tokens; 0 is all.
        seed: of the draws.
        max_new_tokens: of an answer at most.
        prompt: step-by-step asks for reasoning and a final answer as MMPR does; plain, or your own text with
            {question} in it.
        max_steps: of an answer that are judged; of more, neighbours are merged.
        output: folder for what is found about a file of questions; an interrupted run goes on in it.
        root: where paths of images in the file start; by default its folder.
        faults: what becomes of a question that cannot be asked; raise ends the run, skip leaves it out and tells of it.
        system: the system message; published, internvl, none, or your own text.
        critic_system: likewise, of the critic.
        dtype: of weights and computation; by default float32 on a CPU, else bfloat16.
        plan: a shipped sharding plan, or a YAML file; by default one device.
        mesh: sizes of its axes.
        rows: answers that are generated at once.
        positions: of the cache, of all rows together; by default it grows.
        int8: what is kept in eight bits, of weights and cache, the critic's too.
    """
    from ivl3_jax.data.records import Message, Sample
    from ivl3_jax.inference.request import Limits
    from ivl3_jax.inference.sampling import Sampling
    from ivl3_jax.inference.scaling.best_of import BestOf, prompt_named
    from ivl3_jax.inference.scaling.critic import Critic
    from ivl3_jax.inference.scaling.journal import Journal
    from ivl3_jax.inference.scaling.questions import read_questions

    listed = read_questions(Path(questions), root) if questions.endswith(".jsonl") else None
    if listed is None and not questions.strip():
        raise UsageError("the question is empty; give a question, or a .jsonl file of them")
    if listed is not None and images:
        raise UsageError("--images belongs to a question given here; those of a file are in its lines")
    check_positive(samples=samples, max_new_tokens=max_new_tokens, max_steps=max_steps, rows=rows)
    sampling, told = Sampling(temperature, top_k, top_p, seed), prompt_named(prompt)
    limits = Limits(rows=rows, positions=positions)

    def ready() -> BestOf:
        chat = chat_of(directory, dtype, plan, mesh, system=system, limits=limits, int8=int8)
        judge = None
        if critic is not None:
            # The same checkpoint twice is one.
            same = (critic.resolve(), critic_system) == (directory.resolve(), system)
            shared = {"system": critic_system, "limits": limits, "int8": int8}
            other = chat if same else chat_of(critic, dtype, plan, mesh, **shared)
            judge = Critic(other, max_steps)
        return BestOf(chat, judge, samples=samples, sampling=sampling, max_new_tokens=max_new_tokens, prompt=told)

    if listed is None:
        _answer_one(ready(), Sample((Message("user", questions),), tuple(images)))
        return
    check_directory("output", output)
    settings = {
        "model": str(directory.resolve()),
        "critic": critic and str(critic.resolve()),
        "samples": samples,
        "sampling": dataclasses.asdict(sampling),
        "max_new_tokens": max_new_tokens,
        "prompt": told,
        "max_steps": max_steps,
        "system": system,
        "critic_system": critic_system,
        "dtype": dtype,
        "int8": sorted(int8),
    }
    at = str(Path(root or Path(questions).parent).resolve())
    journal = Journal(output, "candidates.jsonl", settings, [[dict(each.record), at] for each in listed])
    told_of_earlier(journal, len(listed))
    if journal.left:
        _answer_all(ready(), listed, journal, faults)
    _count(directory.name, listed, journal, output)


def chat_of(checkpoint: Path, dtype: str | None, plan: str, mesh: dict[str, int], **settings: Any) -> "Chat":
    """A checkpoint under a plan, ready to be asked."""
    from ivl3_jax.conversion.checkpoint import load
    from ivl3_jax.inference.chat import Chat
    from ivl3_jax.sharding.plan import ShardingPlan

    return Chat(load(checkpoint, dtype, ShardingPlan.read(plan, mesh)), **settings)


def check_positive(**options: int) -> None:
    """Raises a UsageError that names the first option below 1."""
    for name, value in options.items():
        if value < 1:
            raise UsageError(f"option --{name.replace('_', '-')} is {value}; it must be at least 1")


def told_of_earlier(journal: "Journal", count: int) -> None:
    """Says how much an earlier run has done."""
    if journal.done:
        print(f"{len(journal.done)} of {count} questions are there from before", file=sys.stderr)


def with_faults(
    questions: Sequence["Question"],
    together: int,
    ask: Callable[[list[int]], list[T]],
    numbers: Sequence[int],
    faults: str,
) -> Iterator[tuple[int, T]]:
    """What is found about each question, by number, with a progress bar.

    Args:
        ask: answers the questions with these numbers, `together` at most.
        faults: see `best_of`. Under `skip` a group with a question that cannot be asked is asked one by one.

    Raises:
        ValueError: a question cannot be asked; under `skip`, none can.
    """
    groups = [list(numbers[start : start + together]) for start in range(0, len(numbers), together)]
    skipped = 0
    for group in track(groups, "answering", console=Console(stderr=True)):
        try:
            yield from zip(group, ask(group), strict=True)
            continue
        except ValueError as error:
            if len(group) == 1 and faults == "raise":
                raise ValueError(_placed(questions[group[0]], error)) from error
        for number in group:
            try:
                yield from zip([number], ask([number]), strict=True)
            except ValueError as error:
                if faults == "raise" or skipped + 1 == len(numbers):
                    raise ValueError(_placed(questions[number], error)) from error
                skipped += 1
                print(f"left out: {_placed(questions[number], error)}", file=sys.stderr)
    if skipped:
        print(f"{skipped} questions were left out; the same command asks them again", file=sys.stderr)


def _placed(question: "Question", error: ValueError) -> str:
    where = question.asked.where
    return str(error) if str(error).startswith(where) else f"{where}: {error}"


def _answer_one(asking: "BestOf", asked: Any) -> None:
    from ivl3_jax.inference.scaling.best_of import best, majority

    found = asking.candidates(asked)
    taken = best(found) if asking.critic else majority(found)
    print(found[taken].text)
    table = Table("", "score", "final answer", "steps" if asking.critic else "answer")
    for number, each in enumerate(found):
        score = f"{each.judged.score:.3f}" if each.judged else ""
        steps = " ".join(f"{step:.2f}" for step in each.judged.scores) if each.judged else each.text[:60]
        table.add_row("→" if number == taken else "", score, escape(each.final or "–"), escape(steps))
    Console(stderr=True).print(table)


def _answer_all(asking: "BestOf", questions: Sequence["Question"], journal: "Journal", faults: str) -> None:
    from ivl3_jax.inference.scaling.best_of import best, majority

    def ask(numbers: list[int]) -> list[list["Candidate"]]:
        return list(asking.answer([questions[number].asked for number in numbers]))

    for number, found in with_faults(questions, asking.together, ask, journal.left, faults):
        taken = {"best": best(found)} if asking.critic else {}
        record = {"question": questions[number].text, "answer": questions[number].answer, **taken}
        told = [_told(each) for each in found]
        journal.add(number, {**record, "majority": majority(found), "candidates": told})


def _count(name: str, questions: Sequence["Question"], journal: "Journal", output: Path) -> None:
    """How many answers are right, where that is known, as a table, CSV and picture."""
    from ivl3_jax.inference.scaling import curve
    from ivl3_jax.inference.scaling.best_of import Candidate
    from ivl3_jax.inference.scaling.critic import Judged

    answered: list[tuple[list[Candidate], str]] = []
    for number, question in enumerate(questions):
        if question.answer is not None and number in journal.done:
            kept = journal.done[number]["candidates"]
            judged = [Judged(tuple(each["steps"]), tuple(each["scores"])) if "steps" in each else None for each in kept]
            both = zip(kept, judged, strict=True)
            answered.append(([Candidate(each["text"], each["final"], by) for each, by in both], question.answer))
    print(f"candidates and scores: {output / 'candidates.jsonl'}", file=sys.stderr)
    if not answered:
        print("no question has an answer to check against, so nothing is counted", file=sys.stderr)
        return
    found = curve.shares(answered)
    curve.write_table([found], output / "best-of.csv")
    curve.draw([found], output / "best-of.png", f"{len(answered):,} questions, {name}")
    ways = list(dict.fromkeys(share.way for share in found))
    table = Table(title="Right answers, ± standard error")
    for heading in ("candidates", *ways):
        table.add_column(heading, justify="right")
    for count in dict.fromkeys(share.count for share in found):
        of = {share.way: share for share in found if share.count == count}
        table.add_row(str(count), *(f"{of[way].mean:.1%} ± {of[way].error:.1%}" for way in ways))
    Console().print(table)
    print(f"to look at: {output / 'best-of.png'}", file=sys.stderr)


def _told(candidate: "Candidate") -> dict[str, Any]:
    judged = candidate.judged
    more = {} if judged is None else {"score": judged.score, "steps": judged.steps, "scores": judged.scores}
    return {"text": candidate.text, "final": candidate.final, "cut": candidate.cut, **more}
