"""The pictures: torsion maps, profiles, losses, weights, bonded terms. Each function returns a matplotlib Figure.

Torsion grids have their points at ``-pi + i * 2 pi / n``, and a cell is centred on its point. The first point is drawn
again at +180 degrees, so the cells cover the whole square and contours close across the border.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ccg_gmx.records import FloatArray, FreeEnergySurface
from ccg_gmx.report import style
from ccg_gmx.report.profiles import Profile, WeightStatistics, aligned, aligned_difference, profiles
from ccg_gmx.units import DEGREES_PER_RADIAN

CAP_KT = 16.0
"""Surfaces are coloured up to this free energy; nothing above is reached at the temperature of the run."""

PANEL_WIDTH, PANEL_HEIGHT = 4.3, 3.55
"""Size of one map with its colour bar, inches."""

TICKS = (-180, -90, 0, 90, 180)
_GREEK = {
    name: f"$\\{name}$"
    for name in ("alpha", "beta", "gamma", "delta", "epsilon", "theta", "xi", "phi", "chi", "psi", "omega")
}


_NUMBERED = re.compile(r"([a-z]+)_?(\d+)", re.IGNORECASE)


def axis_label(name: str) -> str:
    """Return the label of a torsion axis, ``phi`` and ``phi1`` as a Greek letter with its unit."""
    found = _NUMBERED.fullmatch(name)
    if found and found[1].lower() in _GREEK:
        return f"$\\{found[1].lower()}_{{{found[2]}}}$ / degrees"
    return f"{_GREEK.get(name.lower(), name.replace('$', ''))} / degrees"


def shared_cap(*surfaces: FreeEnergySurface | None) -> float:
    """Return the top of the common colour scale in kT: the highest known value, at least 4, at most ``CAP_KT``."""
    tops = [np.max(s.f, where=np.isfinite(s.f), initial=0.0) for s in surfaces if s is not None]
    return float(np.clip(np.ceil(max(tops, default=CAP_KT)), 4.0, CAP_KT))


Scalar = TypeVar("Scalar", np.float64, np.bool_)


def wrapped(values: NDArray[Scalar]) -> NDArray[Scalar]:
    """Return a periodic grid with its first point again at the end of every axis."""
    return np.pad(values, (0, 1), mode="wrap")


def wrapped_degrees(n: int) -> FloatArray:
    """Return the ``[n + 1]`` points of a torsion axis, both ends included."""
    return -180.0 + 360.0 / n * np.arange(n + 1, dtype=np.float64)


def torsion_axis(axes: Axes, name: str, *, vertical: bool = False) -> None:
    """Give an axis the ticks, limits and label of a torsion."""
    setter = axes.yaxis if vertical else axes.xaxis
    setter.set_ticks(TICKS)
    (axes.set_ylim if vertical else axes.set_xlim)(-180, 180)
    (axes.set_ylabel if vertical else axes.set_xlabel)(axis_label(name), labelpad=2)


@dataclass(frozen=True)
class Scale:
    """How the values of a map become colours."""

    label: str
    cmap: str
    norm: Normalize
    extend: str = "neither"
    grey_above: bool = False
    contours: FloatArray | None = None


def panel(columns: int = 1) -> Figure:
    """Return a figure for maps side by side."""
    return style.new_figure(PANEL_WIDTH * columns, PANEL_HEIGHT)


def draw_map(
    figure: Figure, column: int, values: FloatArray, names: tuple[str, ...], scale: Scale, grey: NDArray[np.bool_]
) -> Axes:
    """Draw one ``[n, n]`` torsion map; the first axis of ``values`` runs to the right, the second upwards.

    Cells without a value are hatched; those marked in ``grey`` are grey whatever their value.
    """
    left = PANEL_WIDTH * column
    axes = style.axes_at(figure, left + 0.62, 0.5, 2.8, 2.8)
    axes.fill([0, 1, 1, 0], [0, 0, 1, 1], transform=axes.transAxes, fill=False, hatch="////", ec=style.HATCH, lw=0)
    closed = np.ma.masked_array(wrapped(values).T, mask=wrapped(grey | ~np.isfinite(values)).T)
    edges = [wrapped_degrees(n) for n in values.shape]
    plain = ListedColormap([style.ABOVE_CAP])
    hidden = np.ma.masked_where(~wrapped(grey).T, np.zeros(closed.shape))
    axes.pcolormesh(*edges, hidden, cmap=plain, shading="nearest", rasterized=True)
    colours = colormaps[scale.cmap]
    if scale.grey_above:
        colours = colours.with_extremes(over=style.ABOVE_CAP)
    mesh = axes.pcolormesh(*edges, closed, cmap=colours, norm=scale.norm, shading="nearest", rasterized=True)
    if scale.contours is not None:
        draw_contours(axes, wrapped(values).T, scale.contours, "white")
    torsion_axis(axes, names[0])
    torsion_axis(axes, names[1], vertical=True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
    bar = figure.colorbar(mesh, cax=style.axes_at(figure, left + 3.52, 0.5, 0.11, 2.8), extend=scale.extend)
    bar.set_label(scale.label)
    bar.outline.set_linewidth(0.5)  # type: ignore[operator, unused-ignore]
    bar.locator = MaxNLocator(nbins=8, steps=[1, 2, 4, 5, 10])
    bar.update_ticks()
    return axes


def draw_contours(axes: Axes, closed: FloatArray, levels: FloatArray, colour: str) -> None:
    """Draw contours of ``wrapped`` and transposed values where they are known."""
    known = np.ma.masked_invalid(closed)
    if known.count() and min(closed.shape) > 2:
        inside = levels[(levels > known.min()) & (levels < known.max())]
        if inside.size:
            edges = [wrapped_degrees(n - 1) for n in closed.T.shape]
            axes.contour(*edges, known, levels=inside, colors=colour, linewidths=0.5, alpha=0.75)


def free_energy_map(
    surface: FreeEnergySurface, cap: float, figure: Figure | None = None, column: int = 0, contours: bool = True
) -> Figure:
    """Draw a two-torsion surface up to ``cap`` kT, with a contour every kT unless told otherwise."""
    figure = figure or panel()
    above = np.isfinite(surface.f) & (surface.f > cap)
    scale = Scale(
        r"$F$ / $kT$", style.SEQUENTIAL, Normalize(0.0, cap), "max" if above.any() else "neither",
        grey_above=True, contours=np.arange(1.0, cap + 0.5) if contours else None,
    )  # fmt: skip
    draw_map(figure, column, surface.f, surface.names, scale, above)
    return figure


def difference_map(
    surface: FreeEnergySurface, other: FreeEnergySurface, cap: float, figure: Figure | None = None, column: int = 0
) -> Figure:
    """Draw surface minus other in kT where both are below ``cap``, with contours of the other at 2, 4 and 8 kT."""
    figure = figure or panel()
    difference = aligned_difference(surface.f, other.f)
    above = np.isfinite(difference) & ((surface.f > cap) | (other.f > cap))
    size = np.abs(difference[np.isfinite(difference) & ~above])
    limit = max(float(np.quantile(size, 0.98)) if size.size else 0.0, 0.05)
    scale = Scale(r"$\Delta F$ / $kT$", style.DIVERGING, Normalize(-limit, limit), "both")
    axes = draw_map(figure, column, difference, surface.names, scale, above)
    draw_contours(axes, wrapped(other.f).T, np.array([2.0, 4.0, 8.0]), "#444444")
    return figure


def error_map(surface: FreeEnergySurface, cap: float, figure: Figure | None = None, column: int = 0) -> Figure:
    """Draw the standard error of a surface in kT where the surface is below ``cap``."""
    figure = figure or panel()
    above = np.isfinite(surface.f) & (surface.f > cap)
    known = surface.error[np.isfinite(surface.error) & ~above]
    top = max(float(np.quantile(known, 0.98)) if known.size else 0.0, 1e-3)
    extend = "max" if known.size and float(known.max()) > top else "neither"
    scale = Scale(r"standard error / $kT$", style.ERRORS, Normalize(0.0, top), extend)
    axes = draw_map(figure, column, surface.error, surface.names, scale, above)
    draw_contours(axes, wrapped(surface.f).T, np.array([2.0, 4.0, 8.0]), "#444444")
    return figure


def coarse_potential_map(values: FloatArray, names: tuple[str, ...], cap: float) -> Figure:
    """Draw the coarse model's torsion-pair grid, kJ/mol above its minimum, with a contour every 2 kJ/mol."""
    figure = panel()
    raised = values - np.min(values, where=np.isfinite(values), initial=np.inf)
    top = float(min(cap, np.ceil(np.max(raised, where=np.isfinite(raised), initial=1.0))))
    above = np.isfinite(raised) & (raised > top)
    scale = Scale(
        "potential / (kJ/mol)", style.SEQUENTIAL, Normalize(0.0, top), "max" if above.any() else "neither",
        grey_above=True, contours=np.arange(2.0, top, 2.0),
    )  # fmt: skip
    draw_map(figure, 0, raised, names, scale, above)
    return figure


