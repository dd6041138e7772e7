"""Questions and answers as text, in Python and on the command line."""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

import ivl3_jax
from ivl3_jax.cli.main import main
from ivl3_jax.data.images import tile_image
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.records import Video
from ivl3_jax.data.template import INTERNVL_SYSTEM, ChatTemplate
from ivl3_jax.data.video import sample_frames
from ivl3_jax.inference.request import Said
from ivl3_jax.inference.sampling import Sampling
from ivl3_jax.sharding.plan import ShardingPlan
from tests.data.pictures import write_video
from tests.models.small import checkpoint


@pytest.fixture(scope="module")
def chat():
    return ivl3_jax.Chat(ivl3_jax.load(checkpoint()))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The same checkpoint in the original layout."""
    directory = tmp_path_factory.mktemp("original") / "ck"
    ivl3_jax.save(ivl3_jax.load(checkpoint()), directory, layout="original")
    return directory


def tiles(frame):
    return tile_image(frame, 28, 1, 1, False)


@pytest.fixture
def answering(chat, monkeypatch):
    """A function that makes the model answer with given tokens."""

    def fix(tokens):
        def stream(request):
            return (Said(0, token) for token in itertools.takewhile(lambda token: token not in request.stop, tokens))

        monkeypatch.setattr(chat.engine, "stream", stream)

    return fix


def test_answers_are_pieces_of_one_text(chat, picture):
    pieces = list(chat.stream("How many?", [picture], max_new_tokens=12))
    assert "".join(pieces) == chat.ask("How many?", [picture], max_new_tokens=12) != ""
    assert chat.ask("How many?", [Image.open(picture)], max_new_tokens=12) == "".join(pieces)
    assert chat.ask("How many?", max_new_tokens=12) != "".join(pieces)


def test_sampling_follows_the_seed(chat):
    first, again, other = (chat.ask("Who?", max_new_tokens=12, sampling=Sampling(3.0, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_an_answer_ends_at_the_end_token(chat, answering):
    tokenizer = chat.processor.tokenizer
    answering([*tokenizer.encode("three"), tokenizer.id("<|im_end|>"), *tokenizer.encode("more")])
    assert chat.ask("How many?") == "three"


def test_characters_of_several_bytes_come_whole(chat, answering):
    text = "zwölf 🙂 位 ok"
    tokens = chat.processor.tokenizer.encode(text)
    assert len(tokens) > len(text) / 2
    answering(tokens)
    pieces = list(chat.stream("How many?"))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces) and {"🙂", "位"} <= {piece.strip() for piece in pieces}


def test_a_character_cut_off_by_the_limit_is_shown_as_such(chat, answering):
    tokens = chat.processor.tokenizer.encode("ok 🙂")
    answering(tokens[:-1])
    assert chat.ask("How many?").startswith("ok") and chat.ask("How many?").endswith("\ufffd")


def test_pieces_are_never_empty_nor_decoded_from_the_beginning(chat, answering, monkeypatch):
    tokenizer = chat.processor.tokenizer
    text = "one two 🙂 three 位 " * 20
    tokens = [tokenizer.id("<img>"), *tokenizer.encode(text)]
    answering(tokens)
    seen, decode = [], tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: seen.append(len(ids)) or decode(ids))
    pieces = list(chat.stream("How many?"))
    assert "".join(pieces) == text and all(pieces)
    assert max(seen) < 16 < len(tokens)


def test_a_leading_space_is_kept_where_the_decoder_drops_the_first(chat, answering, monkeypatch):
    """As SentencePiece's decoders do."""
    words = ["▁one", "▁two", "s", "", "▁three"]
    answering(range(len(words)))

    def decode(ids):
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    monkeypatch.setattr(chat.processor.tokenizer, "decode", decode)
    monkeypatch.setattr(chat.processor.tokenizer, "eos_ids", ())
    assert list(chat.stream("How many?")) == ["one", " two", "s", " three"]


def test_one_image_needs_no_list(chat, picture):
    expected = chat.ask("How many?", [picture], max_new_tokens=4)
    for image in (picture, str(picture), Image.open(picture)):
        assert chat.ask("How many?", image, max_new_tokens=4) == expected


@pytest.mark.parametrize(
    ("question", "tokens", "message"),
    [
        (None, 8, "the question is of type NoneType; it must be a str"),
        (b"Who?", 8, "the question is of type bytes"),
        ("Who?", 0, "max_new_tokens is 0; it must be a whole number of at least 1"),
        ("Who?", 2.5, "max_new_tokens is 2.5; it must be"),
        ("Who?", True, "max_new_tokens is True; it must be"),
        ("caf\udce9", 8, "text of the user message has the lone surrogate"),
    ],
)
def test_arguments_of_other_types_are_refused(question, tokens, message, chat):
    with pytest.raises(ValueError, match=message):
        chat.ask(question, max_new_tokens=tokens)


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_alone_is_refused(question, chat):
    with pytest.raises(ValueError, match="the question is empty and there is no image"):
        chat.ask(question)


