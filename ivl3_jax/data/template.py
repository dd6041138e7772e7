"""The chat template of InternVL2.5 and 3: ChatML, as `internvl2_5` of the original and the jinja of the `-hf` files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ivl3_jax.data.faults import Fault
from ivl3_jax.data.records import Message
from ivl3_jax.data.tokenizer import TURN_END, TURN_START
from ivl3_jax.data.tokenizer_files import read_json
from ivl3_jax.original_config import MODEL_TYPE

INTERNVL_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
"""The system message that the original code puts in front by default; the `-hf` template puts none."""

CHAT_JINJA = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% elif part['type'] == 'video' %}<video>\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The same template for transformers' `apply_chat_template`, to be written beside a tokenizer."""


@dataclass(frozen=True)
class Segment:
    """One turn as text: `header + body + end`.

    Only `body` of a supervised segment is trained on: the answer and the `<|im_end|>` that closes it, but neither the
    role header nor the line break behind.
    """

    header: str
    body: str
    end: str
    supervised: bool

    @property
    def text(self) -> str:
        return self.header + self.body + self.end


@dataclass(frozen=True)
class ChatTemplate:
    """Messages to ChatML.

    Attributes:
        system: the system message of conversations that bring none; None adds no system turn, as `-hf` files do.
            `INTERNVL_SYSTEM` is the default of the original code.
    """

    system: str | None = None

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """One segment a turn, to be tokenised separately.

        Raises:
            Fault: there is no user turn, or a system turn anywhere but in front.
        """
        if any(message.role == "system" for message in messages[1:]):
            raise Fault("line", "a system turn stands behind other turns; it may only be the first")
        if not any(message.role == "user" for message in messages):
            raise Fault("line", "the conversation has no user turn; at least one is needed")
        if self.system is not None and messages[0].role != "system":
            messages = [Message("system", self.system), *messages]
        return [turn(message) for message in messages]

    def prompt(self, messages: Sequence[Message]) -> str:
        """The whole conversation as text, ending where the assistant is to answer.

        Raises:
            Fault: as `segments`, or the last turn is not the user's.
        """
        if messages and messages[-1].role != "user":
            raise Fault("line", f"the last turn is the {messages[-1].role}'s; a prompt must end with a user turn")
        return "".join(segment.text for segment in self.segments(messages)) + _header("assistant")


def turn(message: Message) -> Segment:
    """The segment of one message."""
    return Segment(_header(message.role), message.text + TURN_END, "\n", message.role == "assistant")


def published_system(directory: str | Path) -> str | None:
    """The system message that the published code of a directory's layout puts in front of a conversation.

    `INTERNVL_SYSTEM` for the original layout, none for `-hf`.
    """
    original = read_json(Path(directory) / "config.json").get("model_type") == MODEL_TYPE
    return INTERNVL_SYSTEM if original else None


def system_message(chosen: str | None, published: str | None) -> str | None:
    """The system message that a user chose.

    Args:
        chosen: "published", "internvl" (`INTERNVL_SYSTEM`), "none" or None, and anything else is the message itself.
        published: see `published_system`.

    Raises:
        ValueError: it is blank.
    """
    if chosen is None or chosen == "none":
        return None
    if not chosen.strip():
        raise ValueError("the system message is empty; 'none' leaves it out")
    return {"published": published, "internvl": INTERNVL_SYSTEM}.get(chosen, chosen)


def _header(role: str) -> str:
    return f"{TURN_START}{role}\n"
