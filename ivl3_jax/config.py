"""What a model is made of: frozen dataclasses and the seven published sizes.

Every dimension and special-token id of a checkpoint is read from its own files. The table of published sizes serves
fresh models and test expectations, and is never a silent default for a file that lacks a field.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

ROPE_TYPES = ("default", "dynamic")
INTERNLM = ("internlm2", "internlm3")
FAMILIES = ("qwen2", *INTERNLM)

# ImageNet statistics of RGB in 0..1, by which every published size has its pixels normalised.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def _positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise ValueError(f"{type(config).__name__}.{name} is {value!r}; it must be a positive number")


def _divides(config: Any, whole: str, part: str) -> None:
    a, b = getattr(config, whole), getattr(config, part)
    if a % b:
        raise ValueError(f"{type(config).__name__}.{whole} is {a}; it must be a multiple of {part}, which is {b}")


def _choice(config: Any, name: str, allowed: tuple[str, ...]) -> None:
    if getattr(config, name) not in allowed:
        raise ValueError(
            f"{type(config).__name__}.{name} is {getattr(config, name)!r}; it must be one of {', '.join(allowed)}"
        )


@dataclass(frozen=True)
class VisionConfig:
    """InternViT in both published styles (300M: LayerNorm and qkv bias; 6B: RMSNorm and qk-norm, no qkv bias).

    Attributes:
        layers, width, heads, mlp: depth, hidden size, attention heads, hidden size of the MLP.
        image_size, patch_size: pixels of a square tile and of a square patch.
        norm: kind of both norms of a block. norm_eps: their epsilon.
        qk_norm: RMSNorm of q and k over the concatenated heads, before the split into heads.
        qkv_bias: whether q, k and v have biases (all other projections always have).
        layer_scale: initial value of the two residual scales of a block.
        drop_path: stochastic depth of the last layer while training; grows linearly from 0 at the first.
        initializer_range: standard deviation of freshly initialised kernels.
    """

    layers: int
    width: int
    heads: int
    mlp: int
    image_size: int = 448
    patch_size: int = 14
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    norm_eps: float = 1e-6
    qk_norm: bool = False
    qkv_bias: bool = True
    layer_scale: float = 0.1
    drop_path: float = 0.0
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        _positive(self, "layers", "width", "heads", "mlp", "image_size", "patch_size", "norm_eps")
        _divides(self, "width", "heads")
        _divides(self, "image_size", "patch_size")
        _choice(self, "norm", ("layer_norm", "rms_norm"))
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"VisionConfig.drop_path is {self.drop_path}; it must be at least 0 and below 1")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def grid(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.grid**2

    @property
    def positions(self) -> int:
        """Rows of the position table: the patches and the CLS slot before them."""
        return self.patches + 1


@dataclass(frozen=True)
class ProjectorConfig:
    """Pixel unshuffle and the two-layer MLP into the decoder's width.

    Attributes:
        downsample: patches along each side merged into one visual token (1 / downsample_ratio).
        norm_eps: epsilon of its LayerNorm, PyTorch's default in the reference.
    """

    downsample: int = 2
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _positive(self, "downsample", "norm_eps")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies change past the trained length.

    `dynamic` (NTK) leaves them alone up to `max_positions`, so both types agree there; beyond, they are a function of
    the row's length, up to `factor` times `max_positions`. `default` refuses longer rows.

    `applied` False keeps the plain frequencies in rows as long as before, as the published code did for Qwen2 under the
    transformers 4.37 that it pinned, and as V2PE has it. It is how a model is used; checkpoints do not hold it.
    """

    type: Literal["default", "dynamic"] = "default"
    factor: float = 1.0
    applied: bool = True

    def __post_init__(self) -> None:
        _choice(self, "type", ROPE_TYPES)
        _positive(self, "factor")


