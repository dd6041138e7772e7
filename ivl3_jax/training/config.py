"""What a training run is made of, as typed data; YAML recipes are read into these."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ivl3_jax.data.settings import DataRecipe


@dataclass(frozen=True)
class TrainConfig:
    """How parameters are updated.

    Attributes:
        steps: optimizer steps of the run.
        learning_rate: peak, reached after `warmup_steps` of linear growth, then a cosine down to
            `final_learning_rate` times the peak at the last step.
        weight_decay: decoupled, on matrices and tables; never on norms, biases, layer scales and CLS.
        beta1, beta2, eps: of AdamW. clip_norm: bound on the global norm of the gradient.
        seed: of everything random in the run, drop-path and the order of samples; below 2**63.
        log_every: steps between progress reports.
    """

    steps: int = 1000
    learning_rate: float = 2e-5
    warmup_steps: int = 30
    final_learning_rate: float = 0.0
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    seed: int = 0
    log_every: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "learning_rate", "eps", "clip_norm", "log_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"TrainConfig.{name} is {getattr(self, name)}; it must be above 0")
        for name in ("warmup_steps", "final_learning_rate", "weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"TrainConfig.{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"TrainConfig.{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.seed >= 2**63:
            raise ValueError(f"TrainConfig.seed is {self.seed}; it must be below 2**63")


@dataclass(frozen=True)
class ModelRecipe:
    """Where the model comes from: a checkpoint, or a fresh one of a given size.

    Attributes:
        checkpoint: a directory in either layout to start from; its tokenizer and processor files are used too.
        size: instead of a checkpoint, a published size (`InternVL3-1B`) or a directory with a config.json.
        tokenizer: with `size`, a directory with tokenizer.json.
        param_dtype, dtype: of stored parameters and of the computation.
        drop_path: stochastic depth of the ViT's last layer; null keeps the checkpoint's.
    """

    checkpoint: str | None = None
    size: str | None = None
    tokenizer: str | None = None
    param_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    drop_path: float | None = None

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.size is None):
            raise ValueError("ModelRecipe: give either checkpoint (a directory) or size (a name or a directory)")
        if self.size is not None and self.tokenizer is None:
            raise ValueError("ModelRecipe.tokenizer is missing; a fresh model (size) needs a directory with one")


@dataclass(frozen=True)
class ShardingRecipe:
    """A plan by name or file, and the size of each mesh axis."""

    plan: str = "single"
    mesh: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A whole run. `output` is the directory that receives the checkpoint and metrics.jsonl."""

    output: str
    model: ModelRecipe
    data: DataRecipe
    sharding: ShardingRecipe = field(default_factory=ShardingRecipe)
    train: TrainConfig = field(default_factory=TrainConfig)
