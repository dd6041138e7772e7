"""Small modules as the TPU compiler prints them, and slices without a compiler."""

from types import SimpleNamespace

import numpy as np

from ivl3_jax.chips import CHIPS
from ivl3_jax.lab.topology import PlacedMesh, Topology
from ivl3_jax.sharding.axes import MESH_AXES

HEAD = "HloModule jit_step, is_scheduled=true\n"


def placed(text: str, slices: int = 1, **mesh: int) -> PlacedMesh:
    """A mesh whose devices lie in the order of their coordinates, the last dimension fastest."""
    chip, dims = text.split(":")
    shape = tuple(map(int, dims.split("x")))
    places = [(s, *at) for s in range(slices) for at in np.ndindex(*shape)]
    devices = np.empty(len(places), object)
    devices[:] = [SimpleNamespace(slice_index=s, coords=list(at)) for s, *at in places]
    devices = devices.reshape([mesh.get(axis, 1) for axis in MESH_AXES])
    topology = Topology(CHIPS[chip], shape, slices)
    return PlacedMesh(topology, SimpleNamespace(size=devices.size, devices=devices))


def loop(body: str, trips: int = 5, before: str = "", condition: str | None = None) -> str:
    """A module with one loop over (counter, array)."""
    condition = condition or (
        "  %limit = s32[]{:T(128)} constant(" + str(trips) + ")\n"
        "  %counter = s32[]{:T(128)} get-tuple-element(%p), index=0\n"
        "  ROOT %less = pred[]{:T(512)} compare(%counter, %limit), direction=LT\n"
    )
    return (
        HEAD + "%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {\n"
        "  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)\n"
        "  %i = s32[]{:T(128)} get-tuple-element(%p), index=0\n"
        "  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p), index=1\n"
        "  %one = s32[]{:T(128)} constant(1)\n"
        "  %next = s32[]{:T(128)} add(%i, %one)\n" + body + "  ROOT %out = (s32[]{:T(128)}, "
        "f32[8,128]{1,0:T(8,128)}) tuple(%next, %x)\n}\n\n"
        "%condition (p: (s32[], f32[8,128])) -> pred[] {\n"
        "  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)\n" + condition + "}\n\n"
        "ENTRY %main (a: f32[8,128]) -> f32[8,128] {\n"
        "  %a = f32[8,128]{1,0:T(8,128)} parameter(0)\n"
        "  %zero = s32[]{:T(128)} constant(0)\n" + before + "  %start = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) "
        "tuple(%zero, %a)\n"
        "  %loop = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%start), condition=%condition, body=%body, "
        'metadata={op_name="jit(step)/decoder/layers/while"}\n'
        "  ROOT %result = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1\n}\n"
    )


def entry(body: str, rest: str = "") -> str:
    return HEAD + rest + "ENTRY %main (a: f32[8,128]) -> f32[8,128] {\n" + body + "}\n"


def busy(name: str, cycles: int, operand: str = "%a", root: str = "") -> str:
    """An instruction whose time the compiler estimates."""
    return (
        f"  {root}%{name} = f32[8,128]{{1,0:T(8,128)S(1)}} copy({operand}), "
        f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}\n'
    )
