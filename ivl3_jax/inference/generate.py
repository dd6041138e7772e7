"""Generation: prefill once, then one token a step against a KV cache, with the layers taken apart."""

import dataclasses
import numbers
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ivl3_jax.data.encoded import Encoded
from ivl3_jax.inference.programs import programs_of
from ivl3_jax.inference.sampling import GREEDY, Sampling
from ivl3_jax.layers.stack import unstack
from ivl3_jax.models.model import Model


def bucket(length: int) -> int:
    """The static length that `length` positions are padded to: four sizes an octave, at most a quarter padding."""
    step = max(64, (1 << (length - 1).bit_length()) // 8)
    return -(-length // step) * step


def whole_number(name: str, value: Any, least: int) -> int:
    """`value`, a whole number of any type, as an int; raises a ValueError with `name` unless it is at least `least`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")
    return int(value)


class Generator:
    """Continues prompts token by token, on one device.

    Compiled once for each bucket of prompt length and capacity, for all models of one configuration. It holds the
    decoder's layers one by one: where the model itself is not needed any more, drop it to get its memory back.
    """

    def __init__(self, model: Model) -> None:
        """Raises ValueError for a model that is spread over several devices."""
        if model.plan.devices != 1:
            raise ValueError(
                f"generation runs on one device, and plan {model.plan.name!r} has {model.plan.devices}; "
                "load the checkpoint with plan 'single'"
            )
        self.config, self.mesh = model.config, model.mesh
        with jax.set_mesh(self.mesh):
            module = nnx.merge(model.graphdef, model.params)
            module.decoder.layers = unstack(module.decoder.layers)
            graphdef, self.params = nnx.split(module)
        self._dtype, self._programs = module.dtype, programs_of(graphdef)

    def stream(
        self, prompts: Sequence[Encoded], max_new_tokens: int, sampling: Sampling = GREEDY
    ) -> Iterator[np.ndarray]:
        """Yields the next token of every row, int32 [B], at most `max_new_tokens` times.

        Rows may differ in length, images and spacing of positions; an answer's positions follow the last of its prompt
        in steps of 1. Stop by leaving the iterator.

        Raises:
            ValueError: no prompt, `max_new_tokens` is no whole number of at least 1, or a prompt and its answer would
                pass the decoder's last position.
        """
        max_new_tokens = whole_number("max_new_tokens", max_new_tokens, least=1)
        self._check(prompts, max_new_tokens)
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        following = np.array([prompt.positions[-1] + 1 for prompt in prompts], np.float32)
        size = bucket(int(lengths.max()))
        tokens, visual_index = (np.full((len(prompts), size), fill, np.int32) for fill in (0, -1))
        positions = np.zeros((len(prompts), size), np.float32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt.tokens
            visual_index[row, : len(prompt)] = prompt.visual_index
            positions[row, : len(prompt)] = prompt.positions
        key = jax.random.key(sampling.seed)
        sampling = dataclasses.replace(sampling, seed=0)  # static below; another seed is no other program
        with jax.set_mesh(self.mesh):
            visual = jnp.stack([self.visual_tokens(prompt.tiles, size) for prompt in prompts])
            capacity = bucket(int(lengths.max()) + max_new_tokens)
            token, cache = self._programs.start(
                self.params, tokens, visual_index, visual, positions, lengths, key, capacity=capacity, sampling=sampling
            )
        for number in range(1, max_new_tokens + 1):
            coming = None
            if number < max_new_tokens:
                done = number - 1  # a plain int, which keeps the dtypes
                with jax.set_mesh(self.mesh):
                    coming, cache = self._programs.next(
                        self.params, token, cache, following + done, lengths + done, key, number, sampling=sampling
                    )
            yield np.asarray(token)  # while the next one is computed
            token = coming

    def generate(
        self, prompts: Sequence[Encoded], max_new_tokens: int, stop: Collection[int], sampling: Sampling = GREEDY
    ) -> list[list[int]]:
        """The answer of each prompt as token ids, without the stop token that ended it."""
        answers: list[list[int]] = [[] for _ in prompts]
        running = set(range(len(prompts)))
        for token in self.stream(prompts, max_new_tokens, sampling):
            for row in sorted(running):
                if int(token[row]) in stop:
                    running.remove(row)
                else:
                    answers[row].append(int(token[row]))
            if not running:
                break
        return answers

    def visual_tokens(self, tiles: np.ndarray, rows: int) -> jax.Array:
        """uint8 tiles [t, size, size, 3] to their visual tokens, [rows, D] with zeros at the end.

        Tiles are encoded in groups of powers of two, so that any number of them needs only a few compilations.
        """
        parts, start = [], 0
        while start < len(tiles):
            count = 1 << ((len(tiles) - start).bit_length() - 1)
            parts.append(self._programs.visual(self.params, tiles[start : start + count]))
            start += count
        found = jnp.concatenate(parts) if parts else jnp.zeros((0, self.config.decoder.width), self._dtype)
        return jnp.pad(found, ((0, rows - found.shape[0]), (0, 0)))

    def _check(self, prompts: Sequence[Encoded], max_new_tokens: int) -> None:
        if not len(prompts):
            raise ValueError("there is no prompt; give at least one")
        # Not the number of tokens: several visual ones may share a step, see data/positions.py.
        furthest, limit = max(int(prompt.positions[-1]) for prompt in prompts) + 1, self.config.decoder.longest_row
        if furthest + max_new_tokens > limit:
            raise ValueError(
                f"the prompt takes {furthest} positions and the answer may take {max_new_tokens}; together they pass "
                f"the {limit} that the model takes: use fewer or smaller images, or a lower max_new_tokens"
            )
