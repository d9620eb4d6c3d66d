"""The flat-histogram test in one picture: the deviation of every cell, and in units of its error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from ccg_gmx.free_energy.flatness import CellTable, Flatness
from ccg_gmx.records import FloatArray
from ccg_gmx.report.fes_plots import save_figure
from ccg_gmx.report.style import OURS, new_figure, plot_style

WIDTH, HEIGHT = 3.4, 3.0
_DEGREES = (-180, -90, 0, 90, 180)


def save_plot(found: Flatness, table: CellTable, path: Path) -> None:
    """Draw the test.

    Args:
        found: its numbers.
        table: its cells.
        path: picture to write (PNG, SVG or PDF).

    Raises:
        StoreError: if it cannot be written.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(table.shares > 0, table.observed / table.shares, np.nan)
        error = np.where(table.shares > 0, table.error / table.shares, np.nan)
    with plot_style():
        if ratio.ndim == 1:
            figure = new_figure(1.4 * WIDTH, HEIGHT)
            _profile(figure.add_subplot(), found, ratio, error)
        else:
            figure = new_figure(2 * WIDTH, HEIGHT)
            score = (ratio - 1) / np.where(error > 0, error, np.nan)
            _map(
                figure.add_subplot(1, 2, 1), found, np.log(np.where(ratio > 0, ratio, np.nan)), "ln(density / flat), kT"
            )
            _map(figure.add_subplot(1, 2, 2), found, score, "deviation / its error")
            figure.subplots_adjust(left=0.09, right=0.95, bottom=0.17, top=0.94, wspace=0.6)
        save_figure(figure, path)


def _profile(ax: Axes, found: Flatness, ratio: FloatArray, error: FloatArray) -> None:
    width = 360 / len(ratio)
    x = -180 + width * (np.arange(len(ratio)) + 0.5)
    ax.axhline(1.0, color="#a8a8a8", lw=1)
    ax.errorbar(x, ratio, error, fmt="o", ms=3, color=OURS)
    ax.set(xlabel=f"{found.names[0]} / degrees", ylabel="density / flat", xlim=(-180, 180), xticks=_DEGREES)


def _map(ax: Axes, found: Flatness, values: FloatArray, label: str) -> None:
    limit = max(float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0, 1e-3)
    image = ax.imshow(
        values.T, origin="lower", extent=(-180, 180, -180, 180), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="equal"
    )
    ax.set(xlabel=f"{found.names[0]} / degrees", ylabel=f"{found.names[1]} / degrees", xticks=_DEGREES, yticks=_DEGREES)
    ax.figure.colorbar(image, ax=ax, label=label, shrink=0.85)
