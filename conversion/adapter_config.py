"""adapter_config.json of peft: by what factor an adapter is added to the weight it adapts; read and written."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivl3_jax.config_fields import Fields
from ivl3_jax.data.tokenizer_files import read_json

FILE = "adapter_config.json"

# What makes something else of an adapter than B A added to a weight. `bias` is not among them: such biases are the
# model's own, and lie trained among its tensors.
UNSUPPORTED = (
    "use_dora",
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)


@dataclass(frozen=True)
class AdapterConfig:
    """What decides the factors.

    Attributes:
        file: where it was read.
        rank, alpha: of every module but those that `ranks` and `alphas` name by patterns.
        root: whether alpha is divided by the root of the rank (rsLoRA, arXiv 2312.03732), not by the rank.
    """

    file: Path
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    root: bool

    def scale(self, module: str, rank: int) -> float:
        """The factor of B A.

        Args:
            module: the adapted module's name in the model that peft wrapped.
            rank: the rows of its lora_A.

        Raises:
            ValueError: the file makes it another rank.
        """
        stated = _by_pattern(self.ranks, module, self.rank)
        if stated != rank:
            raise ValueError(
                f"{self.file}: r of {module} is {stated}, but its lora_A has {rank} rows; the file does not belong to "
                "these weights"
            )
        return _by_pattern(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.root else rank)


def read_adapter_config(directory: Path) -> AdapterConfig | None:
    """A directory's adapter_config.json, None if there is none.

    Raises:
        ValueError: it is malformed, or describes adapters that are not merged by adding B A.
    """
    file = directory / FILE
    if not file.is_file():
        return None
    fields = Fields(read_json(file), str(file))
    fields.expect("peft_type", ("LORA",), absent="LORA")
    for name in UNSUPPORTED:
        if value := fields.get(name, False):
            raise ValueError(
                f"{file}: {name} is {value!r}, which cannot be merged here; valid without it, or merged by peft: "
                "merge_and_unload()"
            )
    ranks, alphas = _patterns(fields, "rank_pattern"), _patterns(fields, "alpha_pattern")
    return AdapterConfig(
        file,
        fields.whole("r"),
        fields.number("lora_alpha"),
        {pattern: ranks.whole(pattern) for pattern in ranks.fields},
        {pattern: alphas.number(pattern) for pattern in alphas.fields},
        fields.flag("use_rslora", False),
    )


def _patterns(fields: Fields, name: str) -> Fields:
    found = Fields(fields.get(name, {}) or {}, fields.file, f"{name}.")
    for pattern in found.fields:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{fields.file}: {name} has {pattern!r}, no regular expression ({error})") from None
    return found


def _by_pattern(values: Mapping[str, Any], module: str, other: float) -> Any:
    """The value of the first pattern that is the module's name or the end of it, as peft looks it up."""
    return next((value for pattern, value in values.items() if re.match(rf"(.*\.)?({pattern})$", module)), other)


def adapter_fields(modules: Mapping[str, tuple[int, float]], base: Path | None) -> dict[str, Any]:
    """The fields of an adapter_config.json.

    Args:
        modules: the adapted ones, by regular expressions of their whole names: the rank of each, and alpha / rank.
        base: the directory of the model that is adapted, if it has one.
    """
    alphas = {pattern: _alpha(*of) for pattern, of in modules.items()}
    (rank, _), *_ = Counter(rank for rank, _ in modules.values()).most_common()
    (alpha, _), *_ = Counter(alphas.values()).most_common()
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None if base is None else str(base),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": "|".join(modules),
        "rank_pattern": {pattern: of for pattern, (of, _) in modules.items() if of != rank},
        "alpha_pattern": {pattern: of for pattern, of in alphas.items() if of != alpha},
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "bias": "none",
        "init_lora_weights": True,
    }


def _alpha(rank: int, scale: float) -> float:
    """The alpha that divided by the rank is the scale, a whole number if one is."""
    alpha = scale * rank
    return round(alpha) if round(alpha) / rank == scale else alpha
