"""The calls of the published model cards with their meaning: `model.chat`, `load_image`, `load_video`, ...

Pixels are uint8 tiles here, normalised on the device; generation settings are `max_new_tokens` and a `Sampling`.
(Reference: OpenGVLab/InternVL, modeling_internvl_chat.py and the model cards.)
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ivl3_jax.data.encoded import Encoded
from ivl3_jax.data.images import tile_image
from ivl3_jax.data.records import IMAGE_PLACEHOLDER, ImageSource, Message, Video
from ivl3_jax.data.template import INTERNVL_SYSTEM, ChatTemplate
from ivl3_jax.data.tokenizer import IMAGE_CONTEXT, TURN_END
from ivl3_jax.data.video import sample_frames, spread
from ivl3_jax.inference.chat import Chat
from ivl3_jax.inference.request import whole_number
from ivl3_jax.inference.sampling import GREEDY, Sampling

History = list[tuple[str, str]]


def load_image(image: ImageSource, input_size: int = 448, max_num: int = 12) -> np.ndarray:
    """The tiles of an image, thumbnail included: uint8 [t, input_size, input_size, 3]."""
    return tile_image(image, input_size, 1, max_num, True)


def load_video(
    path: str | os.PathLike,
    bound: tuple[float, float] | None = None,
    input_size: int = 448,
    max_num: int = 1,
    num_segments: int = 32,
) -> tuple[np.ndarray, list[int]]:
    """The tiles of a video's frames, uint8 [t, input_size, input_size, 3], and the number of tiles of each frame.

    Args:
        bound: (start, end) in seconds. max_num: tiles of a frame at most. num_segments: frames.

    Raises:
        ValueError: there is no such file, it is no video or a still picture, or the bound lies behind its end. Damage
            that leaves frames is a `DamagedVideo` warning.
    """
    choose = spread(Video(path, num_segments, bound))
    frames = sample_frames(path, choose, lambda frame: tile_image(frame, input_size, 1, max_num, True))
    return np.concatenate(frames), [len(tiles) for tiles in frames]


def chat(
    model: Chat,
    tiles: np.ndarray | None,
    question: str,
    *,
    max_new_tokens: int = 1024,
    sampling: Sampling = GREEDY,
    history: History | None = None,
    return_history: bool = False,
    num_patches_list: Sequence[int] | None = None,
    system: str | None = INTERNVL_SYSTEM,
) -> str | tuple[str, History]:
    """One turn, as `model.chat`.

    Args:
        tiles: uint8 [t, size, size, 3] of the images of all turns, or None.
        question: `<image>\\n` is put in front only where there is no history, there are tiles, and no `<image>` in it.
        history: (question, answer) of the turns before, as returned.
        num_patches_list: tiles of each image, by default all are one's. The `<image>`s of the whole prompt are replaced
            in order, those of the history and of its answers included; surplus ones stay text. Other marks that an
            answer spells are no marks there, see `Processor.harmless`.
        system: the system message; None is none.

    Returns:
        The answer up to `<|im_end|>`, the only token that ends it here, without special tokens, stripped; with
        `return_history` also the history with this turn.

    Raises:
        ValueError: an argument is of another type, the tiles do not add up, there are fewer `<image>`s than images, a
            text has `<IMG_CONTEXT>`, or the prompt is too long.
    """
    max_new_tokens = whole_number("max_new_tokens", max_new_tokens, least=1)
    _check_text("the question", question)
    _check_text("system", "" if system is None else system)
    _check_history(history)
    _check_tiles(tiles)
    if history is None and tiles is not None and IMAGE_PLACEHOLDER not in question:
        question = f"{IMAGE_PLACEHOLDER}\n{question}"
    if num_patches_list is None:
        num_patches_list = [] if tiles is None else [len(tiles)]
    counts = _counts(num_patches_list)
    _check_sum(tiles, counts)
    prompt = _prompt(model, tiles, [*(history or []), (question, None)], counts, system)
    answer = _answers(model, [prompt], max_new_tokens, sampling)[0]
    return (answer, [*(history or []), (question, answer)]) if return_history else answer


def batch_chat(
    model: Chat,
    tiles: np.ndarray | None,
    questions: Sequence[str],
    *,
    max_new_tokens: int = 1024,
    sampling: Sampling = GREEDY,
    num_patches_list: Sequence[int] | None = None,
    system: str | None = INTERNVL_SYSTEM,
) -> list[str]:
    """Several questions at once, each of its own, as `model.batch_chat`.

    Greedy answers are those of asking one by one.

    Args:
        tiles: uint8 [t, size, size, 3], one image for each question after the other, or None for none at all.
        num_patches_list: tiles of each question's image; needed where there are tiles.

    Raises:
        ValueError: as `chat`, or questions and images differ in number.
    """
    max_new_tokens = whole_number("max_new_tokens", max_new_tokens, least=1)
    if isinstance(questions, str) or not isinstance(questions, Sequence):
        raise ValueError(f"questions is {questions!r}; it must be a list of str")
    for place, question in enumerate(questions):
        _check_text(f"questions[{place}]", question)
    _check_text("system", "" if system is None else system)
    _check_tiles(tiles)
    stated = [] if num_patches_list is None else _counts(num_patches_list)
    if tiles is None:
        counts: list[list[int]] = [[] for _ in questions]
    elif len(stated) != len(questions):
        found = "missing" if num_patches_list is None else f"of length {len(stated)}"
        raise ValueError(f"num_patches_list is {found}; it must state the tiles of each of {len(questions)} questions")
    else:
        counts = [[count] for count in stated]
        questions = [q if IMAGE_PLACEHOLDER in q else f"{IMAGE_PLACEHOLDER}\n{q}" for q in questions]
    _check_sum(tiles, stated)
    prompts, start = [], 0
    for question, count in zip(questions, counts, strict=True):
        own = None if tiles is None else tiles[start : start + sum(count)]
        prompts.append(_prompt(model, own, [(question, None)], count, system))
        start += sum(count)
    return _answers(model, prompts, max_new_tokens, sampling)


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{name} is {text!r}; it must be a str")
    if IMAGE_CONTEXT in text:
        raise ValueError(
            f"{name} contains {IMAGE_CONTEXT}, which stands for a piece of an image; write {IMAGE_PLACEHOLDER} where "
            "an image belongs"
        )


def _check_history(history: Any) -> None:
    if not isinstance(history, list | tuple | None):
        raise ValueError(f"history is {history!r}; it must be a list of (question, answer), as returned")
    for place, turn in enumerate(history or ()):
        if not isinstance(turn, list | tuple) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise ValueError(f"history[{place}] is {turn!r}; it must be a pair of str, (question, answer)")
        _check_text(f"the question of history[{place}]", turn[0])


def _check_tiles(tiles: Any) -> None:
    if tiles is not None and getattr(tiles, "ndim", None) != 4:
        found = f"an array {list(tiles.shape)}" if isinstance(tiles, np.ndarray) else repr(tiles)
        raise ValueError(f"tiles is {found}; it must be uint8 [t, size, size, 3], as load_image returns, or None")


def _counts(num_patches_list: Any) -> list[int]:
    if isinstance(num_patches_list, str) or not isinstance(num_patches_list, Sequence | np.ndarray):
        raise ValueError(f"num_patches_list is {num_patches_list!r}; it must be a list of whole numbers")
    return [whole_number(f"num_patches_list[{i}]", count, least=0) for i, count in enumerate(num_patches_list)]


def _check_sum(tiles: np.ndarray | None, counts: Sequence[int]) -> None:
    total = 0 if tiles is None else len(tiles)
    if sum(counts) != total:
        raise ValueError(f"num_patches_list is {counts}, which sums to {sum(counts)}; there are {total} tiles")


def _prompt(
    model: Chat,
    tiles: np.ndarray | None,
    turns: Sequence[tuple[str, str | None]],
    counts: Sequence[int],
    system: str | None,
) -> Encoded:
    messages = []
    for question, answer in turns:
        messages.append(Message("user", question))
        if answer is not None:
            messages.append(Message("assistant", model.processor.harmless(answer)))
    text = ChatTemplate(system).prompt(messages)
    if (found := text.count(IMAGE_PLACEHOLDER)) < len(counts):
        raise ValueError(f"the prompt has {found} {IMAGE_PLACEHOLDER} for {len(counts)} images; each needs one")
    processor = model.processor
    for count in counts:
        text = text.replace(IMAGE_PLACEHOLDER, processor.block(count), 1)
    return processor.encode_text(text, processor.stack([] if tiles is None else [tiles]))


def _answers(model: Chat, prompts: Sequence[Encoded], max_new_tokens: int, sampling: Sampling) -> list[str]:
    tokenizer = model.processor.tokenizer
    found = model.engine.generate(prompts, max_new_tokens, {tokenizer.id(TURN_END)}, sampling)
    return [tokenizer.decode(ids).split(TURN_END)[0].strip() for ids in found]
