"""Sections on what stands behind the surface: where fine MD has been, hidden slow motions, where the draws went."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ccg_gmx.free_energy.diagnostics import DiagnosticSettings
from ccg_gmx.records import FloatArray
from ccg_gmx.report import evidence_plots, plots, words
from ccg_gmx.report.data import ReportData, SurfaceView
from ccg_gmx.report.hidden_modes import hidden_modes_figure
from ccg_gmx.report.markup import Html, definitions, join, tag
from ccg_gmx.report.parts import Section, capitalised, grid_of, picture
from ccg_gmx.report.surfaces import common_cap


def _threshold(data: ReportData, name: str) -> float:
    own = words.lookup(data.summary, f"thresholds.{name}")
    return float(getattr(DiagnosticSettings(), name)) if own is None else own


def fine_coverage(data: ReportData) -> Section | None:
    """Return the surface with the fine frames as dots, and what they have never seen."""
    if data.fine_s is None or not len(data.fine_s):
        return None
    radius, judged = _threshold(data, "seen_radius_degrees"), _threshold(data, "f_cap_kT")
    intro = (
        "The flow is trained on fine MD and held against it. Where fine MD has never been it extrapolates: its "
        "own draws could not tell if it missed a state of the other coordinates there."
    )
    dots = (
        f"Dots: {words.count(len(evidence_plots.thinned(data.fine_s)))} of {words.count(len(data.fine_s))} fine frames."
    )
    legend = (
        f"{dots} Hatched red: below {judged:g} kT and further than {radius:g}° from every one of them (cross: the most "
        "probable such place)."
    )
    cap = common_cap(data)
    found = [_coverage_picture(data, view, radius, judged, cap, legend) for view in data.views]
    numbers = _coverage_numbers(data)
    if data.several:
        return Section("Where fine MD has been", join([tag("p", intro), *numbers, tag("p", legend, class_="note"),
                                                       grid_of(*found)]))  # fmt: skip
    return Section(
        "Where fine MD has been", join([tag("p", intro), grid_of(*found, tag("div", *numbers), kind="wide")])
    )


def _coverage_picture(
    data: ReportData, view: SurfaceView, radius: float, judged: float, cap: float, legend: str
) -> Html:
    names = view.surface.names
    s = _columns(data, data.fine_s, names)
    missing = evidence_plots.unseen_cells(view.surface, s, radius, judged)
    title = f"{', '.join(names)}" if data.several else "Fine frames on the surface."
    caption = "" if data.several else legend
    if len(names) == 1:
        figure = evidence_plots.coverage_profile(view.surface, s, missing, cap)
        caption = (
            f"Grey: histogram of {words.count(len(s))} fine frames. Red: further than {radius:g}° from all of them."
        )
    else:
        unseen_at = data.coverage.place if data.coverage else {}
        place = tuple(unseen_at[name] for name in names) if set(names) <= set(unseen_at) else None
        figure = evidence_plots.coverage_map(view.surface, s, missing, place, cap)
    return picture(figure, f"fine frames over {', '.join(names)}", title, caption)


def _columns(data: ReportData, s: FloatArray | None, names: tuple[str, ...]) -> FloatArray:
    if s is None:
        raise ValueError("no coarse variables to choose from")
    return s[:, [data.torsions.index(name) for name in names]]


def _coverage_numbers(data: ReportData) -> list[Html]:
    """Return what fine MD has not seen, its held-out frames in every basin, and how its runs agree."""
    items = []
    if seen := data.coverage:
        items.append(("probability that fine MD has never seen", words.percent(seen.unseen_probability)))
        if seen.place:
            place = ", ".join(f"{name} {degrees:.0f}°".replace("-", "−") for name, degrees in seen.place.items())
            items.append(("most probable place it has never seen", place))
        if seen.basin is not None:
            items.append((f"unseen part of {seen.basin}, the largest", words.percent(seen.unseen_basin_fraction)))
    block = data.summary.get("free_energy")
    frames = block.get("held_out_frames") if isinstance(block, Mapping) else None
    if isinstance(frames, Mapping):
        items += [(f"held-out frames in {name}", words.count(float(count))) for name, count in frames.items()]
    gaps = block.get("bar_gap_kT") if isinstance(block, Mapping) else None
    if isinstance(gaps, Mapping):
        items += [
            (
                f"shift of f in {name} that fine frames ask for (BAR)",
                f"{words.number(gap['gap'])} ± {words.number(gap['error'])} kT",
            )
            for name, gap in gaps.items()
        ]
    least = words.lookup(data.summary, "free_energy.run_ess_fraction")
    if least is not None:
        items.append(("effective fraction, the run with the least", words.percent(least)))
    apart = words.lookup(data.summary, "free_energy.run_disagreement_kT")
    if apart is not None:
        items.append(("one run certainly differs from the others by", f"{words.number(apart)} kT"))
    return [definitions(items)] if items else []


def hidden_modes(data: ReportData) -> Section | None:
    """Return the outcome of the test for slow motions that the coarse torsions do not show."""
    if data.hidden is None:
        return None
    report = data.hidden.report
    intro = (
        "Walkers from hot seeds and from fine MD run at fixed coarse points. Where they settle in states that do not "
        "exchange, a slow motion is hidden from the coarse torsions."
    )
    sentences = tag("ul", *(tag("li", f"{capitalised(text)}.") for text in report.words()), class_="plain-list")
    figure = hidden_modes_figure(report, data.hidden.series)
    caption = (
        "The worst coordinate: a dot per walker at its mean, a bar over the central 90 % of its time. Walkers of one "
        f"point should overlap. Largest split R-hat of all coordinates: {words.number(report.r_hat_max)}."
    )
    shown = picture(figure, "walkers of the hidden-mode test", "Walkers at fixed coarse points.", caption)
    return Section("Hidden slow motions", join([tag("p", intro), sentences, grid_of(shown, kind="broad")]))


def draws(data: ReportData) -> Section | None:
    """Return where the final draws went, how many each point got, and the standard error of f."""
    errors = _error_pictures(data)
    parts: list[Html] = []
    if data.draws:
        s = np.concatenate([record.s for record in data.draws])
        K = np.concatenate([np.full(len(record.s), float(record.log_w.shape[1])) for record in data.draws])
        intro = (
            f"{words.count(K.sum())} final draws at {words.count(len(s))} coarse points of all flows and rounds: more "
            "points where the error of the surface matters, more draws at a point where the weights are uneven."
        )
        parts.append(tag("p", intro))
        errors = [*_draw_pictures(data, s, K), *errors]
    if not errors:
        return None
    kind = "" if data.views[0].surface.f.ndim == 2 and not data.several else "wide"
    if data.several:  # profiles of draws two by two, then error maps three by three
        count = len(data.torsions) if data.draws else 0
        parts += [grid_of(*part, kind=kind) for part, kind in ((errors[:count], "wide"), (errors[count:], "")) if part]
    else:
        parts.append(grid_of(*errors, kind=kind))
    return Section("Where the draws went", join(parts))


def _draw_pictures(data: ReportData, s: FloatArray, K: FloatArray) -> list[Html]:
    names = data.torsions
    if len(names) == 2:
        return [
            picture(evidence_plots.draws_map(s, K, names), "map of the number of draws", "Draws per cell.",
                    "Cells of 10°. Blank: none."),
            picture(evidence_plots.draws_per_point_map(s, K, names), "map of the draws per point", "Draws per point.",
                    "Mean over the points of a cell: large where earlier draws had uneven weights."),
        ]  # fmt: skip
    return [
        picture(evidence_plots.draws_profile(s[:, column], K, name), f"draws along {name}",
                f"Draws along {name}.", "In cells of 10°.")
        for column, name in enumerate(names)
    ]  # fmt: skip


def _error_pictures(data: ReportData) -> list[Html]:
    cap = common_cap(data)
    known = [view.surface for view in data.views if np.isfinite(view.surface.error).any()]
    maps = [surface for surface in known if surface.f.ndim == 2]
    lines = [surface for surface in known if surface.f.ndim == 1]
    caption = "One standard error, contours of the surface at 2, 4 and 8 kT. Dark spots need more draws most."
    return [
        picture(plots.error_map(surface, cap), f"map of the standard error over {', '.join(surface.names)}",
                f"Error over {', '.join(surface.names)}" if data.several else "Error of this run.",
                "" if data.several else caption)
        for surface in maps
    ] + [
        picture(evidence_plots.error_profile(surface, cap), f"standard error along {surface.names[0]}",
                "Error of this run.", "One standard error.")
        for surface in lines
    ]  # fmt: skip
