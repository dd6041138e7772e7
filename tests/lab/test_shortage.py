"""What a compiler's words say of memory."""

import pytest

from ivl3_jax.lab.compile import _complaints, _shortage

GIB = 2**30


@pytest.mark.parametrize(
    ("words", "kind", "wanted", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (126.98G) "
            "exceeds available HBM (95.74G).",
            "HBM",
            126.98,
            95.74,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.37G of 15.75G hbm. Exceeded hbm "
            "capacity by 5.62G.",
            "HBM",
            21.37,
            15.75,
        ),
        (
            "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom: Ran out of memory in memory space vmem while "
            "allocating on stack for %k. Scoped allocation with size 20.50M and limit 16.00M exceeded vmem limit.",
            "VMEM",
            20.5 / 1024,
            16 / 1024,
        ),
    ],
)
def test_shortage(words, kind, wanted, available):
    found = _shortage(words)
    assert found.kind == kind
    assert found.wanted == pytest.approx(wanted * GIB, rel=1e-6)
    assert found.available == pytest.approx(available * GIB, rel=1e-6)


def test_another_error_is_the_users():
    with pytest.raises(ValueError, match="the compiler refuses the step: INVALID_ARGUMENT: No such .* 'a'"):
        _shortage("INVALID_ARGUMENT: No such compile option: 'a'")


def test_complaints():
    lines = [
        "W1121 20:44:09.887695  140321 hlo_rematerialization.cc:12] Can't reduce memory use below 1GiB",
        "I1121 20:44:09.887695  140321 other.cc:1] all is well",
        "W1121 20:44:09.887695  140321 hlo_rematerialization.cc:12] Can't reduce memory use below 1GiB",
        "plain words",
    ]
    assert _complaints(lines) == ("Can't reduce memory use below 1GiB",)
