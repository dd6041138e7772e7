"""The walk of a schedule: what overlaps and what waits; the inventory of collectives; cost of products."""

import pytest

from ivl3_jax.lab.calibration import Calibration
from ivl3_jax.lab.collectives import HOP
from ivl3_jax.lab.hlo import Module
from ivl3_jax.lab.timeline import Timeline, walk
from ivl3_jax.lab.work import operations, traffic
from tests.lab.modules import HEAD, busy, entry, loop, placed

EXACT = Calibration(products=1, vectors=1, hbm=1, ici=1, dcn=1, host=1)
ARRAY = "f32[8,128]{1,0:T(8,128)}"
A = f"  %a = {ARRAY} parameter(0)\n"
BIG = "bf16[64,1024,1024]{2,1,0:T(8,128)(2,1)}"  # 128 MiB
BYTES = 2 * 2**26
MS = 1_500_000  # cycles of a millisecond on v5e


def walked(text: str, slice_: str = "v5e:4x4", kernel=lambda *_: None, **mesh: int) -> Timeline:
    return walk(Module.read(text), placed(slice_, **(mesh or {"fsdp": 4, "tensor": 4})), kernel, EXACT)


def gather(groups: str, start: bool = False) -> str:
    """An all-gather to 128 MiB, in one piece or as start and end."""
    shape = f"({ARRAY}, {BIG})" if start else BIG
    return (
        f"  %g{'s' if start else ''} = {shape} all-gather{'-start' if start else ''}(%a), channel_id=1, "
        f'replica_groups={groups}, dimensions={{0}}, metadata={{op_name="jit(step)/decoder/reshard"}}\n'
    )


END = f"  %g = {BIG} all-gather-done(%gs)\n"
ROOT = f"  ROOT %r = {ARRAY} bitcast(%a)\n"


def seconds_of_a_gather(links: int, chips: int, hops: int) -> float:
    return BYTES * (chips - 1) / chips / (links * 45e9) + hops * HOP


def test_a_synchronous_gather_is_exposed():
    found = walked(entry(A + busy("w", MS) + gather("[4,4]<=[16]") + ROOT))
    alone = seconds_of_a_gather(1, 4, 4)  # a line of 4 chips of a slice without wraparound links
    assert found.parts == pytest.approx({"memory moves": 1e-3, "exposed communication": alone})
    assert found.seconds == pytest.approx(1e-3 + alone)
    (row,) = found.collectives
    assert (row.kind, row.axes, row.count, row.bytes, row.asynchronous) == ("all-gather", ("tensor",), 1, BYTES, False)
    assert row.scope == "jit(step)/decoder/reshard"


def test_wraparound_links_and_two_dimensions_count():
    ring = walked(entry(A + gather("mesh['a'=16,'b'=16] {'b'}") + ROOT), "v5e:16x16", fsdp=16, tensor=16)
    assert ring.seconds == pytest.approx(seconds_of_a_gather(2, 16, 8))
    torus = walked(entry(A + gather("[1,256]<=[256]") + ROOT), "v5e:16x16", fsdp=256)
    assert torus.seconds == pytest.approx(seconds_of_a_gather(4, 256, 16))
    assert torus.collectives[0].axes == ("fsdp",)


def test_an_algorithm_of_one_dimension():
    text = gather("[1,256]<=[256]").replace("metadata", 'backend_config={"emitter":"1DAllGather"}, metadata')
    assert walked(entry(A + text + ROOT), "v5e:16x16", fsdp=256).seconds == pytest.approx(
        seconds_of_a_gather(2, 256, 8)
    )


def test_all_to_all_crosses_the_middle_of_a_ring():
    """Half of the chips send half of what they hold through the two links on either side of the cut, both ways."""
    text = gather("mesh['a'=16,'b'=16] {'b'}").replace("all-gather", "all-to-all")
    found = walked(entry(A + text + ROOT), "v5e:16x16", fsdp=16, tensor=16)
    assert found.seconds == pytest.approx(8 * BYTES / 2 / 2 / 45e9 * 15 / 16 + 8 * HOP)


@pytest.mark.parametrize(("work", "exposed"), [(1, True), (5, False)])
def test_an_asynchronous_gather_waits_only_at_its_end(work, exposed):
    found = walked(entry(A + gather("[4,4]<=[16]", start=True) + busy("w", work * MS) + END + ROOT))
    alone = seconds_of_a_gather(1, 4, 4)
    assert found.seconds == pytest.approx(max(alone, work * 1e-3))
    assert ("exposed communication" in found.parts) == exposed
    assert found.busy["ici"] == pytest.approx(alone)
    assert found.collectives[0].asynchronous


