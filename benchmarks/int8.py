"""What weights and cache in eight bits lose, on held-out handwriting that is read step by step.

    ivl3 demo --best-of --seeds '[0]' --output runs/best-of-demo
    python benchmarks/int8.py runs/best-of-demo/checkpoint

For each way of keeping them: right answers, greedy and drawn at temperature 1; greedy answers that are other than
without; and the nats of a token of the right solution, with the mean of their difference to those without, and its
standard error over questions.
"""

import argparse
import os
from collections.abc import Collection, Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

import ivl3_jax
from ivl3_jax.data.records import Sample
from ivl3_jax.demo.best_of import LONGEST, examination
from ivl3_jax.demo.thinking import Sum
from ivl3_jax.inference.chat import Chat
from ivl3_jax.inference.request import Request, Weighed
from ivl3_jax.inference.sampling import GREEDY, Sampling
from ivl3_jax.inference.scaling.final_answer import final_answer, same_answer
from ivl3_jax.models.model import Model

WAYS: tuple[tuple[str, ...], ...] = ((), ("weights",), ("cache",), ("weights", "cache"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--digits", type=int, default=1, help="of a picture, as the demo was run with")
    options = parser.parse_args()
    model = ivl3_jax.load(options.checkpoint, "float32")
    asked = examination(options.questions, options.digits)
    print(f"{model.parameter_count:,} parameters, {len(asked):,} questions, jax {jax.__version__}\n")
    print(
        "| in eight bits | right, greedy | right, drawn | other greedy answers | nats a token | more than float32's |"
    )
    print("|---|---|---|---|---|---|")
    plain: tuple[list[str], np.ndarray] | None = None
    for way in WAYS:
        greedy, share, drawn, nats = examined(model, way, asked)
        plain = plain or (greedy, nats)
        other = sum(a != b for a, b in zip(greedy, plain[0], strict=True))
        more = nats - plain[1]
        spread = more.std() / np.sqrt(len(more))
        cells = f"{share:.1%} | {drawn:.1%} | {other} | {nats.mean():.5f} | {more.mean():.5f} ± {spread:.5f}"
        print(f"| {' and '.join(way) or 'nothing: float32'} | {cells} |", flush=True)


def examined(model: Model, int8: Collection[str], asked: Sequence[Sum]) -> tuple[list[str], float, float, np.ndarray]:
    """Greedy answers, the shares of right ones greedy and drawn, and the nats of a token of each solution."""
    chat = Chat(model, int8=int8)
    greedy, drawn = (answers(chat, asked, each) for each in (GREEDY, Sampling(temperature=1.0)))
    shares = [
        float(np.mean([same_answer(final_answer(text), each.answer) for text, each in zip(texts, asked, strict=True)]))
        for texts in (greedy, drawn)
    ]
    return greedy, *shares, np.array([nats_of(chat, each.solved()) for each in asked])


def answers(chat: Chat, asked: Sequence[Sum], sampling: Sampling) -> list[str]:
    prompts = [chat.processor.encode_prompt(each.asked()) for each in asked]
    tokenizer = chat.processor.tokenizer
    return [tokenizer.decode(reply) for reply in chat.engine.generate(prompts, LONGEST, tokenizer.eos_ids, sampling)]


def nats_of(chat: Chat, sample: Sample) -> float:
    """The mean negative log-probability of the tokens of a sample's answer, each behind those before it."""
    encoded = chat.processor.encode(sample)
    places = np.flatnonzero(encoded.labels >= 0)
    tokens, which = np.unique(encoded.labels[places], return_inverse=True)
    weighed = Weighed(tuple(places.tolist()), tuple(tokens.tolist()))
    (ticket,) = chat.engine.run([Request(encoded, 0, weighed=weighed)])
    return -float(np.mean(ticket.weights[np.arange(len(places)), which]))


if __name__ == "__main__":
    main()
