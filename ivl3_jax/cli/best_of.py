"""`ivl3 best-of`: several answers to each question, and the one that a critic or the majority prefers."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ivl3_jax.cli import UsageError
from ivl3_jax.cli.arguments import parse
from ivl3_jax.cli.writable import check_directory

if TYPE_CHECKING:
    from ivl3_jax.inference.chat import Chat
    from ivl3_jax.inference.scaling.best_of import BestOf, Candidate
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
    system: str = "published",
    dtype: str | None = None,
    plan: str = "single",
    mesh: dict[str, int] = {},  # noqa: B006
    rows: int = 64,
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
        system: the system message; published, internvl, none, or your own text.
        dtype: of weights and computation; by default float32 on a CPU, else bfloat16.
        plan: a shipped sharding plan, or a YAML file; by default one device.
        mesh: sizes of its axes.
        rows: answers that are generated at once.
    """
    from ivl3_jax.data.records import Message, Sample
    from ivl3_jax.inference.chat import Chat
    from ivl3_jax.inference.request import Limits
    from ivl3_jax.inference.sampling import Sampling
    from ivl3_jax.inference.scaling.best_of import BestOf, prompt_named
    from ivl3_jax.inference.scaling.critic import Critic
    from ivl3_jax.inference.scaling.questions import read_questions

    listed = read_questions(Path(questions), root) if questions.endswith(".jsonl") else None
    if listed is None and not questions.strip():
        raise UsageError("the question is empty; give a question, or a .jsonl file of them")
    if listed is not None and images:
        raise UsageError("--images belongs to a question given here; those of a file are in its lines")
    if listed is not None:
        check_directory("output", output)
    sampling = Sampling(temperature, top_k, top_p, seed)
    told = prompt_named(prompt)

    def opened(checkpoint: Path) -> Chat:
        return chat_of(checkpoint, dtype, plan, mesh, system=system, limits=Limits(rows=rows))

    chat = opened(directory)
    # The same checkpoint twice is one.
    same = critic is not None and critic.resolve() == directory.resolve()
    judge = None if critic is None else Critic(chat if same else opened(critic), max_steps)
    asking = BestOf(chat, judge, samples=samples, sampling=sampling, max_new_tokens=max_new_tokens, prompt=told)
    if listed is None:
        _answer_one(asking, Sample((Message("user", questions),), tuple(images)))
        return
    settings = {
        "model": str(directory.resolve()),
        "critic": critic and str(critic.resolve()),
        "questions": str(Path(questions).resolve()),
        "count": len(listed),
        "samples": samples,
        "sampling": dataclasses.asdict(sampling),
        "max_new_tokens": max_new_tokens,
        "prompt": told,
        "max_steps": max_steps,
        "system": system,
        "dtype": dtype,
    }
    _answer_all(asking, listed, settings, output)


def chat_of(checkpoint: Path, dtype: str | None, plan: str, mesh: dict[str, int], **settings: Any) -> "Chat":
    """A checkpoint under a plan, ready to be asked."""
    from ivl3_jax.conversion.checkpoint import load
    from ivl3_jax.inference.chat import Chat
    from ivl3_jax.sharding.plan import ShardingPlan

    return Chat(load(checkpoint, dtype, ShardingPlan.read(plan, mesh)), **settings)


def _answer_one(asking: "BestOf", asked: Any) -> None:
    from ivl3_jax.inference.scaling.best_of import best, majority

    found = asking.candidates(asked)
    taken = best(found) if asking.critic else majority(found)
    table = Table("", "score", "final answer", "steps" if asking.critic else "answer", show_lines=False)
    for number, each in enumerate(found):
        score = f"{each.judged.score:.3f}" if each.judged else ""
        steps = " ".join(f"{step:.2f}" for step in each.judged.scores) if each.judged else each.text[:60]
        table.add_row("→" if number == taken else "", score, each.final or "–", steps)
    Console(stderr=True).print(table)
    print(found[taken].text)


def _answer_all(asking: "BestOf", questions: Sequence["Question"], settings: dict[str, Any], output: Path) -> None:
    from ivl3_jax.inference.scaling import curve
    from ivl3_jax.inference.scaling.best_of import Candidate, best, majority
    from ivl3_jax.inference.scaling.critic import Judged
    from ivl3_jax.inference.scaling.journal import Journal

    journal = Journal(output, "candidates.jsonl", settings)
    left = [number for number in range(len(questions)) if number not in journal.done]
    if len(left) < len(questions):
        print(f"{len(questions) - len(left)} of {len(questions)} questions are there from before", file=sys.stderr)
    answers = asking.answer([questions[number].asked for number in left])
    console = Console(stderr=True)
    for number, found in zip(left, track(answers, "answering", len(left), console=console), strict=True):
        taken = {"best": best(found)} if asking.critic else {}
        record = {"question": questions[number].text, "answer": questions[number].answer, **taken}
        told = [_told(each) for each in found]
        journal.add(number, {**record, "majority": majority(found), "candidates": told})
    answered: list[tuple[list[Candidate], str]] = []
    for number, question in enumerate(questions):
        if question.answer is not None:
            kept = journal.done[number]["candidates"]
            judged = [Judged(tuple(each["steps"]), tuple(each["scores"])) if "steps" in each else None for each in kept]
            both = zip(kept, judged, strict=True)
            answered.append(([Candidate(each["text"], each["final"], by) for each, by in both], question.answer))
    print(f"candidates and scores: {output / 'candidates.jsonl'}", file=sys.stderr)
    if not answered:
        print("no question has an answer to check against, so nothing is counted", file=sys.stderr)
        return
    found_shares = curve.shares(answered)
    curve.write_table(found_shares, output / "best-of.csv")
    curve.draw([found_shares], output / "best-of.png", f"{len(answered):,} questions, {Path(settings['model']).name}")
    print_shares(found_shares)
    print(f"to look at: {output / 'best-of.png'}", file=sys.stderr)


def _told(candidate: "Candidate") -> dict[str, Any]:
    judged = candidate.judged
    more = {} if judged is None else {"score": judged.score, "steps": judged.steps, "scores": judged.scores}
    return {"text": candidate.text, "final": candidate.final, **more}


def print_shares(found: Sequence[Any]) -> None:
    """A line for each number of candidates."""
    ways = list(dict.fromkeys(share.way for share in found))
    table = Table(title="Right answers, ± standard error")
    for name in ("candidates", *ways):
        table.add_column(name, justify="right")
    for count in dict.fromkeys(share.count for share in found):
        of = {share.way: share for share in found if share.count == count}
        table.add_row(str(count), *(f"{of[way].mean:.1%} ± {of[way].error:.1%}" for way in ways))
    Console().print(table)
