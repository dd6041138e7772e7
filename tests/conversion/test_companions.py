"""A checkpoint that only ever was in the original layout, opened by transformers after its conversion."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ivl3_jax
from ivl3_jax.batch import empty_batch
from ivl3_jax.config import IMAGE_MEAN, IMAGE_STD
from ivl3_jax.conversion.convert import convert
from ivl3_jax.data import ChatTemplate, Message, Processor, Tokenizer, collate
from ivl3_jax.data.records import Sample
from ivl3_jax.data.tokenizer_training import SPECIALS
from ivl3_jax.hf_config import read_config, to_hf
from ivl3_jax.inference.engine import Engine
from ivl3_jax.original_config import to_original
from tests.conversion.checkpoints import small_config
from tests.models.small import relative
from tests.parity.reference import tiny
from tests.tolerances import STACK


@pytest.fixture(scope="module")
def published(transformers, tmp_path_factory):
    """Weights, config and tokenizer as the authors publish them: slow tokenizer files, CLIP's preprocessor."""
    directory = tmp_path_factory.mktemp("published") / "original"
    convert(tiny(), directory, layout="original")
    for file in directory.iterdir():
        if file.name not in ("config.json", "model.safetensors", "tokenizer.json"):
            file.unlink()
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in tokenizer["model"]["merges"]]
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    assert added.keys() == set(SPECIALS)
    (directory / "added_tokens.json").write_text(json.dumps(added))
    decoder = {str(number): {"content": token, "special": True} for token, number in added.items()}
    settings = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": decoder, "chat_template": "{{ none }}"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "<|endoftext|>"}))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": added["<|endoftext|>"]}))
    (directory / "preprocessor_config.json").write_text(
        json.dumps({"feature_extractor_type": "CLIPFeatureExtractor", "crop_size": 56, "size": 56, "do_resize": True})
    )
    fields = json.loads((directory / "config.json").read_text()) | {"max_dynamic_patch": 5}
    del fields["img_context_token_id"]
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


@pytest.fixture(scope="module")
def converted(published):
    convert(published, published.parent / "hf", layout="hf")
    return published.parent / "hf"


def open_processor(transformers, directory):
    """InternVLProcessor without its video part, which needs torchvision."""
    module = pytest.importorskip("transformers.models.internvl.processing_internvl")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    images = transformers.AutoImageProcessor.from_pretrained(directory, backend="pil")

    class WithoutVideo(module.InternVLProcessor):
        def check_argument_for_proper_class(self, *arguments, **named):
            return None

    length = json.loads((directory / "processor_config.json").read_text())["image_seq_length"]
    return WithoutVideo(images, tokenizer, None, image_seq_length=length, chat_template=tokenizer.chat_template)


def test_the_processor_opens_and_agrees(transformers, published, converted):
    theirs = open_processor(transformers, converted)
    conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many digits?"}]}]
    text = theirs.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    assert text == ChatTemplate().prompt([Message("user", "<IMG_CONTEXT>\nHow many digits?")])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 150, 3), np.uint8))
    found = theirs(images=[image], text=[text], return_tensors="pt")
    for directory in (published, converted):
        ours = Processor.from_directory(directory)
        assert ours.max_tiles == 5
        encoded = ours.encode_prompt(Sample((Message("user", "How many digits?"),), (image,)))
        assert found["input_ids"][0].tolist() == encoded.tokens.tolist()
        assert len(found["pixel_values"]) == len(encoded.tiles) > 1


def test_the_model_opens_and_agrees(transformers, torch, published, converted):
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(converted).eval()
    tokenizer = Processor.from_directory(published).tokenizer
    assert set(theirs.generation_config.eos_token_id) == set(tokenizer.eos_ids)
    assert len(tokenizer.eos_ids) == 2
    config = read_config(published)
    assert config == read_config(converted)
    batch = empty_batch(1, 30, 0, 1, config.vision.image_size)
    batch.tokens[:], batch.segment_ids[:], batch.positions[:] = np.arange(30), 1, np.arange(30)
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(batch.tokens).long()).logits.numpy()
    assert relative(ivl3_jax.load(published, "float32")(batch), expected) < STACK["float32"]


@pytest.mark.parametrize("place", [("text_config",), ()], ids=["text_config", "top"])
@pytest.mark.parametrize("layout", ["hf", "original"])
def test_no_token_that_ends_an_answer_is_lost(transformers, layout, place, tmp_path):
    """Of a directory without generation_config.json."""
    source = tmp_path / "source"
    shutil.copytree(tiny(), source)
    (source / "generation_config.json").unlink()
    fields = json.loads((source / "config.json").read_text())
    inner = fields["text_config"] if place else fields
    inner |= {"bos_token_id": 3, "eos_token_id": [5, 6], "pad_token_id": 4}
    (source / "config.json").write_text(json.dumps(fields))
    expected = Tokenizer.from_directory(source).eos_ids
    assert {5, 6} < set(expected)
    convert(source, tmp_path / "out", layout=layout)
    assert Tokenizer.from_directory(tmp_path / "out").eos_ids == expected
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.eos_token_id, generation.bos_token_id, generation.pad_token_id) == (list(expected), 3, 4)


