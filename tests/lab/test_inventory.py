"""Inventories of collectives and their difference; names of cases beside each other."""

import pytest

from ivl3_jax.lab.inventory import difference, inventory, size
from ivl3_jax.lab.labels import labels
from tests.lab.predictions import MLP, case, collective, timeline

GATHER = collective("all-gather", "fsdp", place=f"{MLP}, weights")


def test_an_inventory():
    pieces = collective("all-gather", "fsdp", count=48, size=2**21, place=f"{MLP}, weights", asynchronous=True)
    found = inventory(timeline(GATHER, collective("all-reduce", "data", "fsdp", count=1, place=""), pieces))
    assert found == {
        "all-gather|fsdp|decoder layers, forward: MLP, weights": {"count": 72, "bytes": 120 * 2**20},
        "all-reduce|data x fsdp|": {"count": 1, "bytes": 2**20},
    }
    assert list(found) == sorted(found)


def test_no_difference():
    assert difference(inventory(timeline(GATHER)), inventory(timeline(GATHER))) == []


def test_a_difference():
    before = inventory(timeline(GATHER, collective("all-reduce", "tensor"), collective("all-reduce", "fsdp", place="")))
    after = inventory(timeline(collective("all-gather", "fsdp", size=2**23, place=f"{MLP}, weights"),
                               collective("all-reduce", "fsdp", place=""), collective("all-to-all", "context", count=2))
                     )  # fmt: skip
    assert difference(before, after) == [
        "~ all-gather over fsdp, decoder layers, forward: MLP, weights: 24 times, 24.0 MiB -> 24 times, 192.0 MiB",
        "- all-reduce over tensor, decoder layers, forward: MLP: 24 times, 24.0 MiB",
        "+ all-to-all over context, decoder layers, forward: MLP: 2 times, 2.0 MiB",
    ]


@pytest.mark.parametrize(
    ("bytes_", "words"),
    [(0, "0 B"), (12, "12 B"), (2**10, "1.0 KiB"), (2**20 - 1, "1024.0 KiB"), (3 * 2**30, "3.00 GiB")],
)
def test_sizes(bytes_, words):
    assert size(bytes_) == words


def test_labels_hold_what_differs():
    assert labels([case(), case("sequence", tensor=2)]) == [
        "fsdp (fsdp 16), 1 row a chip",
        "sequence (fsdp 8 x tensor 2), 0.5 rows a chip",
    ]
    assert labels([case(), case(remat="dots")]) == ["fsdp (fsdp 16), remat full", "fsdp (fsdp 16), remat dots"]
    assert labels([case(rows=1), case(rows=2)]) == ["fsdp (fsdp 16), 1 row a chip", "fsdp (fsdp 16), 2 rows a chip"]
    assert labels([case(), case()]) == ["fsdp (fsdp 16)"] * 2
    assert labels([]) == []
