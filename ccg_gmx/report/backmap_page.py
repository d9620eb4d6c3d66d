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
from ccg_gmx.cycle.store import finite
from ccg_gmx.errors import StoreError
from ccg_gmx.records import FloatArray
from ccg_gmx.report import style
from ccg_gmx.report.html import page, write_page
from ccg_gmx.report.markup import Html, join, table, tag
from ccg_gmx.report.parts import Section, grid_of, picture

WORST = 12
"""Distributions shown of each kind."""
OPEN_ROWS = 24
"""Longer tables are one click away."""
LINEAR_KJ_MOL = 1000.0
"""Energies further from those of fine frames are drawn logarithmically."""


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
        "card": finite(card.numbers),
        "restored": finite({k: v for k, v in facts.items() if k != "card"}),
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


def _page(card: Card, facts: dict[str, Any], out: Path) -> str:
    numbers = card.numbers
    minimised = facts.get("minimised")
    headline = tag(
        "p",
        f"{numbers['held_out_frames']} held-out frames, {numbers['samples']} draws of each: beads within "
        f"{numbers['max_bead_deviation_nm']:.0e} nm, {numbers['chirality_errors']} chirality errors, clashes in "
        f"{100 * numbers['clash_fraction']:.2f} % of the frames "
        f"({100 * numbers['clash_fraction_fine']:.2f} % in fine MD).",
    )
    with style.plot_style():
        found = [Section("Numbers", _numbers(numbers)), *card_sections(card)]
        if minimised is not None:
            found.insert(1, energy_section(minimised, Path(minimised["table"])))
    return page(out.name, "Backmapping against held-out fine frames", "backmapping", headline, found)


def card_sections(card: Card) -> list[Section]:
    """Side chains and distributions; to be called within ``style.plot_style()``."""
    found = [Section("Side chains", _rotamers(card.numbers["rotamers"]))]
    for kind in ("torsions", "angles", "bonds"):
        own = [score for score in card.classes if score.kind == kind][:WORST]
        if own:
            found.append(Section(f"{kind.capitalize()}, the least alike first", join([_KEY, _multiples(own)])))
    return found


_KEY = tag(
    "p",
    "Grey: held-out fine frames. Blue: restored frames on the beads of these. "
    "JS is the Jensen-Shannon divergence in nats; 0 is equal, 0.69 is no overlap.",
)


def energy_section(facts: dict[str, Any], energies: Path) -> Section:
    """Energies before and after a minimisation, with those of fine frames where there are any.

    Args:
        facts: of :func:`ccg_gmx.backmap.minimise.minimise_frames`.
        energies: its table, of every frame.

    Raises:
        StoreError: the table is gone.
    """
    try:
        with np.load(energies, allow_pickle=False) as data:
            rows = [(label, data[name]) for label, name in _ENERGIES if len(data[name])]
    except OSError as error:
        raise StoreError(f"{energies} cannot be read ({error.strerror})", remedy="run again") from None
    intro = (
        f"{facts['frames']} restored frames, at most {facts['steps']} steps of steepest descent in GROMACS, beads "
        "frozen. As many held-out fine frames stand beside them."
    )
    cells = [(label, *(f"{value:,.0f}" for value in np.quantile(values, (0.05, 0.5, 0.95)))) for label, values in rows]
    shown = picture(
        _energies(rows),
        "energies before and after minimisation",
        "Potential energy.",
        "One dot per frame; the line is the median. "
        f"Linear within {LINEAR_KJ_MOL:g} kJ/mol of the median of fine frames, logarithmic beyond.",
    )
    head = ("kJ/mol", "5 %", "median", "95 %")
    return Section(
        "Energies before and after minimisation",
        join([tag("p", intro), grid_of(shown, kind="broad"), table(head, cells)]),
    )


_ENERGIES = (
    ("restored", "before"),
    ("restored, minimised", "after"),
    ("fine", "fine_before"),
    ("fine, minimised", "fine_after"),
)
"""Label and column of the table."""


def _energies(rows: list[tuple[str, FloatArray]]) -> Figure:
    """Energies of each frame ``[T]`` kJ/mol, a row of dots per kind, relative to the median of fine frames."""
    figure = style.new_figure(7.2, 0.55 * len(rows) + 0.75)
    axes = style.axes_at(figure, 1.45, 0.5, 5.6, 0.55 * len(rows) + 0.15)
    zero = float(np.median(dict(rows).get("fine", rows[-1][1])))
    rng = np.random.default_rng(0)
    for place, (label, values) in enumerate(reversed(rows)):
        colour = style.REFERENCE if label.startswith("fine") else style.OURS
        axes.plot(values - zero, place + rng.uniform(-0.22, 0.22, len(values)), ".", ms=3.5, alpha=0.5, color=colour)
        axes.plot([np.median(values) - zero] * 2, [place - 0.36, place + 0.36], color=colour, lw=1.8)
    if max(float(np.abs(values - zero).max()) for _, values in rows) > LINEAR_KJ_MOL:
        axes.set_xscale("symlog", linthresh=LINEAR_KJ_MOL)
    axes.grid(True, axis="x", color="#e6e6e6", linewidth=0.6)
    axes.set_yticks(range(len(rows)), [label for label, _ in reversed(rows)])
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_xlabel("potential energy above the median of fine frames / (kJ/mol)")
    return figure


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
    whole = table(("residue", "g+ (0 to 120°), fine / restored", "trans", "g- (-120 to 0°)"), rows)
    if len(rows) <= OPEN_ROWS:
        return whole
    return tag("details", tag("summary", f"chi1 of {len(rows)} residues"), whole)


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
