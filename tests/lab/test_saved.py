"""Activations between the passes, in a module written by hand; a real one is in test_compile.py."""

from ivl3_jax.lab.hlo import Module
from ivl3_jax.lab.saved import saved_bytes
from tests.lab.modules import HEAD

STACK = "bf16[24,8,100]{2,1,0:T(8,128)}"  # its minor dimension is padded to 128
WEIGHTS = "bf16[24,128,128]{2,1,0:T(8,128)}"
OFFLOADED = "bf16[24,8,100]{2,1,0:T(8,128)S(5)}"
TUPLE = f"(s32[], {STACK}, {WEIGHTS}, {OFFLOADED})"


def body(name, scope="jvp(decoder)"):
    """Of a loop that fills its stacks, and carries the weights on."""
    return (
        f"%{name} (p: {TUPLE}) -> {TUPLE} {{\n  %p = {TUPLE} parameter(0)\n"
        "  %i = s32[] get-tuple-element(%p), index=0\n"
        f"  %x = {STACK} get-tuple-element(%p), index=1\n"
        f"  %w = {WEIGHTS} get-tuple-element(%p), index=2\n"
        f"  %h = {OFFLOADED} get-tuple-element(%p), index=3\n"
        f"  %filled = {STACK} dynamic-update-slice(%x, %x, %i, %i, %i), "
        f'metadata={{op_name="jit(step)/{scope}/layers/while/body/dynamic_update_slice"}}\n'
        f"  %kept = {OFFLOADED} dynamic-update-slice(%h, %h, %i, %i, %i)\n"
        f"  ROOT %out = {TUPLE} tuple(%i, %filled, %w, %kept)\n}}\n\n"
    )


def passes(between, given, second="transpose(jvp(decoder))", forward=None):
    """A module with a loop of the forward pass and another loop, which is `given` what the lines `between` make."""
    last = f', metadata={{op_name="jit(step)/{second}/layers/while"}}' if second else ""
    return Module.read(
        HEAD
        + (forward or body("forward"))
        + body("backward", "transpose(jvp(decoder))")
        + "%condition (p: s32[]) -> pred[] {\n"
        "  ROOT %less = pred[] constant(true)\n}\n\n"
        f"ENTRY %main (a: {TUPLE}) -> {TUPLE} {{\n  %a = {TUPLE} parameter(0)\n"
        f"  %first = {TUPLE} while(%a), condition=%condition, body=%forward, "
        'metadata={op_name="jit(step)/jvp(decoder)/layers/while"}\n'
        "  %i = s32[] get-tuple-element(%first), index=0\n"
        f"  %x = {STACK} get-tuple-element(%first), index=1\n"
        f"  %w = {WEIGHTS} get-tuple-element(%first), index=2\n"
        f"  %h = {OFFLOADED} get-tuple-element(%first), index=3\n"
        f"{between}  %start = {TUPLE} tuple({given})\n"
        f"  ROOT %last = {TUPLE} while(%start), condition=%condition, body=%backward{last}\n}}\n"
    )


def test_what_loops_hand_on_is_counted_as_it_lies_in_memory():
    assert saved_bytes(passes("", "%i, %x, %w, %h")) == 24 * 8 * 128 * 2


def test_neither_moves_nor_tuples_hide_it_and_nothing_counts_twice():
    between = (
        f"  %pair = ({STACK}, {STACK}) tuple(%x, %x)\n  %barrier = ({STACK}, {STACK}) opt-barrier(%pair)\n"
        f"  %y = {STACK} get-tuple-element(%barrier), index=1\n  %z = {STACK} copy(%y)\n"
    )
    assert saved_bytes(passes(between, "%i, %z, %w, %h")) == 24 * 8 * 128 * 2
    assert saved_bytes(passes(between, "%i, %z, %w, %x")) == 24 * 8 * 128 * 2


def test_what_is_fetched_in_slices_counts_as_it_was_kept():
    part, fast = "bf16[12,8,100]{2,1,0:T(8,128)S(1)}", "bf16[24,8,100]{2,1,0:T(8,128)S(1)}"
    between = "".join(
        f"  %begun.{n} = (({STACK}), {part}, s32[]) slice-start(%x), slice={{[0:12]}}\n"
        f"  %part.{n} = {part} slice-done(%begun.{n})\n"
        for n in range(2)
    )
    between += f'  %z = {fast} custom-call(%part.0, %part.1), custom_call_target="ConcatBitcast"\n'
    assert saved_bytes(passes(between, "%i, %z, %w, %h")) == 24 * 8 * 128 * 2


def test_what_another_loop_of_the_forward_pass_takes_is_not_kept():
    assert saved_bytes(passes("", "%i, %x, %w, %h", second="jvp(decoder)")) == 0


def test_what_is_made_between_the_loops_is_not_theirs():
    between = f"  %sum = {STACK} add(%x, %x)\n"
    assert saved_bytes(passes(between, "%i, %sum, %w, %h")) == 0


def test_loops_without_a_scope_are_known_by_what_they_run():
    assert saved_bytes(passes("", "%i, %x, %w, %h", second="")) == 24 * 8 * 128 * 2


def test_what_an_inner_loop_makes_is_kept_and_what_it_carries_on_is_not():
    outer = (
        f"%forward (p: {TUPLE}) -> {TUPLE} {{\n  %p = {TUPLE} parameter(0)\n"
        "  %i = s32[] get-tuple-element(%p), index=0\n"
        f"  %x = {STACK} get-tuple-element(%p), index=1\n"
        f"  %w = {WEIGHTS} get-tuple-element(%p), index=2\n"
        f"  %c = {WEIGHTS} copy(%w)\n"
        f"  %h = {OFFLOADED} get-tuple-element(%p), index=3\n"
        f"  %begin = {TUPLE} tuple(%i, %x, %c, %h)\n"
        f"  %inner = {TUPLE} while(%begin), condition=%condition, body=%layer\n"
        "  %i2 = s32[] get-tuple-element(%inner), index=0\n"
        f"  %x2 = {STACK} get-tuple-element(%inner), index=1\n"
        f"  %w2 = {WEIGHTS} get-tuple-element(%inner), index=2\n"
        f"  %h2 = {OFFLOADED} get-tuple-element(%inner), index=3\n"
        f"  ROOT %out = {TUPLE} tuple(%i2, %x2, %w2, %h2)\n}}\n\n"
    )
    assert saved_bytes(passes("", "%i, %x, %w, %h", forward=body("layer") + outer)) == 24 * 8 * 128 * 2


def test_a_body_that_is_a_loop_makes_what_it_returns():
    outer = (
        f"%forward (p: {TUPLE}) -> {TUPLE} {{\n  %p = {TUPLE} parameter(0)\n"
        f"  ROOT %inner = {TUPLE} while(%p), condition=%condition, body=%layer\n}}\n\n"
    )
    # With the counter, of which nothing in such a body shows that it is no activation.
    assert saved_bytes(passes("", "%i, %x, %i, %h", forward=body("layer") + outer)) == 24 * 8 * 128 * 2 + 4