def profile_figure(curves: list[tuple[str, str, Profile]], cap: float) -> Figure:
    """Draw free energies along one torsion with bands of two standard errors.

    Args:
        curves: (label, colour, profile) of every curve, all along the same torsion; the first is ours.
        cap: top of the vertical axis in kT.
    """
    figure = style.new_figure(4.8, 2.8)
    axes = style.open_axes(figure)
    for index, (label, colour, own) in enumerate(curves):
        profile = aligned(own, curves[0][2])
        degrees = np.append(profile.degrees, 180.0)
        f, error = (np.ma.masked_invalid(np.append(v, v[:1])) for v in (profile.f, profile.error))
        axes.fill_between(degrees, f - 2 * error, f + 2 * error, color=colour, alpha=0.22, lw=0)
        # Ours is wide and below, the others thin and dashed above it: curves that agree stay visible.
        look = {"lw": 2.6, "alpha": 0.75} if index == 0 else {"lw": 1.2, "linestyle": (0, (4, 2))}
        axes.plot(degrees, f, color=colour, label=label, **look)  # type: ignore[arg-type, unused-ignore]
    torsion_axis(axes, curves[0][2].name)
    axes.set_ylabel(r"$F$ / $kT$")
    tops = [np.max(p.f, where=np.isfinite(p.f), initial=0.0) for _, _, p in curves]
    axes.set_ylim(-0.3, min(cap, max(tops)) * 1.05 + 0.3)
    _legend(axes, len(curves))
    return figure


