"""The files beside weights and config: tokenizer, processor, chat template, generation settings."""

import json
import shutil
from pathlib import Path
from typing import Any

from ivl3_jax.config import IMAGE_MEAN, IMAGE_STD, InternVLConfig
from ivl3_jax.data.template import CHAT_JINJA
from ivl3_jax.data.tile_bounds import tile_bounds
from ivl3_jax.data.tokenizer import TURN_END, Tokenizer
from ivl3_jax.data.tokenizer_files import PIECES, WHOLE, read_json, read_pieces
from ivl3_jax.data.tokenizer_training import NAMED_TOKENS
from ivl3_jax.original_config import MODEL_TYPE
from ivl3_jax.written_fields import token_ids

GENERATION, SETTINGS, PREPROCESSOR = "generation_config.json", "tokenizer_config.json", "preprocessor_config.json"
TEMPLATE = "chat_template.jinja"
COPIED = (
    GENERATION,
    "tokenizer.json",
    SETTINGS,
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    TEMPLATE,
    "chat_template.json",
    "processor_config.json",
    PREPROCESSOR,
    "video_preprocessor_config.json",
)


def write_companions(source: str | Path, destination: Path, layout: str, config: InternVLConfig) -> None:
    """Copies what a source directory has, and writes what the other layout keeps elsewhere.

    For `-hf` out of an original directory that is what transformers asks for; for the original layout out of an `-hf`
    one, how many tiles an image may have, which goes into the config.json that must be in `destination` already. In any
    case generation_config.json, the one file that both layouts' readers look at, gets every token that ends an answer.

    The remote code of an original checkpoint is the user's own, and goes where its layout goes.
    """
    source = Path(source)
    code = sorted(file.name for file in source.glob("*.py")) if layout == "original" else []
    for name in (*COPIED, *code):
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)
    try:
        tokenizer = Tokenizer.from_directory(source)
    except FileNotFoundError:
        tokenizer = None  # weights alone were converted; whoever adds a tokenizer adds its files
    from_original = read_json(source / "config.json").get("model_type") == MODEL_TYPE
    if layout == "hf" and from_original:
        _complete(source, destination, config, tokenizer)
    elif layout == "original" and not from_original:
        least, most = tile_bounds(source, config.vision.image_size, config.tile_tokens)
        stated = {"min_dynamic_patch": least, "max_dynamic_patch": most}
        write_json(destination / "config.json", read_json(destination / "config.json") | stated)
    if tokenizer is not None:
        top_ids, text_ids = token_ids(read_json(source / "config.json"))
        # Where transformers finds no such file, it takes the ids of config.json.
        generation = read_json(destination / GENERATION) or top_ids | text_ids
        write_json(destination / GENERATION, generation | {"eos_token_id": list(tokenizer.eos_ids)})


def _complete(source: Path, destination: Path, config: InternVLConfig, tokenizer: Tokenizer | None) -> None:
    bounds = tile_bounds(source, config.vision.image_size, config.tile_tokens)
    for name, content in processor_files(config, *bounds).items():
        write_json(destination / name, content)
    (destination / TEMPLATE).write_text(CHAT_JINJA, encoding="utf-8")
    if tokenizer is None:
        return
    settings = read_json(destination / SETTINGS)
    for field in ("chat_template", "auto_map"):  # of the original code; the file above holds this layout's template
        settings.pop(field, None)
    named = {"extra_special_tokens": NAMED_TOKENS, "processor_class": "InternVLProcessor", "eos_token": TURN_END}
    if Path(tokenizer.where).name == PIECES:
        # transformers has no InternLM tokenizer of its own; any that is one file it opens by this name.
        named["tokenizer_class"] = "PreTrainedTokenizerFast"
        bos = None if tokenizer.bos_id is None else tokenizer.decode([tokenizer.bos_id], skip_special=False)
        settings |= {"bos_token": bos, "add_bos_token": bos is not None}
        read_pieces(source).translate(bos).save(str(destination / WHOLE))
    write_json(destination / SETTINGS, settings | named)


def processor_files(config: InternVLConfig, min_tiles: int, max_tiles: int) -> dict[str, dict[str, Any]]:
    """What transformers' InternVLProcessor reads beside a tokenizer, by file name."""
    side = config.vision.image_size
    return {
        "processor_config.json": {"processor_class": "InternVLProcessor", "image_seq_length": config.tile_tokens},
        PREPROCESSOR: {
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "processor_class": "InternVLProcessor",
            "size": {"height": side, "width": side},
            "crop_to_patches": True,
            "min_patches": min_tiles,
            "max_patches": max_tiles,
            "image_mean": IMAGE_MEAN,
            "image_std": IMAGE_STD,
            "resample": 3,
        },
    }


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object for people to read too."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
