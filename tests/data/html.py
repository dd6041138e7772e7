"""Reading pages that were written here, strictly."""

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Every element that is opened is closed in its place.

    Attributes:
        elements: (tag, attributes) in order.
        texts: (tags around it with their classes, such as "span.chip", text), in order.
    """

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            kinds = "".join(f".{kind}" for kind in (attributes.get("class") or "").split())
            self.open.append((tag, f"{tag}{kinds}"))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> within {self.open}, at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append((tuple(name for _, name in self.open), data))

    def texts_in(self, name):
        """The texts below an element such as "td" or "span.chip", one for each place where they stand."""
        return [text for around, text in self.texts if name in around]


def check_html(text):
    """A page or a part of one that is closed as it was opened."""
    page = Page()
    page.feed(text)
    page.close()
    assert not page.open, page.open
    return page
