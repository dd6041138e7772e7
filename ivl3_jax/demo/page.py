"""What a run leaves to look at: the training curve, and a page of pictures with question, answer and verdict."""

import html
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from ivl3_jax.data.markup import data_uri, embedded
from ivl3_jax.demo.evaluation import Answered, Score
from ivl3_jax.training.loop import Progress

matplotlib.use("Agg")
from matplotlib import pyplot as plt

GREEN, RED, BLUE, GREY = "#1a7f37", "#cf222e", "#0969da", "#6e7781"


def draw_curve(progress: Sequence[Progress], stages: Sequence[tuple[int, str]], file: Path) -> None:
    """Loss over steps, each step and a running mean, with the learning rate beneath.

    Args:
        progress: of every step. stages: first step and name of each stage of the curriculum.
        file: the PNG to write.
    """
    steps = np.array([now.step for now in progress])
    losses = np.array([now.loss for now in progress])
    window = max(1, len(losses) // 100)
    mean = np.convolve(losses, np.ones(window) / window, mode="valid")
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 5.5), sharex=True, height_ratios=(4, 1), layout="constrained"
    )
    top.plot(steps, losses, color=BLUE, alpha=0.2, linewidth=0.8, label="each step")
    top.plot(steps[window - 1 :], mean, color=BLUE, linewidth=1.8, label=f"mean of {window} steps")
    top.set_yscale("log")
    top.set_ylabel("loss (nats a trained token)")
    top.grid(alpha=0.25, which="both")
    for number, (first, name) in enumerate(stages):
        top.axvline(first, color=GREY, linewidth=1, linestyle=":")
        height = 0.98 - 0.06 * number  # one under the other: stages may be short
        top.text(first, height, f" {name}", transform=top.get_xaxis_transform(), va="top", color=GREY, fontsize=9)
    top.legend(frameon=False, loc="lower left")
    bottom.plot(steps, [now.learning_rate for now in progress], color=GREY)
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("step")
    bottom.grid(alpha=0.25)
    figure.suptitle("A small InternVL3 learns to read")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def choose(answered: Sequence[Answered], each: int) -> list[Answered]:
    """Of each part of the examination `each` answers, with as large a share of mistakes as it has (one, if any)."""
    chosen = []
    for part in dict.fromkeys(answer.part for answer in answered):
        members = [answer for answer in answered if answer.part == part]
        wrong = [answer for answer in members if not answer.right]
        shown = max(min(1, len(wrong)), round(each * len(wrong) / len(members)))
        right = [answer for answer in members if answer.right][: each - shown]
        chosen += right + wrong[:shown]
    return chosen


def draw_page(chosen: Sequence[Answered], file: Path, columns: int = 6) -> None:
    """Pictures with question, answer and verdict as one PNG, a row for each part of the examination."""
    parts = list(dict.fromkeys(answer.part for answer in chosen))
    figure, axes = plt.subplots(len(parts), columns, figsize=(2.5 * columns, 2.4 * len(parts)), squeeze=False)
    figure.subplots_adjust(left=0.015, right=0.985, top=0.91, bottom=0.02, wspace=0.12, hspace=0.8)
    for axis in axes.flat:
        axis.axis("off")
    for row, part in enumerate(parts):
        members = [answer for answer in chosen if answer.part == part][:columns]
        for axis, answer in zip(axes[row], members, strict=False):
            axis.imshow(_beside([picture.image for picture in answer.question.pictures]), interpolation="bicubic")
            text = f"{_wrapped(answer.question.text)}\n{_verdict(answer)}"
            axis.set_title(text, fontsize=8.5, color=GREEN if answer.right else RED)
    figure.suptitle("Held-out handwriting: question, answer, verdict", y=0.985, fontsize=14)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def write_html(
    chosen: Sequence[Answered], scores: Sequence[Score], settings: Sequence[tuple[str, str]], curve: Path, file: Path
) -> None:
    """One self-contained HTML file: accuracies, training curve, pictures with question, answer and verdict.

    Args:
        chosen: the answers to show. scores: of the whole examination. settings: names and values of the run.
        curve: the PNG of the training curve. file: the page to write.
    """
    rows = "".join(
        f"<tr><td>{html.escape(score.part)}<td>{score.questions}<td><b>{score.model:.1%}</b><td>{_share(score.svm)}"
        for score in scores
    )
    facts = "".join(f"<tr><td>{html.escape(name)}<td>{html.escape(value)}" for name, value in settings)
    sections = []
    for part in dict.fromkeys(answer.part for answer in chosen):
        cards = "".join(_card(answer) for answer in chosen if answer.part == part)
        sections.append(f"<h2>{html.escape(part.capitalize())}</h2><div class=cards>{cards}</div>")
    file.write_text(
        _PAGE.format(
            scores=rows, settings=facts, curve=embedded(curve.read_bytes(), "png"), sections="".join(sections)
        ),
        encoding="utf-8",
    )


