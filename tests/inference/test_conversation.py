"""What a conversation remembers: turns with their images, and nothing of what failed."""

import numpy as np
import pytest
from PIL import Image

import ivl3_jax
from ivl3_jax.data.positions import v2pe_positions
from ivl3_jax.data.processor import RESERVED
from ivl3_jax.data.records import Message, Sample, Video
from ivl3_jax.inference.conversation import Turn
from ivl3_jax.inference.request import Said
from tests.data.pictures import picture, write_video
from tests.models.small import checkpoint

SHORT = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def chat():
    return ivl3_jax.Chat(ivl3_jax.load(checkpoint()))


@pytest.fixture
def asked(chat, monkeypatch):
    """The prompts that reach the model, which answers each with one letter more of the alphabet."""
    prompts = []

    def stream(request):
        prompts.append(request.prompt)
        letter = "abcdefg"[len(prompts) - 1]
        return iter([Said(0, token) for token in chat.processor.tokenizer.encode(f"{letter} and {letter}")])

    monkeypatch.setattr(chat.engine, "stream", stream)
    return prompts


def text_of(chat, prompt):
    return chat.processor.tokenizer.decode(prompt.tokens, skip_special=False)


def test_every_turn_is_asked_with_those_before(chat, asked):
    talk = chat.conversation()
    pictures = [picture(30, 30, seed) for seed in range(3)]
    block = chat.processor.block(1)
    assert talk.ask("One?", pictures[0]) == "a and a"
    assert talk.ask("Two?") == "b and b"
    assert talk.ask("Three <image> <image>?", pictures[1:]) == "c and c"
    first = f"<|im_start|>user\n{block}\nOne?<|im_end|>\n<|im_start|>assistant\n"
    second = f"{first}a and a<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
    third = f"{second}b and b<|im_end|>\n<|im_start|>user\nThree {block} {block}?<|im_end|>\n<|im_start|>assistant\n"
    assert [text_of(chat, prompt) for prompt in asked] == [first, second, third]
    expected = chat.processor.opened(Sample((Message("user", "?"),), tuple(pictures)), 4).images
    np.testing.assert_array_equal(asked[-1].tiles, np.concatenate(expected))
    assert [(turn.question, turn.answer, len(turn.images)) for turn in talk.history] == [
        ("<image>\nOne?", "a and a", 1),
        ("Two?", "b and b", 0),
        ("Three <image> <image>?", "c and c", 2),
    ]


def test_several_images_of_a_later_turn_stand_before_its_question(chat, asked):
    talk = chat.conversation()
    talk.ask("One?", picture(30, 30))
    talk.ask("Two?", [picture(30, 30), picture(30, 30)])
    assert talk.history[1].question == "Image-1: <image>\nImage-2: <image>\nTwo?"


def test_images_are_kept_when_their_files_go(chat, asked, tmp_path):
    talk = chat.conversation()
    picture(30, 30).save(tmp_path / "a.png")
    clip = write_video(tmp_path / "clip.mp4", 12)
    talk.ask("One?", tmp_path / "a.png", Video(clip, 2))
    (tmp_path / "a.png").unlink()
    clip.unlink()
    talk.ask("Two?")
    np.testing.assert_array_equal(asked[0].tiles, asked[1].tiles)
    assert talk.history[0].question == "<image>\nFrame1: <image>\nFrame2: <image>\nOne?"


def test_a_failed_turn_leaves_the_history(chat, asked, tmp_path):
    talk = chat.conversation()
    talk.ask("One?")
    before = talk.history
    (tmp_path / "text.png").write_text("no image")
    for question, images in (("Bad?", tmp_path / "text.png"), ("<image>?", ()), ("<img>?", ()), ("", ()), (None, ())):
        with pytest.raises(ValueError):
            talk.ask(question, images)
        assert talk.history == before


def test_a_turn_that_is_too_long_leaves_the_history(chat):
    talk = chat.conversation()
    talk.ask("One?", **SHORT)
    with pytest.raises(ValueError, match="together they pass the 512 that the model takes"):
        talk.ask("Why? " * 200)
    assert len(talk.history) == 1
    talk.ask("Two?", **SHORT)
    assert [turn.question for turn in talk.history] == ["One?", "Two?"]