@pytest.mark.parametrize("write", [to_hf, to_original])
def test_ids_of_special_tokens_are_kept(write, tmp_path):
    """From either layout to either layout, where they stand; null is no id."""
    config = small_config()
    for fields, section in ((to_hf(config), "text_config"), (to_original(config), "llm_config")):
        fields |= {"eos_token_id": 9, "pad_token_id": None}
        fields[section] |= {"eos_token_id": [5, 6], "bos_token_id": 7}
        (tmp_path / "config.json").write_text(json.dumps(fields))
        found = write(config, tmp_path)
        inner = found["text_config" if write is to_hf else "llm_config"]
        assert (found["eos_token_id"], inner["eos_token_id"], inner["bos_token_id"]) == (9, [5, 6], 7)
        assert found.get("pad_token_id") is None


# transformers' complete processor asks for torchvision, which the package index has built for GPUs only: the two
# operators that its import misses are declared, and never called.
AUTO = """
import json, sys
import numpy as np, torch
missing = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    missing.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

directory, picture, question = sys.argv[1:]
processor = AutoProcessor.from_pretrained(directory)
content = [{"type": "image", "image": Image.open(picture)}, {"type": "text", "text": question}]
options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options)
model = AutoModelForImageTextToText.from_pretrained(directory).eval()
with torch.no_grad():
    logits = model(**inputs).logits
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)
found = {
    "classes": [type(x).__name__ for x in (processor, processor.image_processor, processor.video_processor, model)],
    "text": processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True),
    "ids": inputs["input_ids"][0].tolist(),
    "answer": processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True),
}
np.savez(picture + ".npz", pixels=inputs["pixel_values"].numpy(), logits=logits.numpy())
print(json.dumps(found))
"""


@pytest.mark.slow
def test_opens_in_auto_classes(torch, published, converted, tmp_path):
    """AutoProcessor and AutoModelForImageTextToText, nothing added: the same chat string, ids, logits and answer."""
    torchvision = Path(sys.prefix) / "torchvision"
    if not torchvision.is_dir():
        pytest.skip("torchvision is not beside this interpreter; `make test` puts it there")
    picture = tmp_path / "a.png"
    blocks = np.random.default_rng(0).integers(0, 256, (7, 15, 3), np.uint8)
    Image.fromarray(blocks.repeat(10, axis=0).repeat(10, axis=1)).save(picture)
    run = subprocess.run(
        [sys.executable, "-c", AUTO, str(converted), str(picture), "How many digits?"],
        env=os.environ | {"PYTHONPATH": str(torchvision)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["classes"] == [
        "InternVLProcessor",
        "GotOcr2ImageProcessor",
        "InternVLVideoProcessor",
        "InternVLForConditionalGeneration",
    ]
    assert found["text"] == ChatTemplate().prompt([Message("user", "<IMG_CONTEXT>\nHow many digits?")])
    theirs = np.load(f"{picture}.npz")
    processor = Processor.from_directory(published)
    encoded = processor.encode_prompt(Sample((Message("user", "How many digits?"),), (picture,)))
    assert encoded.tokens.tolist() == found["ids"]
    # torchvision resizes by its own arithmetic, Pillow, which the original code and we use, by another: both in bytes.
    tiles = np.rint((theirs["pixels"].transpose(0, 2, 3, 1) * IMAGE_STD + IMAGE_MEAN) * 255)
    assert np.abs(tiles - encoded.tiles).max() <= 2
    encoded = dataclasses.replace(encoded, tiles=tiles.astype(np.uint8))
    model = ivl3_jax.load(converted, "float32")
    batch = collate(processor, [[encoded]], len(encoded), len(tiles), 1)
    assert relative(model(batch), theirs["logits"]) < STACK["float32"]
    (answer,) = Engine(model).generate([encoded], 12, processor.tokenizer.eos_ids)
    assert processor.tokenizer.decode(answer) == found["answer"] != ""


def test_how_many_tiles_an_image_may_have_goes_along(transformers, tmp_path):
    source = tiny()
    assert Processor.from_directory(source).max_tiles == 4
    convert(source, tmp_path / "original", layout="original")
    assert Processor.from_directory(tmp_path / "original").max_tiles == 4
    convert(tmp_path / "original", tmp_path / "back", layout="hf")
    assert Processor.from_directory(tmp_path / "back").max_tiles == 4
