"""Complaints as XLA words them, older and newer, and what is told of them."""

import pytest

from ivl3_jax.lab.complaints import in_plain_words

OLDER = (
    "[spmd] Involuntary full rematerialization. The compiler was not able to go from sharding "
    "{devices=[2,1,4]<=[4,2]T(1,0)} to {devices=[1,8,1]<=[8]} without doing a full rematerialization of the tensor. "
    "You probably want to enrich the sharding annotations to prevent this from happening."
)
NEWER = (
    "[SPMD] Involuntary full rematerialization. The compiler cannot go from sharding {devices=[1,4]<=[4]} to "
    "{devices=[4,1]<=[4]} efficiently for HLO operation %add.7 = f32[96,64]{1,0} add(%a, %b), "
    'sharding={devices=[1,4]<=[4]}, metadata={op_name="jit(step)/decoder/add"}. As the last resort, SPMD will '
    "replicate the tensor and then partition it to obtain the target sharding, which is inefficient."
)
SHORT = (
    "Can't reduce memory use below 10.64GiB (11428802214 bytes) by rematerialization; only reduced to 71.27GiB "
    "(76523901244 bytes), down from 73.51GiB (78931543988 bytes) originally"
)


@pytest.mark.parametrize(
    ("complaint", "told"),
    [
        (
            OLDER,
            "an array lies by {devices=[2,1,4]<=[4,2]T(1,0)} and is wanted by {devices=[1,8,1]<=[8]}: every device",
        ),
        (
            NEWER,
            "%add.7 f32[96,64], in jit(step)/decoder/add, lies by {devices=[1,4]<=[4]} and is wanted by "
            "{devices=[4,1]<=[4]}: every device",
        ),
        (
            SHORT,
            "to save memory it computes values again, but comes to 71.27GiB, not to the 10.64GiB that it aims at: the",
        ),
        ("Something\n  new", "Something new"),
    ],
)
def test_known_complaints_are_told_in_plain_words(complaint, told):
    assert in_plain_words(complaint).startswith(told)


def test_what_is_not_known_is_shortened():
    assert in_plain_words("word " * 100) == ("word " * 100)[:297] + "..."
