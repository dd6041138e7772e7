"""Published training runs on TPUs, which the prediction is held against."""

import dataclasses
import math
from dataclasses import dataclass

from ivl3_jax.chips import CHIPS
from ivl3_jax.config import DecoderConfig, InternVLConfig, ProjectorConfig, RopeScaling, VisionConfig
from ivl3_jax.lab.case import Case
from ivl3_jax.lab.compile import BatchShape
from ivl3_jax.lab.topology import Topology
from ivl3_jax.sharding.compiler import FUSED_SUMS
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.sharding.remat import LINEARS, POLICIES, Remat

_MAXTEXT = "https://github.com/AI-Hypercomputer/maxtext/blob/main/"


@dataclass(frozen=True)
class Run:
    """A text decoder's run: bf16 compute, f32 weights, AdamW, synthetic data, one document a row.

    Attributes:
        name: of the row. topology: the slice. decoder: its sizes. mesh: sizes of the plan's axes.
        rows: of a chip. tokens: of a row. remat: of the decoder's layers.
        teraflops: published, a chip, by `operations`; None where `rate`, tokens a second and chip, is given.
        fitted: whether the constants of `Calibration` were fitted on it.
        source: the document.
    """

    name: str
    topology: str
    decoder: DecoderConfig
    mesh: dict[str, int]
    rows: int
    tokens: int
    remat: Remat
    teraflops: float | None
    rate: float | None
    fitted: bool
    source: str

    @property
    def chips(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def parameters(self) -> float:
        """Of matrices that a token is multiplied with, and of the embedding table, as MaxText counts them."""
        d = self.decoder
        attention = d.width * d.head_dim * 2 * (d.heads + d.kv_heads)
        return d.layers * (attention + 3 * d.width * d.mlp) + d.width * d.vocab

    @property
    def operations(self) -> float:
        """Operations that the source counts for a chip's step: 6 parameters, and attention not halved for causality."""
        d = self.decoder
        return self.rows * self.tokens * (6 * self.parameters + 12 * d.layers * d.heads * d.head_dim * self.tokens)

    @property
    def seconds(self) -> float:
        """Of a step, as published."""
        if self.teraflops is not None:
            return self.operations / (self.teraflops * 1e12)
        assert self.rate is not None
        return self.rows * self.tokens / self.rate

    @property
    def utilisation(self) -> float:
        """Of the chip's peak, by `operations`."""
        return self.operations / self.seconds / (CHIPS[self.topology.split(":")[0]].teraflops * 1e12)

    @property
    def config(self) -> InternVLConfig:
        """The decoder in a model whose ViT is next to nothing, and sees no tile."""
        vision = VisionConfig(layers=1, width=256, heads=2, mlp=256, image_size=56)
        return InternVLConfig(vision, ProjectorConfig(), self.decoder, image_token_id=self.decoder.vocab - 1)

    @property
    def plan(self) -> ShardingPlan:
        """Megatron's split with the residual stream sharded over `tensor` too, and the flags, as the runs have them."""
        remat = {"vision": POLICIES["full"], "decoder": self.remat}
        flags = {self.topology.split(":")[0]: dict.fromkeys(FUSED_SUMS)}
        return dataclasses.replace(ShardingPlan.read("sequence", self.mesh), remat=remat, compiler=flags)

    @property
    def batch(self) -> BatchShape:
        return BatchShape(self.rows * self.chips, self.tokens, 0, 1)

    @property
    def case(self) -> Case:
        """This project's step of that run."""
        return Case(self.name, self.config, self.plan, Topology.read(self.topology), self.batch)


def _decoder(layers: int, width: int, heads: int, kv_heads: int, mlp: int, vocab: int) -> DecoderConfig:
    return DecoderConfig(
        layers, width, heads, kv_heads, 128, mlp, vocab, rope_scaling=RopeScaling(), qkv_bias=False, max_positions=32768
    )


RUNS = (
    Run(
        "16B",
        "v5e:16x16",
        _decoder(32, 4096, 64, 64, 28672, 32000),
        {"fsdp": 256},
        6,
        2048,
        POLICIES["full"],
        120,
        None,
        True,
        _MAXTEXT + "src/maxtext/configs/tpu/v5e/README.md",
    ),
    Run(
        "64B",
        "v5e:16x16",
        _decoder(64, 8192, 64, 64, 28672, 32000),
        {"fsdp": 256},
        2,
        2048,
        POLICIES["full"],
        118,
        None,
        False,
        _MAXTEXT + "src/maxtext/configs/tpu/v5e/README.md",
    ),
    Run(
        "32B on v5e",
        "v5e:16x16",
        _decoder(32, 8192, 64, 64, 28672, 32000),
        {"fsdp": 256},
        4,
        2048,
        POLICIES["full"],
        132,
        None,
        False,
        _MAXTEXT + "src/maxtext/configs/tpu/v5e/README.md",
    ),
    Run(
        "32B",
        "v5p:4x4x4",
        _decoder(32, 8192, 64, 64, 28672, 32000),
        {"fsdp": 16, "tensor": 4},
        6,
        2048,
        Remat(LINEARS),
        328,
        None,
        True,
        _MAXTEXT + "src/maxtext/configs/tpu/v5p/README.md",
    ),
    Run(
        "128B",
        "v5p:4x4x8",
        _decoder(64, 8192, 128, 128, 57344, 32000),
        {"fsdp": 16, "tensor": 8},
        1,
        2048,
        Remat(LINEARS),
        315,
        None,
        False,
        _MAXTEXT + "src/maxtext/configs/tpu/v5p/README.md",
    ),
    Run(
        "70B",
        "v5p:4x4x4",
        _decoder(80, 8192, 64, 8, 28672, 32000),
        {"fsdp": 64},
        2,
        4096,
        Remat(("q", "k", "v", "out", "down")),
        None,
        692,
        False,
        _MAXTEXT + "docs/reference/models/tiering.md",
    ),
    Run(
        "8B",
        "v6e:16x16",
        _decoder(32, 4096, 32, 8, 14336, 128256),
        {"fsdp": 256},
        4,
        8192,
        Remat((), offload=("input", "q", "k", "v", "out")),
        None,
        7207,
        True,
        _MAXTEXT + "docs/reference/models/tiering.md",
    ),
)
