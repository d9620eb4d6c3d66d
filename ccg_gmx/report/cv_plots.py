"""Pictures of a learned collective variable: along time, per state, its time scales, how its training went."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ccg_gmx.cv.data import CvData
from ccg_gmx.cv.train import Learned
from ccg_gmx.report import style
from ccg_gmx.report.fes_plots import save_figure

WIDTH, HEIGHT = 4.4, 3.1
"""Size of a panel, inches."""

MOST_POINTS = 4000
"""Points drawn along time."""

MOST_STATES = 6


def plot_cv(found: Learned, data: CvData, path: Path) -> None:
    """Draw all panels that the method has, two in a row.

    Args:
        found: the collective variable.
        data: what it was learned from.
        path: picture to write.

    Raises:
        StoreError: if it cannot be written.
    """
    panels: list[Callable[[Axes], None]] = [
        lambda axes: _along_time(axes, found, data),
        lambda axes: _histogram(axes, found, data),
    ]
    if found.model.count > 1:
        panels.append(lambda axes: _plane(axes, found, data))
    if found.timescales:
        panels.append(lambda axes: _timescales(axes, found))
    if found.history is not None:
        panels.append(lambda axes: _loss(axes, found))
    rows = -(-len(panels) // 2)
    with style.plot_style():
        figure = style.new_figure(2 * WIDTH, rows * HEIGHT)
        for number, draw in enumerate(panels):
            draw(_panel(figure, number % 2, rows - 1 - number // 2))
        save_figure(figure, path)


def _panel(figure: Figure, column: int, row: int) -> Axes:
    axes = style.axes_at(figure, WIDTH * column + 0.78, HEIGHT * row + 0.5, WIDTH - 0.96, HEIGHT - 0.95)
    axes.grid(True, color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _legend(axes: Axes) -> None:
    entries = len(axes.get_legend_handles_labels()[0])
    axes.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=min(entries, 3), handlelength=1.4, borderaxespad=0.2,
        columnspacing=1.2,
    )  # fmt: skip


def _label(found: Learned, number: int) -> str:
    return found.model.names[number]


def _along_time(axes: Axes, found: Learned, data: CvData) -> None:
    """Runs one after the other; held-out blocks shaded."""
    total = len(data.time)
    order = np.argsort(data.run, kind="stable")
    stride = max(1, total // MOST_POINTS)
    place = np.arange(total)[::stride]
    held = np.flatnonzero(np.diff(np.concatenate([[False], found.held[order], [False]]).astype(int)))
    for begin, end in held.reshape(-1, 2):
        axes.axvspan(
            begin, end, color=style.ABOVE_CAP, alpha=0.6, linewidth=0, label="held out" if begin == held[0] else None
        )
    for k in range(min(found.model.count, 3)):
        colour = style.SERIES[k % len(style.SERIES)]
        axes.plot(
            place, found.cv[order, k][::stride], ".", ms=1.6, color=colour, rasterized=True, label=_label(found, k)
        )
    for border in np.flatnonzero(np.diff(data.run[order])) + 1:
        axes.axvline(float(border), color="#888888", linewidth=0.6)
    axes.set_xlim(0, total)
    axes.set_xlabel("frame" if len(np.unique(data.run)) == 1 else "frame, runs one after the other")
    axes.set_ylabel("collective variable")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    handles = axes.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4, handlelength=1.0, markerscale=4, borderaxespad=0.2
    )
    handles.set_zorder(5)


def _histogram(axes: Axes, found: Learned, data: CvData) -> None:
    """Density of the first variable: of each state, or of all frames with their weights and without."""
    cv = found.cv[:, 0]
    low, high = np.quantile(cv, [0.001, 0.999])
    margin = 0.1 * (high - low)
    edges = np.linspace(low - margin, high + margin, 81)
    groups = [(name, data.state == k) for k, name in enumerate(data.states)] or [("all frames", np.ones(len(cv), bool))]
    for (name, own), colour in zip(groups[:MOST_STATES], style.SERIES, strict=False):
        density, _ = np.histogram(cv[own], edges, weights=data.weights[own], density=True)
        label = f"{name}, weighted" if data.log_w is not None and not data.states else name
        axes.stairs(density, edges, color=colour, fill=True, alpha=0.25)
        axes.stairs(density, edges, color=colour, linewidth=1.2, label=label)
    if data.log_w is not None and not data.states:
        density, _ = np.histogram(cv, edges, density=True)
        axes.stairs(density, edges, color=style.REFERENCE, linewidth=1.0, label="as sampled")
    axes.set_xlabel(_label(found, 0))
    axes.set_ylabel("density")
    axes.set_ylim(bottom=0)
    _legend(axes)


def _plane(axes: Axes, found: Learned, data: CvData) -> None:
    stride = max(1, len(found.cv) // MOST_POINTS)
    groups = [(name, data.state == k) for k, name in enumerate(data.states)] or [("", np.ones(len(found.cv), bool))]
    for (name, own), colour in zip(groups[:MOST_STATES], style.SERIES, strict=False):
        points = found.cv[own][::stride]
        axes.plot(points[:, 0], points[:, 1], ".", ms=1.8, color=colour, alpha=0.5, rasterized=True, label=name or None)
    axes.set_xlabel(_label(found, 0))
    axes.set_ylabel(_label(found, 1))
    if data.states:
        handles = axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, handlelength=1.0, markerscale=4)
        handles.set_zorder(5)


def _timescales(axes: Axes, found: Learned) -> None:
    """Time scale against lag: level where the lag is long enough. Below the grey line nothing can be resolved."""
    times = sorted(found.timescales, key=lambda item: item.lag_ps)
    lags = np.array([item.lag_ps for item in times])
    for k in range(found.model.count):
        ps = np.ma.masked_invalid([item.ps[k] for item in times])
        errors = np.nan_to_num([item.errors_ps[k] for item in times], posinf=0.0)
        axes.errorbar(
            lags, ps, yerr=errors, fmt="o-", ms=3.5, capsize=2.5, linewidth=1.2,
            color=style.SERIES[k % len(style.SERIES)], label=_label(found, k),
        )  # fmt: skip
    reach = np.array([lags.min() / 1.15, lags.max() * 1.15])
    axes.fill_between(reach, 0, reach, color=style.ABOVE_CAP, alpha=0.6, linewidth=0, label="shorter than the lag")
    axes.axvline(found.timescales[0].lag_ps, color="#888888", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    values = np.concatenate([[*np.ravel(item.ps)] for item in times])
    values = values[np.isfinite(values) & (values > 0)]
    if len(values):
        axes.set_ylim(min(values.min(), lags.min()) / 1.6, values.max() * 1.8)
    axes.set_xlim(*reach)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("lag / ps")
    axes.set_ylabel("time scale / ps")
    _legend(axes)


def _loss(axes: Axes, found: Learned) -> None:
    assert found.history is not None
    steps = np.arange(1, len(found.history.loss) + 1)
    looks = np.array(found.history.held_out).reshape(-1, 2)
    slow = bool(found.timescales)
    sign = -1.0 if slow else 1.0
    axes.plot(steps, sign * np.array(found.history.loss), color=style.OURS, linewidth=0.7, alpha=0.7, label="batches")
    axes.plot(looks[:, 0], sign * looks[:, 1], "-", color=style.COARSE, linewidth=1.5, label="held out")
    axes.axvline(found.history.best_step, color="#888888", linewidth=0.8, linestyle=":", label="kept")
    if not slow:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("sum of squared eigenvalues" if slow else "distance from the targets")
    axes.set_xlim(0, len(steps))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    _legend(axes)
