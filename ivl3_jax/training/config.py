"""What a training run is made of, as typed data; YAML recipes are read into these."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ivl3_jax.config import Lora
from ivl3_jax.data.settings import DataRecipe


@dataclass(frozen=True)
class Component:
    """How one component (vision, projector, decoder) is trained.

    Attributes:
        train: whether at all.
        rate: its learning rate over that of the run.
        layers: a slice in Python's notation, such as `-4:`, of the layers that are trained; nothing else of the
            component is. Null trains everything.
        layer_decay: each layer's rate over that of the layer after it; what comes before the first layer counts as one
            more layer, what comes after the last is at the full rate (BEiT, arXiv 2106.08254).
        lora: adapters, which are then all that is trained of the component.
    """

    train: bool = True
    rate: float = 1.0
    layers: str | None = None
    layer_decay: float = 1.0
    lora: Lora | None = None

    def check(self, where: str) -> None:
        """Refuses what cannot be, named by `where` it was given.

        Raises:
            ValueError: a field is out of its range, or `layers` is no slice.
        """
        if self.rate <= 0:
            raise ValueError(f"{where}.rate is {self.rate}; it must be above 0; train: false leaves it as it is")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"{where}.layer_decay is {self.layer_decay}; it must be above 0 and at most 1")
        if self.layers is not None:
            try:
                self.chosen(1)
            except ValueError:
                told = "it must be a slice such as 20: or -4: or 0:12"
                raise ValueError(f"{where}.layers is {self.layers!r}; {told}") from None
        if self.lora is not None and not self.train:
            raise ValueError(f"{where}.lora is given and {where}.train is false; give one of them")

    def chosen(self, layers: int) -> np.ndarray:
        """Which of so many layers are trained, bool [layers].

        Raises:
            ValueError: `layers` is no slice.
        """
        trained = np.zeros(layers, bool)
        first, last = (int(bound) if bound.strip() else None for bound in (self.layers or ":").split(":"))
        trained[first:last] = True
        return trained


@dataclass(frozen=True)
class PreferenceWeights:
    """Mixed preference optimisation (arXiv 2411.10442); DPO and BCO alone are weights of (1, 0, 0) and (0, 1, 0).

    Attributes:
        preference: weight of DPO's sigmoid loss (arXiv 2305.18290). quality: of BCO's (arXiv 2404.04656).
        generation: of the next-token loss of chosen answers, the mean over their tokens.
        beta: strength of the pull towards the reference model, which is the one that the run begins with.
        precompute: its log-probabilities are computed before training, for all steps, and written to the run's
            directory; without, it stays in memory beside the trained model.
    """

    preference: float = 0.8
    quality: float = 0.2
    generation: float = 1.0
    beta: float = 0.1
    precompute: bool = True

    def __post_init__(self) -> None:
        for name in ("preference", "quality", "generation"):
            if getattr(self, name) < 0:
                raise ValueError(f"PreferenceWeights.{name} is {getattr(self, name)}; it must be at least 0")
        if not self.preference + self.quality + self.generation:
            raise ValueError(
                "PreferenceWeights.preference, quality and generation are all 0; give one of them a weight"
            )
        if self.beta <= 0:
            raise ValueError(f"PreferenceWeights.beta is {self.beta}; it must be above 0")


@dataclass(frozen=True)
class TrainConfig:
    """How parameters are updated.

    Attributes:
        steps: optimizer steps of the run.
        learning_rate: peak, reached after `warmup_steps` of linear growth, then a cosine down to
            `final_learning_rate` times the peak at the last step.
        weight_decay: decoupled, on matrices and tables; never on norms, biases, layer scales and CLS.
        beta1, beta2, eps: of AdamW. clip_norm: bound on the global norm of the gradient.
        moment_dtype: of AdamW's first moment. The second stays float32: bfloat16 has too few digits for beta2 = 0.999.
        accumulate: parts in which a batch's rows are computed, one after the other; it divides `data.rows`.
        normalize: the loss is divided by its weights in the whole batch (`global`), or in each part, and the parts
            count the same (`per_microstep`, as in the original); they differ only with `accumulate`.
        average: decay of an exponential moving average of the parameters, such as 0.999, which is exported too.
        vision, projector, decoder: what is trained of each component, and how fast.
        preference: instead of the next-token loss, that of preference pairs (MPO).
        on_bad_step: what becomes of a step whose loss or gradient is no finite number, or whose loss is a spike. It is
            never applied; `stop` then ends the run, `skip` goes on, `rollback` goes on from the last checkpoint. The
            batch is written to the run's directory.
        spike: a loss above this multiple of its moving average is a spike; null for none.
        most_bad_steps: more of them end the run.
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
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    accumulate: int = 1
    normalize: Literal["global", "per_microstep"] = "global"
    average: float | None = None
    vision: Component = Component()
    projector: Component = Component()
    decoder: Component = Component()
    preference: PreferenceWeights | None = None
    on_bad_step: Literal["stop", "skip", "rollback"] = "stop"
    spike: float | None = None
    most_bad_steps: int = 10
    seed: int = 0
    log_every: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "learning_rate", "eps", "clip_norm", "log_every", "accumulate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"TrainConfig.{name} is {getattr(self, name)}; it must be above 0")
        for name in ("warmup_steps", "final_learning_rate", "weight_decay", "seed", "most_bad_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"TrainConfig.{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("beta1", "beta2", "average"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 1:
                raise ValueError(f"TrainConfig.{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.seed >= 2**63:
            raise ValueError(f"TrainConfig.seed is {self.seed}; it must be below 2**63")
        if self.spike is not None and self.spike <= 1:
            raise ValueError(f"TrainConfig.spike is {self.spike}; it must be above 1, or null")
        for name, component in self.components.items():
            component.check(f"TrainConfig.{name}")
        if not any(component.train for component in self.components.values()):
            raise ValueError("TrainConfig: vision, projector and decoder are all frozen; set train: true for one")

    @property
    def components(self) -> dict[str, Component]:
        return {"vision": self.vision, "projector": self.projector, "decoder": self.decoder}

    @property
    def adapters(self) -> dict[str, Lora]:
        """Those of each component that has any, and is trained."""
        return {name: part.lora for name, part in self.components.items() if part.lora is not None and part.train}


@dataclass(frozen=True)
class ModelRecipe:
    """Where the model comes from: a checkpoint, or a fresh one of a given size.

    Attributes:
        checkpoint: a directory in either layout to start from; its tokenizer and processor files are used too.
        size: instead of a checkpoint, a published size (`InternVL3-1B`) or a directory with a config.json.
        tokenizer: with `size`, a directory with tokenizer.json.
        fresh: components of the checkpoint that are initialised anew, such as `[projector]`.
        param_dtype, dtype: of stored parameters and of the computation.
        drop_path: stochastic depth of the ViT's last layer; null keeps the checkpoint's.
    """

    checkpoint: str | None = None
    size: str | None = None
    tokenizer: str | None = None
    fresh: list[Literal["vision", "projector", "decoder"]] = field(default_factory=list)
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
class SaveRecipe:
    """When a run's state is saved, in `<output>/states`; a run that is started again goes on from the newest.

    Attributes:
        every: steps between saves; null saves only when the run ends or is interrupted.
        keep: newest states that are kept. keep_every: states of multiples of this step are kept for good.
    """

    every: int | None = 500
    keep: int = 2
    keep_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("every", "keep", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"SaveRecipe.{name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class WatchRecipe:
    """What is watched beside the progress line and metrics.jsonl.

    Attributes:
        tensorboard: writes event files to `<output>/tensorboard` (extra `watch`). wandb: a project of Weights & Biases
            that receives the metrics (extra `wandb`).
        every: steps between looks at the model; the last step is always followed by one. Null is a tenth of the run.
        held_out: an annotation or a meta file; the loss on its first `held_out_batches` batches is looked at.
        questions: a JSONL file of conversations, images beside it; the model's answers to their first questions go to
            `<output>/metrics.jsonl`. It wants a model on one device.
        profile: a first step and a number of steps that the profiler traces into `<output>/profile`.
    """

    tensorboard: bool = False
    wandb: str | None = None
    every: int | None = None
    held_out: str | None = None
    held_out_batches: int = 8
    questions: str | None = None
    profile: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("every", "held_out_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"WatchRecipe.{name} is {value}; it must be at least 1")
        if self.profile is not None and min(self.profile) < 1:
            raise ValueError(
                f"WatchRecipe.profile is {list(self.profile)}; it must be a first step and a number of them"
            )


@dataclass(frozen=True)
class Recipe:
    """A whole run.

    Attributes:
        output: the directory that receives the states, metrics.jsonl and the checkpoint; local, or `gs://`.
        distributed: whether this process is one of several: `off`; `auto`, as Cloud TPU, SLURM or Open MPI tell it; or
            `HOST:PORT,NUMBER,COUNT`, the address of process 0, this one's number and how many there are.
    """

    output: str
    model: ModelRecipe
    data: DataRecipe
    sharding: ShardingRecipe = field(default_factory=ShardingRecipe)
    train: TrainConfig = field(default_factory=TrainConfig)
    save: SaveRecipe = field(default_factory=SaveRecipe)
    watch: WatchRecipe = field(default_factory=WatchRecipe)
    distributed: str = "off"
