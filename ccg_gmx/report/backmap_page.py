"""The score card of backmapping as JSON and as a page."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ccg_gmx.backmap.card import Card
from ccg_gmx.backmap.score import ClassScore
from ccg_gmx.errors import StoreError
from ccg_gmx.report import style
from ccg_gmx.report.html import page, write_page
from ccg_gmx.report.markup import Html, table, tag
from ccg_gmx.report.parts import Section, grid_of, picture

WORST = 12
"""Distributions shown of each kind."""


def write_card(card: Card, facts: dict[str, Any], out: Path) -> list[str]:
    """Write ``<stem>.card.json`` and ``<stem>.card.html`` beside restored frames.

    Args:
        card: the score card.
        facts: of the user's own restoration.
        out: the restored trajectory.

    Returns:
        The files.

    Raises:
        StoreError: they cannot be written.
    """
    text, site = (out.with_name(f"{out.stem}.card.{kind}") for kind in ("json", "html"))
    content = {
        "card": _finite(card.numbers),
        "restored": _finite({k: v for k, v in facts.items() if k != "card"}),
        "classes": [
            {"kind": s.kind, "name": s.name, "js": s.js, "floor": s.floor, "fine": s.fine} for s in card.classes
        ],
    }
    try:
        partial = text.with_name(f".{text.name}.{os.getpid()}.part")
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, text)
        write_page(_page(card, facts, out), site)
    except OSError as error:
        raise StoreError(f"{text} cannot be written ({error.strerror})", remedy="choose another -o") from error
    return [str(text), str(site)]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _page(card: Card, facts: dict[str, Any], out: Path) -> str:
    numbers = card.numbers
    headline = tag(
        "p",
        f"{numbers['held_out_frames']} held-out frames, {numbers['samples']} draws of each: beads within "
        f"{numbers['max_bead_deviation_nm']:.0e} nm, {numbers['chirality_errors']} chirality errors, clashes in "
        f"{100 * numbers['clash_fraction']:.2f} % of the frames "
        f"({100 * numbers['clash_fraction_fine']:.2f} % in fine MD).",
    )
    found = [Section("Numbers", _numbers(numbers)), Section("Side chains", _rotamers(numbers["rotamers"]))]
    with style.plot_style():
        for kind in ("torsions", "angles", "bonds"):
            own = [score for score in card.classes if score.kind == kind][:WORST]
            if own:
                found.append(Section(f"{kind.capitalize()}, the least alike first", _multiples(own)))
    return page(out.name, "Backmapping against held-out fine frames", "backmapping", headline, found)


def _numbers(numbers: dict[str, Any]) -> Html:
    rows = [(name, _text(value)) for name, value in numbers.items() if not isinstance(value, dict)]
    rows += [
        (name, ", ".join(f"{part} {_text(item)}" for part, item in value.items()))
        for name, value in numbers.items()
        if isinstance(value, dict) and name != "rotamers"
    ]
    return table(("quantity", "value"), rows)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _rotamers(found: dict[str, dict[str, list[float]]]) -> Html:
    if not found:
        return tag("p", "No residue has a chi1.")
    rows = [
        (name, *(f"{a:.2f} / {b:.2f}" for a, b in zip(own["fine"], own["restored"], strict=True)))
        for name, own in found.items()
    ]
    return table(("residue", "g+ (0 to 120°), fine / restored", "trans", "g- (-120 to 0°)"), rows)


def _multiples(scores: list[ClassScore]) -> Html:
    pictures = []
    for score in scores:
        caption = f"JS {score.js:.4f} nats; {score.floor:.4f} would be chance. {score.fine} fine values."
        pictures.append(picture(_distribution(score), f"{score.kind} of {score.name}", score.name, caption))
    return grid_of(*pictures)


def _distribution(score: ClassScore) -> Figure:
    figure = style.new_figure(2.6, 1.7)
    axes = style.axes_at(figure, 0.15, 0.42, 2.3, 1.2)
    scale = 1.0 if score.kind == "bonds" else math.degrees(1.0)
    edges = score.edges * scale
    width = np.diff(edges)
    axes.stairs(score.p_fine / width, edges, color=style.REFERENCE, fill=True, alpha=0.25)
    axes.stairs(score.p_restored / width, edges, color=style.OURS, linewidth=1.2)
    axes.set_yticks([])
    axes.set_xlabel("nm" if score.kind == "bonds" else "degrees")
    return figure
