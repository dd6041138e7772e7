"""Cross-entropy straight from hidden states for TPUs: two Pallas kernels, two products each, no logits in HBM.

The first takes the log-sum-exp online over blocks of columns and, in the same pass, the mean of w's columns under the
softmax, as attention over the vocabulary would (the online softmax of Milakov and Gimelshein 2018): the gradient of a
token's loss with respect to its x is that mean less its label's column, whatever cotangent arrives later. The second
forms the logits again and from them w's gradient. Neither sums into HBM, so that no float32 gradient lies there.

Tokens are sorted by their label, those of weight 0 to the end. Blocks of the latter are left out at run time; and
with labels in order few pairs of a block of tokens and a block of columns contain a label, so that only these few pay
for telling the label apart. The probability of a label never enters as p - 1: with it left out of all sums,
1 - p is known without cancellation.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ivl3_jax.kernels.chip import chip

MASKED = -1e30  # finite, so that masked logits never meet in inf - inf
LANES = 128
VMEM = {"v5e": 112 << 20, "v5p": 56 << 20, "v6e": 112 << 20}  # bytes that a kernel may take, a little below the chip's

Axis = str | tuple[str, ...] | None


class Blocks(NamedTuple):
    """Tokens and columns in a block, of the first and of the second kernel."""

    tokens: int
    columns: int
    d_w_tokens: int
    d_w_columns: int


def cross_entropy(
    x: jax.Array,
    w: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    *,
    vocab: int,
    axis: Axis = None,
    interpret: bool = False,
) -> jax.Array:
    """weights * (logsumexp(logits) - logits[label]) for logits = x w; differentiable in x, w and weights.

    Args:
        x: [T, D], bfloat16 or float32. w: [D, V] in x's dtype; the columns from `vocab` on are padding and count as
            -inf.
        labels: int32 [T] in 0..vocab-1; anything where the weight is 0. Elsewhere a label out of range gives NaN.
        weights: float32 [T]. A token of weight 0 takes no part: its loss and all its gradients are 0.
        vocab: how many columns there are, over all shards.
        axis: mesh axes over which the columns are sharded, as for `chunked_cross_entropy.cross_entropy`.
        interpret: run the kernels on any platform, slowly.

    Returns:
        float32 [T], in nats.

    Raises:
        ValueError: dtypes other than these, or a D for which no block fits into the chip's memory.
    """
    x, w, labels, weights = (jnp.asarray(operand) for operand in (x, w, labels, weights))
    if x.dtype != w.dtype or x.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(
            f"cross_entropy: x is {x.dtype} and w {w.dtype}; the TPU kernel takes both in bfloat16 or both in float32"
        )
    if x.shape[0] == 0:
        return jnp.zeros(0, jnp.float32)
    known = (labels >= 0) & (labels < vocab)
    nll = _nll(vocab, axis, interpret, x, w, labels, (weights != 0) & known)
    return weights * jnp.where(known | (weights == 0), nll, jnp.nan)


def supports(x: jax.Array, w: jax.Array) -> bool:
    """Whether `cross_entropy` takes x [..., D] and w [D, V]."""
    known = x.dtype == w.dtype and x.dtype in (jnp.bfloat16, jnp.float32)
    return known and x.shape[-1] <= _widest(chip() or "v5p", x.dtype)


def blocks(D: int, dtype: jnp.dtype) -> Blocks:
    """The blocks for a width, of the chip that is traced for."""
    return blocks_on(chip() or "v5p", D, dtype)


def blocks_on(name: str, D: int, dtype: jnp.dtype) -> Blocks:
    """The blocks for a width on v5e, v5p or v6e; raises ValueError where none fits."""
    for sizes in BLOCKS[name]:
        if _bytes(D, sizes, dtype) <= VMEM[name]:
            return sizes
    raise ValueError(
        f"cross_entropy: width {D} is too large for the TPU kernel; on {name} it takes up to {_widest(name, dtype)} "
        f"in {jnp.dtype(dtype)}"
    )


def _widest(name: str, dtype: jnp.dtype) -> int:
    D = LANES
    while _bytes(D + LANES, BLOCKS[name][-1], dtype) <= VMEM[name]:
        D += LANES
    return D


# The largest first; the first that fits is taken. By the schedules of `ivl3 bench kernels`.
BLOCKS = {
    "v5e": [Blocks(512, 1024, 512, 1024), Blocks(256, 512, 256, 512), Blocks(128, 256, 128, 256)],
    "v5p": [Blocks(512, 1024, 512, 1024), Blocks(256, 512, 256, 512), Blocks(128, 256, 128, 256)],
    "v6e": [Blocks(1024, 1024, 1024, 1024), Blocks(512, 512, 512, 512), Blocks(256, 256, 256, 256)],
}


def _bytes(D: int, sizes: Blocks, dtype: jnp.dtype) -> int:
    """What the larger of the two kernels holds: operands and results twice, sums and products in float32 once."""
    tokens, columns, d_w_tokens, d_w_columns = sizes
    size = jnp.dtype(dtype).itemsize
    first = size * D * (2 * tokens + 2 * columns + tokens + 2 * tokens) + 8 * D * tokens + 10 * tokens * columns
    second = size * D * (2 * d_w_tokens + 4 * d_w_columns) + 8 * D * d_w_columns + 10 * d_w_tokens * d_w_columns
    return max(first, second)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _nll(vocab, axis, interpret, x, w, labels, active):
    tokens = _Tokens.sorted(x, w, labels, active, vocab, axis)
    stats = _softmax(x, w, tokens, with_gradient=False, split=False, interpret=interpret)
    *_, nll = _over_shards(stats, axis)
    return jnp.where(active, nll[tokens.place], 0)


class _Tokens(NamedTuple):
    """The tokens in the order in which the kernels take them; those that take part first, by label.

    Attributes:
        order: int32 [P], which token stands where; past the last (T) in what fills the last block, and where a token
            takes no part. P is a multiple of every block.
        place: int32 [T], where each token stands.
        labels: int32 [P], counted from the first column of this shard.
        active, columns: int32 scalars, how many tokens take part, and how many of this shard's columns count.
    """

    order: jax.Array
    place: jax.Array
    labels: jax.Array
    active: jax.Array
    columns: jax.Array

    @classmethod
    def sorted(cls, x, w, labels, active, vocab, axis):
        (T, D), V = x.shape, w.shape[1]
        sizes = blocks(D, x.dtype)
        step = min(max(sizes.tokens, sizes.d_w_tokens), _up(T, 16))
        first = 0 if axis is None else lax.axis_index(axis) * V
        far = jnp.iinfo(jnp.int32).max
        local = jnp.where(active, labels - first, far)
        order = jnp.argsort(local, stable=True).astype(jnp.int32)
        place = jnp.argsort(order).astype(jnp.int32)
        count = active.sum(dtype=jnp.int32)
        taken = jnp.where(jnp.arange(T) < count, order, T)
        fill = (0, _up(T, step) - T)
        return cls(
            jnp.pad(taken, fill, constant_values=T),
            place,
            jnp.pad(local[order], fill, constant_values=far),
            count,
            jnp.clip(vocab - first, 0, V).astype(jnp.int32),
        )

    def take(self, x: jax.Array, fill: float = 0) -> jax.Array:
        """x [T, ...] in the order of the kernels, `fill` where no token takes part."""
        return x.at[self.order].get(mode="fill", fill_value=fill)

    def scalars(self, size: int) -> tuple[jax.Array, ...]:
        """For the kernels, int32: blocks of `size` in use [1], columns [1], each block's smallest and largest label."""
        labels = self.labels.reshape(-1, size)
        used = (self.active + size - 1) // size
        # The remainder of the last block in use has the label `far`, which says nothing of its range.
        largest = jnp.where(self.order.reshape(-1, size) < self.place.shape[0], labels, -1).max(1)
        return used.reshape(1), self.columns.reshape(1), labels.min(1), largest


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _softmax(x, w, tokens, *, with_gradient, split, interpret):
    """The first kernel.

    Returns:
        Float32 [P] of this shard's columns: the largest logit, the sum of exp(logit - largest) over all but the label,
        the label's logit (0 where another shard has it); and with gradient [P, D] in x's dtype. Unsplit that is the
        gradient of the loss with respect to x. Split, where other shards have part of the columns, the sum of
        exp(logit - largest) times column over all but the label, and the label's column.
    """
    (_, D), V = x.shape, w.shape[1]
    sizes = blocks(D, x.dtype)
    P = tokens.order.shape[0]
    block, columns = min(sizes.tokens, P), min(sizes.columns, _up(V, LANES))
    rows, steps = P // block, pl.cdiv(V, columns)

    def row(i):
        # Where a chip has two cores each takes one half of the grid; every other block, so that both have work.
        return i if rows % 2 else 2 * (i % (rows // 2)) + i // (rows // 2)

    def last_used(i, used):
        return jnp.minimum(row(i), jnp.maximum(used[0] - 1, 0))

    column = pl.BlockSpec((block, 1), lambda i, j, *s: (row(i), 0))
    wide = pl.BlockSpec((block, D), lambda i, j, *s: (row(i), 0))
    gradients = (2 if split else 1) if with_gradient else 0
    scratch = [pltpu.VMEM((block, D), jnp.float32), pltpu.VMEM((block, D), x.dtype)] if with_gradient else []
    out = pl.pallas_call(
        partial(_softmax_kernel, row, columns, with_gradient, split),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(rows, steps),
            in_specs=[
                pl.BlockSpec((block, D), lambda i, j, used, *s: (last_used(i, used), 0)),
                pl.BlockSpec((D, columns), lambda i, j, used, *s: (0, jnp.where(row(i) < used[0], j, 0))),
                pl.BlockSpec((block, 1), lambda i, j, used, *s: (last_used(i, used), 0)),
            ],
            out_specs=[column] * 3 + [wide] * gradients,
            scratch_shapes=scratch,
        ),
        out_shape=[jax.ShapeDtypeStruct((P, 1), jnp.float32)] * 3 + [jax.ShapeDtypeStruct((P, D), x.dtype)] * gradients,
        # A block of x is read before the same block of the gradient is written over it.
        input_output_aliases={4: 3} if with_gradient else {},
        compiler_params=_params(("parallel", "arbitrary")),
        interpret=interpret,
        name="cross_entropy_softmax",
    )(*tokens.scalars(block), tokens.take(x), w, tokens.labels[:, None])
    return (*(stat[:, 0] for stat in out[:3]), *out[3:])


def _params(semantics: tuple[str, ...]) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=VMEM[chip() or "v5p"])


