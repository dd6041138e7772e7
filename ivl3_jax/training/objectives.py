"""What is minimised: the next-token loss, or that of preference pairs (MPO), as sums over data-only denominators.

Every part of a loss is a sum over rows divided by a total that follows from the data alone, so that rows computed one
after the other, or on other hosts, add up to exactly the loss of the whole batch.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ivl3_jax.batch import IGNORE, Batch
from ivl3_jax.models.internvl import InternVL, token_losses
from ivl3_jax.training.config import PreferenceWeights

Totals = dict[str, jax.Array]


class RewardShift(NamedTuple):
    """BCO's running mean of all rewards so far, and their number; float32 scalars."""

    mean: jax.Array
    count: jax.Array


class Found(NamedTuple):
    """What some rows contribute.

    Attributes:
        loss: their part of the loss, a scalar in nats.
        by_segment: [B, G], weighted losses in nats that are reported by source and kind, with `weights` [B, G].
        parts: named scalars that add up over rows like `loss`.
        shift: BCO's, after these rows.
    """

    loss: jax.Array
    by_segment: jax.Array
    weights: jax.Array
    parts: dict[str, jax.Array]
    shift: RewardShift


class Objective(Protocol):
    """A loss."""

    def totals(self, batch: Batch) -> Totals:
        """The denominators, scalars, of rows of any leading shape."""

    def __call__(
        self,
        model: InternVL,
        batch: Batch,
        totals: Totals,
        shift: RewardShift,
        reference: jax.Array | None,
        keys: jax.Array | None,
    ) -> Found:
        """The part of the loss of some rows.

        Args:
            model: with parameters. batch: the rows. totals: of all rows of the step. shift: before these rows.
            reference: float32 [B, G], the reference model's log-probability of each segment's answer.
            keys: [B], switch drop-path on.
        """


@dataclass(frozen=True)
class NextToken:
    """sum(w nll) / sum(w) over the whole batch, in nats (InternVL2.5, arXiv 2412.05271; weights by `collate`)."""

    def totals(self, batch: Batch) -> Totals:
        return {"weights": batch.loss_weights.sum(dtype=float)}

    def __call__(self, model, batch, totals, shift, reference, keys) -> Found:
        losses = token_losses(model, batch, keys=keys)
        weights = by_segment(batch.loss_weights, batch)
        return Found(_over(losses.sum(), totals["weights"]), by_segment(losses, batch), weights, {}, shift)


@dataclass(frozen=True)
class MixedPreference:
    """w_p L_p + w_q L_q + w_g L_g of packed pairs, of which the two answers are neighbouring segments.

    With r = beta (log p - log p_ref) of an answer, summed over its tokens, c the chosen and j the rejected one:
    L_p = -log sigmoid(r_c - r_j), L_q = -log sigmoid(r_c - d) - log sigmoid(d - r_j), both means over pairs; d is the
    running mean of all rewards so far, these rows' included, through which nothing flows back. L_g is the mean negative
    log-likelihood of the tokens of chosen answers, and of segments that are in no pair.
    """

    weights: PreferenceWeights

    def totals(self, batch: Batch) -> Totals:
        taught = jnp.where(_taught(batch), by_segment(batch.labels != IGNORE, batch), 0)
        return {"pairs": batch.chosen.sum(dtype=float), "taught": taught.sum(dtype=float)}

    def __call__(self, model, batch, totals, shift, reference, keys) -> Found:
        log_probs = answer_log_probs(model, batch, keys=keys)
        tokens = by_segment(batch.labels != IGNORE, batch).astype(log_probs.dtype)
        rewards = self.weights.beta * (log_probs - reference)
        pairs, rejected = batch.chosen, _next_segment(rewards)
        margin = rewards - rejected
        shift = _moved(shift, jnp.where(batch.pair_id >= 0, rewards, 0).sum(), 2 * pairs.sum(dtype=rewards.dtype))
        d = shift.mean.astype(rewards.dtype)
        quality = jax.nn.softplus(d - rewards) + jax.nn.softplus(rejected - d)

        def mean(values: jax.Array) -> jax.Array:
            return _over(jnp.where(pairs, values, 0).sum(), totals["pairs"])

        taught = _taught(batch)
        generation = _over(jnp.where(taught, -log_probs, 0).sum(), totals["taught"])
        parts = {"preference": mean(jax.nn.softplus(-margin)), "quality": mean(quality), "generation": generation}
        loss = sum(getattr(self.weights, name) * part for name, part in parts.items())
        parts |= {
            "reward_margin": mean(margin),
            "reward_accuracy": mean((margin > 0).astype(margin.dtype)),
            "reward_chosen": mean(rewards),
            "reward_rejected": mean(rejected),
        }
        return Found(loss, jnp.where(taught, -log_probs, 0), jnp.where(taught, tokens, 0), parts, shift)


def answer_log_probs(model: InternVL, batch: Batch, *, keys: jax.Array | None = None) -> jax.Array:
    """The log-probability of each segment's trained tokens, summed, [B, G] in nats; 0 where there is none."""
    every = batch._replace(loss_weights=(batch.labels != IGNORE).astype(jnp.float32))
    return -by_segment(token_losses(model, every, keys=keys), batch)


def by_segment(values: jax.Array, batch: Batch) -> jax.Array:
    """values [..., S] summed over the positions of each segment, [..., G]."""
    segments = jnp.arange(1, batch.source_id.shape[-1] + 1)
    # A masked sum rather than a scatter: it partitions over rows and sequence, and its gradient is a product.
    return jnp.where(batch.segment_ids[..., None] == segments, values[..., None], 0).sum(axis=-2)


def _taught(batch: Batch) -> jax.Array:
    return batch.chosen | (batch.pair_id < 0)


def _next_segment(values: jax.Array) -> jax.Array:
    return jnp.concatenate([values[..., 1:], jnp.zeros_like(values[..., :1])], axis=-1)


def _moved(shift: RewardShift, rewards: jax.Array, count: jax.Array) -> RewardShift:
    """The running mean with `count` further rewards of that sum."""
    rewards = jax.lax.stop_gradient(rewards).astype(shift.mean.dtype)
    total = shift.count + count.astype(shift.count.dtype)
    return RewardShift(_over(shift.mean * shift.count + rewards, total), total)


def _over(value: jax.Array, total: jax.Array) -> jax.Array:
    """value / total; where the total is 0 there is nothing to divide."""
    return value / jnp.where(total > 0, total, 1).astype(value.dtype)