def _legend(axes: Axes, entries: int) -> None:
    # Above the axes: inside, it would hide part of a curve on some surface or other.
    if entries > 1:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=min(entries, 4), handlelength=1.8, borderaxespad=0.2
        )


def loss_figure(curves: dict[str, FloatArray], label: str) -> Figure:
    """Draw loss curves: the raw values pale, their running mean strong.

    Args:
        curves: name -> ``[steps]``; shorter curves (taken every few steps) are spread over the longest.
        label: label of the vertical axis.
    """
    figure = style.new_figure(4.8, 2.8)
    axes = style.open_axes(figure)
    longest = max(len(values) for values in curves.values())
    late = []
    for index, (name, values) in enumerate(curves.items()):
        colour = style.SERIES[index % len(style.SERIES)]
        steps = (np.arange(len(values)) + 1) * (longest / max(len(values), 1))
        width = max(len(values) // 60, 1)
        noisy = len(values) >= 120
        axes.plot(
            steps,
            values,
            color=colour,
            alpha=0.25 if noisy else 1.0,
            lw=0.6 if noisy else 1.4,
            label=None if noisy else name,
        )
        if noisy:
            axes.plot(steps[width - 1 :], _running_mean(values, width), color=colour, lw=1.5, label=name)
        late.append(values[len(values) // 50 :])
    finite = np.concatenate(late)
    finite = finite[np.isfinite(finite)]
    if finite.size:
        low, high = float(finite.min()), float(np.quantile(finite, 0.995))
        margin = 0.06 * (high - low) or 0.5
        axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel("training step")
    axes.set_ylabel(label)
    axes.set_xlim(0, longest)
    _legend(axes, len(curves) + 1)
    return figure


def _running_mean(values: FloatArray, width: int) -> FloatArray:
    total = np.cumsum(np.insert(values, 0, 0.0))
    return (total[width:] - total[:-width]) / width


def weight_histogram(statistics: WeightStatistics) -> Figure:
    """Draw the log-weights of all draws, each relative to the mean weight of its point; logarithmic counts."""
    figure = style.new_figure(4.8, 2.8)
    axes = style.open_axes(figure)
    finite = statistics.relative[np.isfinite(statistics.relative)]
    low, high = np.quantile(finite, 1e-3) if finite.size else -1.0, max(float(finite.max(initial=0.0)), 1.0)
    low = min(float(low), -1.0)
    axes.hist(np.maximum(finite, low), bins=list(np.linspace(low, high, 90)), color=style.OURS)
    axes.axvline(0.0, color=style.REFERENCE, lw=0.9, ls=(0, (4, 2)))
    if finite.size:
        axes.set_yscale("log")
    axes.set_xlabel(r"$\ln w$ relative to the mean weight of its point")
    axes.set_ylabel("draws")
    return figure


def kish_figure(statistics: WeightStatistics) -> Figure:
    """Draw the Kish fraction of every point over its free energy, with the median in bins of the free energy."""
    figure = style.new_figure(4.8, 2.8)
    axes = style.open_axes(figure)
    known = np.isfinite(statistics.f) & np.isfinite(statistics.kish_fraction)
    f, kish = statistics.f[known], statistics.kish_fraction[known]
    axes.plot(f, kish, ".", ms=2.5, mew=0, color=style.OURS, alpha=0.45, rasterized=True)
    if f.size >= 50:
        edges = np.quantile(f, np.linspace(0, 1, 13))
        slot = np.clip(np.searchsorted(edges, f, side="right") - 1, 0, 11)
        medians = [(np.median(f[slot == k]), np.median(kish[slot == k])) for k in range(12) if (slot == k).any()]
        axes.plot(*np.transpose(medians), "-o", ms=3.5, color=style.COARSE, label="median")
        axes.legend(loc="upper right")
    axes.set_ylim(0, 1)
    axes.set_xlabel(r"free energy of the point / $kT$")
    axes.set_ylabel("Kish fraction")
    return figure


def term_figure(grid: FloatArray, potential: FloatArray, kind: str, reach: float = 60.0) -> Figure:
    """Draw one bonded table of the coarse model up to ``reach`` kJ/mol above its minimum.

    Args:
        grid: ``[G]`` nm (bond) or radians (angle, torsion).
        potential: ``[G]`` kJ/mol.
        kind: bond, angle or torsion.
        reach: kJ/mol.
    """
    figure = style.new_figure(3.0, 2.1)
    axes = style.open_axes(figure)
    scale = 1.0 if kind == "bond" else DEGREES_PER_RADIAN
    raised = potential - np.min(potential, where=np.isfinite(potential), initial=np.inf)
    near = raised <= reach
    axes.plot(grid * scale, np.where(near, raised, np.nan), color=style.OURS)
    if near.any():
        axes.set_xlim(float(grid[near].min()) * scale, float(grid[near].max()) * scale)
    axes.set_ylim(0, min(reach, float(np.max(raised, where=np.isfinite(raised), initial=1.0))))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("length / nm" if kind == "bond" else f"{kind} / degrees")
    axes.set_ylabel("kJ/mol")
    return figure


def plot_surface(surface: FreeEnergySurface, path_png: Path, reference: FreeEnergySurface | None = None) -> None:
    """Write a picture of a free energy surface, beside its reference and their difference when there is one.

    Args:
        surface: ``[n]`` (profile with band) or ``[n, n]`` (map) surface.
        path_png: file to write; it appears whole or not at all.
        reference: surface on the same grid.

    Raises:
        ValueError: if the surface has more than two torsions, or the reference another grid.
        OSError: if the file cannot be written.
    """
    if surface.f.ndim > 2:
        raise ValueError(f"a surface of {surface.f.ndim} torsions cannot be drawn; at most 2 can")
    if reference is not None and reference.f.shape != surface.f.shape:
        raise ValueError(f"the reference has {reference.f.shape} points, the surface {surface.f.shape}")
    with style.plot_style():
        figure = _surface_figure(surface, reference)
        temporary = path_png.with_name(f".{path_png.name}.{os.getpid()}.tmp")
        try:
            figure.savefig(temporary, format="png", dpi=200)
            os.replace(temporary, path_png)
        finally:
            temporary.unlink(missing_ok=True)


def _surface_figure(surface: FreeEnergySurface, reference: FreeEnergySurface | None) -> Figure:
    cap = shared_cap(surface, reference)
    if surface.f.ndim == 1:
        curves = [("this run", style.OURS, profiles(surface)[0])]
        if reference is not None:
            curves.append(("reference", style.REFERENCE, profiles(reference)[0]))
        return profile_figure(curves, cap)
    if reference is None:
        return free_energy_map(surface, cap)
    figure = panel(3)
    free_energy_map(surface, cap, figure, 0)
    free_energy_map(reference, cap, figure, 1)
    difference_map(surface, reference, cap, figure, 2)
    for axes, title in zip(figure.axes[::2], ("this run", "reference", "this run − reference"), strict=True):
        axes.set_title(title)
    return figure
