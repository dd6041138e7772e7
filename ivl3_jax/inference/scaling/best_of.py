"""Best of N: several answers to a question, and which of them is taken."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ivl3_jax.data.encoded import Encoded
from ivl3_jax.data.records import Message, Sample
from ivl3_jax.inference.chat import Chat
from ivl3_jax.inference.pages import digest
from ivl3_jax.inference.request import Request, Ticket, whole_number
from ivl3_jax.inference.sampling import GREEDY, Sampling
from ivl3_jax.inference.scaling.critic import Critic, Judged
from ivl3_jax.inference.scaling.final_answer import comparable, final_answer

SAMPLING = Sampling(temperature=0.6, top_p=0.95)
"""Of all candidates but the first, as InternVL3's evaluation draws them."""
STEP_BY_STEP = (
    "Your task is to answer the question below. Give step by step reasoning before you answer, and when you're ready "
    'to answer, please use the format "Final answer: .."\n\nQuestion:\n\n{question}'
)
"""How MMPR asks for reasoning that ends in an answer."""
PROMPTS = {"step-by-step": STEP_BY_STEP, "plain": "{question}"}


@dataclass(frozen=True)
class Candidate:
    """One answer to a question.

    Attributes:
        text: of it. final: what it comes to, None where it does not say so.
        judged: what the critic thinks of it, None without one.
        cut: whether it ended because it had as many tokens as it may have.
    """

    text: str
    final: str | None
    judged: Judged | None = None
    cut: bool = False


class BestOf:
    """Answers questions several times; the first answer is the greedy one.

        best_of = BestOf(chat, Critic(Chat(critic)), samples=8)
        found = best_of.candidates(Sample((Message("user", "How many?"),), ("photo.jpg",)))
        found[best(found)].text

    Attributes:
        prompt: how a question is put to the model, a name in `PROMPTS`, or text with {question} where it stands; the
            critic sees the question as it is.
        final: what an answer comes to.
    """

    def __init__(
        self,
        chat: Chat,
        critic: Critic | None = None,
        *,
        samples: int = 8,
        sampling: Sampling = SAMPLING,
        max_new_tokens: int = 1024,
        prompt: str = "plain",
        final: Callable[[str], str | None] = final_answer,
    ) -> None:
        """Raises a ValueError if a number is out of its bounds, or `prompt` has no {question}."""
        self.chat, self.critic, self.sampling = chat, critic, sampling
        self.samples = whole_number("samples", samples, least=1)
        self.max_new_tokens = whole_number("max_new_tokens", max_new_tokens, least=1)
        self.prompt, self.final = prompt_named(prompt), final

    def candidates(self, asked: Sample) -> list[Candidate]:
        """The answers to one question, one user turn; errors as of `Conversation.stream` and `Critic.judge`."""
        return next(self.answer([asked]))

    def answer(self, asked: Sequence[Sample]) -> Iterator[list[Candidate]]:
        """The answers to each, as many questions at once as the engine has rows for."""
        for start in range(0, len(asked), self.together):
            yield from self._answer(asked[start : start + self.together])

    @property
    def together(self) -> int:
        """Questions that are answered at once."""
        return max(1, self.chat.engine.limits.rows // self.samples)

    def _answer(self, asked: Sequence[Sample]) -> list[list[Candidate]]:
        processor, tokenizer = self.chat.processor, self.chat.processor.tokenizer
        requests = []
        for sample in asked:
            prompt = processor.encode_prompt(put(sample, self.prompt))
            stop = frozenset(tokenizer.eos_ids)
            requests.append(Request(prompt, self.max_new_tokens, GREEDY, stop=stop))
            if self.samples > 1:
                # Numbered from 1: the second candidate is the same one however many there are.
                drawn, more = drawn_for(prompt, self.sampling), self.samples - 1
                requests.append(Request(prompt, self.max_new_tokens, drawn, samples=more, first_sample=1, stop=stop))
        tickets = iter(self.chat.engine.run(requests))
        told = [self._told(next(tickets)) + (self._told(next(tickets)) if self.samples > 1 else []) for _ in asked]
        texts = [[text for text, _ in each] for each in told]
        judged: Sequence[Sequence[Judged | None]] = [[None] * self.samples] * len(asked)
        if self.critic:
            judged = self.critic.judge_all([*zip(asked, texts, strict=True)])
        return [
            [Candidate(text, self.final(text), thought, cut) for (text, cut), thought in zip(*pair, strict=True)]
            for pair in zip(told, judged, strict=True)
        ]

    def _told(self, ticket: Ticket) -> list[tuple[str, bool]]:
        decode = self.chat.processor.tokenizer.decode
        return [(decode(each.tokens).strip(), each.cut) for each in answers_of(ticket)]


def drawn_for(prompt: Encoded, sampling: Sampling) -> Sampling:
    """With a seed of the prompt's own: with one for all, a sample's luck would be the same in every question."""
    seen = hashlib.blake2b(prompt.tokens.tobytes(), digest_size=8)
    for tile in prompt.tiles:
        seen.update(digest(tile))
    return dataclasses.replace(sampling, seed=sampling.seed ^ int.from_bytes(seen.digest()) >> 1)


@dataclass
class Answer:
    """What the engine said: tokens without the one that ended it, and whether it was cut at its longest."""

    tokens: list[int]
    cut: bool = False


def answers_of(ticket: Ticket) -> list[Answer]:
    """All answers to a request that has ended."""
    answers = [Answer([]) for _ in range(ticket.request.samples)]
    for said in ticket.all_said():
        if said.token is not None:
            answers[said.sample].tokens.append(said.token)
        answers[said.sample].cut |= said.finish == "length"
    return answers


def prompt_named(name: str) -> str:
    """One of `PROMPTS`, or a prompt itself.

    Raises:
        ValueError: it is neither.
    """
    prompt = PROMPTS.get(name, name)
    if prompt.count("{question}") != 1:
        raise ValueError(
            f"the prompt is {name!r}; it must be {', '.join(PROMPTS)}, or text with {{question}} in it once"
        )
    return prompt


def put(asked: Sample, prompt: str) -> Sample:
    """The question in its prompt."""
    text = prompt.replace("{question}", asked.messages[-1].text)
    return dataclasses.replace(asked, messages=(*asked.messages[:-1], Message("user", text)))


def best(candidates: Sequence[Candidate]) -> int:
    """The number of the one with the highest score, the first of several.

    Raises:
        ValueError: they were not judged.
    """
    scores = [candidate.judged.score for candidate in candidates if candidate.judged]
    if len(scores) < len(candidates):
        raise ValueError("the candidates were not judged; give a critic")
    return max(range(len(scores)), key=scores.__getitem__)


def majority(candidates: Sequence[Candidate]) -> int:
    """The number of the first with the most frequent final answer (self-consistency, arXiv 2203.11171).

    Those without one have no vote, unless none has one. Of answers with equally many votes the first to come wins.
    """
    said = [candidate.final and comparable(candidate.final) for candidate in candidates]
    votes = Counter(final for final in said if final is not None)
    return said.index(max(votes, key=votes.__getitem__)) if votes else 0
