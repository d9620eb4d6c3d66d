"""Forward KL against cost: one panel for energy evaluations, one for wall-clock time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ccg_gmx.bench.energy import PICTURES
from ccg_gmx.bench.free_energy_result import MARK, readable, span
from ccg_gmx.errors import SettingsError
from ccg_gmx.report import style

_OURS, _MD, _BIASED = style.OURS, style.REFERENCE, style.COARSE
Cost = Callable[[float], float]


def check_picture(path: Path) -> None:
    """Refuse before the measurements what would fail after them.

    Raises:
        SettingsError: if the picture cannot be written.
    """
    if path.suffix not in PICTURES:
        raise SettingsError(f"--plot {path} is no picture", expected=f"a name that ends in {', '.join(PICTURES)}")
    if not os.access(path.absolute().parent, os.W_OK):
        raise SettingsError(f"--plot {path}: its folder cannot be written", remedy="name an existing folder")


def plot_free_energy(result: dict[str, Any], path: Path) -> None:
    """Draw the result: points and solid lines are measured, dashed lines extrapolated.

    Args:
        result: of ``Bench.run``, as it is or read from its JSON.
        path: picture to write; its ending says the format (.png, .svg, .pdf).
    """
    cores = result["machine"]["cores"]
    speeds = result["md"]["steps_per_s_one_core"]
    fastest = max(value for value in speeds.values() if value is not None and math.isfinite(value))
    panels: tuple[tuple[str, str, Cost, Cost], ...] = (
        ("evaluations", "energy evaluations", float, float),
        (
            "wall_s",
            "wall-clock time / s",
            lambda n: n / (fastest * cores),
            lambda n: n / (result["enhanced"]["steps_per_s_one_core"] * cores),
        ),
    )
    with style.plot_style():
        figure = style.new_figure(7.6, 4.45)
        for column, (key, label, md_cost, biased_cost) in enumerate(panels):
            axes = style.axes_at(figure, 0.62 + 3.55 * column, 1.28, 3.25, 2.75)
            axes.grid(True, color="#e6e6e6", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.set_xscale("log")
            axes.set_yscale("log")
            _ours(axes, result, key)
            _plain_md(axes, result, md_cost)
            _biased(axes, result, biased_cost)
            _levels(axes, result, with_words=column == 0)
            axes.set_xlabel(label)
            if column:
                axes.tick_params(labelleft=False)
        left, right = figure.axes
        left.set_ylabel("forward KL to the reference / nats")
        right.set_ylim(left.get_ylim())
        left.set_title(f"{result['system']}, {result['temperature_K']:g} K", loc="left")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.07, 0.085), ncols=3, handlelength=1.8)
        for line, text in enumerate((_found(result), result["published"])):
            figure.text(0.082, 0.055 - 0.033 * line, text, fontsize=7.0, color="#555555")
        figure.savefig(path, dpi=200)


def _found(result: dict[str, Any]) -> str:
    """One line that says how we compare, at equal forward KL."""
    block = result["enhanced"]
    words = f"{readable(block['ratio'])} times fewer evaluations than {block['method']}"
    if result["ratio_to_md"] is None or not math.isfinite(result["ratio_to_md"]):
        return f"this run: {words}; plain MD too short to say"
    return f"this run: {span(result, 'ratio_to_md')} times fewer evaluations than MD, {words}"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


def _ours(axes: Axes, result: dict[str, Any], key: str) -> None:
    for number, seed in enumerate(result["seeds"]):
        cost = [turn[key] for turn in seed["turns"]]
        kl = [turn["forward_kl"] for turn in seed["turns"]]
        label = f"our cycle, {_seeds(len(result['seeds']))}, every turn" if number == 0 else None
        axes.plot(cost, kl, "-", color=_OURS, lw=1.0, alpha=0.8, zorder=4)
        axes.plot(cost[:-1], kl[:-1], "o", color=_OURS, ms=3.5, mfc="white", zorder=5)
        axes.plot(cost[-1:], kl[-1:], "o-", color=_OURS, ms=4.5, zorder=5, label=label)


def _plain_md(axes: Axes, result: dict[str, Any], cost: Cost) -> None:
    md = result["md"]
    n = np.array([point["evaluations"] for point in md["points"]])
    kl = np.array([point["kl"] for point in md["points"]])
    error = np.array([0.0 if point["error"] is None else point["error"] for point in md["points"]])
    error = np.nan_to_num(error)
    low = np.minimum(error, 0.9 * kl)  # a bar down to zero has no end on a logarithmic axis
    x = [cost(value) for value in n]
    axes.errorbar(x, kl, (low, error), fmt="s-", color=_MD, ms=3.0, lw=1.0, elinewidth=0.7, label="plain MD, measured")
    if md["extrapolated_by"] is not None:
        c = md["extrapolated"][f"{MARK:g}"] * MARK
        ends = np.array([c / 0.03, c / min(0.5 * MARK, *(seed["forward_kl"] for seed in result["seeds"]))])
        label = f"its 1/N ({md['extrapolated_by']})"
        axes.plot([cost(end) for end in ends], c / ends, "--", color=_MD, lw=1.0, label=label)
    single = md["single_start"]
    axes.plot(cost(single["evaluations"]), single["forward_kl"], "x", color=_MD, ms=5, label="plain MD, one start")


def _biased(axes: Axes, result: dict[str, Any], cost: Cost) -> None:
    block = result["enhanced"]
    for number, curve in enumerate(block["seeds"]):
        x = [cost(value) for value in curve["evaluations"]]
        label = f"{block['method']}, {_seeds(len(block['seeds']))}" if number == 0 else None
        axes.plot(x, curve["kl"], "^-", color=_BIASED, ms=2.2, lw=0.8, alpha=0.85, label=label)
    there = block[f"evaluations_at_{MARK:g}"]
    if there["extrapolated"]:
        last_n, last_kl = block["mean"]["evaluations"][-1], block["mean"]["forward_kl"][-1]
        ends = [cost(last_n), cost(there["evaluations"])]
        axes.plot(ends, [last_kl, MARK], "--", color=_BIASED, lw=1.0)


def _levels(axes: Axes, result: dict[str, Any], with_words: bool) -> None:
    floor = result["noise_floor"]
    axes.axhline(floor, color="#777777", lw=0.9, ls=":")
    axes.axhline(MARK, color="#bbbbbb", lw=0.8)
    if with_words:
        corner: dict[str, Any] = {
            "transform": axes.get_yaxis_transform(),
            "fontsize": 7.0,
            "color": "#666666",
            "va": "bottom",
        }
        axes.text(0.985, floor * 1.05, "noise floor of the reference", ha="right", **corner)
