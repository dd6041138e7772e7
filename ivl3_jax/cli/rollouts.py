"""`ivl3 rollouts`: preference pairs in MMPR's form from a checkpoint's own answers."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import track

from ivl3_jax.cli import UsageError
from ivl3_jax.cli.arguments import parse
from ivl3_jax.cli.best_of import chat_of
from ivl3_jax.cli.writable import check_directory

if TYPE_CHECKING:
    from ivl3_jax.inference.scaling.journal import Journal
    from ivl3_jax.inference.scaling.questions import Question

HELP = """Makes preference pairs for `ivl3 train` from a checkpoint's own answers.
ivl3 rollouts InternVL3-8B-Instruct questions.jsonl --output pairs
"""


def run(argv: list[str]) -> int:
    """Answers the questions and writes the pairs; returns 0."""
    summary, example = HELP.strip().splitlines()
    make_pairs(**vars(parse(make_pairs, argv, prog="ivl3 rollouts", description=summary, example=example)))
    return 0


def make_pairs(
    directory: Path,
    questions: Path,
    output: Path = Path("runs/rollouts"),
    kind: Literal["auto", "correctness", "dropout"] = "auto",
    samples: int = 32,
    temperature: float = 0.7,
    top_k: int = 50,
    top_p: float = 1.0,
    seed: int = 0,
    max_new_tokens: int = 4096,
    prompt: str = "step-by-step",
    pairs: int = 15,
    root: str = "",
    system: str = "published",
    dtype: str | None = None,
    plan: str = "single",
    mesh: dict[str, int] = {},  # noqa: B006 what jsonargparse shows as the default, and nobody changes
    rows: int = 64,
) -> None:
    """Makes preference pairs for `ivl3 train` from a checkpoint's own answers.

    Args:
        directory: checkpoint that answers, in either layout.
        questions: a .jsonl file, a line {"image": ..., "question": ..., "answer": ...} each.
        output: folder for pairs.jsonl and meta.json, which `ivl3 train` takes; an interrupted run goes on in it.
        kind: correctness sets right answers against wrong ones; dropout an answer against the same whose second half
            was written without the image; auto takes the first where the answer is known.
        samples: answers to each question.
        temperature: of the answers.
        top_k: they are drawn from the k most likely tokens; 0 is all.
        top_p: and from those that make up p.
        seed: of the draws, and of which pairs are kept.
        max_new_tokens: of an answer at most.
        prompt: step-by-step asks for reasoning and a final answer as MMPR does; plain, or your own text with
            {question} in it.
        pairs: of a question at most.
        root: where paths of images start; by default the folder of the questions.
        system: the system message; published, internvl, none, or your own text.
        dtype: of weights and computation; by default float32 on a CPU, else bfloat16.
        plan: a shipped sharding plan, or a YAML file; by default one device.
        mesh: sizes of its axes.
        rows: answers that are generated at once.
    """
    from ivl3_jax.inference.request import Limits, whole_number
    from ivl3_jax.inference.sampling import Sampling
    from ivl3_jax.inference.scaling.best_of import prompt_named, put
    from ivl3_jax.inference.scaling.journal import Journal
    from ivl3_jax.inference.scaling.questions import read_questions
    from ivl3_jax.inference.scaling.rollouts import rollouts, without_looking

    told = prompt_named(prompt)
    for name, value in (("samples", samples), ("pairs", pairs), ("max-new-tokens", max_new_tokens)):
        whole_number(f"option --{name}", value, least=1)
    listed = read_questions(questions, root)
    checked = [kind == "correctness" or (kind == "auto" and each.answer is not None) for each in listed]
    for question, check in zip(listed, checked, strict=True):
        if check and question.answer is None:
            raise UsageError(f"{question.asked.where}: has no 'answer' to check against; give one, or --kind auto")
    check_directory("output", output)
    sampling = Sampling(temperature, top_k, top_p, seed)
    settings = {
        "model": str(directory.resolve()),
        "questions": str(questions.resolve()),
        "count": len(listed),
        "kind": kind,
        "samples": samples,
        "sampling": dataclasses.asdict(sampling),
        "max_new_tokens": max_new_tokens,
        "prompt": told,
        "system": system,
        "dtype": dtype,
    }
    journal = Journal(output, "answers.jsonl", settings)
    left = [number for number in range(len(listed)) if number not in journal.done]
    if len(left) < len(listed):
        print(f"{len(listed) - len(left)} of {len(listed)} questions are there from before", file=sys.stderr)
    if left:
        chat = chat_of(directory, dtype, plan, mesh, system=system, limits=Limits(rows=rows))
        together = max(1, rows // samples)
        groups = [left[start : start + together] for start in range(0, len(left), together)]
        for group in track(groups, "answering", console=Console(stderr=True)):
            asked = [put(listed[number].asked, told) for number in group]
            found = rollouts(chat, asked, samples, sampling, max_new_tokens)
            open_ended = [place for place, number in enumerate(group) if not checked[number]]
            blind = dict(
                zip(
                    open_ended,
                    without_looking(
                        chat,
                        [asked[place] for place in open_ended],
                        [found[place] for place in open_ended],
                        sampling,
                        max_new_tokens,
                    ),
                    strict=True,
                )
            )
            decode = chat.processor.tokenizer.decode
            for place, number in enumerate(group):
                texts = {"answers": [decode(answer).strip() for answer in found[place]]}
                if place in blind:
                    texts["without the image"] = [decode(answer).strip() for answer in blind[place]]
                journal.add(number, texts)
    _write_pairs(listed, journal, told, root or str(questions.parent), output, pairs, seed)


def _write_pairs(
    questions: Sequence["Question"], journal: "Journal", prompt: str, root: str, output: Path, most: int, seed: int
) -> None:
    from ivl3_jax.data.files import replacing
    from ivl3_jax.data.meta import write_meta
    from ivl3_jax.data.sources import SourceSpec
    from ivl3_jax.inference.scaling.best_of import put
    from ivl3_jax.inference.scaling.rollouts import correctness_pairs, dropout_pairs

    records: list[dict[str, Any]] = []
    bare = 0
    for number, question in enumerate(questions):
        told = journal.done[number]
        if blind := told.get("without the image"):
            pairs = dropout_pairs(told["answers"], blind, most)
        else:
            pairs = correctness_pairs(told["answers"], question.answer or "", most, seed + number)
        bare += not pairs
        shown = {key: question.record[key] for key in ("image", "video", "clip") if key in question.record}
        known = {} if question.answer is None else {"answer_gt": question.answer}
        asked = put(question.asked, prompt).messages[0].text
        records += [{**shown, "question": asked, "chosen": c, "rejected": r, **known} for c, r in pairs]
    with replacing(output / "pairs.jsonl") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    write_meta(output / "meta.json", [SourceSpec("rollouts", str(Path(root).resolve()), "pairs.jsonl")])
    print(f"{len(records):,} pairs of {len(questions):,} questions, {bare:,} of which give none, are in {output}")
    if records:
        print(f"to train on them: ivl3 train --config mpo --data.meta {output / 'meta.json'} ...", file=sys.stderr)
