"""Models of the TPU kernels' costs: they hold to their own rules, count as the kernels do, and equal the schedule."""

import json
from itertools import product
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ivl3_jax.bench.costs import FITTED, OTHERS, modelled
from ivl3_jax.bench.packed import ours
from ivl3_jax.bench.problems import Attention, Loss
from ivl3_jax.kernels import packed_schedule
from ivl3_jax.kernels.costs import MODELS, cost
from ivl3_jax.kernels.packed_schedule import Blocks
from ivl3_jax.kernels.packed_tiles import together
from ivl3_jax.kernels.tpu_chips import CHIPS
from ivl3_jax.kernels.tpu_packed_attention_cost import Pairs, pairs

# Cycles by the schedule, {"libtpu": ..., "cycles": {chip: {shape: {kernel: cycles}}}}, from kernels.json of
# `ivl3 bench kernels --chips v5e,v5p,v6e --models --output DIR`.
READINGS = json.loads((Path(__file__).parent / "schedule_readings.json").read_text())["cycles"]
FITTED_WITHIN, OTHERS_WITHIN = 0.10, 0.15
SCALAR = ("s32", (1,))


def vit(kernel: str, B: int, S: int, N: int, H: int):
    x, statistics = ("bf16", (B, S, N * H)), ("f32", (B, N * H // 128, 128 // H, S))
    return ([x] * 3, [x, statistics]) if kernel == "vit_attention_forward" else ([x] * 5 + [statistics], [x] * 3)


def packed(kernel: str, B: int, S: int, L: int, N: int, K: int, H: int):
    kv_heads = together(K, H)
    q, kv, q_ids, kv_ids = ("bf16", (B, S, N * H)), ("bf16", (B, L, K * H)), ("s32", (B, 1, S)), ("s32", (B, 1, L))
    statistics = ("f32", (B, K // kv_heads, N // K * kv_heads, S))
    read = [q, kv, kv, q_ids, kv_ids]
    if kernel == "packed_attention_forward":
        return [SCALAR] * 4 + read, [q, statistics]
    return [SCALAR] * 5 + [*read, q, statistics, q], [q, kv, kv]


def loss(kernel: str, T: int, D: int, V: int):
    x, w, column = ("bf16", (T, D)), ("bf16", (D, V)), ("f32", (T, 1))
    if kernel == "cross_entropy_softmax":
        return [SCALAR] * 4 + [x, w, column], [column] * 3 + [x]
    return [SCALAR] * 4 + [x, w, *[column] * 4], [w]


def of(kernel: str, problem: Attention | Loss, chip: str, documents: int | None = None):
    if isinstance(problem, Loss):
        call = loss(kernel, problem.T, problem.D, problem.V)
    elif problem.causal:
        call = packed(kernel, problem.B, problem.S, problem.S, problem.N, problem.K, problem.H)
    else:
        call = vit(kernel, problem.B, problem.S, problem.N, problem.H)
    return cost(f"jvp_{kernel}.7", *call, chip, documents or len(getattr(problem, "segments", ())) or None)


def kernels_of(problem: Attention | Loss) -> list[str]:
    kind = "cross_entropy" if isinstance(problem, Loss) else "packed" if problem.causal else "vit"
    return [name for name in MODELS if name.startswith(kind)]


EVERY = [(problem, kernel) for problem in (*FITTED, *OTHERS) for kernel in kernels_of(problem)]


@pytest.mark.parametrize("chip", CHIPS)
def test_models_equal_the_schedule(chip):
    titles = {problem.title: problem for problem in (*FITTED, *OTHERS)}
    for title, kernels in READINGS[chip].items():
        problem = titles[title]
        assert set(kernels) == set(kernels_of(problem))
        for kernel, cycles in kernels.items():
            off = of(kernel, problem, chip).cycles / cycles - 1
            within = FITTED_WITHIN if problem in FITTED else OTHERS_WITHIN
            assert abs(off) < within, f"{chip} {kernel}, {title}: {off:+.1%}"


@pytest.mark.parametrize("chip", CHIPS)
def test_never_above_the_peaks(chip):
    for problem, kernel in EVERY:
        found = of(kernel, problem, chip)
        assert 0 < found.flops / found.seconds <= CHIPS[chip].teraflops * 1e12
        assert 0 < found.bytes / found.seconds <= CHIPS[chip].gigabytes * 1e9 * (1 + 1e-12)
        assert found.seconds == pytest.approx(found.cycles / CHIPS[chip].ghz / 1e9)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(
    ("kernel", "call"),
    [
        *((kernel, lambda kernel, n: packed(kernel, n, 4096, 4096, 28, 4, 128)) for kernel in list(MODELS)[:2]),
        *((kernel, lambda kernel, n: vit(kernel, n, 1025, 16, 64)) for kernel in list(MODELS)[2:4]),
    ],
)
def test_twice_the_rows_take_twice_as_long(chip, kernel, call):
    one, two = (cost(kernel, *call(kernel, n), chip) for n in (2, 4))
    for name in ("flops", "bytes", "cycles", "seconds"):
        assert getattr(two, name) == pytest.approx(2 * getattr(one, name))


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("kernel", ["packed_attention_forward", "packed_attention_backward"])
def test_documents_cut_again_never_cost_more(chip, kernel):
    """Only where they are: two documents whose edge is a block's edge can cost less than three."""
    for length, first, times in product((512, 1536, 4096, 16384), (1, 2, 3, 5), (2, 3, 4)):
        call = packed(kernel, 1, length, length, 12, 2, 128)
        whole, cut = (cost(kernel, *call, chip, documents) for documents in (first, first * times))
        assert cut.cycles <= whole.cycles and cut.flops <= whole.flops and cut.bytes <= whole.bytes


@pytest.mark.parametrize("blocks", [Blocks(512, 512, 256, 256), Blocks(512, 512, 512, 256), Blocks(256, 512, 256, 256)])
@pytest.mark.parametrize(
    ("T", "S", "L", "documents"), [(2048, 2048, 2048, 3), (2048, 1024, 2048, 1), (2048, 2048, 1024, 2)]
)
def test_pairs_are_those_that_the_kernels_take(blocks, T, S, L, documents):
    ids = jnp.asarray(np.arange(T) * documents // T + 1, jnp.int32)[None]
    found = []
    for start, first in product(range(0, T, S), range(0, T, L)):
        q_ids, kv_ids = ids[:, start : start + S], ids[:, first : first + L]
        listed = packed_schedule.pairs(q_ids, kv_ids, start - first, blocks=blocks, causal=True)
        flags = np.asarray(listed.keys)[: int(listed.count)]
        full = flags & packed_schedule.FULL != 0
        bits = (flags[:, None] >> (5 + np.arange(packed_schedule.MOST_PIECES))) & 1
        counts = (full.size, full.sum(), bits[~full].sum())
        ends = (flags & packed_schedule.FIRST_OF_QUERIES != 0).sum(), (flags & packed_schedule.FIRST_OF_KEYS != 0).sum()
        found.append((*counts, *ends))
    assert pairs(S, L, blocks, documents) == pytest.approx(Pairs(*np.mean(found, axis=0)))


def test_rows_that_do_not_fill_their_blocks():
    """768 queries in blocks of 256 come with 1,024 keys in blocks of 512, of which 256 are padding."""
    found = pairs(768, 1024, Blocks(256, 512, 256, 256), 1)
    assert found == Pairs(all=4, full=1, pieces=4, queries=3, keys=2)


def test_shards_of_a_row_cost_what_the_row_does():
    for kernel in ("packed_attention_forward", "packed_attention_backward"):
        whole, shard = (cost(kernel, *packed(kernel, 1, S, 32768, 28, 4, 128), "v5p") for S in (32768, 4096))
        assert 8 * shard.flops == pytest.approx(whole.flops)
        assert 8 * shard.cycles == pytest.approx(whole.cycles, rel=0.02)


def test_what_is_not_known():
    call = packed("packed_attention_forward", 1, 512, 512, 4, 1, 128)
    assert cost("splash_mha_fwd", *call, "v5e") is None
    with pytest.raises(ValueError, match="chip 'v4' is unknown; there are v5e, v5p, v6e"):
        cost("packed_attention_forward", *call, "v4")
    with pytest.raises(ValueError, match="documents is 0"):
        cost("packed_attention_forward", *call, "v5e", 0)
    with pytest.raises(ValueError, match="operand 4 is to have 2 dimensions; there are s32"):
        cost("cross_entropy_d_w", *call, "v5e")
    with pytest.raises(ValueError, match="operand 0 is f32; the model of its cost is of bf16"):
        cost("vit_attention_backward", [("f32", (1, 129, 128))] * 5 + [("f32", (1, 1, 1, 129))], [], "v5e")


@pytest.mark.long
def test_a_compiled_call_is_what_the_model_is_asked(libtpu):
    problem = OTHERS[0]
    for kernel in ours(problem, "v6e")[0]:
        assert modelled(kernel, problem) == of(kernel.name, problem, "v6e").cycles
        assert abs(modelled(kernel, problem) / kernel.cycles - 1) < OTHERS_WITHIN
