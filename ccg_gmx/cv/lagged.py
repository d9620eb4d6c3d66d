"""Pairs of frames a lag apart: in the time of the simulation, or in the time that a bias has stretched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ccg_gmx.cv.data import CvData, rows_of_runs
from ccg_gmx.errors import SettingsError, TrajectoryError
from ccg_gmx.records import FloatArray, IntArray

SELF_WARNING, SELF_REFUSAL = 0.05, 0.5
"""Part of the stretched time in frames that last longer than the lag: more is warned of, or refused."""

_MULTIPLE = 0.01
"""How far a lag may be from a multiple of the time between frames, in units of that time."""


@dataclass(frozen=True)
class Pairs:
    """Frames a lag apart.

    Attributes:
        first: ``[P]`` the earlier frame, rising.
        second: ``[P]`` the later frame, of the same run.
        weight: ``[P]`` of mean 1.
        run: ``[P]`` run of both.
        lag_ps: the lag.
        self_share: part of the weight in pairs of a frame with itself; 0 without a bias.
    """

    first: IntArray
    second: IntArray
    weight: FloatArray
    run: IntArray
    lag_ps: float
    self_share: float = 0.0

    def chosen(self, keep: np.ndarray) -> Pairs:
        """Pairs with both frames among those that ``keep [T]`` marks.

        Raises:
            TrajectoryError: if there are none.
        """
        rows = np.flatnonzero(keep[self.first] & keep[self.second])
        if len(rows) < 2:
            raise TrajectoryError(
                f"no two frames {self.lag_ps:g} ps apart in the same held-out or training blocks",
                expected="blocks longer than the lag",
                remedy="use a shorter --lag or longer runs",
            )
        w = self.weight[rows]
        return Pairs(self.first[rows], self.second[rows], w / w.mean(), self.run[rows], self.lag_ps, self.self_share)


def lagged_pairs(data: CvData, lag_ps: float) -> Pairs:
    """Pair the frames of each run with those a lag later.

    Unbiased dynamics: the weight of a pair is that of its first frame, which is exact.

    Under a bias V, time is stretched: a frame lasts ``dt exp(V/kT)``, scaled so that all frames together last as long
    as the simulation did, and pairs are found in that time (Yang, Parrinello 2018, doi:10.1021/acs.jctc.8b00231). The
    stretched process has the unbiased distribution, but a diffusion constant of its own wherever V differs: the slow
    *coordinates* are right as far as they are ruled by barriers, its *times* are not physical. The bias must be static,
    or nearly so, and smooth on the way a frame's motion covers.

    Args:
        data: the frames.
        lag_ps: the lag.

    Raises:
        SettingsError: if the lag is no multiple of the time between frames.
        TrajectoryError: if no run is longer than the lag, or single frames last longer than it under the bias.
    """
    if not lag_ps > 0:
        raise SettingsError(f"a lag of {lag_ps:g} ps", expected="more than 0")
    spacing = _spacing(data)
    if data.weighting == "bias":
        return _stretched(data, lag_ps, spacing)
    steps = _steps(lag_ps, spacing)
    order = np.concatenate(rows_of_runs(data.run))
    first, second = order[:-steps], order[steps:]
    near = np.abs(data.time[second] - data.time[first] - lag_ps) < 0.5 * spacing  # pairs across a gap do not count
    kept = near & (data.run[first] == data.run[second])
    return _pairs(data, first[kept], second[kept], None, lag_ps)


def _spacing(data: CvData) -> float:
    """Time between frames, the same in all runs."""
    found = [np.diff(data.time[rows]) for rows in rows_of_runs(data.run)]
    medians = np.array([np.median(steps) for steps in found if len(steps)])
    if not len(medians) or not medians.min() > 0:
        raise TrajectoryError("runs of a single frame, or without times", expected="runs in time")
    if np.ptp(medians) > _MULTIPLE * medians.max():
        raise TrajectoryError(
            f"frames every {medians.min():g} ps in one run and every {medians.max():g} ps in another",
            expected="the same in all",
            remedy="use --stride on files of their own, or leave one out",
        )
    return float(np.median(medians))


def _steps(lag_ps: float, spacing: float) -> int:
    steps = round(lag_ps / spacing)
    if steps < 1 or abs(lag_ps / spacing - steps) > _MULTIPLE * steps:
        raise SettingsError(
            f"a lag of {lag_ps:g} ps", expected=f"a multiple of the time between frames, {spacing:g} ps"
        )
    return steps


def _stretched(data: CvData, lag_ps: float, spacing: float) -> Pairs:
    length = data.weights * spacing
    parts = []
    for rows in rows_of_runs(data.run):
        first, second, share = _overlaps(length[rows], lag_ps)
        parts.append((rows[first], rows[second], share))
    first, second, share = (np.concatenate([part[k] for part in parts]) for k in range(3))
    pairs = _pairs(data, first, second, share, lag_ps)
    if pairs.self_share > SELF_REFUSAL:
        raise TrajectoryError(
            f"{pairs.self_share:.0%} of the time under the bias is in frames longer than the lag, {lag_ps:g} ps",
            expected=f"at most {SELF_REFUSAL:.0%}",
            remedy="use a longer --lag, frames more often, or data of a weaker bias",
        )
    return pairs


def _overlaps(length: FloatArray, lag: float) -> tuple[IntArray, IntArray, FloatArray]:
    """Frames at s and s + lag, and how long that holds, for frames that last ``length`` one after the other."""
    edges = np.concatenate([[0.0], np.cumsum(length)])
    end = edges[-1] - lag
    if end <= 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    cuts = np.unique(np.concatenate([edges[edges < end], edges[edges > lag] - lag, [0.0, end]]))
    middle = 0.5 * (cuts[1:] + cuts[:-1])
    last = len(length) - 1
    first = np.clip(np.searchsorted(edges, middle, side="right") - 1, 0, last)
    second = np.clip(np.searchsorted(edges, middle + lag, side="right") - 1, 0, last)
    return first, second, np.diff(cuts)


def _pairs(data: CvData, first: IntArray, second: IntArray, share: FloatArray | None, lag_ps: float) -> Pairs:
    if len(first) < 2:
        longest = max(np.ptp(data.time[rows]) for rows in rows_of_runs(data.run))
        raise TrajectoryError(
            f"a lag of {lag_ps:g} ps",
            expected=f"less than the longest run, {longest:g} ps",
            remedy="use a shorter --lag",
        )
    weight = data.weights[first] if share is None else share
    same = float(weight[first == second].sum() / weight.sum())
    return Pairs(first, second, weight / weight.mean(), data.run[first], lag_ps, same)
