"""Do walkers held at one coarse point, but seeded in different states, come to agree? The statistics of that test.

"Without rare events" holds only if every slow motion is among the coarse torsions. A motion that is not shows here:
walkers at one coarse point stay in separate states of some other coordinate. Split R-hat (A. Gelman, D. Rubin, Stat.
Sci. 7, 457 (1992); arXiv 1903.08008) says that walkers differ by more than they fluctuate; separate states are ranges
of values, each visited by other walkers, that no walker joins. Both are asked for: a slow but single-peaked coordinate
raises R-hat alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.weights import ConditionalDensity, forward_log_weights
from ccg_gmx.records import CoarseSplit, FloatArray, IntArray
from ccg_gmx.settings import Settings
from ccg_gmx.units import DEGREES_PER_RADIAN

BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

CENTRAL = (0.05, 0.95)
"""Quantiles that bound a walker's range: a walker joins two states when it spends more than 5 % of its time in each."""


class HiddenModeSettings(Settings):
    """The test for slow motions that are not among the coarse torsions. Walkers and their masses are its own."""

    enabled: bool = Field(True, description="run the test at the end of every cycle")
    points: int = Field(8, description="coarse points: lows of the surface, then draws from it", ge=1)
    walkers: int = Field(6, description="walkers per point from hot seeds with random torsions", ge=2)
    cold_walkers: int = Field(2, description="walkers per point from fine frames (or the starting structure)", ge=0)
    ps: float = Field(15.0, description="time compared, at the temperature of the workflow", gt=0)
    settle_ps: float = Field(2.0, description="time before it, at the same temperature, left out", ge=0)
    hot_ps: float = Field(2.0, description="time of the hot walkers at hot_temperature_K", ge=0)
    hot_temperature_K: float = Field(900.0, description="temperature of the hot seeds", gt=0)
    restraint_kJ_mol: float = Field(300.0, description="force constant on the coarse torsions (per rad^2)", gt=0)
    dt_ps: float = Field(0.002, description="time step; every atom weighs at least lightest_amu", gt=0, le=0.004)
    lightest_amu: float = Field(
        4.0, description="lighter atoms get this mass: it moves no average and allows the longer step", gt=0
    )
    r_hat: float = Field(1.2, description="split R-hat above which walkers differ", gt=1)
    relevant_kT: float = Field(
        10.0, description="states whose mean energy is higher than this above the lowest are not counted", gt=0
    )


@dataclass(frozen=True)
class WalkerSeries:
    """What restrained walkers did: B walkers, T samples, n coordinates.

    Attributes:
        values: ``[B, T, n]`` nm and radians.
        energy: ``[B, T]`` potential energy in kT.
        names: ``n`` names for people.
        periods: ``[n]`` radians; inf for coordinates that are not periodic.
        points: ``[P, n_s]`` radians, the coarse points.
        point: ``[B]`` index of each walker's coarse point.
        hot: ``[B]`` True for walkers from hot seeds.
        total_ps: simulated time of each walker behind these samples.
    """

    values: FloatArray
    energy: FloatArray
    names: tuple[str, ...]
    periods: FloatArray
    points: FloatArray
    point: IntArray
    hot: BoolArray
    total_ps: float


@dataclass(frozen=True)
class ModeState:
    """One of the states that walkers stay in.

    Attributes:
        value: mean of the coordinate, degrees or nm (kT for the energy).
        hot: hot-seeded walkers in it.
        cold: walkers from fine frames in it.
        energy_kT: mean potential energy above that of the lowest state.
        fine_frames: fine frames near the coarse point that lie in it; None where there are none to ask.
    """

    value: float
    hot: int
    cold: int
    energy_kT: float
    fine_frames: int | None = None


