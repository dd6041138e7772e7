"""What a config.json that is written says beyond the architecture: token ids of its source, and the tensors' dtype."""

import json
from pathlib import Path
from typing import Any

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
SECTIONS = ("vision_config", "text_config", "llm_config")


def source_fields(source: str | Path | None) -> dict[str, Any]:
    """A checkpoint directory's config.json, empty where there is none."""
    file = None if source is None else Path(source) / "config.json"
    return json.loads(file.read_bytes()) if file and file.is_file() else {}


def token_ids(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ids of special tokens that a config.json of either layout states at its top, and for its language model."""
    parts = fields, fields.get("text_config") or fields.get("llm_config") or {}
    top, inner = ({name: part[name] for name in TOKEN_IDS if part.get(name) is not None} for part in parts)
    return top, inner


def with_dtype(fields: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The fields of a config.json of either layout with the tensors' dtype, e.g. `bfloat16`, stated at every level.

    transformers 5 writes `dtype` and reads either; versions before it, and the authors' code, know `torch_dtype`.
    """

    def stated(part: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in part.items() if name != "dtype"} | {"torch_dtype": dtype}

    return stated(fields) | {name: stated(fields[name]) for name in SECTIONS if name in fields}
