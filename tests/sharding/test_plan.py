"""Plans are checked before anything compiles, and complaints say what would be valid."""

import dataclasses

import jax
import pytest
import yaml

from ivl3_jax.config import InternVLConfig
from ivl3_jax.models.model import abstract_model, place_batch
from ivl3_jax.sharding.context import Context
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.sharding.plan_file import PLAN_DIRECTORY
from ivl3_jax.sharding.remat import Remat
from tests.models.small import CONFIG, changed, random_batch

SHIPPED = sorted(file.stem for file in PLAN_DIRECTORY.glob("*.yaml"))


def read(tmp_path, text, **mesh):
    (tmp_path / "mine.yaml").write_text(text)
    return ShardingPlan.read(tmp_path / "mine.yaml", mesh)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("meshes: {fsdp: 2}", "unknown 'meshes'; known there: name, mesh, vision"),
        ("mesh: {model: 2}", "unknown 'mesh.model'; known there: data, stage, fsdp, context, tensor"),
        ("mesh: {fsdp: 0}", "mesh.fsdp is 0; it must be a whole number of at least 1"),
        ("mesh: {fsdp: 2.0}", "mesh.fsdp is 2.0; it must be a whole number"),
        ("decoder: {weights: {embed: fsdp}}", "unknown 'decoder.weights'; known there: parameters, activations"),
        ("decoder: {parameters: {width: fsdp}}", "unknown 'decoder.parameters.width'; known there: embed, heads"),
        ("decoder: {parameters: {batch: fsdp}}", "unknown 'decoder.parameters.batch'"),
        ("vision: {activations: {tiles: dp}}", "vision.activations.tiles goes to 'dp'; mesh axes are data, stage"),
        ("vision: {parameters: {embed: [fsdp, fsdp]}}", "vision.parameters.embed names a mesh axis twice"),
        ("remat: {decoder: some}", "remat.decoder is 'some'; use one of none, dots, full"),
        ("remat: {decoder: {save: [x]}}", "remat.decoder.save names 'x'; known there: input, attention, q, k, v, out"),
        ("remat: {decoder: {save: q, offload: q}}", "remat.decoder both saves and offloads q; do one of them"),
        ("remat: {decoder: [q]}", "remat.decoder is ['q']; use one of none, dots, full, or tables save and offload"),
        ("offload: [params]", "offload names 'params'; known there: optimizer"),
        ("offload: {optimizer: true}", "offload is {'optimizer': True}; it must be a list of optimizer"),
        ("compiler: {v7: {}}", "unknown 'compiler.v7'; known there: v4, v5e, v5p, v6e"),
        ("compiler: {v5e: fast}", "compiler.v5e is 'fast'; it must be a table of XLA options"),
        ("extends: [fsdp]", "extends is ['fsdp']; it must be the name of a shipped plan or a YAML file"),
        ("remat: {projector: full}", "unknown 'remat.projector'; known there: vision, decoder"),
        ("decoder: fsdp", "decoder is 'fsdp'; it must be a table of parameters, activations"),
        ("mesh: [fsdp, 2]", "mesh is ['fsdp', 2]; it must be a table of data, stage"),
        ("vision: {parameters: {embed: 2}}", "vision.parameters.embed goes to 2; mesh axes are data"),
        ("mesh: {2: 2}", "unknown 'mesh.2'; known there: data"),
        ("mesh: {self: 2}", "unknown 'mesh.self'; known there: data"),
        ("vision: 0", "vision is 0; it must be a table of parameters, activations"),
        ("context: {form: ring}", "unknown 'context.form'; known there: attention, order"),
        ("context: ring", "context is 'ring'; it must be a table of attention, order"),
        ("context: {attention: ulysses}", "context.attention is 'ulysses'; use one of gather, all_to_all, ring"),
        ("context: {order: [zigzag]}", "context.order is ['zigzag']; use one of plain, zigzag"),
        (
            "context: {attention: all_to_all, order: zigzag}",
            "works on whole rows; use order plain, or attention gather",
        ),
        ("remat: 0", "remat is 0; it must be a table of vision, decoder"),
        ("decoder: {parameters: false}", "decoder.parameters is False; it must be a table"),
        ("name: 3", "name is 3; it must be text"),
        ("0", "the plan is 0; it must be a table"),
        ("name: x\nmesh: {fsdp: 2", "is not valid YAML at line 2: expected ',' or '}'"),
        ("name: 2026-13-45", "is not valid YAML: month must be in 1..12"),
        ("[" * 10_000, "is not valid YAML: maximum recursion depth exceeded"),
    ],
)
def test_faults_of_a_file(text, message, tmp_path):
    with pytest.raises(ValueError) as error:
        read(tmp_path, text)
    assert message in str(error.value) and "mine.yaml" in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_holds_no_table(tmp_path):
    with pytest.raises(ValueError, match=r"mine.yaml: the plan is \['fsdp'\]; it must be a table"):
        read(tmp_path, "- fsdp")


