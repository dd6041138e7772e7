"""The published calls against a prompt builder written here from their description, to the token."""

import itertools

import numpy as np
import pytest

import ivl3_jax
from ivl3_jax.data.images import tile_image
from ivl3_jax.data.template import INTERNVL_SYSTEM
from ivl3_jax.data.video import sample_frames
from ivl3_jax.inference.published import batch_chat, chat, load_image, load_video
from tests.data.pictures import picture, write_video
from tests.models.small import checkpoint

SIZE, TOKENS = 28, 4  # of a tile


@pytest.fixture(scope="module")
def model():
    return ivl3_jax.Chat(ivl3_jax.load(checkpoint()))


@pytest.fixture
def prompts(model, monkeypatch):
    """Every prompt that reaches the model, which answers all with the same text and an end."""
    seen, tokenizer = [], model.processor.tokenizer
    answer = tokenizer.encode(" <img>three digits.\n<|im_end|>more")

    def generate(given, limit, stop, sampling):
        seen.extend(given)
        return [list(itertools.takewhile(lambda token: token not in stop, answer))] * len(given)

    monkeypatch.setattr(model.engine, "generate", generate)
    return seen


def published_prompt(turns, counts, system=INTERNVL_SYSTEM):
    """The text of `model.chat`: the template filled in, then `<image>` replaced one by one from the front."""
    text = f"<|im_start|>system\n{system}<|im_end|>\n"
    for question, answer in turns:
        text += f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        text += "" if answer is None else f"{answer}<|im_end|>\n"
    for count in counts:
        text = text.replace("<image>", "<img>" + "<IMG_CONTEXT>" * TOKENS * count + "</img>", 1)
    return text


def check(model, prompt, turns, counts, tiles, **system):
    expected = model.processor.tokenizer.encode(published_prompt(turns, counts, **system))
    assert prompt.tokens.tolist() == expected
    np.testing.assert_array_equal(prompt.tiles, tiles)


def some_tiles(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3)).astype(np.uint8)


def test_first_turns(model, prompts):
    tiles = some_tiles(3)
    for given, question, counts, asked, replaced in [
        (None, "Hi?", None, "Hi?", []),
        (None, "What is <image>?", None, "What is <image>?", []),  # stays text
        (tiles, "Hi?", None, "<image>\nHi?", [3]),
        (tiles, "Hi <image>?", None, "Hi <image>?", [3]),
        (tiles, "<image> and <image>?", [1, 2], "<image> and <image>?", [1, 2]),
        (tiles, "<image> and <image>?", None, "<image> and <image>?", [3]),  # the second stays text
    ]:
        assert chat(model, given, question, num_patches_list=counts) == "three digits."
        check(model, prompts[-1], [(asked, None)], replaced, some_tiles(0) if given is None else tiles)


def test_history(model, prompts):
    tiles = some_tiles(3)
    answer, history = chat(model, tiles[:1], "First?", return_history=True)
    assert history == [("<image>\nFirst?", "three digits.")]
    answer, history = chat(model, tiles, "And <image>?", history=history, return_history=True, num_patches_list=[1, 2])
    assert history == [("<image>\nFirst?", "three digits."), ("And <image>?", "three digits.")]
    check(model, prompts[-1], [history[0], ("And <image>?", None)], [1, 2], tiles)
    # With a history nothing is put in front, not even with an empty one.
    chat(model, tiles[:1], "Again?", history=history[:1])
    check(model, prompts[-1], [history[0], ("Again?", None)], [1], tiles[:1])
    with pytest.raises(ValueError, match="the prompt has 0 <image> for 1 images; each needs one"):
        chat(model, tiles, "Again?", history=[])
    # Answers of the history are searched too.
    chat(model, tiles[:1], "So?", history=[("Which tag?", "It is <image>.")])
    check(model, prompts[-1], [("Which tag?", "It is <image>."), ("So?", None)], [1], tiles[:1])


def test_the_system_message_is_the_originals_whatever_the_layout(model, prompts):
    assert model.processor.template.system is None
    chat(model, None, "Hi?")
    check(model, prompts[-1], [("Hi?", None)], [], some_tiles(0))
    chat(model, None, "Hi?", system="Be brief.")
    check(model, prompts[-1], [("Hi?", None)], [], some_tiles(0), system="Be brief.")


def test_batches_of_unequal_prompts(model, prompts):
    tiles, questions = some_tiles(4), ["Hi?", "How many digits are in <image> here?", "Who?"]
    assert batch_chat(model, tiles, questions, num_patches_list=[1, 2, 1]) == ["three digits."] * 3
    asked = ["<image>\nHi?", questions[1], "<image>\nWho?"]
    check(model, prompts[0], [(asked[0], None)], [1], tiles[:1])
    check(model, prompts[1], [(asked[1], None)], [2], tiles[1:3])
    check(model, prompts[2], [(asked[2], None)], [1], tiles[3:])


def test_a_batch_is_its_questions_one_by_one(model):
    tiles, counts, short = some_tiles(4), [1, 2, 1], {"max_new_tokens": 12, "system": "Be brief."}
    questions = ["Hi?", "How many digits are in <image> here?", "Who?"]
    together = batch_chat(model, tiles, questions, num_patches_list=counts, **short)
    parts = np.split(tiles, np.cumsum(counts)[:-1])
    assert together == [chat(model, part, question, **short) for part, question in zip(parts, questions, strict=True)]
    assert len(set(together)) == 3
    assert batch_chat(model, None, questions[::2], **short) == [chat(model, None, q, **short) for q in questions[::2]]


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ([1, 1], r"num_patches_list is \[1, 1\], which sums to 2; there are 3 tiles"),
        ([1, 2], "the prompt has 1 <image> for 2 images; each needs one"),
    ],
)
def test_tiles_that_do_not_add_up(model, counts, told):
    with pytest.raises(ValueError, match=told):
        chat(model, some_tiles(3), "Hi?", num_patches_list=counts)


