"""The mistakes that docs/bad-input.md lists: how each is made, and the command that meets it.

A case takes a directory of its own, with a good checkpoint in `model` (`-hf`, one file), in `sharded` (`-hf`, several)
and in `original`, spoils something, and returns the arguments of `ivl3`.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from tests.cli.bad_checkpoints import CASES, QUESTION, ask, case, convert, edit
from tests.data.pictures import write_noise

__all__ = ["CASES", "prepare"]


def picture(work, name="a.png", size=(60, 40)):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)).save(work / name)
    return str(work / name)


# Tokenizer and processor


@case("no tokenizer")
def _(work):
    (work / "model/tokenizer.json").unlink()
    return ask(work, QUESTION)


@case("a corrupt tokenizer")
def _(work):
    (work / "model/tokenizer.json").write_text("{}")
    return ask(work, QUESTION)


@case("a corrupt sentencepiece model")
def _(work):
    (work / "model/tokenizer.json").rename(work / "model/tokenizer.model")
    return ask(work, QUESTION)


@case("a tokenizer without the image token")
def _(work):
    file = work / "model/tokenizer.json"
    file.write_text(file.read_text().replace("<IMG_CONTEXT>", "<IMG_KONTEXT>"))
    return ask(work, QUESTION)


@case("another image token in config.json")
def _(work):
    edit(work / "model/config.json", image_token_id=5)
    return ask(work, QUESTION)


@case("tiles of another size")
def _(work):
    edit(work / "model/preprocessor_config.json", size={"height": 448, "width": 448})
    return ask(work, QUESTION)


@case("another normalisation")
def _(work):
    edit(work / "model/preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    return ask(work, QUESTION)


# Images


@case("no such image")
def _(work):
    return ask(work, work / "missing.png", QUESTION)


@case("not an image")
def _(work):
    (work / "a.png").write_text("hello")
    return ask(work, work / "a.png", QUESTION)


@case("an empty file as image")
def _(work):
    (work / "a.png").touch()
    return ask(work, work / "a.png", QUESTION)


@case("a truncated image")
def _(work):
    file = Path(picture(work))
    file.write_bytes(file.read_bytes()[:1000])
    return ask(work, file, QUESTION)


@case("an image of no pixels")
def _(work):
    # Netpbm's header may say so; Pillow itself refuses to write one.
    (work / "a.ppm").write_bytes(b"P6\n0 4\n255\n")
    return ask(work, work / "a.ppm", QUESTION)


@case("a decompression bomb")
def _(work):
    Image.new("1", (20_000, 20_000)).save(work / "a.png")
    return ask(work, work / "a.png", QUESTION)


# Videos


def clip(work):
    frames = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in (0, 80, 160)]
    frames[0].save(work / "a.gif", save_all=True, append_images=frames[1:], duration=500)
    return work / "a.gif"


@case("not a video")
def _(work):
    (work / "a.mp4").write_text("hello")
    return ask(work, work / "a.mp4", QUESTION)


@case("a directory without frames")
def _(work):
    (work / "frames").mkdir()
    return ask(work, work / "frames", QUESTION)


@case("a clip outside of the video")
def _(work):
    return [*ask(work, clip(work), QUESTION), "--clip", "10", "20"]


@case("no frames of a video")
def _(work):
    return [*ask(work, clip(work), QUESTION), "--frames", "0"]


@case("half a video")
def _(work):
    file = write_noise(work / "a.mkv")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return [*ask(work, file, QUESTION), "--frames", "2"]


@case("a picture as a video")
def _(work):
    return ask(work, Path(picture(work)).rename(work / "a.mp4"), QUESTION)


# Prompts


@case("an empty prompt")
def _(work):
    return ask(work, " ")


@case("no question")
def _(work):
    return ask(work, picture(work))


@case("a prompt that is too long")
def _(work):
    return ask(work, "How many? " * 400)


@case("more placeholders than images")
def _(work):
    return ask(work, picture(work), "<image> or <image>?")


@case("a special token in a prompt")
def _(work):
    return ask(work, "What does <|im_end|> mean?")


@case("no tokens to answer with")
def _(work):
    return [*ask(work, QUESTION), "--max-new-tokens", "0"]


@case("a negative temperature")
def _(work):
    return [*ask(work, QUESTION), "--temperature", "-1"]


@case("a visual delta that is no number")
def _(work):
    return [*ask(work, QUESTION), "--visual-delta", "1/0"]


# Writing


@case("a destination that is in use")
def _(work):
    (work / "out").mkdir()
    (work / "out/notes.txt").touch()
    return convert(work)


@case("an unknown layout")
def _(work):
    return [*convert(work), "--layout", "gguf"]


@case("a dtype that cannot be written")
def _(work):
    return [*convert(work), "--dtype", "int8"]


# Training and the command itself


def recipe(work, content="model: {checkpoint: model}\n"):
    (work / "recipe.yaml").write_text(content)
    return ["train", "--config", str(work / "recipe.yaml"), "--output", str(work / "run")]


def lines(work, *samples):
    (work / "data.jsonl").write_text("\n".join(samples) + "\n")
    model = {"checkpoint": str(work / "model")}
    data = {"annotation": str(work / "data.jsonl"), "rows": 1, "tokens": 64, "tiles": 2, "segments": 2}
    return recipe(work, json.dumps({"model": model, "data": data, "train": {"steps": 1}}))


@case("an unknown key in a recipe")
def _(work):
    return recipe(work, "train: {learning_rat: 1.0e-5}\n")


@case("a value of the wrong type in a recipe")
def _(work):
    return recipe(work, "train: {steps: many}\n")


@case("a malformed line of data")
def _(work):
    return lines(work, '{"conversations": [')


@case("an image of the data that is missing")
def _(work):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]
    return lines(work, json.dumps({"image": "nowhere.png", "conversations": turns}))


@case("a path that leaves its root")
def _(work):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]
    return lines(work, json.dumps({"image": "../../etc/passwd", "conversations": turns}))


@case("an unknown command")
def _(work):
    return ["convrt", str(work / "model")]


@case("an unknown option")
def _(work):
    return [*convert(work), "--layuot", "hf"]


def lab(*options):
    return ["lab", "compile", "--model", "1b", "--plan", "fsdp_tensor", "--tokens", "2048", *options]


@case("a slice that is none")
def _(work):
    return lab("--topology", "v5e:3x3")


@case("a slice of an unknown chip")
def _(work):
    return lab("--topology", "v7:4x4")


@case("a model of no known size")
def _(work):
    return [*lab("--topology", "v5e:4x4"), "--model", "7b"]


@case("a mesh larger than the slice")
def _(work):
    return lab("--topology", "v5e:4x4", "--mesh", "{tensor: 32}")


@case("more tiles than a row holds")
def _(work):
    return lab("--topology", "v5e:4x4", "--tiles", "9")


@case("heads that do not divide")
def _(work):
    return lab("--topology", "v5e:4x4", "--mesh", "{tensor: 4}")


@case("one plan to compare")
def _(work):
    return ["lab", "compare", "fsdp", "--model", "1b", "--topology", "v5e:4x4"]


@case("a plan for too many devices")
def _(work):
    return ["lab", "run", "--plan", "fsdp", "--mesh", "{fsdp: 1024}"]


@case("a dtype that no TPU computes with")
def _(work):
    return lab("--topology", "v5e:4x4", "--dtype", "int8")


@case("more slices than there are")
def _(work):
    return lab("--topology", "v5e:4x4", "--slices", "1000000")


@case("documents of unequal length")
def _(work):
    return lab("--topology", "v5e:4x4", "--documents", "3")


@case("an answer that cannot be written")
def _(work):
    return lab("--topology", "v5e:4x4", "--json", str(work / "nowhere/a.json"))


@case("a cache that cannot be written")
def _(work):
    (work / "kept").touch()
    return lab("--topology", "v5e:4x4", "--cache", str(work / "kept"))


@case("a constant that cannot be")
def _(work):
    (work / "mine.yaml").write_text("hbm: 1.2\n")
    return lab("--topology", "v5e:4x4", "--calibration", str(work / "mine.yaml"))


@case("a constant twice")
def _(work):
    (work / "mine.yaml").write_text("hbm: 0.8\nici: 0.7\nhbm: 0.9\n")
    return lab("--topology", "v5e:4x4", "--calibration", str(work / "mine.yaml"))


def lab_search(*options):
    return ["lab", "search", "--model", "1b", "--topology", "v5e:4x4", "--tokens", "2048", *options]


@case("a search for no rows")
def _(work):
    return lab_search("--rows", "[0]")


@case("a search for no tokens")
def _(work):
    return lab_search("--most-tokens", "0.001", "--plans", "[fsdp]")


@case("an answer that is none")
def _(work):
    (work / "a.json").write_text('{"loss": 1}')
    return ["lab", "compare", str(work / "a.json"), str(work / "a.json")]


@case("an unknown chip")
def _(work):
    return ["bench", "kernels", "--chips", "v4"]


def prepare(work: Path, good: Path) -> None:
    """Copies the three good checkpoints to where a case expects them."""
    for name in ("model", "sharded", "original"):
        shutil.copytree(good / name, work / name)