def test_images_that_do_not_fit(chat, picture, tmp_path):
    with pytest.raises(ValueError, match="2 <image> placeholders for 1 images"):
        chat.ask("<image> and <image>?", [picture])
    with pytest.raises(ValueError, match="1 <image> placeholders for 0 images"):
        chat.ask("What is in <image>?")
    with pytest.raises((ValueError, OSError), match=r"no\.png"):
        chat.ask("What?", [tmp_path / "no.png"])
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"text\.png"):
        chat.ask("What?", [tmp_path / "text.png"])


def test_too_long(chat):
    with pytest.raises(ValueError, match="together they pass the 512 that the model takes"):
        chat.ask("Why? " * 20, max_new_tokens=480)


def test_where_the_processor_comes_from(chat):
    model = ivl3_jax.load(checkpoint())
    with pytest.raises(ValueError, match="give the processor that belongs to it"):
        ivl3_jax.Chat(dataclasses.replace(model, source=None))
    with pytest.raises(ValueError, match="system message"):
        ivl3_jax.Chat(model, processor=chat.processor, system="Be brief.")
    spoken = ivl3_jax.Chat(model, system="Be brief.")
    assert spoken.ask("Who?", max_new_tokens=8) != chat.ask("Who?", max_new_tokens=8)


def test_videos_are_frames_with_a_label_each(chat, tmp_path):
    clip = write_video(tmp_path / "clip.mp4", 12)
    frames = sample_frames(clip, lambda count, fps: [2, 8], lambda frame: frame)
    asked = {"question": "How many?", "max_new_tokens": 6}
    by_hand = chat.ask("Frame1: <image>\nFrame2: <image>\nHow many?", [tiles(f) for f in frames], max_new_tokens=6)
    assert chat.ask(**asked, videos=Video(clip, 2)) == chat.ask(**asked, videos=[Video(clip, 2)]) == by_hand
    assert chat.ask(**asked, videos=clip) == chat.ask(**asked, videos=Video(clip, 8)) != by_hand


def test_system_messages(chat, original):
    """By default what the published code of the layout does."""
    own = ChatTemplate("Be brief.")
    for directory, published in ((checkpoint(), None), (original, INTERNVL_SYSTEM)):
        model = ivl3_jax.load(directory)
        assert ivl3_jax.Chat(model).processor.template.system == published
        for chosen, expected in (
            ("published", published),
            ("internvl", INTERNVL_SYSTEM),
            ("none", None),
            (None, None),
            ("Be brief.", "Be brief."),
        ):
            asked = ivl3_jax.Chat(model, system=chosen)
            assert asked.processor.template.system == expected
    with_own = dataclasses.replace(chat.processor, template=own)
    talk = ivl3_jax.Chat(model, processor=with_own).conversation()
    talk.set_system("none")
    assert talk.system is None
    talk.set_system("published")
    assert talk.system == "Be brief."


def test_training_adds_no_system_message(original):
    assert Processor.from_directory(original).template.system is None


def test_v2pe(chat, picture):
    model = ivl3_jax.load(checkpoint())
    asked = {"question": "How many?", "images": [picture], "max_new_tokens": 12}
    assert ivl3_jax.Chat(model, visual_delta=1).ask(**asked) == chat.ask(**asked)
    smaller = ivl3_jax.Chat(model, visual_delta=np.float32(1 / 16))
    assert smaller.ask(**asked) != chat.ask(**asked)
    assert not smaller.engine.config.decoder.rope_scaling.applied
    with pytest.raises(ValueError, match="the visual delta is 0.001; it must be a number from 1/256 to 1"):
        ivl3_jax.Chat(model, visual_delta=0.001)


def test_with_v2pe_more_images_fit(chat, picture):
    """The limit is one of positions: 26 images of 5 tiles have 520 visual tokens."""
    with pytest.raises(ValueError, match="the prompt takes .* positions"):
        chat.ask("How many?", [picture] * 26, max_new_tokens=2)
    small = ivl3_jax.Chat(ivl3_jax.load(checkpoint()), visual_delta=1 / 256)
    assert isinstance(small.ask("<image>" * 26 + "How many?", [picture] * 26, max_new_tokens=2), str)


