"""InternVL3 in JAX and Flax for TPU pods.

The public names are found when first used: `import ivl3_jax` alone imports neither jax nor flax, so that a command can
still choose the platform.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Batch": "ivl3_jax.batch",
    "Chat": "ivl3_jax.inference.chat",
    "InternVLConfig": "ivl3_jax.config",
    "Lora": "ivl3_jax.models.adapters",
    "Model": "ivl3_jax.models.model",
    "ShardingPlan": "ivl3_jax.sharding.plan",
    "adapted": "ivl3_jax.models.adapters",
    "load": "ivl3_jax.conversion.checkpoint",
    "load_adapter": "ivl3_jax.conversion.adapter_reader",
    "merged": "ivl3_jax.models.adapters",
    "save": "ivl3_jax.conversion.checkpoint",
    "save_adapter": "ivl3_jax.conversion.adapter_writer",
    "save_unmerged": "ivl3_jax.conversion.adapter_writer",
    "without_adapters": "ivl3_jax.models.adapters",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ivl3_jax' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
