"""Pictures of the evidence behind a surface: where fine MD has been, and where the draws went."""

from __future__ import annotations

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ccg_gmx.free_energy.coverage import unseen
from ccg_gmx.free_energy.torsion_grid import grid
from ccg_gmx.records import FloatArray, FreeEnergySurface
from ccg_gmx.report import plots, style
from ccg_gmx.report.profiles import profiles
from ccg_gmx.units import DEGREES_PER_RADIAN

CELLS = 36
"""Cells per torsion in which draws are counted: 10 degrees."""

DOTS = 2000
"""Fine frames shown at most, evenly thinned; places without any are found from all of them."""

UNSEEN = "#e8336d"


def thinned(s: FloatArray, most: int = DOTS) -> FloatArray:
    """Return at most ``most`` rows of ``s [T, n]``, evenly spaced."""
    return s[:: max(-(-len(s) // most), 1)]


def unseen_cells(surface: FreeEnergySurface, s: FloatArray, radius_degrees: float, cap_kT: float) -> NDArray[np.bool_]:
    """Return which points of the surface's grid lie below the cap and further than the radius from all fine frames.

    Args:
        surface: ``[n]`` or ``[n, n]``.
        s: ``[T, 1]`` or ``[T, 2]`` radians, the torsions of the surface.
        radius_degrees: how far around a frame counts as seen.
        cap_kT: points above are left out, nothing is said of them.
    """
    missing = unseen(grid(len(surface.f), surface.f.ndim), s, radius_degrees).reshape(surface.f.shape)
    return missing & (surface.f < cap_kT)


def coverage_map(
    surface: FreeEnergySurface, s: FloatArray, missing: NDArray[np.bool_], place: tuple[float, ...] | None, cap: float
) -> Figure:
    """Draw fine frames as dots over a surface; what they have never seen is outlined, the worst place crossed.

    Args:
        surface: ``[n, n]``.
        s: ``[T, 2]`` radians.
        missing: ``[n, n]`` from ``unseen_cells``.
        place: degrees, or None.
        cap: top of the colour scale, kT.
    """
    figure = plots.free_energy_map(surface, cap, contours=False)  # dots and contours hide each other
    axes = figure.axes[0]
    dots = thinned(s) * DEGREES_PER_RADIAN
    axes.plot(dots[:, 0], dots[:, 1], ".", ms=2.4, mew=0, color="white", alpha=0.7, rasterized=True)
    if missing.any():
        edges = plots.wrapped_degrees(len(surface.f))
        values = plots.wrapped(missing).T.astype(np.float64)
        with rc_context({"hatch.color": UNSEEN}):
            axes.contourf(edges, edges, values, levels=[0.5, 1.5], colors="none", hatches=["/////"])
        if not missing.all():
            axes.contour(edges, edges, values, levels=[0.5], colors=UNSEEN, linewidths=1.0)
    if place is not None:
        axes.plot([place[0]], [place[1]], "X", ms=8, mfc=UNSEEN, mec="white", mew=0.8, clip_on=False)
    return figure


def coverage_profile(surface: FreeEnergySurface, s: FloatArray, missing: NDArray[np.bool_], cap: float) -> Figure:
    """Draw fine frames as a histogram under the free energy along one torsion; shade what they have never seen.

    Args:
        surface: ``[n]``.
        s: ``[T, 1]`` radians.
        missing: ``[n]`` from ``unseen_cells``.
        cap: top of the vertical axis, kT.
    """
    figure = plots.profile_figure([("this run", style.OURS, profiles(surface)[0])], cap)
    axes = figure.axes[0]
    top = axes.get_ylim()[1]
    counts, edges = np.histogram(s[:, 0] * DEGREES_PER_RADIAN, np.linspace(-180.0, 180.0, 73))
    axes.stairs(0.3 * top * counts / max(counts.max(), 1), edges, fill=True, color="#c9ced5", zorder=0)
    width = 360.0 / len(surface.f)
    for centre in plots.wrapped_degrees(len(surface.f))[plots.wrapped(missing)]:
        axes.axvspan(centre - width / 2, centre + width / 2, color=UNSEEN, alpha=0.25, lw=0)
    return figure


def _binned(s: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return points and summed weights, ``[CELLS] * d`` each, in cells centred on the points of a torsion grid."""
    width = 2 * np.pi / CELLS
    cell = np.floor((s + np.pi) / width + 0.5).astype(np.int64) % CELLS
    flat = np.ravel_multi_index(tuple(cell.T), (CELLS,) * s.shape[1])
    size, shape = CELLS ** s.shape[1], (CELLS,) * s.shape[1]
    return (np.bincount(flat, minlength=size).astype(np.float64).reshape(shape),
            np.bincount(flat, weights, minlength=size).reshape(shape))  # fmt: skip


def _counts_map(values: FloatArray, names: tuple[str, ...], label: str) -> Figure:
    figure = plots.panel()
    top = max(float(np.nanmax(values)) if np.isfinite(values).any() else 0.0, 1.0)
    scale = plots.Scale(label, style.SEQUENTIAL, Normalize(0.0, top))
    plots.draw_map(figure, 0, values, names, scale, np.zeros(values.shape, dtype=bool))
    return figure


def draws_map(s: FloatArray, draws: FloatArray, names: tuple[str, ...]) -> Figure:
    """Draw how many draws fell in each cell of two torsions; hatched where none did.

    Args:
        s: ``[M, 2]`` radians.
        draws: ``[M]`` draws at each point.
        names: the torsions.
    """
    total = _binned(s, draws)[1]
    return _counts_map(np.where(total > 0, total, np.nan), names, "draws")


def draws_per_point_map(s: FloatArray, draws: FloatArray, names: tuple[str, ...]) -> Figure:
    """Draw the mean number of draws of the points in each cell; arguments as in ``draws_map``."""
    points, total = _binned(s, draws)
    return _counts_map(np.where(points > 0, total / np.maximum(points, 1.0), np.nan), names, "draws per point")


def draws_profile(s: FloatArray, draws: FloatArray, name: str) -> Figure:
    """Draw the number of draws along one torsion.

    Args:
        s: ``[M]`` radians.
        draws: ``[M]`` draws at each point.
        name: the torsion.
    """
    figure = style.new_figure(4.8, 2.8)
    axes = _axes(figure, name, "draws")
    degrees = plots.wrapped_degrees(CELLS)
    total = plots.wrapped(_binned(s[:, None], draws)[1])
    axes.fill_between(degrees, total, step="mid", color=style.OURS, alpha=0.35, lw=0)
    axes.step(degrees, total, where="mid", color=style.OURS)
    axes.set_ylim(0, 1.08 * max(float(total.max()), 1.0))
    return figure


def error_profile(surface: FreeEnergySurface, cap: float) -> Figure:
    """Draw the standard error along one torsion where the free energy is below ``cap`` kT."""
    figure = style.new_figure(4.8, 2.8)
    axes = _axes(figure, surface.names[0], r"standard error / $kT$")
    error = plots.wrapped(np.where(surface.f <= cap, surface.error, np.nan))
    axes.plot(plots.wrapped_degrees(len(surface.f)), error, color=style.COARSE)
    axes.set_ylim(0, None)
    return figure


def _axes(figure: Figure, name: str, label: str) -> Axes:
    axes = style.open_axes(figure)
    plots.torsion_axis(axes, name)
    axes.set_ylabel(label)
    return axes
