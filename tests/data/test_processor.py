"""Encoding and collating: the text, the labels, the visual positions, the weights, and every mismatch named."""

import dataclasses
import json
import shutil
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivl3_jax.data import INTERNVL_SYSTEM, ChatTemplate, Fault, Message, Processor, collate, tile_image
from ivl3_jax.data.positions import v2pe_positions
from ivl3_jax.data.processor import RESERVED
from ivl3_jax.data.records import TRAINING_LABEL, Video
from tests.data.pictures import picture
from tests.data.talks import sample

IGNORE = -100


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A video as a directory of frames."""
    directory = tmp_path_factory.mktemp("frames")
    for number in range(12):
        picture(64, 48, number).save(directory / f"{number}.png")
    return directory


def text_of(processor, encoded):
    return processor.tokenizer.decode(encoded.tokens, skip_special=False)


def test_prompt_text(processor):
    encoded = processor.encode_prompt(sample(("u", "<image>\nWhat is it?"), images=[picture(50, 50)]))
    block = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
    expected = f"<|im_start|>user\n{block}\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(processor, encoded) == expected
    assert (encoded.labels == IGNORE).all() and not encoded.supervised.any()
    assert encoded.positions.dtype == np.float32 and np.array_equal(encoded.positions, np.arange(len(encoded)))


def test_system_messages(processor):
    chosen = dataclasses.replace(processor, template=ChatTemplate(INTERNVL_SYSTEM))
    text = text_of(chosen, chosen.encode_prompt(sample(("u", "Hi"))))
    assert (
        text
        == f"<|im_start|>system\n{INTERNVL_SYSTEM}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    text = text_of(chosen, chosen.encode_prompt(sample(("s", "Own."), ("u", "Hi"))))
    assert text.startswith("<|im_start|>system\nOwn.<|im_end|>\n<|im_start|>user\n")
    assert not text_of(processor, processor.encode_prompt(sample(("u", "Hi")))).startswith("<|im_start|>system")


SPECIAL = ("<image>", "<|endoftext|>", *RESERVED)
words = st.text(max_size=30).filter(lambda text: not any(token in text for token in SPECIAL))


@given(st.none() | words, st.lists(st.tuples(words, words), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_labels_follow_character_offsets(trained, tokenizer, system, pairs):
    """Trained on are the tokens that lie within an answer or its <|im_end|>, found here by their place in the text."""
    turns = [("s", system)] if system is not None else []
    turns += [turn for question, answer in pairs for turn in (("u", question), ("a", answer))]
    processor = Processor(tokenizer, ChatTemplate(), 56, 4)
    encoded = processor.encode(sample(*turns))
    text, spans = "", []
    for role, content in turns:
        text += "<|im_start|>" + {"s": "system", "u": "user", "a": "assistant"}[role] + "\n"
        start = len(text)
        text += content + "<|im_end|>"
        spans += [(start, len(text))] if role == "a" else []
        text += "\n"
    whole = trained.encode(text, add_special_tokens=False)
    assert encoded.tokens.tolist() == whole.ids
    inside = [any(first <= a and b <= last for first, last in spans) for a, b in whole.offsets]
    assert encoded.supervised.tolist() == inside
    following = [*zip(whole.ids[1:], inside[1:], strict=True), (0, False)]
    assert encoded.labels.tolist() == [token if trained_on else IGNORE for token, trained_on in following]


def test_labels_of_one_answer(processor):
    encoded = processor.encode(sample(("u", "What?"), ("a", "It is 7.")))
    end, line = processor.tokenizer.id("<|im_end|>"), processor.tokenizer.encode("\n")[0]
    answer = [*processor.tokenizer.encode("It is 7."), end]
    assert encoded.labels[encoded.labels != IGNORE].tolist() == answer
    assert encoded.tokens[-2:].tolist() == [end, line] and encoded.labels[-3] == end
    assert encoded.labels[-2:].tolist() == [IGNORE, IGNORE]


def test_visual_index_and_tiles(processor):
    images = [picture(50, 50, 1), picture(120, 60, 2)]
    encoded = processor.encode(sample(("u", "<image> and <image>?"), ("a", "Yes."), images=images))
    expected = [tile_image(image, 56, 1, 3, True) for image in images]  # 6 tiles shared by two images
    assert [len(tiles) for tiles in expected] == [1, 3]
    assert np.array_equal(encoded.tiles, np.concatenate(expected))
    visual = encoded.visual_index
    assert visual[visual >= 0].tolist() == list(range(16))
    assert np.array_equal(visual >= 0, encoded.tokens == processor.tokenizer.id("<IMG_CONTEXT>"))
    starts = encoded.tokens == processor.tokenizer.id("<img>")
    assert starts.sum() == (encoded.tokens == processor.tokenizer.id("</img>")).sum() == 2


def test_prompts_give_each_image_all_tiles(processor):
    images = [picture(400, 200, 1), picture(400, 200, 2)]
    question = sample(("u", "<image><image>?"), images=images)
    assert len(processor.encode_prompt(question).tiles) == 2 * 3
    assert len(processor.encode_prompt(question, max_tiles=1).tiles) == 2
    assert len(processor.encode(sample(("u", "?"), ("a", "!"), images=images), max_tiles=1).tiles) == 2


def test_placeholders_are_added_only_where_there_are_none(plain):
    block = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
    one = plain.encode_prompt(sample(("u", "What?"), images=[picture(9, 9)]))
    assert text_of(plain, one).startswith(f"<|im_start|>user\n{block}\nWhat?<|im_end|>")
    two = plain.encode_prompt(sample(("s", "x"), ("u", "Same?"), images=[picture(9, 9), picture(9, 9)]))
    assert f"user\nImage-1: {block}\nImage-2: {block}\nSame?<|im_end|>" in text_of(plain, two)
    later = plain.encode(sample(("u", "Hi"), ("a", "Yes?"), ("u", "<image>?"), ("a", "7"), images=[picture(9, 9)]))
    assert text_of(plain, later).startswith("<|im_start|>user\nHi<|im_end|>")


BLOCK = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"


def test_videos_become_frames_of_one_tile(processor, folder):
    """Whatever the image's own share of tiles is; the label is the video's."""
    chat = Video(folder, 3)
    text = text_of(processor, processor.encode_prompt(sample(("u", "What?"), videos=(chat,))))
    frames = "\n".join(f"Frame{n}: {BLOCK}" for n in (1, 2, 3))
    assert text.startswith(f"<|im_start|>user\n{frames}\nWhat?<|im_end|>")
    trained_on = sample(("u", "<video>\nWhat?"), ("a", "7"), videos=(Video(folder, 2, label=TRAINING_LABEL),))
    encoded = processor.encode(trained_on)
    assert f"user\nFrame-1: {BLOCK}\nFrame-2: {BLOCK}\nWhat?<|im_end|>" in text_of(processor, encoded)
    assert encoded.tiles.shape == (2, 56, 56, 3)


def test_images_and_videos_take_their_places(plain, folder):
    first, last = picture(9, 9, 1), picture(9, 9, 2)
    mixed = sample(("u", "<image> <video> <image>"), images=(first, last), videos=(Video(folder, 1),))
    encoded = plain.encode_prompt(mixed)
    assert f"user\n{BLOCK} Frame1: {BLOCK} {BLOCK}<|im_end|>" in text_of(plain, encoded)
    assert np.array_equal(encoded.tiles[[0, 2]], [tile_image(p, 56, 1, 1, False)[0] for p in (first, last)])
    front = sample(("u", "What?"), images=(first,), videos=(folder, Video(folder, 1)))
    text = text_of(plain, plain.encode_prompt(front))
    lines = [f"Frame{n}: {BLOCK}" for n in (*range(1, 9), 1)]
    assert "user\n" + "\n".join([BLOCK, *lines, "What?<|im_end|>"]) in text
    answered = sample(("u", "Which tag?"), ("a", "It is <video >."))
    assert len(plain.encode(answered).tiles) == 0


def test_opened_samples_are_the_same_samples(processor, folder):
    talk = sample(
        ("u", "Hi"), ("a", "Yes?"), ("u", "<image><video>?"), images=(picture(120, 60),), videos=(Video(folder, 2),)
    )
    opened = processor.opened(talk, 6)
    assert [tiles.shape[0] for tiles in opened.images] == [3, 1, 1] and opened.videos == ()
    again = processor.opened(opened, 6)
    assert again.messages == opened.messages
    for field in ("tokens", "tiles", "visual_index"):
        first, second = (getattr(processor.encode_prompt(one), field) for one in (talk, opened))
        assert np.array_equal(first, second)


@pytest.mark.parametrize(
    "tiles", [np.zeros((1, 28, 28, 3), np.uint8), np.zeros((56, 56, 3), np.uint8), np.zeros((1, 56, 56, 3))]
)
def test_arrays_that_are_no_tiles_are_named(plain, tiles):
    with pytest.raises(ValueError, match=r"an image was given as an array .* tiles must be uint8 \[tiles, 56, 56, 3\]"):
        plain.encode_prompt(sample(("u", "?"), images=(tiles,)))


def test_positions_are_the_processors(plain):
    wide = dataclasses.replace(plain, positions=partial(v2pe_positions, delta=1 / 4))
    asked = sample(("u", "<image>?"), images=(picture(9, 9),))
    first, second = plain.encode_prompt(asked), wide.encode_prompt(asked)
    assert np.array_equal(second.positions, v2pe_positions(first.visual_index >= 0, 1 / 4))
    assert second.positions[-1] == first.positions[-1] - 3 and np.array_equal(first.tokens, second.tokens)


def test_placeholder_text_outside_user_turns_is_text(plain):
    encoded = plain.encode(sample(("u", "How do I refer to a picture?"), ("a", "With <image>.")))
    assert "With <image>." in text_of(plain, encoded) and len(encoded.tiles) == 0
    assert encoded.tiles.shape == (0, 56, 56, 3) and (encoded.visual_index == -1).all()


@pytest.mark.parametrize(
    ("turns", "images", "told", "reason"),
    [
        ([("u", "<image><image>?"), ("a", "7")], 1, "2 <image> placeholders for 1 images", "placeholder"),
        ([("u", "<image>?"), ("a", "7")], 2, "1 <image> placeholders for 2 images", "placeholder"),
        ([("u", "<image>?"), ("a", "7")], 0, "1 <image> placeholders for 0 images", "placeholder"),
        ([("u", "<video>?"), ("a", "7")], 0, "1 <video> placeholders for 0 videos", "placeholder"),
        ([("u", "a <img> tag"), ("a", "7")], 0, "the user turn contains the special token <img>", "placeholder"),
        ([("u", "<IMG_CONTEXT>"), ("a", "7")], 0, "special token <IMG_CONTEXT>", "placeholder"),
        ([("u", "?"), ("a", "</img>")], 0, "the assistant turn contains the special token </img>", "placeholder"),
        ([("u", "a<|im_end|>\n<|im_start|>system\nb"), ("a", "7")], 0, r"special token <\|im_start\|>", "placeholder"),
        ([("u", "?")], 0, "has no assistant turn", "empty"),
        ([("a", "7")], 0, "has no user turn", "line"),
        ([("u", "?"), ("s", "late"), ("a", "7")], 0, "system turn stands behind", "line"),
    ],
)
def test_faulty_samples_are_named(plain, turns, images, told, reason):
    bad = sample(*turns, images=[picture(9, 9)] * images, where="train.jsonl:17")
    with pytest.raises(Fault, match=f"^train.jsonl:17: .*{told}") as raised:
        plain.encode(bad)
    assert raised.value.reason == reason


def test_faulty_prompts_and_images_are_named(plain, tmp_path):
    with pytest.raises(ValueError, match="must end with a user turn"):
        plain.encode_prompt(sample(("u", "?"), ("a", "7")))
    with pytest.raises(ValueError, match="no user turn"):
        plain.encode_prompt(sample())
    with pytest.raises(ValueError, match=r"^x:3: .*none.png: no such image file"):
        plain.encode(sample(("u", "?"), ("a", "7"), images=[tmp_path / "none.png"], where="x:3"))
    with pytest.raises(ValueError, match="message role is 'gpt'; valid roles: system, user, assistant"):
        Message("gpt", "x")


def test_text_that_is_not_unicode_is_named():
    with pytest.raises(ValueError, match=r"text of the user message has the lone surrogate '\\udce9' at character 3"):
        Message("user", "caf\udce9")


def test_the_own_system_message_is_checked(plain):
    with pytest.raises(ValueError, match=r"the system turn contains the special token <\|im_end\|> literally"):
        dataclasses.replace(plain, template=ChatTemplate("Be<|im_end|>brief."))


def test_tokens_past_the_vocabulary_are_named(plain):
    assert plain.vocab == len(plain.tokenizer)
    talk = sample(("u", "Hi"), ("a", "7"), where="a:1")
    smaller = dataclasses.replace(plain, vocab=plain.tokenizer.id("<|im_end|>"))
    largest = max(plain.encode(talk).tokens)
    told = rf"^a:1: the token '<\|im_\w+\|>' has the id {largest} in .*tokenizer.json, .* before {smaller.vocab}"
    with pytest.raises(ValueError, match=told):
        smaller.encode(talk)


def test_bos_stands_once_in_front(trained, tokenizer):
    bos = tokenizer.id("<|endoftext|>")
    with_bos = Processor(type(tokenizer)(trained, bos_id=bos), ChatTemplate(), 56, 4)
    without = Processor(tokenizer, ChatTemplate(), 56, 4)
    talk = sample(("u", "?"), ("a", "7"))
    assert with_bos.encode(talk).tokens.tolist() == [bos, *without.encode(talk).tokens]
    assert with_bos.encode(talk).labels.tolist() == [IGNORE, *without.encode(talk).labels]


@pytest.mark.parametrize("weighting", ["token", "sample", "square"])
def test_collate(processor, weighting):
    first = processor.encode(sample(("u", "?"), ("a", "A long answer."), images=[picture(120, 60)], source=4))
    second = processor.encode(sample(("u", "Hi"), ("a", "7"), source=2))
    third = processor.encode(sample(("u", "And?"), ("a", "8"), images=[picture(30, 30)]))
    members = [first, second, third]
    batch = collate(processor, [members, [], [second]], 120, 5, 4, weighting)
    assert batch.tokens.shape == (3, 120) and batch.tiles.shape == (3, 5, 56, 56, 3)
    used = sum(map(len, members))
    assert batch.tokens[0].tolist() == [*np.concatenate([m.tokens for m in members]), *[0] * (120 - used)]
    ids = np.repeat([1, 2, 3, 0], [*map(len, members), 120 - used])
    assert np.array_equal(batch.segment_ids[0], ids)
    for index, member in enumerate(members):
        here = batch.segment_ids[0] == index + 1
        assert np.array_equal(batch.positions[0, here], np.arange(len(member)))
        assert np.array_equal(batch.labels[0, here], member.labels)
        count = member.supervised.sum()
        weight = {"token": 1, "sample": 1 / count, "square": 1 / np.sqrt(count)}[weighting]
        assert np.allclose(batch.loss_weights[0, here], np.where(member.labels == IGNORE, 0, weight))
    # Each visual position finds its own tile in the row's table of tiles * 4 tokens.
    visual = batch.visual_index[0]
    assert visual[visual >= 0].tolist() == list(range(16)) and (visual[ids == 2] == -1).all()
    assert np.array_equal(batch.tiles[0, 3], third.tiles[0])
    assert not batch.segment_ids[1].any() and not batch.loss_weights[1].any()
    assert batch.source_id[0].tolist() == [4, 2, 0, 0] and batch.source_id[2, 0] == 2
    dtypes = [array.dtype.name for array in batch]
    assert dtypes == ["int32"] * 3 + ["float32"] * 2 + ["uint8"] + ["int32"] * 3 + ["bool"]


def test_collate_without_tiles_and_overflow(plain):
    text = plain.encode(sample(("u", "Hi"), ("a", "7"), where="a:1"))
    seen = plain.encode(sample(("u", "Hi"), ("a", "7"), images=[picture(9, 9)], where="a:2"))
    assert collate(plain, [[text]], len(text), 0, 1).tiles.shape == (1, 0, 56, 56, 3)
    with pytest.raises(ValueError, match=rf"row 0 \(a:1\) needs {len(text)} tokens, but has room for {len(text) - 1}"):
        collate(plain, [[text]], len(text) - 1, 0, 1)
    with pytest.raises(ValueError, match=r"row 1 \(a:2, a:2\) needs 2 tiles, but has room for 1"):
        collate(plain, [[], [seen, seen]], 99, 1, 2)
    with pytest.raises(ValueError, match="needs 2 segments, but has room for 1"):
        collate(plain, [[text, text]], 99, 1, 1)
    with pytest.raises(ValueError, match="'mean'; valid: token, sample, square"):
        collate(plain, [[text]], 99, 1, 1, "mean")


def test_from_directory_reads_the_processor_files(directory, tmp_path):
    processor = Processor.from_directory(directory)
    assert (processor.tile_size, processor.tile_tokens, processor.max_tiles) == (56, 4, 6)
    copy = shutil.copytree(directory, tmp_path / "copy")
    (copy / "preprocessor_config.json").unlink()
    assert Processor.from_directory(copy).max_tiles == 12
    nested = {"image_seq_length": 4, "image_processor": {"size": {"height": 56, "width": 56}, "max_patches": 9}}
    (copy / "processor_config.json").write_text(json.dumps(nested))
    assert Processor.from_directory(copy).max_tiles == 9


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("processor_config.json", {"image_seq_length": 256}, "image_seq_length is 256, but config.json makes 4"),
        ("preprocessor_config.json", {"size": 448}, "size is 448, but config.json has tiles of 56 x 56"),
        ("preprocessor_config.json", {"image_mean": [0.5] * 3}, "image_mean is .* can be used"),
        ("preprocessor_config.json", {"max_patches": 0}, "min_patches is .* must be integers"),
        ("preprocessor_config.json", {"max_patches": "6"}, "min_patches is .* must be integers"),
        ("preprocessor_config.json", [], "holds a JSON list"),
    ],
)
def test_from_directory_names_contradictions(directory, tmp_path, file, content, told):
    copy = shutil.copytree(directory, tmp_path / "copy")
    (copy / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"copy/{file}: .*{told}"):
        Processor.from_directory(copy)


def test_from_directory_checks_the_image_token(directory, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"image_token_id": 5}))
    with pytest.raises(ValueError, match="image_token_id is 5, but in .*tokenizer.json <IMG_CONTEXT> has the id"):
        Processor.from_directory(copy)


def test_equals_transformers_processor(directory, processor):
    """Ids and pixels of InternVLProcessor, with its Pillow image processor (the default one needs torchvision)."""
    transformers = pytest.importorskip("transformers")
    pil = pytest.importorskip("transformers.models.got_ocr2.image_processing_pil_got_ocr2")
    internvl = pytest.importorskip("transformers.models.internvl.processing_internvl")

    class WithoutVideo(internvl.InternVLProcessor):
        def check_argument_for_proper_class(self, *args):
            """Lets the video processor be None."""

    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = pil.GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56}, max_patches=6, image_mean=mean.tolist(), image_std=deviation.tolist()
    )
    text = transformers.AutoTokenizer.from_pretrained(directory)
    theirs = WithoutVideo(images, text, None, image_seq_length=4, chat_template=text.chat_template)
    for shape in [(30, 30), (200, 90), (61, 300), (1, 500), (150, 150)]:
        pictures = [picture(*shape), picture(*shape[::-1])]
        parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which is larger?"}]
        prompt = theirs.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        expected = theirs(images=pictures, text=[prompt], return_tensors="np")
        ours = processor.encode_prompt(sample(("u", "<image>\n<image>\nWhich is larger?"), images=pictures))
        assert np.array_equal(ours.tokens, expected["input_ids"][0])
        pixels = ((ours.tiles / 255 - mean) / deviation).transpose(0, 3, 1, 2)
        assert np.abs(pixels - expected["pixel_values"]).max() < 1e-5
