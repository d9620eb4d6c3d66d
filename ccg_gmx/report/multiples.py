"""Small multiples drawn directly as inline SVG: dozens of distributions in a few kilobytes, their text left to HTML."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ccg_gmx.records import FloatArray
from ccg_gmx.report.markup import Html, join, tag
from ccg_gmx.report.profiles import Comparison
from ccg_gmx.report.words import number
from ccg_gmx.units import DEGREES_PER_RADIAN

WIDTH, HEIGHT = 100.0, 50.0
FAR = 3.0
"""A distribution is marked when its divergence is more than this many times what sampling noise alone explains."""


def _steps(heights: FloatArray, top: float, closed: bool) -> str:
    """Return the path data of a histogram outline in a WIDTH x HEIGHT box."""
    x = np.linspace(0.0, WIDTH, len(heights) + 1)
    y = HEIGHT * (1.0 - heights / top)
    points = [f"M0 {HEIGHT:g}"] if closed else [f"M0 {y[0]:.1f}"]
    points += [f"V{level:.1f}H{right:.1f}" for level, right in zip(y, x[1:], strict=True)]
    return "".join(points) + (f"V{HEIGHT:g}Z" if closed else "")


def _path(class_: str, data: str) -> Html:
    return tag("path", class_=class_, d=data)


def multiple(name: str, kind: str, comparison: Comparison) -> Html:
    """Return one distribution: fine MD filled, restored frames with and without weights as lines.

    Args:
        name: what is shown under the picture.
        kind: bond (nm), angle or torsion (radians, shown in degrees).
        comparison: the histograms.
    """
    top = max(float(max(part.max() for part in (comparison.fine, comparison.weighted, comparison.plain))), 1e-12) * 1.04
    paths = [
        _path("fine", _steps(comparison.fine, top, closed=True)),
        _path("plain", _steps(comparison.plain, top, closed=False)),
        _path("weighted", _steps(comparison.weighted, top, closed=False)),
    ]
    picture = tag("svg", *paths, viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", preserveAspectRatio="none", role="img",
                  aria_label=f"distribution of {name}")  # fmt: skip
    low, high = comparison.edges[0], comparison.edges[-1]
    show = (
        (lambda v: f"{v:.3f} nm") if kind == "bond" else (lambda v: f"{v * DEGREES_PER_RADIAN:.0f}°".replace("-", "−"))
    )
    ends = tag("div", tag("span", show(low)), tag("span", show(high)), class_="ends")
    far = comparison.js > FAR * comparison.js_noise
    text = f"JS {number(comparison.js, 2)} (noise {number(comparison.js_noise, 2)})"
    score = tag("div", text, class_="js far" if far else "js")
    return tag("div", picture, ends, tag("div", name, class_="name"), score, class_="multiple")


def multiples(pictures: Sequence[Html]) -> Html:
    """Return small multiples in a grid that fits the width."""
    return tag("div", *pictures, class_="multiples")


def key() -> Html:
    """Return the key of the small multiples."""
    middle = f"M0 {HEIGHT / 2:g}H{WIDTH:g}"
    entries = (("fine", f"M0 5H{WIDTH:g}V45H0Z", "fine MD"), ("weighted", middle, "restored, weighted"),
               ("plain", middle, "restored, unweighted"))  # fmt: skip
    items = [
        tag("span", tag("svg", _path(class_, data), viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", preserveAspectRatio="none",
                        aria_hidden="true"), text)
        for class_, data, text in entries
    ]  # fmt: skip
    return tag("div", *items, class_="key multiples-key")


def bars(entries: Sequence[tuple[str, float, str]]) -> Html:
    """Return horizontal bars.

    Args:
        entries: (name, value, value for reading).
    """
    top = max((value for _, value, _ in entries), default=0.0)
    cells: list[Html] = []
    for name, value, text in entries:
        share = 100.0 * value / top if top > 0 else 0.0
        cells.append(tag("div", name))
        cells.append(tag("div", tag("i", style=f"width:{share:.2f}%"), tag("span", text), class_="bar"))
    return tag("div", join(cells), class_="bars")