def test_a_fault_in_the_middle_of_an_answer_leaves_the_history(chat, monkeypatch):
    def answer(*_):
        yield "some"
        raise RuntimeError("out of memory")

    monkeypatch.setattr(chat, "answer", answer)
    talk = chat.conversation()
    with pytest.raises(RuntimeError):
        talk.ask("One?")
    assert talk.history == ()


@pytest.mark.parametrize("how", ["close", "interrupt"])
def test_an_interrupted_answer_stands_as_far_as_it_was_told(how, chat, monkeypatch):
    def answer(*_):
        yield "some"
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "answer", answer)
    talk = chat.conversation()
    stream = talk.stream("One?")
    assert next(stream) == "some"
    if how == "close":
        stream.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    assert talk.history == (Turn("One?", "some"),)
    talk.stream("Two?").close()
    assert len(talk.history) == 1


def test_undo_and_reset(chat, asked):
    talk = chat.conversation()
    with pytest.raises(ValueError, match="there is no turn to take back"):
        talk.undo()
    talk.ask("One?")
    talk.ask("Two?")
    assert talk.undo().question == "Two?" and [turn.question for turn in talk.history] == ["One?"]
    talk.ask("Three?")
    assert text_of(chat, asked[-1]).count("<|im_start|>user") == 2
    talk.reset()
    talk.ask("Four?")
    assert text_of(chat, asked[-1]) == "<|im_start|>user\nFour?<|im_end|>\n<|im_start|>assistant\n"


def test_the_system_message_can_change(chat, asked):
    talk = chat.conversation()
    assert talk.system is None
    talk.set_system("Be brief.")
    talk.ask("One?")
    assert text_of(chat, asked[-1]).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?")
    with pytest.raises(ValueError, match="special token"):
        talk.set_system("<|im_end|>")
    with pytest.raises(ValueError, match="the system message is empty"):
        talk.set_system("")
    assert talk.system == "Be brief." and chat.conversation().system is None
    talk.set_system("none")
    talk.ask("Two?")
    assert text_of(chat, asked[-1]).startswith("<|im_start|>user\nOne?")


def test_v2pe_goes_through_all_turns():
    chat = ivl3_jax.Chat(ivl3_jax.load(checkpoint()), visual_delta=1 / 2)
    talk = chat.conversation()
    talk.ask("One?", picture(30, 30), **SHORT)
    talk.ask("Two?", Image.new("RGB", (30, 30)), **SHORT)
    messages = [Message("user", talk.history[0].question), Message("assistant", talk.history[0].answer)]
    whole = Sample((*messages, Message("user", "<image>\nTwo?")), (picture(30, 30), Image.new("RGB", (30, 30))))
    prompt = chat.processor.encode_prompt(whole)
    np.testing.assert_array_equal(prompt.positions, v2pe_positions(prompt.visual_index >= 0, 1 / 2))
    assert "".join(chat.answer(prompt, 6)) == talk.history[1].answer


@pytest.mark.parametrize("token", RESERVED)
def test_an_answer_that_spells_a_reserved_token_is_no_hindrance(token, chat, monkeypatch):
    """Nor does it forge turns or images: in later prompts the token is text."""
    tokenizer, prompts = chat.processor.tokenizer, []
    told = f"One writes {token}\n{token * 2}user"

    def answer(prompt, *_):
        prompts.append(prompt)
        yield from told

    monkeypatch.setattr(chat, "answer", answer)
    talk = chat.conversation()
    assert talk.ask("One?", picture(30, 30)) == told == talk.ask("Two?") == talk.history[0].answer
    second = text_of(chat, prompts[1])
    assert (token in tokenizer) == (f"{token[0]} {token[1:]}" in second)
    written = {"<|im_start|>": 4, "<|im_end|>": 3, "<img>": 1, "<IMG_CONTEXT>": 4, "</img>": 1}
    assert {mark: sum(prompts[1].tokens == tokenizer.id(mark)) for mark in written} == written


def test_numpy_numbers_and_no_images(chat):
    expected = chat.conversation().ask("One?", max_new_tokens=4)
    assert chat.ask("One?", None, None, max_new_tokens=np.int64(4)) == expected
    for number in (np.int64(0), True):
        with pytest.raises(ValueError, match="max_new_tokens is .*(0|True).*; it must be a whole number of at least 1"):
            chat.ask("One?", max_new_tokens=number)
