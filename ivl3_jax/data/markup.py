"""Text and pictures as parts of one self-contained HTML file."""

import base64
import html
import io
import re

from PIL import Image

# What HTML cannot hold or nobody would see: controls but for tab and line break, lone surrogates, and marks that turn
# the direction of all text around them.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def escape(text: str) -> str:
    """Any text, to be put into HTML, also between double quotes, as `visible` makes it."""
    return html.escape(visible(text))


def visible(text: str) -> str:
    """A text in which what cannot be seen is spelled out, such as ⟨U+001B⟩."""
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def data_uri(image: Image.Image, kind: str = "PNG", **options: int | bool) -> str:
    """An image as a `data:` URI; `kind` is Pillow's name of its format, and `options` are those of `Image.save`."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return embedded(stream.getvalue(), kind.lower())


def embedded(content: bytes, kind: str) -> str:
    """The bytes of an image file as a `data:` URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
