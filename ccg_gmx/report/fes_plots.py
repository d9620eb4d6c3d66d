"""Pictures of ``ccg fes``: a surface beside its error, two surfaces and their difference, minima on a map."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ccg_gmx.errors import StoreError
from ccg_gmx.free_energy.compare import Comparison
from ccg_gmx.free_energy.marginals import marginal_surface
from ccg_gmx.free_energy.minima import Minimum
from ccg_gmx.records import FreeEnergySurface
from ccg_gmx.report import style
from ccg_gmx.report.plots import (
    PANEL_HEIGHT,
    PANEL_WIDTH,
    difference_map,
    error_map,
    free_energy_map,
    profile_figure,
    shared_cap,
)
from ccg_gmx.report.profiles import profiles


def plot_frames(surface: FreeEnergySurface, path: Path) -> None:
    """Draw one torsion as a profile with its band, two as a map beside its error, more as the maps of all pairs.

    Args:
        surface: what ``ccg fes frames`` found.
        path: picture to write.

    Raises:
        StoreError: if it cannot be written.
    """
    with style.plot_style():
        if surface.f.ndim == 1:
            figure = profile_figure([("", style.OURS, profiles(surface)[0])], shared_cap(surface))
        elif surface.f.ndim == 2:
            figure = style.new_figure(2 * PANEL_WIDTH, PANEL_HEIGHT)
            cap = shared_cap(surface)
            free_energy_map(surface, cap, figure, 0)
            error_map(surface, cap, figure, 1)
            _titles(figure, ["free energy", "standard error"])
        else:
            figure = _pairs(surface)
        save_figure(figure, path)


def _pairs(surface: FreeEnergySurface) -> Figure:
    pairs = [marginal_surface(surface, pair) for pair in itertools.combinations(range(surface.f.ndim), 2)]
    figure = style.new_figure(PANEL_WIDTH * len(pairs), PANEL_HEIGHT)
    cap = shared_cap(*pairs)
    for column, pair in enumerate(pairs):
        free_energy_map(pair, cap, figure, column)
    return figure


def plot_comparison(comparison: Comparison, names: tuple[str, str], path: Path) -> None:
    """Draw two surfaces and their difference; with one torsion, both profiles with their bands.

    Args:
        comparison: both surfaces on one grid.
        names: what to call them.
        path: picture to write.

    Raises:
        StoreError: if it cannot be written.
    """
    a, b = comparison.a, comparison.b
    cap = shared_cap(a, b)
    with style.plot_style():
        if a.f.ndim == 1:
            curves = [(names[0], style.OURS, profiles(a)[0]), (names[1], style.REFERENCE, profiles(b)[0])]
            figure = profile_figure(curves, cap)
        else:
            figure = style.new_figure(3 * PANEL_WIDTH, PANEL_HEIGHT)
            free_energy_map(a, cap, figure, 0)
            free_energy_map(b, cap, figure, 1)
            difference_map(a, b, cap, figure, 2)
            _titles(figure, [*names, f"{names[0]} − {names[1]}"])
        save_figure(figure, path)


def plot_minima(surface: FreeEnergySurface, minima: Sequence[Minimum], path: Path) -> None:
    """Draw a surface with its minima numbered, the lowest first.

    Args:
        surface: one or two torsions.
        minima: as printed.
        path: picture to write.

    Raises:
        StoreError: if it cannot be written.
    """
    cap = shared_cap(surface)
    with style.plot_style():
        if surface.f.ndim > 2:
            figure = _pairs(surface)
        elif surface.f.ndim == 2:
            figure = free_energy_map(surface, cap)
        else:
            figure = profile_figure([("", style.OURS, profiles(surface)[0])], cap)
        axes = figure.axes[0]
        for number, minimum in enumerate(minima if surface.f.ndim < 3 else (), start=1):
            x, y = minimum.degrees if surface.f.ndim == 2 else (minimum.degrees[0], minimum.f)
            axes.plot([x], [y], "o", ms=9, mfc="white", mec="#333333", mew=0.7, zorder=5, clip_on=False)
            axes.annotate(str(number), (x, y), ha="center", va="center_baseline", fontsize=6.5, zorder=6)
        save_figure(figure, path)


def _titles(figure: Figure, titles: Sequence[str]) -> None:
    for axes, title in zip(figure.axes[::2], titles, strict=True):
        axes.set_title(_shortened(title), fontsize=9)


def _shortened(text: str, length: int = 44) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture; it appears whole or not at all.

    Raises:
        StoreError: if it cannot be written, or its ending names no format of pictures.
    """
    kind = path.suffix.lstrip(".").lower()
    if kind not in ("png", "svg", "pdf"):
        raise StoreError(f"a picture named {path.name}", expected="a name that ends with .png, .svg or .pdf")
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(partial, format=kind, dpi=200)
        os.replace(partial, path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror})", remedy="choose another place") from None
    finally:
        partial.unlink(missing_ok=True)