@dataclass(frozen=True)
class HiddenMode:
    """Walkers at one coarse point that never agree.

    Attributes:
        point: index of the coarse point.
        s0_degrees: the coarse point.
        coordinate: the coordinate that tells the states apart best.
        unit: degrees, nm or kT.
        r_hat: its split R-hat.
        states: the states, by their value.
        others: number of further coordinates that tell them apart.
    """

    point: int
    s0_degrees: tuple[float, ...]
    coordinate: str
    unit: str
    r_hat: float
    states: tuple[ModeState, ...]
    others: int


def split_r_hat(values: FloatArray) -> FloatArray:
    """``[n]`` split R-hat of ``values [W, T, n]``: each walker counts as two, its halves (arXiv 1903.08008, eq. 4).

    sqrt of (pooled variance within the halves plus variance between their means) over that within. 1 when all halves
    are draws of one density; periodic values must be unwrapped. inf where nothing moves but walkers differ.
    """
    half = values.shape[1] // 2
    parts = np.concatenate([values[:, :half], values[:, half : 2 * half]])
    within = parts.var(axis=1, ddof=1).mean(axis=0)
    between = parts.mean(axis=1).var(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(between == 0, 0.0, between / within)
    return np.sqrt((half - 1) / half + ratio)


def walker_ranges(values: FloatArray, periods: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Ends ``[W, n]`` of the central 90 % of each walker's samples ``[W, T, n]``.

    Periodic values are unwrapped around the walker's circular mean, so the ends may lie beyond the period.
    """
    deviation, centre = circular_deviation(values, periods)
    low, high = np.quantile(deviation, CENTRAL, axis=1)
    return centre + low, centre + high


def separate_states(low: FloatArray, high: FloatArray, period: float) -> IntArray:
    """``[W]`` label of the state of each walker: the groups into which the ranges ``[low, high]`` fall apart.

    Ranges that overlap share a state; a walker that moves between two states has a range that joins them.
    """
    W = len(low)
    if math.isfinite(period):
        # A cut of the circle is a lower end that lies inside no other range; of equal ones the first is it.
        ahead = (low[:, None] - low[None, :]) % period
        covered = (ahead <= (high - low)[None, :]) & ((ahead > 0) | np.tri(W, k=-1, dtype=np.bool_))
        free = np.flatnonzero(~covered.any(axis=1))
        if not len(free) or (high - low).max() >= period:
            return np.zeros(W, dtype=np.int64)
        shifted = (low - low[free[0]]) % period
        low, high = shifted, shifted + (high - low)
    order = np.argsort(low)
    reach = np.maximum.accumulate(high[order])
    labels = np.empty(W, dtype=np.int64)
    labels[order] = np.concatenate([[0], np.cumsum(low[order][1:] > reach[:-1])])
    return labels


def find_hidden_modes(
    series: WalkerSeries, settings: HiddenModeSettings, fine: tuple[FloatArray, FloatArray] | None = None
) -> tuple[list[HiddenMode], float]:
    """Compare the walkers at every coarse point.

    Args:
        series: walkers that stayed within the supports.
        settings: thresholds.
        fine: ``s [T, n_s]`` and the same coordinates ``[T, n]`` of fine frames, to see which states they know.

    Returns:
        At most one mode per coarse point; and the largest R-hat of all coordinates and points.

    Raises:
        CcgError: if there are fewer than 4 samples per walker.
    """
    if series.values.shape[1] < 4:
        raise CcgError(f"{series.values.shape[1]} samples per walker", expected="at least 4", remedy="raise ps")
    modes, largest = [], 0.0
    for point in range(len(series.points)):
        mine = series.point == point
        if mine.sum() >= 2:
            mode, r_hat = _compare(series, mine, point, settings, fine)
            largest = max(largest, r_hat)
            modes += [] if mode is None else [mode]
    return modes, largest


def counted_walkers(series: WalkerSeries, column: int, relevant_kT: float) -> BoolArray:
    """``[B]`` whether each walker is in a state, as one coordinate tells them apart, that is low enough to matter."""
    low, high = walker_ranges(series.values[..., [column]], series.periods[[column]])
    counted = np.ones(len(series.point), dtype=np.bool_)
    for point in np.unique(series.point):
        mine = series.point == point
        label = separate_states(low[mine, 0], high[mine, 0], float(series.periods[column]))
        counted[mine] = np.isin(label, _relevant(label, series.energy[mine].mean(axis=1), relevant_kT))
    return counted


def _compare(
    series: WalkerSeries,
    mine: BoolArray,
    point: int,
    settings: HiddenModeSettings,
    fine: tuple[FloatArray, FloatArray] | None,
) -> tuple[HiddenMode | None, float]:
    """Return the clearest hidden mode at one point, and the largest R-hat there."""
    values = np.concatenate([series.values[mine], series.energy[mine][..., None]], axis=-1)
    periods = np.append(series.periods, np.inf)
    low, high = walker_ranges(values, periods)
    r_hat = split_r_hat(unwrapped(values, periods))
    labels = {k: separate_states(low[:, k], high[:, k], float(periods[k])) for k in range(len(periods))}
    energy = series.energy[mine].mean(axis=1)
    found = [
        k
        for k, label in labels.items()
        if r_hat[k] > settings.r_hat and len(_relevant(label, energy, settings.relevant_kT)) > 1
    ]
    if not found:
        return None, float(r_hat.max())
    spread = _spread(values, periods)
    best = max(found, key=lambda k: (math.isfinite(periods[k]), spread[k] if math.isfinite(periods[k]) else r_hat[k]))
    is_energy = best == len(series.names)
    near = None if fine is None or is_energy else _near(series.points[point], fine, best)
    states = _states(
        labels[best], values[..., best], float(periods[best]), energy, series.hot[mine], settings.relevant_kT, near
    )
    unit = "kT" if is_energy else ("degrees" if math.isfinite(periods[best]) else "nm")
    mode = HiddenMode(
        point=point,
        s0_degrees=tuple(float(x) for x in series.points[point] * DEGREES_PER_RADIAN),
        coordinate="potential energy" if is_energy else series.names[best],
        unit=unit,
        r_hat=float(r_hat[best]),
        states=states,
        others=len(found) - 1,
    )
    return mode, float(r_hat.max())


def _states(
    label: IntArray,
    values: FloatArray,
    period: float,
    energy: FloatArray,
    hot: BoolArray,
    relevant_kT: float,
    near: FloatArray | None,
) -> tuple[ModeState, ...]:
    """Describe the relevant states of one coordinate from its walkers' ``values [W, T]``."""
    kept = _relevant(label, energy, relevant_kT)
    lowest = min(energy[label == state].mean() for state in kept)
    periods = np.array([period])
    described = []
    for state in kept:
        mine = label == state
        deviation, centre = circular_deviation(values[mine].reshape(1, -1, 1), periods)
        mean = float(centre[0, 0] + deviation.mean())
        inside = None
        if near is not None:
            ends = np.quantile(deviation, (0.01, 0.99)) + centre[0, 0]
            off = near - mean if not math.isfinite(period) else (near - mean + period / 2) % period - period / 2
            inside = int(((off > ends[0] - mean) & (off < ends[1] - mean)).sum())
        if math.isfinite(period):
            mean = float((mean + math.pi) % (2 * math.pi) - math.pi) * DEGREES_PER_RADIAN
        described.append(
            ModeState(mean, int(hot[mine].sum()), int((~hot[mine]).sum()), float(energy[mine].mean() - lowest), inside)
        )
    return tuple(sorted(described, key=lambda state: state.value))


def _relevant(label: IntArray, energy: FloatArray, relevant_kT: float) -> list[int]:
    """Labels of the states whose mean energy is near enough to the lowest to be populated."""
    means = {int(state): float(energy[label == state].mean()) for state in np.unique(label)}
    lowest = min(means.values())
    return [state for state, mean in means.items() if mean - lowest <= relevant_kT]


def _near(s0: FloatArray, fine: tuple[FloatArray, FloatArray], column: int) -> FloatArray:
    """Values of one coordinate in the fine frames within 30 degrees of a coarse point."""
    off = np.abs((fine[0] - s0 + np.pi) % (2 * np.pi) - np.pi).max(axis=1)
    return fine[1][off < np.radians(30.0), column]


def circular_deviation(values: FloatArray, periods: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Deviations ``[W, T, n]`` from each walker's (circular) mean ``[W, n]``."""
    circle = np.isfinite(periods)
    period = np.where(circle, periods, 2 * np.pi)
    phase = np.exp(2j * np.pi * values / period)
    angle = np.angle(phase.mean(axis=1)) * period / (2 * np.pi)
    centre = np.where(circle, angle, values.mean(axis=1))
    deviation = values - centre[:, None]
    return np.where(circle, (deviation + period / 2) % period - period / 2, deviation), centre


def unwrapped(values: FloatArray, periods: FloatArray) -> FloatArray:
    """Values with every periodic coordinate cut where the walkers' means leave the widest gap."""
    circle = np.isfinite(periods)
    period = np.where(circle, periods, 2 * np.pi)
    deviation, centre = circular_deviation(values, periods)
    means = np.sort(np.where(circle, centre % period, 0.0), axis=0)
    gaps = np.concatenate([np.diff(means, axis=0), means[:1] + period - means[-1:]])
    widest = gaps.argmax(axis=0)
    columns = np.arange(len(periods))
    cut = means[widest, columns] + gaps[widest, columns] / 2
    # A walker's own samples stay together, around its mean.
    return np.where(circle, (centre - cut) % period, centre)[:, None] + deviation


def _spread(values: FloatArray, periods: FloatArray) -> FloatArray:
    """Range ``[n]`` of the walkers' means."""
    means = unwrapped(values, periods).mean(axis=1)
    return means.max(axis=0) - means.min(axis=0)


def mode_words(mode: HiddenMode, torsions: Sequence[str]) -> str:
    """Say in one sentence what was found."""
    place = ", ".join(f"{name} = {value:.0f}" for name, value in zip(torsions, mode.s0_degrees, strict=True))
    states = "; ".join(
        f"{state.value:.3g} {mode.unit} ({state.hot + state.cold} walkers, "
        f"{'no fine frame' if state.fine_frames == 0 else _fine(state)}, {state.energy_kT:.1f} kT)"
        for state in mode.states
    )
    return f"at {place} walkers stay in {len(mode.states)} states of {mode.coordinate}: {states}"


def _fine(state: ModeState) -> str:
    if state.fine_frames is None:
        return f"{state.cold} of them from the start"
    return f"{state.fine_frames} fine frame{'s' if state.fine_frames != 1 else ''}"


def hot_gap_kT(flows: Sequence[ConditionalDensity], frames: CoarseSplit, f: FloatArray, chunk: int = 8192) -> float:
    """Largest mean of ``ln w + f`` of a walker from the hidden-mode test, kT: large where a flow misses its state.

    Restrained frames are draws of p(b, y | s) within their state, whatever the restraint on s. The mean is KL(p || q)
    there: about 1 kT where q knows the state, and minus the logarithm of what q gives to it where it does not. Means
    of walkers, not an effective fraction of all frames: one frame in the tail of a good flow decides the latter.

    Args:
        flows: conditional densities.
        frames: frames of :class:`WalkerSeries`' walkers, at the s they have (not the centre of their restraint);
            ``run`` is the walker.
        f: ``[T]`` kT at their s, absolute (``SurfaceFit.values``).
        chunk: frames evaluated at once.
    """
    forward = np.stack([forward_log_weights(flow, frames, chunk) + f for flow in flows])
    return max(float(forward[:, frames.run == walker].mean(axis=1).max()) for walker in np.unique(frames.run))
