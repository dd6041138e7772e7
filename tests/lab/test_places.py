"""Where instructions come from: the tables of a module, and words."""

from pathlib import Path

import pytest

import ivl3_jax
from ivl3_jax.lab.frames import frames
from ivl3_jax.lab.hlo import Module
from ivl3_jax.lab.places import WORDS, place
from ivl3_jax.lab.timeline import walk
from tests.lab.modules import HEAD, busy, entry, loop, placed

HERE = "jit(step)/jvp(decoder)/layers/while/body/closed_call/reshard"
AGAIN = "jit(step)/transpose(jvp(vision))/layers/while/body/closed_call/checkpoint/rematted_computation/reshard"
BACK = "jit(step)/transpose(jvp(decoder))/layers/while/body/closed_call/checkpoint/reduce_sum"
MLP = ("contract", "Linear.__call__", "SwiGLU.__call__", "Block.feed_forward", "run", "make_step")

TABLES = """
FileNames
1 "linear.py"
FunctionNames
1 "make_step.<locals>.step"
2 "SwiGLU.__call__"
3 "contract"

FileLocations
1 {file_name_id=1 function_name_id=1 line=54 end_line=54 column=19 end_column=19}
2 {file_name_id=1 function_name_id=2 line=1 end_line=1 column=0 end_column=1}
3 {file_name_id=1 function_name_id=3 line=2 end_line=2 column=0 end_column=1}
4 {file_name_id=1 function_name_id=3 line=3 end_line=3 column=0 end_column=1}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=4 parent_frame_id=4}

"""


def test_frames():
    found = frames(HEAD + TABLES)
    assert found == {
        1: ("make_step",),
        2: ("SwiGLU.__call__", "make_step"),
        3: ("contract", "SwiGLU.__call__", "make_step"),
        4: ("contract", "SwiGLU.__call__", "make_step"),
    }
    assert frames(HEAD) == {}


@pytest.mark.parametrize(
    ("op_name", "functions", "kind", "loop", "words"),
    [
        (HERE, MLP, "all-gather", "", "decoder layers, forward: MLP, weights"),
        (HERE, MLP, "reduce-scatter", "", "decoder layers, forward: MLP"),
        (BACK, MLP, "all-reduce", "", "decoder layers, backward: MLP, gradients"),
        (BACK, MLP, "all-gather", "", "decoder layers, backward: MLP, gradients"),
        (AGAIN, ("Attention.project", "Attention.__call__"), "", "", "ViT layers, recomputed: attention's q, k, v"),
        (HERE, (), "", "", "decoder layers, forward: laid out anew"),
        ("jit(step)/jvp()/shard_map/psum", ("cross_entropy",), "all-reduce", "",
         "step, forward: output projection and loss"),
        ("jit(step)/reduce_sum", ("make_step",), "all-reduce", "", "step: update"),
        ("jit(step)/reduce_sum", ("make_step",), "all-reduce", HERE, "decoder layers, forward"),
        ("", (), "all-reduce", HERE, "decoder layers, forward"),
        ("", (), "all-reduce", "", "step"),
    ],
)  # fmt: skip
def test_words(op_name, functions, kind, loop, words):
    assert place(op_name, functions, kind, loop) == words


def test_the_named_functions_exist():
    sources = "\n".join(file.read_text() for file in Path(ivl3_jax.__file__).parent.rglob("*.py"))
    for name in WORDS.keys() - {"tree_norm"}:  # optax's
        owner, _, function = name.rpartition(".")
        assert f"def {function}(" in sources, name
        assert not owner or f"class {owner}" in sources, name


ARRAY = "f32[8,128]{1,0:T(8,128)}"
REDUCED = (
    f"  %a = {ARRAY} parameter(0)\n"
    f"  %w = {ARRAY} copy(%a), "
    f'metadata={{op_name="{BACK}" stack_frame_id=2}}\n'
    f"  %v = {ARRAY} bitcast(%w)\n"
    "  %r = ("
    + ARRAY
    + ", "
    + ARRAY
    + ") all-reduce(%v, %a), channel_id=1, replica_groups=[4,4]<=[16], to_apply=%add\n"
    f"  ROOT %o = {ARRAY} bitcast(%a)\n"
)


def test_a_collective_of_several_without_a_name():
    """The compiler's own collectives are named by what goes into them."""
    text = entry(REDUCED).replace(HEAD, HEAD + TABLES)
    found = walk(Module.read(text), placed("v5e:4x4", fsdp=4, tensor=4), lambda *_: None)
    (row,) = found.collectives
    assert row.place == "decoder layers, backward: MLP, gradients, and others"


def test_events_tell_what_they_are():
    """As the report draws them."""
    gather = (
        "  %g = bf16[64,1024,1024]{2,1,0:T(8,128)(2,1)} all-gather(%x), channel_id=1, replica_groups=[4,4]<=[16], "
        f'dimensions={{0}}, metadata={{op_name="{HERE}" stack_frame_id=4}}\n'
    )
    text = loop(busy("w", 1000, "%x") + gather).replace(HEAD, HEAD + TABLES)
    found = walk(Module.read(text), placed("v5e:4x4", fsdp=4, tensor=4), lambda *_: None)
    work, moved = found.loops[0].events
    assert (work.kind, work.axes, work.place) == ("memory moves", (), "decoder layers")
    assert (moved.kind, moved.axes, moved.bytes) == ("all-gather", ("tensor",), 2 * 2**26)
    assert moved.place == "decoder layers, forward: MLP, weights"