def test_collectives_on_other_links_do_not_wait_for_each_other():
    first = gather("mesh['a'=4,'b'=4] {'b'}", start=True)
    second = gather("mesh['a'=4,'b'=4] {'a'}", start=True).replace("%gs", "%hs").replace("channel_id=1", "channel_id=2")
    ends = END + END.replace("%gs", "%hs").replace("%g ", "%h ")
    alone = seconds_of_a_gather(1, 4, 4)
    assert walked(entry(A + first + second + ends + ROOT)).seconds == pytest.approx(alone)
    same = first.replace("%gs", "%hs").replace("channel_id=1", "channel_id=2")
    assert walked(entry(A + first + same + ends + ROOT)).seconds == pytest.approx(2 * alone)


def test_a_collective_in_pieces_of_fusions():
    """The first piece launches, the last waits, and between them runs what else there is."""

    def piece(name: str) -> str:
        return (
            f"%{name} (p: f32[8,128]) -> bf16[64,1024,1024] {{\n  %p = {ARRAY} parameter(0)\n"
            f"  ROOT %all-gather.{name} = {BIG} all-gather(%p), channel_id=7, replica_groups=[4,4]<=[16]\n}}\n\n"
        )

    def fusion(name: str, cycles: int = 0) -> str:
        estimate = f', backend_config={{"estimated_cycles":"{cycles}"}}' if cycles else ""
        return f"  %f{name} = {BIG} fusion(%a), kind=kCustom, calls=%{name}{estimate}\n"

    text = entry(
        A + fusion("one") + busy("w", MS) + fusion("two", MS) + fusion("three") + ROOT,
        piece("one") + piece("two") + piece("three"),
    )
    found = walked(text)
    alone = seconds_of_a_gather(1, 4, 4)
    assert found.seconds == pytest.approx(max(alone, 2e-3))
    (row,) = found.collectives
    assert (row.count, row.asynchronous) == (1, True)


def test_a_reduction_fused_with_its_scatter_moves_half_of_an_all_reduce():
    inner = (
        f"%all-reduce-scatter (p: bf16[64,1024,1024]) -> bf16[16,1024,1024] {{\n  %p = {BIG} parameter(0)\n"
        f"  %all-reduce.1 = {BIG} all-reduce(%p), channel_id=3, replica_groups=[4,4]<=[16], to_apply=%add\n"
        "  ROOT %d = bf16[16,1024,1024]{2,1,0:T(8,128)(2,1)} slice(%all-reduce.1)\n}\n\n"
    )
    line = f'  %s = {BIG} fusion(%a), kind=kCustom, calls=%all-reduce-scatter, metadata={{op_name="jit(step)/grad"}}\n'
    found = walked(entry(A + line + ROOT, inner))
    (row,) = found.collectives
    assert (row.kind, row.bytes, row.scope) == ("reduce-scatter", BYTES, "jit(step)/grad")
    assert found.seconds == pytest.approx(seconds_of_a_gather(1, 4, 4))
    plain = f"  %s = {BIG} all-reduce(%a), channel_id=3, replica_groups=[4,4]<=[16], to_apply=%add\n"
    assert walked(entry(A + plain + ROOT)).seconds == pytest.approx(2 * seconds_of_a_gather(1, 4, 2))


def test_loops_multiply():
    found = walked(loop(busy("w", MS, "%x") + gather("[4,4]<=[16]").replace("(%a)", "(%x)"), trips=5))
    alone = seconds_of_a_gather(1, 4, 4)
    assert found.seconds == pytest.approx(5 * (1e-3 + alone))
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert found.collectives[0].count == 5
    (drawn,) = found.loops
    assert (drawn.scope, drawn.trips) == ("jit(step)/decoder/layers/while", 5)
    assert drawn.seconds == pytest.approx(1e-3 + alone)
    assert [(event.name, event.lane) for event in drawn.events] == [("w", "compute"), ("g", "ici")]
    assert drawn.events[1].start == pytest.approx(1e-3)


def test_between_slices():
    text = entry(A + gather("[8,2]<=[2,8]T(1,0)") + ROOT)
    found = walk(Module.read(text), placed("v5e:2x4", 2, data=2, fsdp=8), lambda *_: None, EXACT)
    assert found.collectives[0].axes == ("data",)
    assert found.busy == pytest.approx({"dcn": found.seconds})
    assert found.seconds == pytest.approx(BYTES / 2 / 3.125e9)