def _dot(a, b, contract):
    """a and b contracted over one dimension each, summed in float32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    numbers = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, numbers, precision=precision, preferred_element_type=jnp.float32)


def _when_seen(seen, special, body):
    """Runs body(special) once, where `seen`; the plain code is its own, without what only few blocks need."""
    pl.when(seen & jnp.logical_not(special))(partial(body, False))
    pl.when(seen & special)(partial(body, True))


def _special(i, j, size, columns, smallest, largest):
    """Whether block i of tokens has a label in block j of columns, or the block has columns that do not count."""
    return ((smallest[i] < (j + 1) * size) & (largest[i] >= j * size)) | ((j + 1) * size > columns[0])


def _softmax_kernel(row, size, with_gradient, split, used, columns, smallest, largest, x, w, labels, *rest):
    top, others, label_logit, *gradients = rest[: -2 if with_gradient else None]
    mean, label_column = rest[-2:] if with_gradient else (None, None)
    j = pl.program_id(1)
    i = row(pl.program_id(0))

    @pl.when((i < used[0]) & (j == 0))
    def _():
        top[...] = jnp.full_like(top, MASKED)
        others[...] = jnp.zeros_like(others)
        label_logit[...] = jnp.zeros_like(label_logit)
        if with_gradient:
            mean[...] = jnp.zeros_like(mean)
            label_column[...] = jnp.zeros_like(label_column)

    def body(special):
        w_j = w[...]
        if special:
            place = j * size + lax.broadcasted_iota(jnp.int32, (1, size), 1)
            w_j = jnp.where(place < columns[0], w_j, 0)  # past the last column lies anything, NaN included
        logits = _dot(x[...], w_j, (1, 0))
        if special:
            logits = jnp.where(place < columns[0], logits, MASKED)
            is_label = (place == labels[...]) & (place < columns[0])
            label_logit[...] += jnp.where(is_label, logits, 0).sum(1, keepdims=True)
        new_top = jnp.maximum(top[...], logits.max(1, keepdims=True))
        p = jnp.exp(logits - new_top)
        if special:
            p = jnp.where(is_label, 0, p)
        shrink = jnp.exp(top[...] - new_top)
        others[...] = others[...] * shrink + p.sum(1, keepdims=True)
        top[...] = new_top
        if with_gradient:
            mean[...] = mean[...] * shrink + _dot(p.astype(w_j.dtype), w_j, (1, 1))
            if special:
                chosen = _dot(is_label.astype(w_j.dtype), w_j, (1, 1))
                label_column[...] += chosen.astype(label_column.dtype)

    _when_seen((i < used[0]) & (j * size < columns[0]), _special(i, j, size, columns, smallest, largest), body)

    if with_gradient:

        @pl.when((i < used[0]) & (j == pl.num_programs(1) - 1))
        def _():
            if split:
                gradients[0][...] = mean[...].astype(x.dtype)
                gradients[1][...] = label_column[...]
            else:
                total = others[...] + jnp.exp(label_logit[...] - top[...])
                less = label_column[...].astype(jnp.float32) * others[...]
                gradients[0][...] = ((mean[...] - less) / total).astype(x.dtype)


def _over_shards(stats, axis):
    """Over all shards, [P]: the largest logit, the sum of exp(logit - largest) with and without the label, the loss."""
    top, others, label_logit = stats[:3]
    if axis is not None:
        local_top, top = top, lax.pmax(top, axis)
        others, label_logit = lax.psum((others * jnp.exp(local_top - top), label_logit), axis)
    total = others + jnp.exp(label_logit - top)
    return top, total, others, top - label_logit + jnp.log(total)


def _forward(vocab, axis, interpret, x, w, labels, active):
    tokens = _Tokens.sorted(x, w, labels, active, vocab, axis)
    stats = _softmax(x, w, tokens, with_gradient=True, split=axis is not None, interpret=interpret)
    top, total, others, nll = _over_shards(stats, axis)
    d_x = stats[3]
    if axis is not None:
        scale, less = jnp.exp(stats[0] - top) / total, others / total
        d_x = (d_x.astype(jnp.float32) * scale[:, None] - stats[4].astype(jnp.float32) * less[:, None]).astype(x.dtype)
    d_x = jnp.where(active[:, None], d_x[tokens.place], 0)
    # Blocks that were left out hold anything; the blocks of the second kernel may be others.
    taken = jnp.arange(top.shape[0]) < tokens.active
    lse, miss = (jnp.where(taken, stat, 0) for stat in (top + jnp.log(total), others / total))
    saved = x, w, active, tokens, lse, miss, d_x
    return jnp.where(active, nll[tokens.place], 0), saved


def _backward(vocab, axis, interpret, saved, d_nll):
    x, w, active, tokens, lse, miss, d_x = saved
    if axis is not None:
        # As in chunked_cross_entropy: each shard gets its share of the cotangent of a result that is the same on all.
        d_nll = lax.psum(d_nll, axis)
    d_nll = jnp.where(active, d_nll, 0)
    # The sorted copy of x is made anew: kept from the forward pass it would lie beside d_x in between.
    x, d_nll = lax.optimization_barrier((x, d_nll))
    d_w = _d_w(x, w, tokens, lse, miss, tokens.take(d_nll), interpret)
    return (d_x.astype(jnp.float32) * d_nll[:, None]).astype(x.dtype), d_w, None, None


_nll.defvjp(_forward, _backward)


def _d_w(x, w, tokens, lse, miss, d_nll, interpret):
    """The second kernel: [D, V], x transposed times (softmax - one-hot) * d_nll."""
    (_, D), V = x.shape, w.shape[1]
    sizes = blocks(D, x.dtype)
    P = tokens.order.shape[0]
    block, columns = min(sizes.d_w_tokens, P), min(sizes.d_w_columns, _up(V, LANES))

    def last_used(i, used):
        return jnp.minimum(i, jnp.maximum(used[0] - 1, 0))

    column = pl.BlockSpec((block, 1), lambda j, i, used, *s: (last_used(i, used), 0))
    return pl.pallas_call(
        partial(_d_w_kernel, columns),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(pl.cdiv(V, columns), P // block),
            in_specs=[
                pl.BlockSpec((block, D), lambda j, i, used, *s: (last_used(i, used), 0)),
                pl.BlockSpec((D, columns), lambda j, i, *s: (0, j)),
                *[column] * 4,
            ],
            out_specs=pl.BlockSpec((D, columns), lambda j, i, *s: (0, j)),
            scratch_shapes=[pltpu.VMEM((D, columns), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((D, V), w.dtype),
        compiler_params=_params(("parallel", "arbitrary")),
        interpret=interpret,
        name="cross_entropy_d_w",
    )(*tokens.scalars(block), tokens.take(x), w, *(s[:, None] for s in (tokens.labels, lse, miss, d_nll)))


def _d_w_kernel(size, used, columns, smallest, largest, x, w, labels, lse, miss, d_nll, d_w, total):
    j, i = pl.program_id(0), pl.program_id(1)

    @pl.when(i == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    def body(special):
        d_logits = jnp.exp(_dot(x[...], w[...], (1, 0)) - lse[...]) * d_nll[...]
        if special:
            place = j * size + lax.broadcasted_iota(jnp.int32, (1, size), 1)
            d_logits = jnp.where(place == labels[...], -miss[...] * d_nll[...], d_logits)
            d_logits = jnp.where(place < columns[0], d_logits, 0)
        total[...] += _dot(x[...], d_logits.astype(x.dtype), (0, 0))

    _when_seen((i < used[0]) & (j * size < columns[0]), _special(i, j, size, columns, smallest, largest), body)

    @pl.when(i == pl.num_programs(1) - 1)
    def _():
        d_w[...] = total[...].astype(d_w.dtype)
