"""A plan as a YAML file: what each field may hold, errors that say so, and writing one."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ivl3_jax.chips import CHIPS
from ivl3_jax.sharding.axes import MESH_AXES
from ivl3_jax.sharding.context import ATTENTION, ORDERS, Context
from ivl3_jax.sharding.pipeline import Pipeline
from ivl3_jax.sharding.remat import NAMES, POLICIES, Remat
from ivl3_jax.yaml_file import read_yaml

PLAN_DIRECTORY = Path(__file__).parent.parent / "configs" / "sharding"

Table = Mapping[str, tuple[str, ...]]


def read_fields(
    name_or_file: str | Path, allowed: Sequence[str], beside: Path = Path(), within: tuple[Path, ...] = ()
) -> tuple[Path, dict[str, Any]]:
    """The file of a plan and what is in it, over what is in the one that it `extends`.

    Args:
        name_or_file: a shipped plan, or a YAML file. allowed: fields of a plan.
        beside: the directory that a file's name is relative to. within: files that extend this one.

    Raises:
        FileNotFoundError, ValueError: as `ShardingPlan.read`.
    """
    file = beside / name_or_file
    if file.suffix not in (".yaml", ".yml"):
        file = PLAN_DIRECTORY / f"{name_or_file}.yaml"
    if not file.is_file():
        shipped = ", ".join(sorted(p.stem for p in PLAN_DIRECTORY.glob("*.yaml")))
        raise FileNotFoundError(f"no sharding plan {str(name_or_file)!r}; shipped: {shipped}; or give a YAML file")
    if file.resolve() in within:
        raise ValueError(f"{file} extends itself, by way of {', '.join(map(str, within))}")
    fields = dict(known(read_yaml(file), [*allowed, "extends"], str(file), ""))
    base = fields.pop("extends", None)
    if base is None:
        return file, fields
    if not isinstance(base, str):
        raise ValueError(f"{file}: extends is {base!r}; it must be the name of a shipped plan or a YAML file")
    try:
        _, inherited = read_fields(base, allowed, file.parent, (*within, file.resolve()))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file}: extends is {base!r}: {error}, named from {file.parent}") from None
    return file, {name: value for name, value in inherited.items() if name != "name"} | fields


def known(found: Any, allowed: Any, where: str, place: str) -> Mapping[str, Any]:
    """The table at a place of a plan, empty where that is null; other keys than the allowed ones are refused."""
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise ValueError(f"{where}: {place or 'the plan'} is {found!r}; it must be a table of {', '.join(allowed)}")
    for key in found:
        if key not in allowed:
            at = f"{place}.{key}" if place else key
            raise ValueError(f"{where}: unknown {at!r}; known there: {', '.join(allowed)}")
    return found


def table(found: Any, allowed: Mapping[str, str], where: str, place: str) -> Table:
    """A table as written in YAML (an axis, a list of axes or null) as tuples, every name checked."""
    tuples = {}
    for axis, to in known(found, allowed, where, place).items():
        mesh_axes = tuple(to) if isinstance(to, list | tuple) else () if to is None else (to,)
        for mesh_axis in mesh_axes:
            if mesh_axis not in MESH_AXES:
                raise ValueError(f"{where}: {place}.{axis} goes to {mesh_axis!r}; mesh axes are {', '.join(MESH_AXES)}")
        if len(set(mesh_axes)) != len(mesh_axes):
            raise ValueError(f"{where}: {place}.{axis} names a mesh axis twice: {list(mesh_axes)}")
        if mesh_axes:
            tuples[axis] = mesh_axes
    return tuples


def remat(found: Any, where: str, place: str) -> Remat:
    """A remat policy: the name of one, or tables of what it saves and offloads."""
    if isinstance(found, str | None) and (found or "none") in POLICIES:
        return POLICIES[found or "none"]
    if not isinstance(found, Mapping):
        raise ValueError(f"{where}: {place} is {found!r}; use one of {', '.join(POLICIES)}, or tables save and offload")
    tables = known(found, ["save", "offload"], where, place)
    save, offload = (names(tables.get(of), NAMES, where, f"{place}.{of}") for of in ("save", "offload"))
    if both := set(save) & set(offload):
        raise ValueError(f"{where}: {place} both saves and offloads {', '.join(sorted(both))}; do one of them")
    return Remat(save, offload)


def names(found: Any, allowed: Sequence[str], where: str, place: str) -> tuple[str, ...]:
    """A list of names, or one of them."""
    given = (found,) if isinstance(found, str) else () if found is None else found
    if not isinstance(given, list | tuple):
        raise ValueError(f"{where}: {place} is {found!r}; it must be a list of {', '.join(allowed)}")
    for name in given:
        if name not in allowed:
            raise ValueError(f"{where}: {place} names {name!r}; known there: {', '.join(allowed)}")
    return tuple(given)


def compiler(found: Any, where: str) -> Mapping[str, Mapping[str, str | None]]:
    """XLA options by chip."""
    options = {}
    for chip, given in known(found, CHIPS, where, "compiler").items():
        if not isinstance(given, Mapping | None):
            raise ValueError(f"{where}: compiler.{chip} is {given!r}; it must be a table of XLA options")
        for name, value in (given or {}).items():
            if isinstance(value, Mapping | list):
                raise ValueError(f"{where}: compiler.{chip}.{name} is {value!r}; it must be one value, or null")
        options[chip] = {str(name): _option(value) for name, value in (given or {}).items()}
    return options


def count(found: Any, where: str, place: str) -> int:
    """A whole number of at least 1."""
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"{where}: {place} is {found!r}; it must be a whole number of at least 1")
    return found


def pipeline(found: Any, where: str) -> Pipeline:
    """The field `pipeline`."""
    fields = known(found, [field.name for field in dataclasses.fields(Pipeline)], where, "pipeline")
    given = {name: value for name, value in fields.items() if value is not None}
    return Pipeline(**{name: count(value, where, f"pipeline.{name}") for name, value in given.items()})


def context(found: Any, where: str) -> Context:
    """The field `context`."""
    chosen = Context(**known(found, [f.name for f in dataclasses.fields(Context)], where, "context"))
    for name, there_are in (("attention", ATTENTION), ("order", ORDERS)):
        if (value := getattr(chosen, name)) not in there_are:
            raise ValueError(f"{where}: context.{name} is {value!r}; use one of {', '.join(there_are)}")
    if (chosen.attention, chosen.order) == ("all_to_all", "zigzag"):
        raise ValueError(
            f"{where}: context.order is 'zigzag' and context.attention 'all_to_all', which works on whole rows; use "
            "order plain, or attention gather or ring"
        )
    return chosen


def _option(value: Any) -> str | None:
    """As XLA reads the value of an option."""
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def written(value: Any) -> Any:
    """A field of a plan in YAML's types."""
    if isinstance(value, Remat):
        named = [name for name, policy in POLICIES.items() if policy == value]
        return named[0] if named else {"save": list(value.save or ()), "offload": list(value.offload)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: written(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: written(each) for name, each in value.items()}
    return list(value) if isinstance(value, tuple) else value
