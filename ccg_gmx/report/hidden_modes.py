"""The walkers of the hidden-mode test in one picture: where each of them stayed, coarse point by coarse point."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ccg_gmx.cycle.stages.hidden_modes import HiddenModeReport
from ccg_gmx.free_energy.hidden_modes import (
    CENTRAL,
    BoolArray,
    WalkerSeries,
    circular_deviation,
    counted_walkers,
    split_r_hat,
    unwrapped,
)
from ccg_gmx.records import FloatArray
from ccg_gmx.report.style import COARSE, OURS, axes_at, new_figure, plot_style
from ccg_gmx.units import DEGREES_PER_RADIAN

PANEL_HEIGHT = 2.4
FAINT = "#a8a8a8"
WIDTH = 6.6


def worst_coordinate(report: HiddenModeReport, series: WalkerSeries) -> str:
    """The coordinate to show: that of most hidden modes, or the torsion with the largest R-hat where there are none."""
    names = [mode.coordinate for mode in report.modes if mode.coordinate in series.names]
    if names:
        return max(dict.fromkeys(names), key=names.count)
    torsions = np.flatnonzero(np.isfinite(series.periods))
    columns = torsions if len(torsions) else np.arange(len(series.names))
    largest = np.zeros(len(columns))
    for point in np.unique(series.point):
        mine = series.point == point
        if mine.sum() > 1:
            values = unwrapped(series.values[mine][..., columns], series.periods[columns])
            largest = np.maximum(largest, split_r_hat(values))
    return series.names[columns[int(largest.argmax())]]


def hidden_modes_figure(report: HiddenModeReport, series: WalkerSeries) -> Figure:
    """Strip plot of the worst coordinate: a dot per walker at its mean, a bar over the central 90 % of its time.

    Args:
        report: outcome of the test.
        series: the walkers.
    """
    name = worst_coordinate(report, series)
    column = series.names.index(name)
    with plot_style():
        below = 0.45 + 0.15 * len(report.torsions)
        figure = new_figure(WIDTH, PANEL_HEIGHT + below + 0.55)
        axes = axes_at(figure, 0.70, below, WIDTH - 0.85, PANEL_HEIGHT)
        _strips(axes, series, column, counted_walkers(series, column, report.relevant_kT))
        _points_axis(axes, report)
        found = {mode.point for mode in report.modes}
        for point in found:
            axes.axvspan(point - 0.5, point + 0.5, color=COARSE, alpha=0.10, linewidth=0)
        verdict = f"walkers stay apart at {len(found)} of {len(report.walkers)} points" if found else "walkers agree"
        axes.set_title(f"{name}: {verdict}", loc="left", pad=20)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, handletextpad=0.2, columnspacing=1.2,
                    borderaxespad=0.1)  # fmt: skip
        return figure


def save_plot(report: HiddenModeReport, series: WalkerSeries, path: Path) -> None:
    """Write the picture; the file's ending chooses the format."""
    with plot_style():
        hidden_modes_figure(report, series).savefig(path, dpi=200)


def _strips(axes: Axes, series: WalkerSeries, column: int, counted: BoolArray) -> None:
    """One strip per coarse point, walkers side by side; those too high in energy to count in grey."""
    values, period = series.values[..., column], float(series.periods[column])
    deviation, centre = circular_deviation(values[..., None], np.array([period]))
    low, high = np.quantile(deviation[..., 0], CENTRAL, axis=1)
    middle = _in_turn(centre[:, 0] + deviation[..., 0].mean(axis=1), period)
    scale = DEGREES_PER_RADIAN if math.isfinite(period) else 1.0
    x = _places(series)
    groups = (
        (series.hot & counted, OURS, "hot seeds"),
        (~series.hot & counted, COARSE, "from fine MD or the start"),
        (~counted, FAINT, "energy too high to count"),
    )
    for mine, colour, label in groups:
        if not mine.any():
            continue
        ends = np.stack([-low[mine], high[mine]]) * scale
        axes.errorbar(x[mine], middle[mine] * scale, yerr=np.maximum(ends, 0.0), fmt="o", color=colour, markersize=3.2,
                      elinewidth=1.0, label=label)  # fmt: skip
    if math.isclose(period, 2 * math.pi):
        axes.set_ylim(-190, 190)
        axes.set_yticks(range(-180, 181, 60))
    axes.set_ylabel("degrees" if math.isfinite(period) else "nm or rad")
    axes.grid(True, axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def _in_turn(values: FloatArray, period: float) -> FloatArray:
    """Bring periodic values into one period: [-pi, pi) for a full turn, else the one around their circular mean."""
    if not math.isfinite(period):
        return values
    centre = 0.0
    if not math.isclose(period, 2 * math.pi):
        centre = float(np.angle(np.exp(2j * np.pi * values / period).mean())) * period / (2 * math.pi)
    return np.asarray((values - centre + period / 2) % period - period / 2 + centre)


def _places(series: WalkerSeries) -> FloatArray:
    """Horizontal place of every walker within the strip of its point."""
    x = series.point.astype(np.float64)
    for point in np.unique(series.point):
        mine = np.flatnonzero(series.point == point)
        x[mine] += np.linspace(-0.32, 0.32, len(mine)) if len(mine) > 1 else 0.0
    return x


def _points_axis(axes: Axes, report: HiddenModeReport) -> None:
    labels = ["\n".join(f"{value:.0f}".replace("-", "−") for value in point) for point in report.points_degrees]
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel(f"coarse point: {', '.join(report.torsions)} (degrees)")
