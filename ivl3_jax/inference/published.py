"""The calls of the published model cards with exactly their meaning: `model.chat`, `load_image`, `load_video`, ...

Pixels are uint8 tiles here, normalised on the device; generation settings are `max_new_tokens` and a `Sampling`.
(Reference: OpenGVLab/InternVL, modeling_internvl_chat.py and the model cards.)
"""

import os
from collections.abc import Sequence

import numpy as np

from ivl3_jax.data.encoded import Encoded
from ivl3_jax.data.images import tile_image
from ivl3_jax.data.records import IMAGE_PLACEHOLDER, ImageSource, Message, Video
from ivl3_jax.data.template import INTERNVL_SYSTEM, ChatTemplate
from ivl3_jax.data.tokenizer import IMAGE_CONTEXT, TURN_END
from ivl3_jax.data.video import sample_frames, spread
from ivl3_jax.inference.chat import Chat
from ivl3_jax.inference.conversation import whole_number
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
    system: str = INTERNVL_SYSTEM,
) -> str | tuple[str, History]:
    """One turn, as `model.chat`.

    Args:
        tiles: uint8 [t, size, size, 3] of the images of all turns, or None.
        question: `<image>\\n` is put in front only where there is no history, there are tiles, and no `<image>` in it.
        history: (question, answer) of the turns before, as returned.
        num_patches_list: tiles of each image, by default all are one's. The `<image>`s of the whole prompt are replaced
            in order, those of the history and of its answers included; surplus ones stay text.
        system: the system message.

    Returns:
        The answer up to `<|im_end|>` without special tokens, stripped; with `return_history` also the history with this
        turn.

    Raises:
        ValueError: the tiles do not add up, there are fewer `<image>`s than images, or the prompt is too long.
    """
    _check_arguments(tiles, [question], max_new_tokens, num_patches_list)
    for turn in history or []:
        if not isinstance(turn, tuple | list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise ValueError(f"history has {turn!r}; it must be a list of (question, answer), as chat returns it")
    if history is None and tiles is not None and IMAGE_PLACEHOLDER not in question:
        question = f"{IMAGE_PLACEHOLDER}\n{question}"
    if num_patches_list is None:
        num_patches_list = [] if tiles is None else [len(tiles)]
    _check_sum(tiles, num_patches_list)
    prompt = _prompt(model, tiles, [*(history or []), (question, None)], num_patches_list, system)
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
    system: str = INTERNVL_SYSTEM,
) -> list[str]:
    """Several questions at once, each of its own, as `model.batch_chat`.

    Greedy answers are those of asking one by one.

    Args:
        tiles: uint8 [t, size, size, 3], one image for each question after the other, or None for none at all.
        num_patches_list: tiles of each question's image; needed where there are tiles.

    Raises:
        ValueError: as `chat`, or questions and images differ in number.
    """
    _check_arguments(tiles, questions, max_new_tokens, num_patches_list)
    if tiles is None:
        counts: list[list[int]] = [[] for _ in questions]
    elif num_patches_list is None or len(num_patches_list) != len(questions):
        stated = "missing" if num_patches_list is None else f"of length {len(num_patches_list)}"
        raise ValueError(f"num_patches_list is {stated}; it must state the tiles of each of {len(questions)} questions")
    else:
        counts = [[count] for count in num_patches_list]
        questions = [q if IMAGE_PLACEHOLDER in q else f"{IMAGE_PLACEHOLDER}\n{q}" for q in questions]
    _check_sum(tiles, num_patches_list or [])
    prompts, start = [], 0
    for question, count in zip(questions, counts, strict=True):
        own = None if tiles is None else tiles[start : start + sum(count)]
        prompts.append(_prompt(model, own, [(question, None)], count, system))
        start += sum(count)
    return _answers(model, prompts, max_new_tokens, sampling)


def _check_arguments(
    tiles: np.ndarray | None, questions: Sequence[str], max_new_tokens: int, counts: Sequence[int] | None
) -> None:
    whole_number("max_new_tokens", max_new_tokens, 1)
    if tiles is not None and not isinstance(tiles, np.ndarray):
        raise ValueError(f"the tiles are of type {type(tiles).__name__}; they must be an array, as load_image gives")
    for count in counts or []:
        whole_number("an entry of num_patches_list", count, 1)
    for question in questions:
        if not isinstance(question, str):
            raise ValueError(f"the question is of type {type(question).__name__}; it must be a str")
        if IMAGE_CONTEXT in question:
            raise ValueError(
                f"the question has {IMAGE_CONTEXT} in it; write {IMAGE_PLACEHOLDER} where an image belongs"
            )


def _check_sum(tiles: np.ndarray | None, counts: Sequence[int]) -> None:
    total = 0 if tiles is None else len(tiles)
    if sum(counts) != total:
        raise ValueError(f"num_patches_list is {list(counts)}, which sums to {sum(counts)}; there are {total} tiles")


def _prompt(
    model: Chat, tiles: np.ndarray | None, turns: Sequence[tuple[str, str | None]], counts: Sequence[int], system: str
) -> Encoded:
    messages = []
    for question, answer in turns:
        messages.append(Message("user", question))
        if answer is not None:
            messages.append(Message("assistant", answer))
    text = ChatTemplate(system).prompt(messages)
    if (found := text.count(IMAGE_PLACEHOLDER)) < len(counts):
        raise ValueError(f"the prompt has {found} {IMAGE_PLACEHOLDER} for {len(counts)} images; each needs one")
    processor = model.processor
    for count in counts:
        text = text.replace(IMAGE_PLACEHOLDER, processor.block(count), 1)
    return processor.encode_text(text, processor.stack([] if tiles is None else [tiles]))


def _answers(model: Chat, prompts: Sequence[Encoded], max_new_tokens: int, sampling: Sampling) -> list[str]:
    tokenizer = model.processor.tokenizer
    found = model.generator.generate(prompts, int(max_new_tokens), [tokenizer.id(TURN_END)], sampling)
    return [tokenizer.decode(ids).split(TURN_END)[0].strip() for ids in found]
