"""What every section is made of."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

from ccg_gmx.report import style
from ccg_gmx.report.markup import Html, tag


@dataclass(frozen=True)
class Section:
    """One section: its heading, which is also its line in the table of contents, and its content."""

    title: str
    body: Html


def picture(figure: Figure, alt: str, title: str, caption: str) -> Html:
    """Return a figure with its caption; the alternative text is for readers who cannot see it."""
    image = tag("img", src=style.data_uri(figure), alt=alt)
    return tag("figure", image, tag("figcaption", tag("b", title), f" {caption}"))


def grid_of(*pictures: Html, kind: str = "") -> Html:
    """Return pictures side by side: three in a row, two where they are ``wide``, many where they are ``small``."""
    return tag("div", *pictures, class_=f"figures {kind}".strip())


def capitalised(text: str) -> str:
    """Return a text with its first letter large, the others as they are."""
    return text[:1].upper() + text[1:]
