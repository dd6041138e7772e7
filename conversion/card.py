"""README.md of a checkpoint directory: where the weights come from, and the last parity reports."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ivl3_jax import __version__
from ivl3_jax.config import InternVLConfig
from ivl3_jax.conversion.checksums import FILE as CHECKSUMS
from ivl3_jax.conversion.comparison import Report
from ivl3_jax.conversion.shards import Tensor

CARD = "README.md"
LAYOUTS = {"hf": "transformers' `-hf` layout", "original": "the authors' original layout"}
NO_REPORT = "There is no report yet; `ivl3 parity DIRECTORY --card` compares this checkpoint with PyTorch and adds one."


def write_card(
    directory: Path,
    name: str,
    origin: str,
    config: InternVLConfig,
    layout: str,
    tensors: Sequence[Tensor],
    source: str | Path | None,
) -> None:
    """Writes the model card of a checkpoint that has just been written.

    A card in `source` is kept, its front matter and licence too; ours is a part of its own, at the end.

    Args:
        directory, name: where, and what the directory will be called.
        origin: where the weights come from.
        config, layout, tensors: what was written.
        source: the directory whose tokenizer and card are taken over, if any.
    """
    kept = Path(source) / CARD if source is not None else None
    text = kept.read_text(encoding="utf-8", errors="replace") if kept is not None and kept.is_file() else ""
    text = text or f"---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n---\n\n# {name}\n"
    text = _without_parts(text, "parity .*?")  # it was said of other files
    text = _with_part(text, "provenance", _provenance(origin, config, layout, tensors, source))
    text = _with_part(text, "parity none", f"## Parity\n\n{NO_REPORT}")
    (directory / CARD).write_text(text, encoding="utf-8")


def add_report(directory: str | Path, report: Report, kind: str) -> Path:
    """Puts a parity report into a directory's model card, in the place of an earlier one of its kind.

    Returns:
        The card's path.
    """
    card = Path(directory) / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {Path(directory).resolve().name}\n"
    text = _without_parts(text, "parity none")
    card.write_text(_with_part(text, f"parity {kind}", f"## {report.title}\n\n{report.body()}"), encoding="utf-8")
    return card


def _with_part(text: str, name: str, content: str) -> str:
    """`text` with one part of ours, between comments that do not show, replaced or added at the end."""
    begin, end = f"<!-- ivl3_jax {name} -->", f"<!-- end of ivl3_jax {name} -->"
    part = f"{begin}\n{content.strip()}\n{end}\n"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end) + "\n?", re.DOTALL)
    return pattern.sub(lambda _: part, text) if pattern.search(text) else f"{text.rstrip()}\n\n{part}"


def _without_parts(text: str, name: str) -> str:
    """`text` without the parts of ours whose name matches."""
    return re.sub(f"<!-- ivl3_jax ({name}) -->.*?<!-- end of ivl3_jax \\1 -->\n?", "", text, flags=re.DOTALL)


def _provenance(
    origin: str, config: InternVLConfig, layout: str, tensors: Sequence[Tensor], source: str | Path | None
) -> str:
    vision, decoder = config.vision, config.decoder
    counts = Counter[str]()
    for tensor in tensors:
        counts[tensor.dtype.name] += tensor.nbytes // tensor.dtype.itemsize
    facts = {
        "Written by": f"ivl3_jax {__version__}, in {LAYOUTS[layout]}",
        "Weights from": origin,
        "Tokenizer and processor from": f"`{Path(source).resolve().name}`" if source is not None else "nowhere: none",
        "Parameters": ", ".join(f"{count:,} in {dtype}" for dtype, count in counts.items()),
        "ViT": f"{vision.layers} layers, width {vision.width}, tiles of {vision.image_size} pixels",
        "Decoder": f"{decoder.family}, {decoder.layers} layers, width {decoder.width}, vocabulary {decoder.vocab}",
        "Checksums": f"`sha256sum -c {CHECKSUMS}`",
    }
    return "## Provenance\n\n" + "".join(f"- {name}: {value}\n" for name, value in facts.items())