def test_the_command_takes_videos_and_modes(chat, picture, tmp_path, capsys):
    clip = write_video(tmp_path / "clip.mp4", 12)
    options = ["--max-new-tokens", "12"]
    assert main(["chat", str(checkpoint()), str(clip), str(picture), "Who?", "--frames", "3", *options]) == 0
    told = chat.ask("Who?", [picture], Video(clip, 3), max_new_tokens=12)
    assert capsys.readouterr().out == told + "\n"
    modes = ["--system", "internvl", "--visual_delta=1/4", "--no-dynamic-ntk"]
    assert main(["chat", str(checkpoint()), str(picture), "Who?", *modes, *options]) == 0
    changed = ivl3_jax.Chat(ivl3_jax.load(checkpoint()), system="internvl", visual_delta=0.25)
    assert capsys.readouterr().out == changed.ask("Who?", [picture], max_new_tokens=12) + "\n"


def test_the_command_takes_plans_and_eight_bits(capsys):
    plan, penalty = ["--plan", "fsdp_tensor", "--mesh", "{tensor: 2}"], ["--repetition-penalty", "1.5"]
    options = ["--max-new-tokens", "12", "--int8", "weights", "--int8", "cache"]
    assert main(["chat", str(checkpoint()), "Who?", *options, *plan, *penalty]) == 0
    model = ivl3_jax.load(checkpoint(), plan=ShardingPlan.read("fsdp_tensor", {"tensor": 2}))
    chat = ivl3_jax.Chat(model, int8=("weights", "cache"))
    told = chat.ask("Who?", max_new_tokens=12, sampling=Sampling(repetition_penalty=1.5))
    assert capsys.readouterr().out == told + "\n"


def test_the_command_answers(chat, picture, capsys):
    for option in ("--max-new-tokens", "--max_new_tokens"):
        assert main(["chat", str(checkpoint()), str(picture), "How many?", option, "12"]) == 0
        assert capsys.readouterr().out == chat.ask("How many?", [picture], max_new_tokens=12) + "\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "a directory and a question are needed"),
        (["DIR"], 2, "the question is missing: there is only the directory; with --interactive,"),
        (
            ["DIR", "no.png", "What?"],
            2,
            "there is no image file or video 'no.png'; the order is: ivl3 chat DIR",
        ),
        (["DIR", "PICTURE"], 2, "the question is missing"),
        (["DIR", "What?", "--temprature", "1"], 2, "unrecognized arguments: --temprature"),
        (["DIR", "What?", "--temperature", "warm"], 2, "invalid float value: 'warm'"),
        (["DIR", "What?", "--top-p", "2"], 1, "top_p is 2.0; it must be above 0 and at most 1"),
        (["DIR", "What?", "--max-new-tokens", "0"], 1, "max_new_tokens is 0; it must be a whole number of at least 1"),
        (["PICTURE", "What?"], 1, "a.png is not a directory; a checkpoint is one"),
        (["nowhere", "What?"], 1, "there is no directory nowhere"),
        (["DIR", "<image>?"], 1, "1 <image> placeholders for 0 images"),
        (["DIR", ""], 1, "the question is empty and there is no image"),
        (["DIR", "What?", "--clip", "1", "2"], 2, "--clip is given, but no video"),
        (["DIR", "PICTURE", "What?", "--clip", "1"], 2, "argument --clip: expected 2 arguments"),
        (["DIR", "VIDEO", "What?", "--clip", "2", "1"], 1, "the clip is 2 to 1 s; it must begin at 0 or later and"),
        (["DIR", "VIDEO", "What?", "--clip", "9", "10"], 1, "the clip begins at 9 s, but the video ends after 1.2 s"),
        (
            ["DIR", "VIDEO", "What?", "--frames", "0"],
            1,
            "the number of frames is 0; it must be a whole number",
        ),
        (["DIR", "EMPTY", "What?"], 1, "the directory has no frames; valid are files that end in .jpg"),
        (["DIR", "What?", "--mesh", "tensor=2"], 2, "argument --mesh: 'tensor=2' is no mesh such as '{tensor: 4}'"),
        (["DIR", "What?", "--int8", "keys"], 2, "argument --int8: invalid choice: 'keys'"),
        (["DIR", "What?", "--plan", "none"], 1, "no sharding plan 'none'; shipped: context"),
        (["DIR", "What?", "--visual-delta", "2"], 1, "the visual delta is 2.0; it must be a number from 1/256 to 1"),
        (["DIR", "What?", "--system", " "], 1, "the system message is empty; 'none' leaves it out"),
        (["DIR", "Why? " * 200], 1, "together they pass the 512 that the model takes"),
    ],
)
def test_the_command_complains_in_one_line(arguments, code, message, picture, tmp_path, capsys):
    known = {"DIR": str(checkpoint()), "PICTURE": str(picture), "EMPTY": str(tmp_path)}
    if "VIDEO" in arguments:
        known["VIDEO"] = str(write_video(tmp_path / "clip.mp4", 12))
    assert main(["chat", *(known.get(argument, argument) for argument in arguments)]) == code
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert [line for line in error.splitlines() if line.startswith("ivl3: error: ")] == error.splitlines()[-1:]
