"""The Pallas kernels of cross-entropy and decoding through the real XLA:TPU compiler, without a TPU."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ivl3_jax.config import PRESETS
from ivl3_jax.kernels.cross_entropy import cross_entropy, preferred
from ivl3_jax.kernels.tpu_decoding_attention import paged_attention

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
DECODERS = {size: PRESETS[f"InternVL3-{size}"].decoder for size in ("1B", "2B", "8B", "9B", "14B", "78B")}


def every(quick):
    """All combinations of a chip and a size; those that are not `quick` only in the long tests."""
    return [
        pytest.param(chip, size, marks=() if (chip, size) in quick else pytest.mark.long)
        for chip in TOPOLOGIES
        for size in DECODERS
    ]


def mesh_of(chip, devices=1):
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip])
    return jax.make_mesh((devices,), ("tensor",), devices=topology.devices[:devices])


def compile_for(mesh, function, *operands):
    """`operands` are (shape, dtype, layout)."""
    abstract = [jax.ShapeDtypeStruct(s, d, sharding=NamedSharding(mesh, PartitionSpec(*p))) for s, d, *p in operands]
    with jax.set_mesh(mesh):
        return jax.jit(function).trace(*abstract).lower(lowering_platforms=("tpu",)).compile()


def compile_cross_entropy(mesh, T, D, V, vocab_axes=None):
    """The sum over [1, T] tokens and its gradients, through the seam; operands bfloat16, weights float32."""

    def loss(x, w, labels, weights):
        assert preferred(x, w) == "tpu"
        layout = PartitionSpec(None, None)
        return cross_entropy(x, w, labels, weights, vocab=V - 3, layout=layout, vocab_axes=vocab_axes).sum()

    tokens = ((1, T), jnp.int32), ((1, T), jnp.float32)
    operands = ((1, T, D), jnp.bfloat16), ((D, V), jnp.bfloat16, None, vocab_axes), *tokens
    return compile_for(mesh, jax.value_and_grad(loss, argnums=(0, 1)), *operands)


@pytest.mark.parametrize(("chip", "size"), every({("v5e", "1B")}))
def test_cross_entropy(libtpu, chip, size):
    """16,384 tokens; what lies in HBM beside operands and results stays below 2 % of the float32 logits."""
    T, config = 16384, DECODERS[size]
    compiled = compile_cross_entropy(mesh_of(chip), T, config.width, config.vocab)
    if config.width <= 3584:  # a bfloat16 copy of x alone passes it from 5,120 on, where it must only fit
        assert compiled.memory_analysis().temp_size_in_bytes < 0.02 * 4 * T * config.vocab


@pytest.mark.parametrize(
    "chip", ["v5e", pytest.param("v5p", marks=pytest.mark.long), pytest.param("v6e", marks=pytest.mark.long)]
)
def test_cross_entropy_sharded(libtpu, chip):
    config = DECODERS["1B"]
    compile_cross_entropy(mesh_of(chip, 4), 2048, config.width, -(-config.vocab // 4) * 4, "tensor")


@pytest.mark.parametrize(("chip", "size"), every({(chip, size) for chip in TOPOLOGIES for size in ("1B", "8B")}))
@pytest.mark.parametrize("page", [16, 256])
@pytest.mark.parametrize(("queries", "dtype"), [(1, "bfloat16"), (4, "float32")])
def test_paged_attention(libtpu, chip, size, page, queries, dtype):
    """8 rows of up to 32,768 positions."""
    config, B, most = DECODERS[size], 8, 32768 // page
    pages = (B * most, page, config.kv_heads * config.head_dim)
    q = (B, queries, config.heads, config.head_dim)
    operands = (q, dtype), (pages, dtype), (pages, dtype), ((B, most), jnp.int32), ((B,), jnp.int32)
    compile_for(mesh_of(chip), paged_attention, *operands)
