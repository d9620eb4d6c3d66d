"""Pictures of a tabulated model: its terms, distributions against the target per iteration, convergence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ccg_gmx.cycle.store import read_json
from ccg_gmx.potential.curves import Curve
from ccg_gmx.potential.distributions import Distributions, Histogram
from ccg_gmx.potential.distributions_file import load_distributions
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.report import style
from ccg_gmx.report.fes_plots import save_figure
from ccg_gmx.units import DEGREES_PER_RADIAN

WIDTH, HEIGHT = 4.4, 3.1
"""Size of a panel, inches."""
MOST_CURVES = 8
"""Iterations drawn in one panel."""

Panel = Callable[[Axes], None]
Series = Sequence[tuple[str, Distributions]]


def draw_result(folder: Path, tolerance: float) -> None:
    """Draw the potentials, the distributions and, where there were iterations, the convergence.

    Args:
        folder: of :func:`~ccg_gmx.cycle.table_fit.fit_tables`.
        tolerance: of the RDF error over that of the start.
    """
    target = load_distributions(folder / "target.npz")
    plot_model(CoarseModel.load(folder / "model.npz"), folder / "potentials.png")
    runs = [
        (path.parent.name.removeprefix("iteration_").lstrip("0") or "0", load_distributions(path))
        for path in sorted(folder.glob("iteration_*/distributions.npz"))
    ]
    plot_distributions(target, runs, folder / "distributions.png")
    if records := read_json(folder / "summary.json").get("iterations"):
        plot_convergence(records, tolerance, folder / "convergence.png")


def plot_model(model: CoarseModel, path: Path) -> None:
    """Draw every term with its standard error.

    Args:
        model: the potential.
        path: picture to write.
    """
    if panels := model_panels(model):
        _save(panels, path)


def plot_distributions(target: Distributions, runs: Series, path: Path) -> None:
    """Draw radial distribution functions and bonded distributions of some iterations against the target.

    Args:
        target: the mapped frames'.
        runs: (label, distributions) in order.
        path: picture to write.
    """
    if panels := distribution_panels(target, runs):
        _save(panels, path)


def model_panels(model: CoarseModel) -> list[Panel]:
    """A panel for each curve, with its standard error."""
    curves = [(name, curve) for name, curve in model.bonded.items()]
    curves += [(f"pair {'-'.join(key)}", curve) for key, curve in model.pairs.items()]
    return [_potential_panel(name, curve, model.kT) for name, curve in curves]


def distribution_panels(target: Distributions, runs: Series) -> list[Panel]:
    """A panel for each distribution: some of the runs, evenly spread, and the target."""
    runs = thinned(runs, MOST_CURVES)
    panels = [
        _distribution_panel(f"g(r) {'-'.join(key)}", part, [(label, run.pairs[key]) for label, run in runs])
        for key, part in target.pairs.items()
    ]
    panels += [
        _distribution_panel(name, part, [(label, run.bonded[name]) for label, run in runs])
        for name, part in target.bonded.items()
    ]
    return panels


def plot_convergence(records: Sequence[dict[str, Any]], tolerance: float, path: Path) -> None:
    """Draw the error over that of the start, the height of the first peak and the pressure, iteration by iteration.

    Args:
        records: of the iterations.
        tolerance: of the error.
        path: picture to write.
    """
    _save(convergence_panels(records, tolerance), path)


def convergence_panels(records: Sequence[dict[str, Any]], tolerance: float) -> list[Panel]:
    """Panels of the error over that of the start, and of the first peak and the pressure where there are any."""
    number = [record["iteration"] for record in records]
    panels = [_error_panel(number, records, tolerance)]
    if all(record["first_peak_ratio"] is not None for record in records):
        panels.append(_values_panel(number, [record["first_peak_ratio"] for record in records], "first peak / target"))
    if all(record["pressure_bar"] is not None for record in records):
        panels.append(_values_panel(number, [record["pressure_bar"] for record in records], "pressure / bar"))
    return panels


def thinned(runs: Series, most: int) -> Series:
    """At most so many of them, the first and the last included."""
    if len(runs) <= most:
        return runs
    chosen = np.unique(np.round(np.linspace(0, len(runs) - 1, most)).astype(int))
    return [runs[k] for k in chosen]


def drawn(panels: Sequence[Panel], per_row: int = 2) -> Figure:
    """Panels in one figure, row by row; to be called within ``style.plot_style()``."""
    rows = -(-len(panels) // per_row)
    figure = style.new_figure(min(len(panels), per_row) * WIDTH, rows * HEIGHT)
    for number, draw in enumerate(panels):
        left, bottom = WIDTH * (number % per_row) + 0.78, HEIGHT * (rows - 1 - number // per_row) + 0.5
        axes = style.axes_at(figure, left, bottom, WIDTH - 0.96, HEIGHT - 0.95)
        axes.grid(True, color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        draw(axes)
    return figure


def _save(panels: Sequence[Panel], path: Path) -> None:
    with style.plot_style():
        save_figure(drawn(panels), path)


def _scale(kind: str) -> tuple[float, str]:
    return (DEGREES_PER_RADIAN, "degrees") if kind in ("angle", "dihedral") else (1.0, "nm")


def _potential_panel(name: str, curve: Curve, kT: float) -> Panel:
    def draw(axes: Axes) -> None:
        scale, unit = _scale(curve.kind)
        x, value, _ = curve.table(401)
        error = curve.error(x)
        if np.isfinite(error).all():
            axes.fill_between(x * scale, value - error, value + error, color=style.OURS, alpha=0.25, linewidth=0)
        axes.plot(x * scale, value, color=style.OURS)
        low = float(value.min())
        axes.set_ylim(low - 0.5 * kT, min(float(value.max()), low + 12.0 * kT) + 0.5 * kT)
        axes.set_title(name, loc="left")
        axes.set_xlabel(unit)
        axes.set_ylabel("kJ/mol")

    return draw


def _distribution_panel(name: str, target: Histogram, runs: Sequence[tuple[str, Histogram]]) -> Panel:
    def draw(axes: Axes) -> None:
        scale, unit = _scale(target.kind)
        colours = colormaps[style.SEQUENTIAL](np.linspace(0.1, 0.85, max(len(runs), 1)))
        low, high = target.range
        shown = (target.centres >= low) & (target.centres <= high)
        for (label, run), colour in zip(runs, colours, strict=False):
            axes.plot(target.centres[shown] * scale, _density(run)[shown], color=colour, linewidth=1.0, label=label)
        wanted = _density(target)[shown]
        axes.plot(target.centres[shown] * scale, wanted, color=style.REFERENCE, linestyle="--", label="target")
        axes.set_title(name, loc="left")
        axes.set_xlabel(unit)
        axes.set_ylabel("g" if target.kind == "pair" else "density")
        axes.set_ylim(bottom=0)
        axes.legend(loc="best", handlelength=1.2, labelspacing=0.2)

    return draw


def _density(part: Histogram) -> np.ndarray:
    """g of a pair; the plain normalised histogram of a bonded term."""
    if part.kind == "pair":
        return part.g
    return part.counts / max(float(np.sum(part.counts * np.diff(part.edges))), 1e-300)


def _error_panel(number: Sequence[int], records: Sequence[dict[str, Any]], tolerance: float) -> Panel:
    def draw(axes: Axes) -> None:
        axes.semilogy(number, [max(record["ratio"], 1e-8) for record in records], "o-", ms=3, color=style.OURS)
        axes.axhline(tolerance, color=style.REFERENCE, linestyle="--", linewidth=0.8, label="tolerance")
        start = records[0]["rdf_squared_error"]
        if start:
            noise = [record["rdf_noise"] / start for record in records]
            axes.semilogy(number, noise, color=style.COARSE, linewidth=1.0, label="noise of both samples")
        _iterations(axes)
        axes.set_ylabel("squared error / start")
        axes.legend(loc="best")

    return draw


def _values_panel(number: Sequence[int], values: Sequence[float], label: str) -> Panel:
    def draw(axes: Axes) -> None:
        axes.plot(number, values, "o-", ms=3, color=style.OURS)
        _iterations(axes)
        axes.set_ylabel(label)

    return draw


def _iterations(axes: Axes) -> None:
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
