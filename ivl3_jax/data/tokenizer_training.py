"""A small byte-level BPE of Qwen's kind with InternVL's special tokens, for models trained from scratch."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from ivl3_jax.data.template import CHAT_JINJA
from ivl3_jax.data.tokenizer import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, TURN_END, TURN_START
from ivl3_jax.data.tokenizer_files import byte_level_bpe

END_OF_TEXT = "<|endoftext|>"
GROUNDING = ("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
SPECIALS = (END_OF_TEXT, TURN_START, TURN_END, IMAGE_START, IMAGE_END, IMAGE_CONTEXT, *GROUNDING)

# The names under which transformers' InternVLProcessor asks a tokenizer for them.
NAMED_TOKENS = {
    "start_image_token": IMAGE_START,
    "end_image_token": IMAGE_END,
    "context_image_token": IMAGE_CONTEXT,
    "video_token": "<video>",
}


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a tokenizer.

    Args:
        texts: what to learn merges from.
        vocab_size: entries in all: 256 bytes, the merges, and the 12 special tokens, which come last with consecutive
            ids. With little text there are fewer entries.

    Returns:
        The tokenizer; the same texts always give the same.

    Raises:
        ValueError: vocab_size has no room for the bytes and the special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(SPECIALS):
        raise ValueError(
            f"vocab_size is {vocab_size}; {len(alphabet)} bytes and {len(SPECIALS)} special tokens need at least "
            f"{len(alphabet) + len(SPECIALS)}"
        )
    tokenizer = byte_level_bpe(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIALS), initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return tokenizer


def write_tokenizer_files(tokenizer: Tokenizer, directory: str | Path) -> None:
    """Writes what transformers' AutoTokenizer and InternVLProcessor read, and `Tokenizer.from_directory` here.

    These are tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja. `<video>` is only
    announced to transformers, which gives it an id past the vocabulary, as in the published `-hf` files.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    standard = {"eos_token": TURN_END, "pad_token": END_OF_TEXT}
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "add_bos_token": False,
        "bos_token": None,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
        "processor_class": "InternVLProcessor",
        "extra_special_tokens": NAMED_TOKENS,
        **standard,
    }
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(directory / "tokenizer_config.json", config)
    _write_json(directory / "special_tokens_map.json", standard | NAMED_TOKENS)
    (directory / "chat_template.jinja").write_text(CHAT_JINJA, encoding="utf-8")


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
