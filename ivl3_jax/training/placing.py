"""Which rows of a batch a process makes, and how they come onto the mesh."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ivl3_jax.batch import Batch
from ivl3_jax.models.model import batch_specs
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.sharding.validation import check_batch, check_microbatches


def batch_layout(plan: ShardingPlan, mesh: Mesh, rows: int, tokens: int, parts: int = 1) -> Batch:
    """The sharding of each array [A, B, ...] of a batch; arguments and errors as those of `Placement`."""
    if rows % parts:
        works = [n for n in range(1, rows + 1) if rows % n == 0]
        raise ValueError(
            f"a batch of {rows} rows cannot be computed in {parts} equal parts; accumulate must be one of {works}"
        )
    B = rows // parts
    check_batch(B, tokens, plan, " of a part" if parts > 1 else "")
    check_microbatches(B, plan)
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, PartitionSpec(None, *spec)),
        batch_specs(plan),
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )


class Placement:
    """The layout [A, B, ...] of a batch of R = A · B rows that are computed in A parts, row a · B + b at [a, b].

    Attributes:
        rows: the rows that this process has to make, ascending; all of them where there is one process.
    """

    def __init__(self, plan: ShardingPlan, mesh: Mesh, rows: int, tokens: int, parts: int = 1) -> None:
        """`rows`, `tokens`: R and S of a batch. `parts`: A.

        Raises:
            ValueError: rows or positions do not divide over the parts or the plan's axes, or the rows of a part cannot
                be cut into its microbatches.
        """
        self.parts, self._all, B = parts, rows, rows // parts
        self._shardings = batch_layout(plan, mesh, rows, tokens, parts)
        here = self._shardings.source_id.addressable_devices_indices_map((parts, B, 1)).values()
        within = sorted({b for _, bs, _ in here for b in range(*bs.indices(B))})
        self.rows = [a * B + b for a in range(parts) for b in within]

    def __call__(self, batch: Batch) -> Batch:
        """Puts this process's rows [len(rows), ...], numpy, into the global arrays [A, B, ...]."""
        return Batch(*map(self._put, batch, self._shardings))

    def per_row(self, values: np.ndarray) -> jax.Array:
        """Puts values [len(rows), G] of this process's rows into a global array [A, B, G]."""
        return self._put(values, self._shardings.source_id)

    def _put(self, values: np.ndarray, sharding: NamedSharding) -> jax.Array:
        A = self.parts
        mine = values.reshape(A, -1, *values.shape[1:])
        B, within = self._all // A, {row: i for i, row in enumerate(self.rows[: mine.shape[1]])}

        def piece(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[1].indices(B)
            return mine[index[0], within[start] : within[stop - 1] + 1, *index[2:]]

        return jax.make_array_from_callback((A, B, *values.shape[1:]), sharding, piece)
