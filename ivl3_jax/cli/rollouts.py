"""`ivl3 rollouts`: preference pairs in MMPR's form from a checkpoint's own answers."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ivl3_jax.cli import UsageError
from ivl3_jax.cli.arguments import parse
from ivl3_jax.cli.best_of import chat_of, check_positive, told_of_earlier, with_faults
from ivl3_jax.cli.writable import check_directory

if TYPE_CHECKING:
    from ivl3_jax.data.records import Sample
    from ivl3_jax.inference.chat import Chat
    from ivl3_jax.inference.sampling import Sampling
    from ivl3_jax.inference.scaling.best_of import Answer
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
    faults: Literal["raise", "skip"] = "raise",
    system: str = "published",
    dtype: str | None = None,
    plan: str = "single",
    mesh: dict[str, int] = {},  # noqa: B006 what jsonargparse shows as the default, and nobody changes
    rows: int = 64,
    positions: int | None = None,
    int8: list[str] = [],  # noqa: B006
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
        faults: what becomes of a question that cannot be asked; raise ends the run, skip leaves it out and tells of it.
        system: the system message; published, internvl, none, or your own text.
        dtype: of weights and computation; by default float32 on a CPU, else bfloat16.
        plan: a shipped sharding plan, or a YAML file; by default one device.
        mesh: sizes of its axes.
        rows: answers that are generated at once.
        positions: of the cache, of all rows together; by default it grows.
        int8: what is kept in eight bits, of weights and cache.
    """
    from ivl3_jax.inference.request import Limits
    from ivl3_jax.inference.sampling import Sampling
    from ivl3_jax.inference.scaling.best_of import prompt_named, put
    from ivl3_jax.inference.scaling.journal import Journal
    from ivl3_jax.inference.scaling.questions import read_questions

    told, sampling = prompt_named(prompt), Sampling(temperature, top_k, top_p, seed)
    check_positive(samples=samples, pairs=pairs, max_new_tokens=max_new_tokens, rows=rows)
    listed = read_questions(questions, root)
    checked = [kind == "correctness" or (kind == "auto" and each.answer is not None) for each in listed]
    for question, check in zip(listed, checked, strict=True):
        if check and question.answer is None:
            raise UsageError(f"{question.asked.where}: has no 'answer' to check against; give one, or --kind auto")
        if not check and not (question.asked.images or question.asked.videos):
            raise UsageError(
                f"{question.asked.where}: has neither an answer to check against nor a picture to leave out, so it "
                "makes no pairs; give one of them, or take it out"
            )
    check_directory("output", output)
    settings = {
        "model": str(directory.resolve()),
        "kind": kind,
        "samples": samples,
        "sampling": dataclasses.asdict(sampling),
        "max_new_tokens": max_new_tokens,
        "prompt": told,
        "system": system,
        "dtype": dtype,
        "int8": sorted(int8),
    }
    at = str(Path(root or questions.parent).resolve())
    journal = Journal(output, "answers.jsonl", settings, [[dict(each.record), at] for each in listed])
    told_of_earlier(journal, len(listed))
    if journal.left:
        limits = Limits(rows=rows, positions=positions)
        chat = chat_of(directory, dtype, plan, mesh, system=system, limits=limits, int8=int8)

        def ask(numbers: list[int]) -> list[dict[str, Any]]:
            some = [(put(listed[number].asked, told), checked[number]) for number in numbers]
            return _answers(chat, some, samples, sampling, max_new_tokens)

        for number, found in with_faults(listed, max(1, rows // samples), ask, journal.left, faults):
            journal.add(number, found)
    _write_pairs(listed, journal, told, at, output, pairs, seed)


def _answers(
    chat: "Chat", asked: Sequence[tuple["Sample", bool]], samples: int, sampling: "Sampling", most: int
) -> list[dict[str, Any]]:
    """Texts of the answers to each, which were cut, and those without images of what cannot be checked."""
    from ivl3_jax.inference.scaling.rollouts import rollouts, without_looking

    def texts(answers: Sequence["Answer"]) -> list[str]:
        return [chat.processor.tokenizer.decode(answer.tokens).strip() for answer in answers]

    seen = rollouts(chat, [sample for sample, _ in asked], samples, sampling, most)
    found = [{"answers": texts(each), "cut": [answer.cut for answer in each]} for each in seen]
    open_ended = [place for place, (_, checked) in enumerate(asked) if not checked]
    blind = without_looking(
        chat, [asked[place][0] for place in open_ended], [seen[place] for place in open_ended], sampling, most
    )
    for place, each in zip(open_ended, blind, strict=True):
        found[place]["without the image"] = texts(each)
    return found


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
        if (told := journal.done.get(number)) is None:
            continue  # it was left out
        if blind := told.get("without the image"):
            # One that was cut is no answer to be preferred.
            whole = [text if not cut else "" for text, cut in zip(told["answers"], told["cut"], strict=True)]
            pairs = dropout_pairs(whole, blind, most)
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
    write_meta(output / "meta.json", [SourceSpec("rollouts", root, "pairs.jsonl")])
    print(f"{len(records):,} pairs of {len(journal.done):,} questions, {bare:,} of which give none, are in {output}")
    if records:
        print(f"to train on them: ivl3 train --config mpo --data.meta '[{output / 'meta.json'}]' ...", file=sys.stderr)