def test_a_file_that_is_not_utf_8(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(ValueError, match=r"mine.yaml is not UTF-8 text"):
        ShardingPlan.read(tmp_path / "mine.yaml")


@pytest.mark.parametrize("axis", ["name_or_file", "cls", "self", "where", "mesh", 3])
def test_mesh_axes_of_any_name_are_told(axis):
    with pytest.raises(ValueError, match=f"unknown 'mesh.{axis}'; known there: data, stage"):
        ShardingPlan.read("fsdp_tensor", {axis: 2})


def test_a_plan_that_does_not_exist_lists_those_that_do():
    with pytest.raises(FileNotFoundError, match=f"no sharding plan 'fsdpp'; shipped: {', '.join(SHIPPED)}; or give"):
        ShardingPlan.read("fsdpp")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_plans_read_and_are_hashable(name):
    plan = ShardingPlan.read(name)
    assert plan.name == name and plan.devices == 1
    assert hash(plan.decoder) == hash(ShardingPlan.read(name).decoder)
    larger = ShardingPlan.read(name, {"fsdp": 4, "tensor": 2})
    assert (larger.mesh_shape, larger.devices) == ((1, 1, 4, 1, 2), 8)
    mesh = larger.make_mesh()
    assert mesh.axis_names == ("data", "stage", "fsdp", "context", "tensor") and mesh.devices.size == 8


def test_too_few_devices():
    with pytest.raises(ValueError, match=r"needs 32 devices \(fsdp 16 x tensor 2\); there are 8"):
        ShardingPlan.read("fsdp_tensor", {"fsdp": 16, "tensor": 2}).make_mesh()


def abstract(config, plan):
    return abstract_model(config, plan, plan.make_mesh(jax.devices()))


def test_a_mesh_axis_used_twice_by_one_parameter(tmp_path):
    plan = read(tmp_path, "decoder: {parameters: {embed: [fsdp], mlp: [fsdp]}}", fsdp=2)
    with pytest.raises(ValueError) as error:
        abstract(CONFIG, plan)
    assert "decoder/layers/mlp/down/kernel would be sharded over mesh axis 'fsdp' twice, as mlp and as embed" in str(
        error.value
    )


def test_a_dimension_that_does_not_divide():
    config = changed(decoder={"mlp": 129})
    with pytest.raises(ValueError) as error:
        abstract(config, ShardingPlan.read("fsdp_tensor", {"tensor": 2}))
    assert "has mlp = 129, which does not divide over tensor = 2; sizes that would work: 1, 3, 43, 129" in str(
        error.value
    )


def test_25_heads_divide_only_where_the_plan_leaves_them_alone(tmp_path):
    config = InternVLConfig.preset("InternVL3-38B")
    abstract(config, ShardingPlan.read("fsdp_tensor", {"fsdp": 4, "tensor": 2}))
    coupled = read(tmp_path, "vision: {parameters: {heads: [tensor]}}", tensor=2)
    with pytest.raises(ValueError, match="heads = 25, which does not divide over tensor = 2; .* 1, 5, 25"):
        abstract(config, coupled)


def test_rows_must_divide():
    plan = ShardingPlan.read("fsdp_tensor", {"fsdp": 4, "tensor": 2})
    mesh = plan.make_mesh()
    with pytest.raises(ValueError, match=r"tokens has batch = 6, which does not divide over data x fsdp = 4"):
        place_batch(random_batch(6, [(8, 1)], length=8, tiles=4), plan, mesh)


@pytest.mark.parametrize(("tensor", "rows"), [(1, 301), (2, 302), (8, 304)])
def test_the_vocabulary_is_padded_up(tensor, rows):
    _, leaves = abstract(CONFIG, ShardingPlan.read("fsdp_tensor", {"tensor": tensor}))
    assert leaves["decoder"]["embed"]["table"].shape[0] == leaves["decoder"]["head"]["kernel"].shape[1] == rows


def test_key_and_value_heads_stay_where_they_divide():
    plan = ShardingPlan.read("fsdp_tensor", {"tensor": 4})
    assert plan.for_heads(4) == plan
    assert "kv_heads" not in plan.for_heads(2).decoder.parameters
    assert plan.for_heads(2).vision == plan.vision


def test_plans_round_trip_through_yaml():
    file = PLAN_DIRECTORY / "fsdp_tensor.yaml"
    fields = yaml.safe_load(file.read_text())
    assert ShardingPlan.from_dict({"name": "fsdp_tensor"} | fields) == ShardingPlan.read("fsdp_tensor")
    assert dataclasses.replace(ShardingPlan.read(file), name="other").decoder == ShardingPlan.read(file).decoder


def test_rows_must_divide_over_the_sequence():
    plan = ShardingPlan.read("context", {"context": 4})
    batch = random_batch(1, [(8, 1)], length=20, tiles=4)
    told = (
        r"tokens has sequence = 20, which does not divide into the 8 chunks of context.order zigzag, two for each of "
        r"context = 4; sizes that would work: 1, 2; rows that would: 16, 24"
    )
    with pytest.raises(ValueError, match=told):
        place_batch(batch, plan, plan.make_mesh())
    plan = dataclasses.replace(plan.with_mesh({"context": 8}), context=Context("ring"))
    told = r"tokens has sequence = 20, which does not divide over context = 8; sizes that would work: 1, 2, 4, 5, 10"
    with pytest.raises(ValueError, match=told):
        place_batch(batch, plan, plan.make_mesh())


def test_heads_must_divide_over_the_sequence_where_it_is_exchanged_for_them():
    plan = ShardingPlan.read("context", {"context": 4, "tensor": 2})
    plan = dataclasses.replace(plan, context=Context("all_to_all"))
    config = changed(decoder={"heads": 12})
    told = (
        r"context.attention is 'all_to_all' and the decoder has heads = 12, which do not divide over "
        r"tensor x context = 8; sizes that would work: 1, 2, 3, 4, 6, 12; or use gather or ring"
    )
    with pytest.raises(ValueError, match=told):
        abstract(config, plan)
    abstract(config, dataclasses.replace(plan, context=Context("ring")))
    abstract(config, plan.with_mesh({"context": 2}))


def test_the_order_of_chunks():
    plan = ShardingPlan.read("context", {"context": 3})
    assert plan.chunks == (0, 5, 1, 4, 2, 3)
    assert plan.with_mesh({"context": 1}).chunks == (0,)
    assert dataclasses.replace(plan, context=Context("ring")).chunks == (0,)


def test_a_mesh_may_split_an_axis_of_the_torus(libtpu):
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5p:4x4x4", wrap=(True,) * 3).devices
    mesh = ShardingPlan.read("context", {"fsdp": 4, "context": 8, "tensor": 2}).make_mesh(list(devices))
    assert mesh.shape["context"] == 8 and len(set(mesh.devices.flat)) == 64


def test_a_plan_extends_another(tmp_path):
    plan = read(tmp_path, "extends: sequence\nremat: {decoder: {save: [q, attention], offload: [input]}}", fsdp=4)
    base = ShardingPlan.read("sequence", {"fsdp": 4})
    assert plan.name == "mine" and plan.decoder == base.decoder and plan.mesh == base.mesh
    assert plan.remat_of("decoder") == Remat(("q", "attention"), ("input",))
    assert plan.remat_of("vision") == Remat()


def test_a_plan_that_extends_itself(tmp_path):
    (tmp_path / "other.yaml").write_text("extends: mine.yaml")
    with pytest.raises(ValueError, match=r"mine.yaml extends itself, by way of .*mine.yaml, .*other.yaml"):
        read(tmp_path, "extends: other.yaml")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_plan_is_written_as_it_is_read(name, tmp_path):
    plan = ShardingPlan.read(name, {"fsdp": 4})
    (tmp_path / "written.yaml").write_text(plan.yaml())
    assert ShardingPlan.read(tmp_path / "written.yaml") == plan