def test_what_is_sent_between_slices():
    """Sending and receiving do not wait for each other."""

    def transfer(opcode: str) -> str:
        return f"  %{opcode} = ({BIG}, u32[], token[]) {opcode}(%a), channel_id=9, is_host_transfer=true\n"

    ends = "".join(f"  %{way}-done = token[] {way}-done(%{way}), channel_id=9\n" for way in ("send", "recv"))
    text = entry(A + transfer("send") + transfer("recv") + ends + ROOT)
    found = walk(Module.read(text), placed("v5e:2x4", 2, data=2, fsdp=8), lambda *_: None, EXACT)
    assert found.seconds == pytest.approx(BYTES / 3.125e9)
    assert [(each.kind, each.axes, each.bytes) for each in found.collectives] == [("send", ("data",), BYTES)]


def test_moves_to_the_host_go_beside_compute():
    start = (
        "  %cs = (bf16[64,1024,1024]{2,1,0:T(8,128)(2,1)S(5)}, bf16[64,1024,1024]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}) "
        "copy-start(%a)\n"
    )
    end = "  %c = bf16[64,1024,1024]{2,1,0:T(8,128)(2,1)S(5)} copy-done(%cs)\n"
    found = walked(entry(A + start + busy("w", MS) + end + ROOT))
    assert found.seconds == pytest.approx(BYTES / 16e9)
    assert set(found.busy) == {"host"}


def test_kernels_take_what_the_caller_says():
    call = f'  %packed.1 = {ARRAY} custom-call(%a), custom_call_target="tpu_custom_call"\n'
    asked = []

    def seconds(*arguments):
        asked.append(arguments)
        return 2e-3

    found = walked(entry(A + call + ROOT), kernel=seconds)
    assert found.parts == pytest.approx({"kernels": 2e-3})
    assert asked == [("packed.1", [("f32", (8, 128))], [("f32", (8, 128))])]
    assert "no cost" in walked(entry(A + call + ROOT)).warnings[0]


PRODUCT = (
    "%product (p: bf16[512,1024], q: bf16[4,1024,2048], i: s32[]) -> bf16[512,2048] {\n"
    "  %p = bf16[512,1024]{1,0:T(8,128)(2,1)} parameter(0)\n"
    "  %q = bf16[4,1024,2048]{2,1,0:T(8,128)(2,1)} parameter(1)\n"
    "  %i = s32[]{:T(128)} parameter(2)\n"
    "  %one = bf16[1,1024,2048]{2,1,0:T(8,128)(2,1)} dynamic-slice(%q, %i), dynamic_slice_sizes={1,1024,2048}\n"
    "  %w = bf16[1024,2048]{1,0:T(8,128)(2,1)} bitcast(%one)\n"
    "  ROOT %c = bf16[512,2048]{1,0:T(8,128)(2,1)} convolution(%p, %w), dim_labels=bf_io->bf\n}\n\n"
)


def product(cycles: int) -> tuple[Module, str]:
    text = entry(
        "  %x = bf16[512,1024]{1,0:T(8,128)(2,1)} parameter(0)\n"
        "  %y = bf16[4,1024,2048]{2,1,0:T(8,128)(2,1)} parameter(1)\n  %i = s32[]{:T(128)} parameter(2)\n"
        "  ROOT %f = bf16[512,2048]{1,0:T(8,128)(2,1)} fusion(%x, %y, %i), kind=kOutput, calls=%product, "
        f'backend_config={{"estimated_cycles":"{cycles}"}}\n',
        PRODUCT,
    )
    return Module.read(text), text


def test_work_of_a_product():
    module, _ = product(1)
    fusion = module.entry.root
    assert operations(module, module.entry, fusion) == 2 * 512 * 1024 * 2048
    # Of the stacked weights one layer is read.
    assert traffic(module, module.entry, fusion) == 2 * (512 * 1024 + 1024 * 2048 + 512 * 2048) + 4


