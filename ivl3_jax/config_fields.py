"""Reading the fields of a checkpoint's config.json with complaints that help."""

import sys
from typing import Any

from ivl3_jax.config import ROPE_TYPES, RopeScaling

MOST_LAYERS = 1000  # far beyond every model; each has names of its own, which are all in memory


class Fields:
    """One section of a config.json, whose complaints say the file, the place and what would be valid."""

    def __init__(self, fields: dict[str, Any], file: str, place: str = "") -> None:
        self.fields, self.file, self.place = fields, file, place
        if not isinstance(fields, dict):
            raise ValueError(f"{file}: {place.rstrip('.') or 'the file'} is {fields!r}; it must be a JSON object")

    def get(self, name: str, absent: Any = None) -> Any:
        """The field, or `absent` where the file lacks it; without `absent` it must be there."""
        if name not in self.fields and absent is None:
            raise ValueError(f"{self.file}: {self.place}{name} is missing; a published checkpoint states it")
        return self.fields.get(name, absent)

    def section(self, name: str) -> "Fields":
        return Fields(self.get(name), self.file, f"{self.place}{name}.")

    def expect(self, name: str, allowed: tuple, why: str = "", *, absent: Any = None) -> None:
        value = self.get(name, absent)
        if value not in allowed:
            valid = " or ".join(map(repr, allowed))
            raise ValueError(f"{self.file}: {self.place}{name} is {value!r}; supported: {valid}{why and f' ({why})'}")

    def whole(self, name: str, least: int | None = 1) -> int:
        value = self.get(name)
        if type(value) is not int or (least is not None and value < least):
            bound = "" if least is None else f" of at least {least}"
            raise ValueError(f"{self.file}: {self.place}{name} is {value!r}; it must be a whole number{bound}")
        return value

    def number(self, name: str, absent: float | None = None) -> float:
        value = self.get(name, absent)
        # The comparison also refuses NaN, infinities and integers beyond every float.
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
            raise ValueError(f"{self.file}: {self.place}{name} is {value!r}; it must be a finite number")
        return value

    def flag(self, name: str, absent: bool | None = None) -> bool:
        value = self.get(name, absent)
        if not isinstance(value, bool):
            raise ValueError(f"{self.file}: {self.place}{name} is {value!r}; it must be true or false")
        return value

    def square(self, name: str) -> int:
        value = self.get(name)
        sides = value if isinstance(value, list | tuple) else [value]
        if not 1 <= len(sides) <= 2 or any(type(side) is not int or side != sides[0] for side in sides):
            raise ValueError(f"{self.file}: {self.place}{name} is {value!r}; it must be one whole number or two equal")
        return sides[0]

    def rope(self) -> "Fields":
        """Rope fields from `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before)."""
        found = {"rope_type": "default"}
        if "rope_theta" in self.fields:
            found["rope_theta"] = self.fields["rope_theta"]
        for name in ("rope_scaling", "rope_parameters"):
            part = {} if self.fields.get(name) is None else self.section(name).fields
            found |= {"rope_type": part["type"]} if "type" in part else {}
            found |= part
        if "rope_theta" not in found:
            raise ValueError(f"{self.file}: {self.place}rope_theta is missing, there and in rope_parameters")
        if found["rope_type"] not in ROPE_TYPES:
            raise ValueError(
                f"{self.file}: {self.place}rope type is {found['rope_type']!r}; supported: {', '.join(ROPE_TYPES)}"
            )
        return Fields(found, self.file, self.place)

    def downsample(self) -> int:
        """Patches along each side of a visual token, from `downsample_ratio`."""
        ratio = self.number("downsample_ratio")
        if ratio <= 0 or (1 / ratio) % 1:
            raise ValueError(
                f"{self.file}: {self.place}downsample_ratio is {ratio!r}; it must be one over a whole number, as 0.5"
            )
        return round(1 / ratio)

    def layers(self) -> int:
        found = self.whole("num_hidden_layers")
        if found > MOST_LAYERS:
            raise ValueError(f"{self.file}: {self.place}num_hidden_layers is {found}; it must be at most {MOST_LAYERS}")
        return found

    def decoder(self) -> dict[str, Any]:
        """The arguments of DecoderConfig that every language model's section states alike."""
        heads, width, rope = self.whole("num_attention_heads"), self.whole("hidden_size"), self.rope()
        self.expect("hidden_act", ("silu",), absent="silu")
        # Published files state a window, of so many layers, beside saying that it is not used.
        self.expect("use_sliding_window", (False,), "full causal attention", absent=False)
        kinds = self.get("layer_types", ()) or ()
        if not isinstance(kinds, list | tuple) or any(kind != "full_attention" for kind in kinds):
            raise ValueError(
                f"{self.file}: {self.place}layer_types is {kinds!r}; supported: 'full_attention' for every layer"
            )
        trained = self.whole("max_position_embeddings")
        for part in (self, rope):
            part.expect("partial_rotary_factor", (1, None), "the whole of every head is rotated", absent=1)
            name, why = "original_max_position_embeddings", "the same as max_position_embeddings"
            part.expect(name, (trained, None), why, absent=trained)
        return {
            "layers": self.layers(),
            "width": width,
            "heads": heads,
            "kv_heads": self.whole("num_key_value_heads"),
            # Some writers state null, or nothing, where each head has its share of the width.
            "head_dim": width // heads if self.fields.get("head_dim") is None else self.whole("head_dim"),
            "mlp": self.whole("intermediate_size"),
            "vocab": self.whole("vocab_size"),
            "rope_theta": rope.number("rope_theta"),
            "rope_scaling": rope.scaling(),
            "max_positions": trained,
            "norm_eps": self.number("rms_norm_eps"),
            "initializer_range": self.number("initializer_range", 0.02),
        }

    def scaling(self) -> RopeScaling:
        """The scaling that a section as `rope` gives it states."""
        kind, factor = self.get("rope_type"), self.number("factor", 1.0)
        if kind == "dynamic" and "factor" not in self.fields:
            raise ValueError(f"{self.file}: {self.place}rope factor is missing; rope of the type {kind!r} needs it")
        try:
            return RopeScaling(kind, factor)
        except ValueError as error:
            raise ValueError(f"{self.file}: {error}") from None