def test_faulty_batches(model):
    with pytest.raises(ValueError, match="num_patches_list is missing; it must state the tiles of each of 2 questions"):
        batch_chat(model, some_tiles(3), ["Hi?", "Who?"])
    with pytest.raises(ValueError, match="num_patches_list is of length 1; it must state the tiles of each of 2"):
        batch_chat(model, some_tiles(3), ["Hi?", "Who?"], num_patches_list=[3])
    with pytest.raises(ValueError, match="which sums to 3; there are 0 tiles"):
        chat(model, None, "Hi?", num_patches_list=[3])
    with pytest.raises(ValueError, match="tiles must be uint8"):
        chat(model, some_tiles(3) / 255, "Hi?")
    with pytest.raises(ValueError, match="questions is 'Hi'; it must be a list of str"):
        batch_chat(model, None, "Hi")
    with pytest.raises(ValueError, match=r"questions\[1\] is 3; it must be a str"):
        batch_chat(model, None, ["Hi", 3])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"num_patches_list": [2.0]}, r"num_patches_list\[0\] is 2.0; it must be a whole number of at least 0"),
        ({"num_patches_list": [3, -1]}, r"num_patches_list\[1\] is -1; it must be a whole number of at least 0"),
        ({"num_patches_list": 2}, "num_patches_list is 2; it must be a list of whole numbers"),
        ({"max_new_tokens": 2.0}, "max_new_tokens is 2.0; it must be a whole number of at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be a whole number of at least 1"),
        (
            {"tiles": "a.png"},
            r"tiles is 'a.png'; it must be uint8 \[t, size, size, 3\], as load_image returns, or",
        ),
        ({"tiles": np.zeros((28, 28, 3))}, r"tiles is an array \[28, 28, 3\]; it must be uint8"),
        ({"history": ["a"]}, r"history\[0\] is 'a'; it must be a pair of str, \(question, answer\)"),
        ({"history": ["ab"]}, r"history\[0\] is 'ab'; it must be a pair"),
        ({"history": [("a", None)]}, r"history\[0\] is \('a', None\); it must be a pair"),
        ({"history": "a"}, r"history is 'a'; it must be a list of \(question, answer\)"),
        ({"history": [("<IMG_CONTEXT>", "a")]}, r"the question of history\[0\] contains <IMG_CONTEXT>"),
        ({"question": None}, "the question is None; it must be a str"),
        ({"question": "<IMG_CONTEXT>"}, "the question contains <IMG_CONTEXT>.*; write <image> where an image belongs"),
        ({"system": "<IMG_CONTEXT>"}, "system contains <IMG_CONTEXT>"),
    ],
)
def test_faulty_arguments_are_named(model, given, told):
    with pytest.raises(ValueError, match=told):
        chat(model, **{"tiles": some_tiles(2), "question": "Hi?", **given})


def test_numbers_of_numpy(model, prompts):
    tiles = some_tiles(3)
    assert chat(model, tiles, "<image> <image>?", num_patches_list=np.array([1, 2]), max_new_tokens=np.int64(9)) != ""
    check(model, prompts[-1], [("<image> <image>?", None)], [1, 2], tiles)
    assert len(batch_chat(model, tiles, ["Hi?", "Who?"], num_patches_list=np.array([1, 2]))) == 2


def test_answers_that_spell_marks(model, prompts):
    chat(model, None, "So?", history=[("Which?", "<IMG_CONTEXT> and <|im_start|>")])
    check(model, prompts[-1], [("Which?", "< IMG_CONTEXT> and < |im_start|>"), ("So?", None)], [], some_tiles(0))


def test_only_the_end_of_a_turn_stops(model, prompts, monkeypatch):
    """As there, whatever else the files of the checkpoint name."""
    tokenizer = model.processor.tokenizer
    monkeypatch.setattr(tokenizer, "eos_ids", (*tokenizer.eos_ids, tokenizer.encode("three")[0]))
    assert chat(model, None, "Hi?") == "three digits."


def test_load_image():
    image = picture(120, 60)
    np.testing.assert_array_equal(load_image(image, SIZE), tile_image(image, SIZE, 1, 12, True))
    assert load_image(image, max_num=6).shape == (3, 448, 448, 3)
    assert load_image(image, SIZE, max_num=1).shape == (1, SIZE, SIZE, 3)


def test_load_video(model, tmp_path):
    clip = write_video(tmp_path / "clip.mp4", 20)
    tiles, counts = load_video(clip, (0.5, 1.5), SIZE, num_segments=3)
    frames = sample_frames(clip, lambda *_: [6, 9, 13], lambda frame: tile_image(frame, SIZE, 1, 1, False))
    np.testing.assert_array_equal(tiles, np.concatenate(frames))
    assert counts == [1, 1, 1]
    tiles, counts = load_video(clip, None, SIZE, max_num=12, num_segments=2)
    assert counts == [13, 13] and len(tiles) == 26  # 4 x 3 and the thumbnail
    prefix = "".join(f"Frame{i + 1}: <image>\n" for i in range(len(counts)))
    assert isinstance(chat(model, tiles, f"{prefix}What?", num_patches_list=counts, max_new_tokens=4), str)
    picture(30, 30).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.png: a still picture, not a video; give it as an image"):
        load_video(tmp_path / "a.png")
