"""One look for every picture and the page: colours, fonts, figure sizes, the style sheet."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe & Ito's colour-blind safe set, darkened where lines on white need it.
OURS = "#0060a8"
REFERENCE = "#2b2b2b"
COARSE = "#c25500"
PLAIN = "#8a5a9e"
SERIES = (OURS, COARSE, "#00795a", PLAIN, "#7a6a00", "#b0306a")

SEQUENTIAL = "viridis"
DIVERGING = "RdBu_r"
ERRORS = "YlOrBr"
ABOVE_CAP = "#dcdcdc"
HATCH = "#bdbdbd"

_RC: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9.0,
    "mathtext.fontset": "custom",
    "mathtext.rm": "sans",
    "mathtext.it": "sans:italic",
    "mathtext.bf": "sans:bold",
    "mathtext.cal": "sans:italic",
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#222222",
    "axes.labelsize": 9.0,
    "axes.linewidth": 0.7,
    "axes.titlesize": 9.5,
    "axes.titleweight": "regular",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "hatch.linewidth": 0.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "ccg_gmx",  # the same data give the same bytes
    "savefig.facecolor": "white",
}


@contextmanager
def plot_style() -> Iterator[None]:
    """Draw in the package's style and leave matplotlib's own settings as they were."""
    with matplotlib.rc_context():
        # A user's matplotlibrc must not leak in (a "usetex" there would start LaTeX).
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)  # type: ignore[arg-type, unused-ignore]
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of the given size in inches, on the Agg canvas, known to no pyplot."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Return axes at a place given in inches, so that pictures side by side have equal frames whatever their labels."""
    total = figure.get_size_inches()
    return figure.add_axes((left / total[0], bottom / total[1], width / total[0], height / total[1]))


def open_axes(figure: Figure) -> Axes:
    """Return the single axes of a line figure, with a light grid."""
    width, height = figure.get_size_inches()
    axes = axes_at(figure, 0.82, 0.47, width - 0.96, height - 0.77)
    axes.grid(True, color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def data_uri(figure: Figure) -> str:
    """Return a figure as a data URI: SVG, sharp in print, its dense parts rasterised."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", dpi=220, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
