"""YAML files that people write: read with complaints that name the file and the line."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one table, of which YAML would take the last."""


def _table(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _table)


def read_yaml(file: str | Path) -> Any:
    """What a YAML file holds.

    Raises:
        OSError: it cannot be read. ValueError: it is not UTF-8, not YAML, or has a key twice.
    """
    try:
        return yaml.load(Path(file).read_text(encoding="utf-8"), _Loader)
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        fault = " ".join(str(getattr(error, "problem", error)).split())
        raise ValueError(f"{file} is not valid YAML{line}: {fault}") from None
