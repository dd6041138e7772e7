"""Opening a checkpoint directory as a model, and writing a model to one."""

from pathlib import Path

import jax

from ivl3_jax.conversion.names import LAYOUTS
from ivl3_jax.conversion.reader import read_params, resolve_tying
from ivl3_jax.conversion.writer import write_params
from ivl3_jax.hf_config import read_config
from ivl3_jax.models.adapters import scales
from ivl3_jax.models.model import Model, abstract_model
from ivl3_jax.sharding.plan import ShardingPlan

DTYPES = ("float32", "bfloat16", "float64")


def load(
    directory: str | Path,
    dtype: str | None = None,
    plan: ShardingPlan | str | None = None,
    *,
    dynamic_ntk: bool = True,
) -> Model:
    """Opens a checkpoint in transformers' `-hf` layout or in the authors' original one.

    Args:
        directory: with config.json and safetensors weights.
        dtype: of parameters and computation: `float32`, `bfloat16`, or `float64` (needs jax_enable_x64). By default
            bfloat16, and float32 on CPUs, whose bfloat16 products are slow.
        plan: where the parameters lie: a plan, the name of a shipped one or a YAML file; by default one device.
        dynamic_ntk: False keeps plain rotary frequencies beyond the trained length, as the published code did for
            Qwen2; up to that length both are equal.

    Raises:
        FileNotFoundError: the directory, its config.json or weights are missing.
        ValueError: the checkpoint is broken, does not fit its config, or does not fit the plan.
    """
    dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    directory = Path(directory)
    config = resolve_tying(directory, read_config(directory))
    plan = plan if isinstance(plan, ShardingPlan) else ShardingPlan.read(plan) if plan else ShardingPlan()
    mesh = plan.make_mesh()
    graphdef, abstract = abstract_model(config, plan, mesh, param_dtype=dtype, dtype=dtype)
    model = Model(config, plan, mesh, graphdef, read_params(directory, abstract, config), source=directory)
    return model if dynamic_ntk else model.with_plain_rope()


def save(model: Model, directory: str | Path, *, layout: str = "hf", dtype: str | None = None) -> None:
    """Writes a model as a checkpoint directory, with the tokenizer and processor files of its source.

    Adapters are merged while they are written, in at least float32 and rounded once; `adapter_writer` has other ways.

    Args:
        layout: `hf`, which transformers opens as it is, or `original`, for the authors' remote code.
        dtype: of the file, by default that of the parameters.

    Raises:
        FileExistsError: `directory` exists and is not empty. ValueError: an unknown layout or dtype.
    """
    check_options(layout, dtype)
    write_params(
        model.params,
        model.config,
        Path(directory).absolute(),
        layout=layout,
        scales=scales(model.graphdef, model.params),
        copy_from=model.source,
        dtype=dtype,
    )


def check_options(layout: str, dtype: str | None = None) -> None:
    """Refuses what a checkpoint cannot be written in.

    Raises:
        ValueError: an unknown layout or dtype.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