def test_a_buffer_that_a_fusion_passes_on_to_the_links_is_no_traffic():
    """A piece of a gather rides along: its buffer of 64 MiB is one operand and one result, which it does not touch."""
    small, large = "bf16[512,1024]{1,0:T(8,128)(2,1)}", "bf16[4096,8192]{1,0:T(8,128)(2,1)}"
    both = f"({small}, {large})"
    module = Module.read(
        HEAD + "%async_collective_fusion.1 (p0: bf16[512,1024], p1: bf16[4096,8192]) -> (bf16[512,1024]) {\n"
        f"  %p0 = {small} parameter(0)\n  %p1 = {large} parameter(1)\n  %twice = {small} add(%p0, %p0)\n"
        f"  ROOT %out = {both} tuple(%twice, %p1)\n}}\n\n"
        "ENTRY %main (a: bf16[512,1024], b: bf16[4096,8192]) -> bf16[512,1024] {\n"
        f"  %a = {small} parameter(0)\n  %b = {large} parameter(1)\n"
        f"  %fusion.1 = {both} fusion(%a, %b), kind=kOutput, output_to_operand_aliasing={{{{1}}: (1, {{}})}}, "
        "calls=%async_collective_fusion.1\n"
        f"  ROOT %r = {small} get-tuple-element(%fusion.1), index=0\n}}\n"
    )
    fusion = module.entry.by_name["fusion.1"]
    assert traffic(module, module.entry, fusion) == 2 * 2 * 512 * 1024


@pytest.mark.parametrize(
    ("labels", "window", "lhs", "rhs", "out", "expected"),
    [
        ("0bf_io0->0bf", "size=1", (6, 2048, 512), (512, 256, 1), (6, 2048, 256), 2 * 6 * 2048 * 512 * 256),
        ("0bf1_i1o0->0b1f", "size=1x64 pad=0_0x63_63 rhs_reversal=0x1", (6, 2048, 512, 1), (512, 64, 128, 1),
         (6, 2048, 64, 128), 2 * 6 * 2048 * 512 * 64 * 128),
        ("0fb_0io->bf0", "size=6", (6, 2048, 512), (6, 2048, 256), (512, 256, 1), 2 * 6 * 2048 * 512 * 256),
    ],
)  # fmt: skip
def test_products_as_convolutions(labels, window, lhs, rhs, out, expected):
    def array(name: str, dims: tuple[int, ...], rest: str) -> str:
        return f"%{name} = bf16[{','.join(map(str, dims))}]{{}} {rest}\n"

    text = entry(
        "  " + array("x", lhs, "parameter(0)") + "  " + array("y", rhs, "parameter(1)")
        + "  ROOT " + array("c", out, f"convolution(%x, %y), window={{{window}}}, dim_labels={labels}")
    )  # fmt: skip
    module = Module.read(text)
    assert operations(module, module.entry, module.entry.root) == expected


def test_vector_work_hides_behind_products():
    bare = 2 * 512 * 1024 * 2048 / 197e12
    for estimate, expected in ((1.0, 1.0), (1.9, 1.0), (2.5, 1.5)):
        _, text = product(round(estimate * bare * 1.5e9))
        found = walked(text)
        assert found.parts == pytest.approx({"products": expected * bare}, rel=1e-3)


def test_a_plain_reduce_scatter_counts_its_operand():
    part = "bf16[16,1024,1024]{2,1,0:T(8,128)(2,1)}"
    line = f"  %s = {part} reduce-scatter(%b), channel_id=1, replica_groups=[4,4]<=[16], dimensions={{0}}\n"
    found = walked(entry(f"  %b = {BIG} parameter(0)\n" + A + line + ROOT))
    (row,) = found.collectives
    assert (row.kind, row.axes, row.bytes) == ("reduce-scatter", ("tensor",), BYTES)
    assert found.seconds == pytest.approx(seconds_of_a_gather(1, 4, 4))


def test_what_is_begun_before_a_loop_goes_on_beside_it():
    text = loop(busy("w", MS, "%x"), trips=20, before=gather("[4,4]<=[16]", start=True))
    text = text.replace("  ROOT %result", END + "  ROOT %result")
    assert walked(text).parts == pytest.approx({"memory moves": 20e-3})


def test_a_loop_carries_on_what_begins_before_it_and_ends_after_it():
    def piece(name: str) -> str:
        return (
            f"%{name} (p: f32[8,128]) -> bf16[64,1024,1024] {{\n  %p = {ARRAY} parameter(0)\n"
            f"  ROOT %all-gather.{name} = {BIG} all-gather(%p), channel_id=7, replica_groups=[4,4]<=[16]\n}}\n\n"
        )

    def fusion(name: str, operand: str) -> str:
        return f"  %f{name} = {BIG} fusion({operand}), kind=kCustom, calls=%{name}\n"

    text = loop(busy("w", MS, "%x") + fusion("two", "%x"), trips=20, before=fusion("one", "%a"))
    text = text.replace("  ROOT %result", fusion("three", "%a") + "  ROOT %result")
    head, rest = text.split("\n", 1)
    found = walked(f"{head}\n" + "".join(map(piece, ("one", "two", "three"))) + rest)
    (row,) = found.collectives
    assert row.count == 1
    assert found.parts == pytest.approx({"memory moves": 20e-3})
