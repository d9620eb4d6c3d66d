"""Boltzmann inversion, direct and iterative: potentials from distributions.

Direct: ``V = -kT ln g`` (exact for beads that meet two at a time). Iterative (D. Reith, M. Puetz, F. Mueller-Plathe,
2003, doi:10.1002/jcc.10307): ``V += kT ln(g_model / g_target)`` until the distributions agree. Both are fits on
splines, weighted by the errors of the counts, so a noisy bin moves nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import gammaincinv

from ccg_gmx.errors import SettingsError
from ccg_gmx.potential.curves import Curve, TorsionMap, flat_curve
from ccg_gmx.potential.distributions import Distributions, Histogram, MapHistogram
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.potential.smooth_fit import (
    curve_prior,
    free_design,
    map_prior,
    padded,
    poisson_fit,
    steep_core,
    weighted_fit,
)
from ccg_gmx.records import FloatArray
from ccg_gmx.units import thermal_energy

CORE_COUNTS = 25.0
"""Independent counts in a knot interval from which a pair potential is called known."""


@dataclass(frozen=True)
class BasisSettings:
    """Splines of a tabulated model.

    Attributes:
        pair_spacing: knot spacing of pairs, nm.
        intervals: knot intervals of bonds and angles.
        knots: of a dihedral, and of each axis of a map.
        roughness_kT: prior standard deviation of third differences of neighbouring coefficients (second ones around a
            circle). Large: it fills gaps and does not smooth what was sampled.
        core_curvature_kT: smallest curvature of a pair below its range, kT/nm^2.
        core_step_kT: least rise between neighbouring coefficients towards zero distance where little was sampled.
    """

    pair_spacing: float = 0.01
    intervals: int = 16
    knots: int = 24
    roughness_kT: float = 1.0
    core_curvature_kT: float = 2e4
    core_step_kT: float = 0.5


def blank_model(
    distributions: Distributions, temperature_K: float, cutoff: float, settings: BasisSettings | None = None
) -> CoarseModel:
    """Model of zeros on the ranges that were sampled: the basis of every fit.

    Bonds and angles cover the data with 2 % to spare and walls a third as stiff as the well, as in the cycle; pairs
    start at the first distance that occurred and end at the cut-off.

    Args:
        distributions: of the target.
        temperature_K: temperature.
        cutoff: of all pairs, nm; their distributions may reach further.
        settings: of the splines.

    Raises:
        TrajectoryError: a radial distribution function is empty.
        SettingsError: nothing lies between the first pair and the cut-off.
    """
    settings = settings or BasisSettings()
    distributions.require_pairs()
    kT = thermal_energy(temperature_K)
    bonded = {name: _blank_bonded(part, kT, settings) for name, part in distributions.bonded.items()}
    maps = {name: TorsionMap(np.zeros((settings.knots,) * 2)) for name in distributions.maps}
    pairs = {}
    for key, part in distributions.pairs.items():
        lo = part.range[0]
        intervals = round((cutoff - lo) / settings.pair_spacing)
        if intervals < 4:
            raise SettingsError(
                f"pairs of {'-'.join(key)} start at {lo:.3g} nm and the cut-off is {cutoff:g} nm",
                expected=f"at least four knot intervals of {settings.pair_spacing:g} nm between them",
                remedy="use a longer cut-off",
            )
        curvature = settings.core_curvature_kT * kT
        pairs[key] = flat_curve("pair", lo, cutoff, intervals=intervals, min_curvature=curvature)
    return CoarseModel(temperature_K, bonded, maps, pairs)


def _blank_bonded(part: Histogram, kT: float, settings: BasisSettings) -> Curve:
    if part.kind == "dihedral":
        return flat_curve("dihedral", intervals=settings.knots)
    low, high = part.range
    span = high - low
    top = np.pi if part.kind == "angle" else np.inf
    lo, hi = max(low - 0.02 * span, 0.0), min(high + 0.02 * span, top)
    return flat_curve(part.kind, lo, hi, intervals=settings.intervals, min_curvature=36.0 * kT / span**2)


def direct_inversion(
    target: Distributions, blank: CoarseModel, settings: BasisSettings | None = None, *, pairs: bool = True
) -> CoarseModel:
    """Direct Boltzmann inversion of every distribution.

    Args:
        target: distributions wanted.
        blank: the basis, see :func:`blank_model`.
        settings: of the splines.
        pairs: whether to invert pairs too; left at zero otherwise.

    Returns:
        The model; bonded curves and maps have their minimum at zero.
    """
    settings = settings or BasisSettings()
    kT = blank.kT
    return replace(
        blank,
        bonded={name: _invert(target.bonded[name], curve, kT, settings) for name, curve in blank.bonded.items()},
        maps={name: _invert_map(target.maps[name], part, kT, settings) for name, part in blank.maps.items()},
        pairs={key: _invert(target.pairs[key], c, kT, settings) for key, c in blank.pairs.items()}
        if pairs
        else dict(blank.pairs),
    )


def _within(part: Histogram, curve: Curve) -> slice:
    """Bins between the ends of a curve."""
    first, last = np.searchsorted(part.centres, [curve.lo, curve.hi])
    return slice(int(first), int(last))


def _invert(part: Histogram, curve: Curve, kT: float, settings: BasisSettings) -> Curve:
    use = _within(part, curve)
    x, covariance = poisson_fit(
        free_design(curve, part.centres[use]),
        part.counts[use],
        part.ideal[use],
        curve_prior(curve, settings.roughness_kT),
        dispersion=part.dispersion,
        # Bonded terms have no constant, and the density of pairs at the cut-off is not exactly that of no interaction.
        scaled=True,
    )
    fitted = replace(curve, coefficients=padded(curve, kT * x), covariance=padded(curve, kT**2 * covariance))
    return _finished(fitted, part, kT, settings)


def _finished(curve: Curve, part: Histogram, kT: float, settings: BasisSettings) -> Curve:
    """Steepen the core of a pair; shift the minimum of a bonded term to zero."""
    if curve.kind == "pair":
        return steep_core(curve, known_from(curve, part), settings.core_step_kT, kT)
    lowest = float(curve.table(50 * curve.size)[1].min())
    return replace(curve, coefficients=curve.coefficients - lowest)


def finished_model(model: CoarseModel, target: Distributions, settings: BasisSettings) -> CoarseModel:
    """Steepen the cores of pairs where the target has no samples; shift minima of bonded terms and maps to zero."""
    kT = model.kT
    return replace(
        model,
        bonded={name: _finished(c, target.bonded[name], kT, settings) for name, c in model.bonded.items()},
        maps={name: _map_at_zero(m.coefficients, m.covariance, m) for name, m in model.maps.items()},
        pairs={key: _finished(c, target.pairs[key], kT, settings) for key, c in model.pairs.items()},
    )


def known_from(curve: Curve, part: Histogram) -> float:
    """Distance in nm of the first knot interval with enough independent counts."""
    use = _within(part, curve)
    knots = np.linspace(curve.lo, curve.hi, curve.size - 2)
    counts, _ = np.histogram(part.centres[use], knots, weights=part.counts[use])
    enough = np.flatnonzero(counts >= CORE_COUNTS * part.dispersion)
    return float(knots[enough[0]]) if len(enough) else curve.hi


def _map_rows(part: MapHistogram) -> FloatArray:
    """Centres ``[n * n, 2]`` of the bins of a map."""
    mesh = np.meshgrid(part.centres, part.centres, indexing="ij")
    return np.stack(mesh, axis=-1).reshape(-1, 2)


def _invert_map(part: MapHistogram, blank: TorsionMap, kT: float, settings: BasisSettings) -> TorsionMap:
    counts = part.counts.ravel()
    x, covariance = poisson_fit(
        blank.grid.design(_map_rows(part)),
        counts,
        np.full(counts.shape, counts.mean()),
        map_prior(blank.grid, settings.roughness_kT),
        dispersion=part.dispersion,
        scaled=True,
    )
    return _map_at_zero(kT * x, kT**2 * covariance, blank)


def _map_at_zero(x: FloatArray, covariance: FloatArray | None, shape: TorsionMap) -> TorsionMap:
    found = TorsionMap(x.reshape(shape.coefficients.shape), covariance)
    return replace(found, coefficients=found.coefficients - found.on_grid(8 * found.knots).min())


@dataclass(frozen=True)
class UpdateSettings:
    """One step of iterative Boltzmann inversion.

    Attributes:
        damping: factor of the step, 1 for the plain method.
        step_kT: prior standard deviation of a coefficient's change.
        roughness_kT: of third differences of the change.
        pairs: whether pairs move.
        bonded: whether bonded terms move.
    """

    damping: float = 1.0
    step_kT: float = 3.0
    roughness_kT: float = 0.2
    pairs: bool = True
    bonded: bool = True


def iterative_step(
    model: CoarseModel,
    found: Distributions,
    target: Distributions,
    basis: BasisSettings | None = None,
    settings: UpdateSettings | None = None,
) -> CoarseModel:
    """Give the next model of iterative Boltzmann inversion.

    Args:
        model: the present one.
        found: distributions of a run with it.
        target: distributions wanted.
        basis: settings of the splines.
        settings: of the step.

    Returns:
        The next model; the covariance of its curves is that of this last step, which both samples' noise went into.
    """
    basis, settings = basis or BasisSettings(), settings or UpdateSettings()
    kT = model.kT
    bonded, maps, pairs = dict(model.bonded), dict(model.maps), dict(model.pairs)
    if settings.bonded:
        for name, curve in bonded.items():
            bonded[name] = _updated(curve, found.bonded[name], target.bonded[name], kT, basis, settings)
        for name, part in maps.items():
            maps[name] = _updated_map(part, found.maps[name], target.maps[name], kT, settings)
    if settings.pairs:
        for key, curve in pairs.items():
            pairs[key] = _updated(curve, found.pairs[key], target.pairs[key], kT, basis, settings)
    return replace(model, bonded=bonded, maps=maps, pairs=pairs)


def log_ratio(
    found: FloatArray, found_ideal: FloatArray, target: FloatArray, target_ideal: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """``ln(g_found / g_target)`` from counts and the variance of independent counts.

    Half a count is added to both, which takes off the bias of few counts to first order and keeps empty bins finite
    (with a variance that gives them no say).
    """
    value = np.log((found + 0.5) / found_ideal) - np.log((target + 0.5) / target_ideal)
    return value, 1.0 / (found + 0.5) + 1.0 / (target + 0.5)


def _updated(
    curve: Curve, found: Histogram, target: Histogram, kT: float, basis: BasisSettings, settings: UpdateSettings
) -> Curve:
    use = _within(target, curve)
    seen = (found.counts[use] > 0) | (target.counts[use] > 0)
    counts = [part[use][seen] for part in (found.counts, found.ideal, target.counts, target.ideal)]
    value, variance = log_ratio(*counts)
    prior = curve_prior(curve, settings.roughness_kT) + np.eye(curve.free) / settings.step_kT**2
    x, covariance = weighted_fit(
        free_design(curve, target.centres[use][seen]),
        value,
        variance * max(found.dispersion, target.dispersion),
        prior,
    )
    moved = replace(
        curve,
        coefficients=curve.coefficients + settings.damping * kT * padded(curve, x),
        covariance=kT**2 * padded(curve, covariance),
    )
    return _finished(moved, target, kT, basis)


def _updated_map(
    part: TorsionMap, found: MapHistogram, target: MapHistogram, kT: float, settings: UpdateSettings
) -> TorsionMap:
    seen = ((found.counts > 0) | (target.counts > 0)).ravel()
    counts = [array.ravel()[seen] for array in (found.counts, target.counts)]
    value, variance = log_ratio(counts[0], found.counts.mean(), counts[1], target.counts.mean())
    prior = map_prior(part.grid, settings.roughness_kT) + np.eye(part.grid.size) / settings.step_kT**2
    design = part.grid.design(_map_rows(target)[seen])
    x, covariance = weighted_fit(design, value, variance * max(found.dispersion, target.dispersion), prior)
    return _map_at_zero(part.coefficients.ravel() + settings.damping * kT * x, kT**2 * covariance, part)


@dataclass(frozen=True)
class RdfError:
    """Distance of radial distribution functions from the target's.

    Attributes:
        squared: ``int (g - g_target)^2 dr`` summed over pairs of types, nm.
        noise: what the errors of both make of it on average where they agree, nm.
        noise_limit: what it stays below in 19 of 20 such cases, nm.
        first_peak_ratio: height of the first peak over the target's, of the pair where that is furthest from 1.
    """

    squared: float
    noise: float
    noise_limit: float
    first_peak_ratio: float


def rdf_error(found: Distributions, target: Distributions) -> RdfError | None:
    """Compare radial distribution functions over their whole range; None without pairs."""
    if not target.pairs:
        return None
    squared = noise = spread = 0.0
    ratios = []
    for key, wanted in target.pairs.items():
        width = np.diff(wanted.edges)
        squared += float(np.sum((found.pairs[key].g - wanted.g) ** 2 * width))
        for part in (found.pairs[key], wanted):
            own = float(np.sum(part.g_error**2 * width))
            noise += own
            # Errors of several pairs of types go together too: standard deviations are added, not their squares.
            spread += own * math.sqrt(2.0 / part.squares) if math.isfinite(part.squares) else 0.0
        ratios.append(first_peak(found.pairs[key], wanted) / first_peak(wanted, wanted))
    return RdfError(squared, noise, _limit(noise, spread), max(ratios, key=lambda ratio: abs(ratio - 1.0)))


def _limit(noise: float, spread: float) -> float:
    """Value that a sum of squares of this mean and standard deviation exceeds in one case of twenty."""
    if not spread:
        return noise
    half = (noise / spread) ** 2  # half the degrees of freedom of the chi^2 with these two
    return noise * float(gammaincinv(half, 0.95)) / half


def first_peak(part: Histogram, target: Histogram, half_width: float = 0.01) -> float:
    """Height of the first peak: the top of a parabola through the bins near the highest one.

    The highest bin alone would be too high by its noise.

    Args:
        part: a pair.
        target: the pair wanted, whose peak is the one looked for.
        half_width: of the range of the parabola, nm; at least two and a half bins.
    """
    width = float(part.edges[1] - part.edges[0])
    reach = max(half_width, 2.5 * width)
    place = float(target.centres[int(np.argmax(_smoothed(target.g)))])
    near = np.abs(part.centres - place) <= 2.0 * reach  # the peak may have moved
    place = float(part.centres[near][int(np.argmax(_smoothed(part.g)[near]))])
    near = np.abs(part.centres - place) <= reach
    a, b, c = np.polyfit((part.centres[near] - place) / reach, part.g[near], 2)
    if a >= 0 or abs(b) > -2.0 * a:
        return float(part.g[near].max())
    return float(c - b * b / (4.0 * a))


def _smoothed(values: FloatArray) -> FloatArray:
    return np.convolve(values, np.ones(3) / 3.0, mode="same")
