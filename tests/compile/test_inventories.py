"""Train steps make the collectives that are on record: an accidental gather shows as a line."""

import json
from importlib.metadata import version

import pytest

from ivl3_jax.lab.inventory import difference
from tests.compile.inventories import NAMES, file_of, found

QUICK = ("1b-fsdp_tensor", "1b-context")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.long) for n in NAMES])
def test_the_collectives_on_record(name, libtpu):
    if not file_of(name).parent.is_dir():
        pytest.skip(f"there are no inventories of libtpu {version('libtpu')}; see tests/compile/inventories.py")
    lines = difference(json.loads(file_of(name).read_text()), found(name))
    assert not lines, "the collectives of {} have changed:\n{}".format(name, "\n".join(lines))