def _card(answer: Answered) -> str:
    pictures = "".join(
        f'<img alt="{picture.text}" src="{data_uri(picture.image)}">' for picture in answer.question.pictures
    )
    verdict = "right" if answer.right else "wrong"
    wanted = "" if answer.right else f"<span class=wanted>wanted: {html.escape(answer.question.answer)}</span>"
    return (
        f"<figure class={verdict}><div class=pictures>{pictures}</div><figcaption>{html.escape(answer.question.text)}"
        f"<b>{html.escape(_shown(answer.reply))} {'✓' if answer.right else '✗'}</b>{wanted}</figcaption></figure>"
    )


def _verdict(answer: Answered) -> str:
    if answer.right:
        return f"{_shown(answer.reply)}  ✓"
    return f"{_shown(answer.reply)}  ✗\nwanted {answer.question.answer}"


def _shown(reply: str) -> str:
    """A reply as it can be printed: an untrained model says anything."""
    return "".join(letter if letter.isprintable() else "·" for letter in reply) or "(nothing)"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _wrapped(text: str, width: int = 30) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _beside(images: Sequence[Image.Image], gap: int = 6) -> np.ndarray:
    """Images side by side on white, [height, width, 3]."""
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    sheet = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        sheet.paste(image, (left, (sheet.height - image.height) // 2))
        left += image.width + gap
    return np.asarray(sheet)


_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<title>A small InternVL3 reads handwriting</title>
<style>
body {{ font: 16px/1.45 system-ui, sans-serif; color: #1f2328; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.7rem; }} h2 {{ font-size: 1.15rem; margin: 2rem 0 .6rem; }}
.top {{ display: flex; flex-wrap: wrap; gap: 2rem; align-items: flex-start; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #d0d7de; text-align: left; }}
.curve {{ max-width: 100%; margin-top: 1.5rem; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .8rem; }}
figure {{ margin: 0; border: 1px solid #d0d7de; border-top: 4px solid; border-radius: 6px; padding: .7rem; }}
figure.right {{ border-top-color: #1a7f37; }} figure.wrong {{ border-top-color: #cf222e; }}
.pictures {{ display: flex; gap: .5rem; height: 5.5rem; align-items: center; justify-content: center; }}
.pictures img {{ max-width: 100%; max-height: 100%; min-width: 0; flex: 0 1 auto; object-fit: contain; height: 100%; }}
figcaption {{ font-size: .87rem; margin-top: .6rem; }} figcaption b {{ display: block; font-size: 1.05rem; }}
.right b {{ color: #1a7f37; }} .wrong b {{ color: #cf222e; }} .wanted {{ color: #57606a; }}
</style>
<h1>A small InternVL3 reads handwriting</h1>
<p>Every digit below was held out: the model never saw it while learning. Answers are the model's own, generated
greedily from the saved checkpoint. Beside stands a support-vector machine that is handed each scan cut out and
centred.</p>
<div class=top>
<table><tr><th>task<th>questions<th>this model<th>SVM{scores}</table>
<table>{settings}</table>
</div>
<img class=curve alt="training curve" src="{curve}">
{sections}
</html>
"""
