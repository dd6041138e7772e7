"""What a backward pass finds saved of each layer, by the names under which layers offer it; the rest is recomputed."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

# What goes into a layer; attention's output with its log-sum-exp, small beside what it costs to compute them again; and
# what each linear layer of a block gives, with what lies between the two matrices of its adapter.
INPUT, ATTENTION = "input", "attention"
LINEARS = ("q", "k", "v", "out", "gate", "up", "down")
NAMES = (INPUT, ATTENTION, *LINEARS)


@dataclass(frozen=True)
class Remat:
    """A policy of the layer scan.

    Attributes:
        save: names kept in the device's memory; None keeps every intermediate. A layer's input is kept anyhow, unless
            it is offloaded.
        offload: names kept in the host's memory, from which the backward pass fetches them.
    """

    save: tuple[str, ...] | None = None
    offload: tuple[str, ...] = ()

    @property
    def policy(self) -> Callable | None:
        """As `jax.checkpoint` wants it; None where nothing is recomputed."""
        if self.save is None:
            return None
        if not self.offload:
            return jax.checkpoint_policies.save_only_these_names(*self.save)
        return jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=list(self.save),
            names_which_can_be_offloaded=list(self.offload),
            offload_src="device",
            offload_dst="pinned_host",
        )


POLICIES = {"none": Remat(), "dots": Remat((ATTENTION, *LINEARS)), "full": Remat(())}
