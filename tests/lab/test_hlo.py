"""Reading scheduled HLO: shapes, instructions, loops, groups."""

import numpy as np
import pytest

from ivl3_jax.lab.hlo import HOST, VMEM, Instruction, Module, Shape, replica_groups
from tests.lab.modules import HEAD, busy, entry, loop

ARRAY = "f32[8,128]{1,0:T(8,128)}"


def collective(attributes: str) -> Instruction:
    return Instruction("all-gather.1", "all-gather", (), (), "", ", " + attributes, False)


@pytest.mark.parametrize(
    ("text", "shape", "bytes_", "stored"),
    [
        ("bf16[6,8,64]{2,1,0:T(8,128)(2,1)S(1)}", Shape("bf16", (6, 8, 64), (2, 1, 0), (8, 128), VMEM), 6144, 12288),
        ("f32[1,2048]{1,0:T(1,128)}", Shape("f32", (1, 2048), (1, 0), (1, 128)), 8192, 8192),
        ("bf16[4,4096]{0,1:T(8,128)(2,1)S(5)}", Shape("bf16", (4, 4096), (0, 1), (8, 128), HOST), 32768, 1048576),
        ("pred[]{:T(512)}", Shape("pred", (), (), (512,)), 1, 1),
        ("s32[]", Shape("s32", ()), 4, 4),
        ("s4[16]", Shape("s4", (16,)), 8, 8),
    ],
)  # fmt: skip
def test_shapes(text, shape, bytes_, stored):
    (found,) = Shape.all(text)
    assert found == shape
    assert (found.bytes, found.stored) == (bytes_, stored)


def test_an_instruction():
    text = entry(
        f"  %a = {ARRAY} parameter(0)\n"
        f"  ROOT %f.1 = (bf16[4]{{0}}, /*index=1*/u32[]{{:S(2)}}) fusion(%a, /*index=1*/%a), kind=kOutput, "
        'calls=%inner, metadata={op_name="jit(step)/decoder/dot (general)" stack_frame_id=4}, '
        'backend_config={"window_config":{"estimated_cycles":"77"}}\n',
        f"%inner (p: f32[8,128]) -> f32[8,128] {{\n  ROOT %p = {ARRAY} parameter(0)\n}}\n\n",
    )
    module = Module.read(text)
    found = module.entry.root
    assert (found.name, found.opcode, found.operands) == ("f.1", "fusion", ("a", "a"))
    assert [shape.dtype for shape in found.shapes] == ["bf16", "u32"]
    assert (found.called, found.estimated_cycles) == (("inner",), 77)
    assert found.op_name == "jit(step)/decoder/dot (general)"
    assert set(module.computations) == {"inner", "main"}


def test_a_line_that_is_broken():
    """Kernels carry metadata with line ends, and with a brace alone on a line."""
    text = entry(
        f"  %a = {ARRAY} parameter(0)\n"
        f'  %k = {ARRAY} custom-call(%a), custom_call_target="tpu_custom_call", metadata={{"x": {{\n}}\n"y"}}\n'
        f"  ROOT %b = {ARRAY} copy(%k)\n"
    )
    module = Module.read(text)
    assert [each.name for each in module.entry.instructions] == ["a", "k", "b"]
    assert module.entry.by_name["k"].target == "tpu_custom_call"


@pytest.mark.parametrize("text", ["HloModule m\n", HEAD])
def test_what_is_no_scheduled_module(text):
    with pytest.raises(ValueError, match="is not scheduled|no ENTRY"):
        Module.read(text)


def trips(text: str) -> int | None:
    module = Module.read(text)
    return module.trips(module.entry.by_name["loop"])


def test_iterations():
    assert trips(loop("", trips=32)) == 32


def test_iterations_in_steps():
    text = loop("", trips=32).replace("%one = s32[]{:T(128)} constant(1)", "%one = s32[]{:T(128)} constant(3)")
    assert trips(text) == 11


def test_iterations_from_another_start():
    text = loop("", trips=32).replace("%zero = s32[]{:T(128)} constant(0)", "%zero = s32[]{:T(128)} constant(1)")
    assert trips(text) == 31


def test_iterations_compared_in_a_fusion():
    condition = (
        "  %limit = s32[]{:T(128)} constant(7)\n"
        "  %counter = s32[]{:T(128)} get-tuple-element(%p), index=0\n"
        "  ROOT %f = pred[]{:T(512)} fusion(%counter, %limit), kind=kLoop, calls=%less\n"
    )
    inner = (
        "%less (x: s32[], y: s32[]) -> pred[] {\n"
        "  %x = s32[]{:T(128)} parameter(0)\n  %y = s32[]{:T(128)} parameter(1)\n"
        "  ROOT %c = pred[]{:T(512)} compare(%x, %y), direction=LT\n}\n\n"
    )
    text = loop("", condition=condition)
    assert trips(text.replace("%body (p", inner + "%body (p", 1)) == 7


def test_iterations_that_are_written_down():
    text = loop("").replace("body=%body,", 'body=%body, backend_config={"known_trip_count":{"n":"9"}},')
    assert trips(text) == 9


def test_iterations_that_depend_on_data():
    condition = (
        "  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p), index=1\n"
        "  ROOT %more = pred[]{:T(512)} custom-call(%x)\n"
    )
    assert trips(loop(busy("work", 5, "%x"), condition=condition)) is None


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, dimensions={0}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,4]<=[8], dimensions={0}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=[2,2,2]<=[8]", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=mesh['axis_0'=8] {'axis_0'}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, use_global_device_ids=true", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", [[0, 1], [1, 2], [2, 3], [3, 0]]),
    ],
)
def test_groups(attributes, groups):
    found = replica_groups(collective(attributes))
    assert found is not None
    np.testing.assert_array_equal(found, groups)


def test_no_groups():
    assert replica_groups(collective("dimensions={0}")) is None


def test_a_computation_of_another_core():
    """Newer compilers name the core that runs a computation behind its end."""
    other = '%other (p: f32[8]) -> f32[8] {\n  ROOT %p = f32[8]{0} parameter(0)\n}, execution_thread="sparsecore"\n\n'
    module = Module.read(HEAD + other + "ENTRY %main (a: f32[8]) -> f32[8] {\n  ROOT %a = f32[8]{0} parameter(0)\n}\n")
    assert set(module.computations) == {"other", "main"} and module.entry.name == "main"