@dataclass(frozen=True)
class DecoderConfig:
    """A Qwen2.5 or InternLM decoder: pre-norm, RMSNorm, SwiGLU, grouped-query attention, half-rotation rope.

    Attributes:
        layers, width, heads, kv_heads, head_dim, mlp, vocab: sizes; vocab is the number of embedding rows.
        rope_theta: base of the rotary frequencies. max_positions: the trained length in tokens.
        qkv_bias, out_bias, mlp_bias: which projections have biases; Qwen2.5's q, k and v do, InternLM has variants.
        tie_embeddings: the output projection is the embedding table.
        initializer_range: standard deviation of freshly initialised kernels.
        family: whose class it is in checkpoints, which decides names and model type there.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    rope_theta: float = 1e6
    rope_scaling: RopeScaling = RopeScaling()
    max_positions: int = 32768
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    out_bias: bool = False
    mlp_bias: bool = False
    tie_embeddings: bool = False
    initializer_range: float = 0.02
    family: Literal["qwen2", "internlm2", "internlm3"] = "qwen2"

    def __post_init__(self) -> None:
        _choice(self, "family", FAMILIES)
        _positive(self, "layers", "width", "heads", "kv_heads", "head_dim", "mlp", "vocab", "rope_theta", "norm_eps")
        _divides(self, "heads", "kv_heads")
        if self.head_dim % 2:
            raise ValueError(f"DecoderConfig.head_dim is {self.head_dim}; rotary embeddings need an even number")

    @property
    def longest_row(self) -> int:
        """Positions that a row may have: the trained length, and what dynamic NTK adds to it."""
        stretched = self.rope_scaling.factor if self.rope_scaling.type == "dynamic" else 1
        return int(self.max_positions * max(1, stretched))

    def stretches(self, positions: int) -> bool:
        """Whether frequencies of a row of so many positions depend on its length, see `RopeScaling`."""
        scaling = self.rope_scaling
        return scaling.type != "default" and scaling.applied and positions > self.max_positions

    def with_plain_rope(self) -> "DecoderConfig":
        """The same with dynamic NTK off, see `RopeScaling`."""
        return dataclasses.replace(self, rope_scaling=dataclasses.replace(self.rope_scaling, applied=False))


@dataclass(frozen=True)
class InternVLConfig:
    """The whole model.

    Attributes:
        image_token_id: the token whose positions visual tokens take (`<IMG_CONTEXT>`).
        select_layer: which entry of the ViT's hidden states the projector reads; -1 is the last block's raw output,
            0 the embeddings, as `vision_feature_layer` of the `-hf` layout.
    """

    vision: VisionConfig
    projector: ProjectorConfig
    decoder: DecoderConfig
    image_token_id: int
    select_layer: int = -1

    def __post_init__(self) -> None:
        if self.vision.grid % self.projector.downsample:
            raise ValueError(
                f"a tile has {self.vision.grid} patches a side (image_size {self.vision.image_size} / patch_size "
                f"{self.vision.patch_size}), which ProjectorConfig.downsample {self.projector.downsample} must divide"
            )
        if not -self.vision.layers - 1 <= self.select_layer <= self.vision.layers:
            raise ValueError(
                f"InternVLConfig.select_layer is {self.select_layer}; with {self.vision.layers} ViT layers it must "
                f"lie in {-self.vision.layers - 1}..{self.vision.layers}"
            )

    @property
    def tile_tokens(self) -> int:
        """Visual tokens of one tile; 256 for every published size."""
        return (self.vision.grid // self.projector.downsample) ** 2

    @staticmethod
    def preset(name: str) -> "InternVLConfig":
        """A published size, e.g. `InternVL3-1B`.

        Raises:
            ValueError: the name is not one of `PRESETS`.
        """
        if name not in PRESETS:
            raise ValueError(f"no size is named {name!r}; the published sizes are {', '.join(PRESETS)}")
        return PRESETS[name]


@dataclass(frozen=True)
class Lora:
    """Adapters of one component.

    Attributes:
        rank: r, columns of A and rows of B.
        alpha: A B is added alpha / r times; by default alpha = 2 r, as InternVL has it.
        targets: which linear layers, by the last part of their paths: `q`, `k`, `v`, `out`, `gate`, `up`, `down` of the
            decoder's blocks, the same but `gate` of the ViT's, `up` and `down` of the projector. By default all.
    """

    rank: int
    alpha: float | None = None
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise ValueError(f"Lora.rank is {self.rank!r}; it must be a whole number of at least 1")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ValueError(f"Lora.alpha is {self.alpha!r}; it must be a finite number above 0")
        if self.targets is not None and (isinstance(self.targets, str) or not self.targets):
            raise ValueError(f"Lora.targets is {self.targets!r}; it must be a list of names, or none for all layers")


_VIT_300M = VisionConfig(layers=24, width=1024, heads=16, mlp=4096)
_VIT_6B = VisionConfig(layers=45, width=3200, heads=25, mlp=12800, norm="rms_norm", qk_norm=True, qkv_bias=False)
_QWEN = DecoderConfig(
    layers=24,
    width=896,
    heads=14,
    kv_heads=2,
    head_dim=64,
    mlp=4864,
    vocab=151674,
    rope_scaling=RopeScaling("dynamic", 2.0),
)


def _qwen(layers: int, width: int, heads: int, kv_heads: int, mlp: int) -> DecoderConfig:
    return dataclasses.replace(_QWEN, layers=layers, width=width, heads=heads, kv_heads=kv_heads, head_dim=128, mlp=mlp)


# InternLM3, of the 9B: no biases, its own rope. Its vocabulary is InternLM3's 128,512 rows and the nine multimodal
# tokens, of which the image token is the third; a checkpoint's own files overrule both figures.
_INTERNLM3 = DecoderConfig(
    layers=48,
    width=4096,
    heads=32,
    kv_heads=2,
    head_dim=128,
    mlp=10240,
    vocab=128521,
    rope_theta=5e7,
    rope_scaling=RopeScaling("dynamic", 6.0),
    norm_eps=1e-5,
    qkv_bias=False,
    family="internlm2",
)


def _size(vision: VisionConfig, decoder: DecoderConfig, image_token_id: int = 151667) -> InternVLConfig:
    return InternVLConfig(vision, ProjectorConfig(), decoder, image_token_id)


# The published sizes: InternVL3, arXiv 2504.10479, table 1, and the released configs.
PRESETS: dict[str, InternVLConfig] = {
    "InternVL3-1B": _size(_VIT_300M, _QWEN),
    "InternVL3-2B": _size(_VIT_300M, _qwen(28, 1536, 12, 2, 8960)),
    "InternVL3-8B": _size(_VIT_300M, _qwen(28, 3584, 28, 4, 18944)),
    "InternVL3-9B": _size(_VIT_300M, _INTERNLM3, 128514),
    "InternVL3-14B": _size(_VIT_300M, _qwen(48, 5120, 40, 8, 13824)),
    "InternVL3-38B": _size(_VIT_6B, _qwen(64, 5120, 40, 8, 27648)),
    "InternVL3-78B": _size(_VIT_6B, _qwen(80, 8192, 64, 8, 29568)),
}
