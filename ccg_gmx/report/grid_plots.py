"""Pictures of surfaces over any axes, and of how they settle as data come in."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.special import logsumexp

from ccg_gmx.free_energy.axes import Axis, GridSurface
from ccg_gmx.free_energy.settling import Settling
from ccg_gmx.records import FloatArray
from ccg_gmx.report import style
from ccg_gmx.report.fes_plots import save_figure
from ccg_gmx.report.plots import CAP_KT, PANEL_HEIGHT, PANEL_WIDTH, TICKS, Scale, axis_label
from ccg_gmx.units import DEGREES_PER_RADIAN

CURVE_WIDTH, CURVE_HEIGHT = 4.4, 3.1
"""Size of a panel with curves, inches."""

MOST_CURVES = 8
"""Curves of growing data in one panel."""


def plot_grid_surface(surface: GridSurface, path: Path) -> None:
    """Draw one variable as a profile with its band, two as a map beside its error, three as the maps of all pairs.

    Args:
        surface: what was found.
        path: picture to write.

    Raises:
        StoreError: if it cannot be written.
    """
    with style.plot_style():
        if len(surface.axes) == 1:
            figure = style.new_figure(CURVE_WIDTH, CURVE_HEIGHT)
            _profile(_panel(figure, 0), surface)
        else:
            figure = _maps(surface)
        save_figure(figure, path)


def plot_settling(settled: Settling, axes: Sequence[Axis], kT: float, path: Path) -> None:
    """Draw how the surface, its distance to the last one and the free energies of basins change with the data.

    Args:
        settled: surfaces from growing parts of the data.
        axes: of the surfaces.
        kT: kJ/mol.
        path: picture to write.

    Raises:
        StoreError: if it cannot be written.
    """
    panels = 1 + (len(axes) == 1) + bool(settled.delta_f)
    with style.plot_style():
        figure = style.new_figure(CURVE_WIDTH * panels, CURVE_HEIGHT)
        column = 0
        if len(axes) == 1:
            _growing(_panel(figure, 0), settled, axes[0])
            column = 1
        drawn = _panel(figure, column)
        drawn.plot(settled.x, settled.rmsd, "-o", ms=3, color=style.OURS)
        drawn.set_ylabel("RMSD to the last surface / $kT$")
        _along_data(drawn, settled)
        if settled.delta_f:
            drawn = _panel(figure, column + 1)
            for colour, (name, values) in zip(itertools.cycle(style.SERIES), settled.delta_f.items()):
                known = np.ma.masked_invalid(values * kT)
                drawn.plot(settled.x, known, "-o", ms=3, color=colour, label=f"{name} − {settled.first}")
            drawn.set_ylabel(r"$\Delta F$ / (kJ/mol)")
            _along_data(drawn, settled, from_zero=False)
            _legend(drawn, len(settled.delta_f))
        save_figure(figure, path)


def _panel(figure: Figure, column: int) -> Axes:
    axes = style.axes_at(figure, CURVE_WIDTH * column + 0.72, 0.5, CURVE_WIDTH - 0.9, CURVE_HEIGHT - 1.08)
    axes.grid(True, color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _legend(axes: Axes, entries: int) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=min(entries, 3), handlelength=1.6, borderaxespad=0.2)


def _along_data(axes: Axes, settled: Settling, *, from_zero: bool = True) -> None:
    axes.set_xlabel(settled.label)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlim(left=min(0.0, float(settled.x[0])))
    if from_zero:
        axes.set_ylim(bottom=0.0)


def _scale(axis: Axis) -> float:
    return DEGREES_PER_RADIAN if axis.angle else 1.0


def _closed(axis: Axis) -> FloatArray:
    """Points as shown; the first one again at the end of a periodic axis."""
    values = axis.values * _scale(axis)
    return np.append(values, axis.high * _scale(axis)) if axis.periodic else values


def _dress(axes: Axes, axis: Axis, *, vertical: bool = False) -> None:
    ticks = axes.yaxis if vertical else axes.xaxis
    if axis.torsion:
        ticks.set_ticks(TICKS)
    else:
        ticks.set_major_locator(MaxNLocator(5))
    edge = 0.0 if axis.periodic else axis.spacing / 2
    ends = ((axis.low - edge) * _scale(axis), (axis.high + edge) * _scale(axis))
    (axes.set_ylim if vertical else axes.set_xlim)(*ends)
    label = axis_label(axis.name) if axis.angle else axis.name.replace("$", "")
    (axes.set_ylabel if vertical else axes.set_xlabel)(label, labelpad=2)


def _cap(f: FloatArray) -> float:
    return float(np.clip(np.ceil(np.max(f, where=np.isfinite(f), initial=0.0)), 4.0, CAP_KT))


def _wrap(values: FloatArray, axes: Sequence[Axis]) -> FloatArray:
    return np.pad(values, [(0, int(axis.periodic)) for axis in axes], mode="wrap")


def _profile(axes: Axes, surface: GridSurface) -> None:
    x = _closed(surface.axes[0])
    f, error = (np.ma.masked_invalid(_wrap(v, surface.axes)) for v in (surface.f, surface.error))
    axes.fill_between(x, f - 2 * error, f + 2 * error, color=style.OURS, alpha=0.22, lw=0)
    axes.plot(x, f, color=style.OURS, lw=1.8)
    axes.set_ylabel("$F$ / $kT$")
    axes.set_ylim(-0.3, _cap(surface.f) * 1.05 + 0.3)
    _dress(axes, surface.axes[0])


def _growing(axes: Axes, settled: Settling, axis: Axis) -> None:
    chosen = np.unique(np.linspace(0, len(settled.x) - 1, min(MOST_CURVES, len(settled.x))).round().astype(int))
    colours = colormaps[style.SEQUENTIAL](np.linspace(0.9, 0.0, len(chosen)))
    for colour, index in zip(colours, chosen, strict=True):
        curve = np.ma.masked_invalid(_wrap(settled.f[index], [axis]))
        axes.plot(_closed(axis), curve, color=colour, lw=1.1, label=f"{settled.x[index]:.4g}")
    axes.set_ylabel("$F$ / $kT$")
    axes.set_ylim(-0.3, _cap(settled.f[-1]) * 1.05 + 0.3)
    _dress(axes, axis)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4, handlelength=1.0, columnspacing=1.0, borderaxespad=0.2,
        fontsize=7, title=settled.label, title_fontsize=7, alignment="left",
    )  # fmt: skip


def _maps(surface: GridSurface) -> Figure:
    pairs = [_marginal(surface, pair) for pair in itertools.combinations(range(len(surface.axes)), 2)]
    cap = max(_cap(pair.f) for pair in pairs)
    known = len(pairs) == 1 and bool(np.isfinite(surface.error).any())
    figure = style.new_figure(PANEL_WIDTH * (len(pairs) + known), PANEL_HEIGHT)
    for column, pair in enumerate(pairs):
        above = np.isfinite(pair.f) & (pair.f > cap)
        scale = Scale(
            "$F$ / $kT$", style.SEQUENTIAL, Normalize(0.0, cap), "max" if above.any() else "neither",
            grey_above=True, contours=np.arange(1.0, cap + 0.5),
        )  # fmt: skip
        _map(figure, column, pair.f, pair.axes, scale, above)
    if known:
        above = np.isfinite(surface.f) & (surface.f > cap)
        shown = surface.error[np.isfinite(surface.error) & ~above]
        top = max(float(np.quantile(shown, 0.98)) if shown.size else 0.0, 1e-3)
        scale = Scale("standard error / $kT$", style.ERRORS, Normalize(0.0, top), "max")
        _map(figure, 1, surface.error, surface.axes, scale, above)
    return figure


def _marginal(surface: GridSurface, keep: tuple[int, ...]) -> GridSurface:
    others = tuple(axis for axis in range(len(surface.axes)) if axis not in keep)
    if not others:
        return surface
    f = -np.asarray(logsumexp(-surface.f, axis=others))
    axes = tuple(surface.axes[axis] for axis in keep)
    return GridSurface(f - f.min(), np.full_like(f, np.nan), axes, surface.temperature_K)


def _map(figure: Figure, column: int, values: FloatArray, axes: Sequence[Axis], scale: Scale, grey: np.ndarray) -> None:
    """One map; cells without a value are hatched, those in ``grey`` grey."""
    left = PANEL_WIDTH * column
    drawn = style.axes_at(figure, left + 0.66, 0.5, 2.76, 2.8)
    drawn.fill([0, 1, 1, 0], [0, 0, 1, 1], transform=drawn.transAxes, fill=False, hatch="////", ec=style.HATCH, lw=0)
    edges = [_closed(axis) for axis in axes]
    shaded = _wrap(grey.astype(np.float64), axes).T > 0
    closed = np.ma.masked_array(_wrap(values, axes).T, mask=shaded | ~np.isfinite(_wrap(values, axes).T))
    hidden = np.ma.masked_where(~shaded, np.zeros(closed.shape))
    plain = ListedColormap([style.ABOVE_CAP])
    drawn.pcolormesh(*edges, hidden, cmap=plain, shading="nearest", rasterized=True)
    mesh = drawn.pcolormesh(*edges, closed, cmap=scale.cmap, norm=scale.norm, shading="nearest", rasterized=True)
    if scale.contours is not None and min(closed.shape) > 2:
        known = np.ma.masked_invalid(_wrap(values, axes).T)
        inside = scale.contours[(scale.contours > known.min()) & (scale.contours < known.max())]
        if inside.size:
            drawn.contour(*edges, known, levels=inside, colors="white", linewidths=0.5, alpha=0.75)
    _dress(drawn, axes[0])
    _dress(drawn, axes[1], vertical=True)
    for side in ("top", "right"):
        drawn.spines[side].set_visible(True)
    bar = figure.colorbar(mesh, cax=style.axes_at(figure, left + 3.52, 0.5, 0.11, 2.8), extend=scale.extend)
    bar.set_label(scale.label)
    bar.outline.set_linewidth(0.5)  # type: ignore[operator, unused-ignore]
    bar.locator = MaxNLocator(nbins=8, steps=[1, 2, 4, 5, 10])
    bar.update_ticks()
