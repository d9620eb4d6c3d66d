"""HTML elements from Python: every string is escaped unless it is already ``Html``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

_VOID = frozenset({"br", "hr", "img", "meta"})


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def join(parts: Iterable[str]) -> Html:
    """Return parts one after the other; plain strings are escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(str(part)) for part in parts))


def tag(name: str, /, *children: str, **attributes: str) -> Html:
    """Return an element.

    Args:
        name: element name.
        *children: ``Html`` as it is, plain strings escaped.
        **attributes: values are escaped; a trailing underscore in a name is dropped, others become hyphens
            (``class_`` is ``class``).
    """
    text = "".join(f' {_attribute(key)}="{escape(str(value))}"' for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{text}>")
    return Html(f"<{name}{text}>{join(children)}</{name}>")


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def slug(text: str) -> str:
    """Return an anchor name for a heading."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def table(head: Iterable[str], rows: Iterable[Iterable[str]], class_: str = "") -> Html:
    """Return a table in a box that scrolls sideways on narrow screens."""
    header = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head)))
    body = tag("tbody", *(tag("tr", *(tag("td", cell) for cell in row)) for row in rows))
    return tag("div", tag("table", header, body), class_=f"scroll {class_}".strip())


def definitions(items: Iterable[tuple[str, str]]) -> Html:
    """Return a list of names and values."""
    cells = [tag("div", tag("dt", name), tag("dd", value)) for name, value in items]
    return tag("dl", *cells)
