"""One weighted ridge least squares from free energies and mean forces to the coarse potential.

Notation: ``A(s, b) = -ln int exp(-u(s, b, y)) dy`` is the bead free energy flat in (s, b), in kT. The potential per
Cartesian volume of the beads is ``U = A + ln J_beads``, and the fit looks for it in the separable form
``U = sum_m G_m(s_m) + sum_i U_i(b_i)``. Three kinds of rows:

1. *Surface.* Under a separable U everything but the torsions of one map integrates out to a constant, so its marginal
   over them is ``exp(-G_m)``: with F_m the marginal of the surface F over the same torsions (F itself when there is one
   map), ``G_m = F_m + const`` is exact, whatever the other terms are. These rows pin the maps. What a sum of maps
   cannot have, the correlation between their torsions, is measured in the residual (``surface_kl``).
2. *Mean forces*, Boltzmann-weighted. With ``p ~ exp(-A)`` the true density, ``E_p[dA/db_i | b_i] = -d ln p(b_i)/db_i``
   and the coarse model has ``-d ln p(b_i)/db_i = dU_i/db_i - d ln J/db_i``. Least squares returns the conditional mean
   of its target, so matching ``dU_i/db_i`` to ``dA/db_i + d ln J/db_i`` over the Boltzmann ensemble makes every
   one-dimensional marginal of the model exact, although the true A is not separable (force matching in the sense of
   doi:10.1063/1.2938860; the separable case is its simplest). Any other sampling of the rows would not: that is
   why the rows carry the importance weights. The same holds for the torsions, where it agrees with the marginals of F.
3. *Bead free energies* A + ln J. What a separable form cannot describe of them is a systematic error that does not
   average out over rows, and it would pull the marginals off; so their tolerance is that misfit, measured by a first
   pass, and they count little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import Field
from scipy import sparse
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.special import logsumexp

from ccg_gmx.errors import SettingsError
from ccg_gmx.potential.basis import SeparableBasis
from ccg_gmx.potential.coarse import CoarsePotential, FitResidual
from ccg_gmx.potential.pairing import divergence, marginal
from ccg_gmx.records import FloatArray, FreeEnergySurface, WeightedDraws
from ccg_gmx.settings import Settings

__all__ = ["BeadSamples", "CoarsePotential", "FitResidual", "FitSettings", "fit_coarse_potential"]

_GAUGE_SD = 1e-3  # kT; the mean coefficient of every block is held at zero, a choice that costs nothing


class FitSettings(Settings):
    """How much each kind of row is trusted, and how smooth the potential must be."""

    surface_tolerance_kT: float = Field(default=0.05, gt=0, description="smallest error assumed for a surface bin")
    surface_cap_kT: float = Field(default=15.0, gt=0, description="above this the surface is only followed roughly")
    tolerance_above_cap_kT: float = Field(default=1.0, gt=0, description="error assumed for bins above the cap")
    torsion_force_weight: float = Field(default=0.1, ge=0, le=1, description="share of full weight of torsion forces")
    energy_weight: float = Field(default=0.02, ge=0, le=1, description="share of full weight of bead free energies")
    torsion_roughness_kT: float = Field(
        default=5.0, gt=0, description="prior spread of second differences of maps and free torsions"
    )
    term_roughness_kT: float = Field(
        default=2.0, gt=0, description="prior spread of third differences of the other U_i"
    )


@dataclass(frozen=True)
class BeadSamples:
    """What is known of the bead free energy A at sampled bead configurations.

    Attributes:
        s: ``[M, n_s]`` radians.
        b: ``[M, n_b]`` nm and radians.
        log_weight: ``[M]`` log importance weight of each point for the Boltzmann density of the beads, up to a
            constant: ``ln Z^(s, b) - ln(density it was drawn from)``.
        gradient: ``[M, n_s + n_b]`` dA/d(s, b), kT per radian or nm.
        gradient_error: ``[M, n_s + n_b]`` standard error.
        energy: ``[M]`` A in kT up to one constant (bias removed), or None.
        energy_error: ``[M]`` standard error of A in kT, or None.
    """

    s: FloatArray
    b: FloatArray
    log_weight: FloatArray
    gradient: FloatArray
    gradient_error: FloatArray
    energy: FloatArray | None = None
    energy_error: FloatArray | None = None

    @classmethod
    def from_draws(cls, draws: WeightedDraws, log_proposal: FloatArray) -> BeadSamples:
        """Points from draws of the rest ``y`` at fixed beads.

        ``-ln`` of a mean of K weights is too high by chi^2 / 2K on average and has variance chi^2 / K, chi^2 the
        relative variance of the weights; the first is taken off, the second is the error.

        Args:
            draws: with ``b``, ``gradient`` and ``gradient_error``.
            log_proposal: ``[M]`` log-density of (s, b) that the points were drawn from.

        Raises:
            SettingsError: if the draws carry no bead coordinates or gradients.
        """
        if draws.b is None or draws.gradient is None or draws.gradient_error is None:
            raise SettingsError("draws without b or gradients", expected="draws of y at fixed beads, with mean forces")
        count = draws.log_w.shape[1]
        log_z = logsumexp(draws.log_w, axis=1) - math.log(count)
        log_second = logsumexp(2.0 * draws.log_w, axis=1) - math.log(count) - 2.0 * log_z
        chi2 = np.expm1(log_second) * count / max(count - 1, 1)
        return cls(
            s=draws.s,
            b=draws.b,
            log_weight=log_z - log_proposal,
            gradient=draws.gradient,
            gradient_error=draws.gradient_error,
            energy=-log_z - chi2 / (2.0 * count),
            energy_error=np.sqrt(chi2 / count),
        )

    @property
    def omega(self) -> FloatArray:
        """Normalised Boltzmann weights ``[M]``, adding up to one."""
        return np.exp(self.log_weight - logsumexp(self.log_weight))


@dataclass(frozen=True)
class _Rows:
    """A block of least-squares rows ``design @ x = target``.

    ``weight`` enters the fit; ``variance`` is what the residuals are believed to scatter by, for the covariance.
    Where weight is not 1 / variance (Boltzmann weights), the two differ on purpose.
    """

    design: sparse.csr_array
    target: FloatArray
    weight: FloatArray
    variance: FloatArray


@dataclass(frozen=True)
class _MapRows:
    """Rows of one map, and which of them lie below the cap."""

    rows: _Rows
    below: np.ndarray


def fit_coarse_potential(
    basis: SeparableBasis,
    surface: FreeEnergySurface,
    samples: BeadSamples,
    settings: FitSettings | None = None,
    marginals: Sequence[FreeEnergySurface] | None = None,
) -> CoarsePotential:
    """Fit the separable coarse potential.

    Two passes: the first takes the spread of the targets for their tolerance, the second the misfit that the first
    pass left beyond the stated errors.

    Args:
        basis: maps over the torsions and terms of the other bead coordinates.
        surface: F over all torsions, ``[n] * n_s`` kT, with errors.
        samples: bead configurations with mean forces, Boltzmann weights and, optionally, bead free energies.
        settings: weights and smoothness.
        marginals: F over the torsions of each map, with errors, on any grid; by default summed from ``surface``.

    Returns:
        The potential, with covariance and a summary of its residuals.

    Raises:
        SettingsError: if shapes disagree, a number is not finite, or the rows do not determine the potential.
    """
    settings = settings or FitSettings()
    _check(basis, surface, samples)
    if marginals is None:
        marginals = [marginal(surface, columns) for columns in basis.maps.columns]
    else:
        _check_marginals(basis, marginals)
    maps = [_surface_rows(basis, k, part, settings) for k, part in enumerate(marginals)]
    surface_rows = [part.rows for part in maps]
    designs, targets = basis.derivatives(samples.s, samples.b), _force_targets(basis, samples)
    spread = np.sqrt(_weighted_variance(targets, samples.omega))
    prior = basis.roughness(settings.torsion_roughness_kT, settings.term_roughness_kT)

    first, _ = _solve(basis, prior, [*surface_rows, *_force_rows(basis, designs, targets, samples, spread, settings)])
    misfit = _force_misfit(designs, targets, first)
    noise = np.sqrt(samples.omega @ samples.gradient_error**2)
    tolerance = np.sqrt(np.maximum(samples.omega @ misfit**2 - noise**2, (1e-3 * spread) ** 2))
    rows = [*surface_rows, *_force_rows(basis, designs, targets, samples, tolerance, settings)]
    if samples.energy is not None and settings.energy_weight > 0:
        rows.append(_energy_rows(basis, samples, first, settings))

    coefficients, covariance = _solve(basis, prior, rows)
    residual = FitResidual(
        force_rms=np.sqrt(samples.omega @ _force_misfit(designs, targets, coefficients) ** 2),
        force_noise=noise,
        energy_rms=_energy_rms(basis, samples, coefficients),
        surface_rms=_surface_rms(maps, coefficients),
        unknown_bins=int(np.sum(~np.isfinite(surface.f))),
    )
    potential = CoarsePotential(basis, coefficients, covariance, surface.temperature_K, residual)
    lost = divergence(surface, potential.grid(len(surface.f)) / potential.kT)
    return _shifted_to_zero(replace(potential, residual=replace(residual, surface_kl=lost)))


def _check(basis: SeparableBasis, surface: FreeEnergySurface, samples: BeadSamples) -> None:
    """Refuse input that would only show up as a strange potential."""
    m, d = len(samples.s), basis.n_s + basis.n_b
    wanted: list[tuple[str, FloatArray | None, tuple[int, ...]]] = [
        ("s", samples.s, (m, basis.n_s)),
        ("b", samples.b, (m, basis.n_b)),
        ("log_weight", samples.log_weight, (m,)),
        ("gradient", samples.gradient, (m, d)),
        ("gradient_error", samples.gradient_error, (m, d)),
        ("energy", samples.energy, (m,)),
        ("energy_error", samples.energy_error, (m,)),
    ]
    for name, array, shape in wanted:
        if array is None and name.startswith("energy"):
            continue
        if array is None or array.shape != shape:
            raise SettingsError(f"{name} of shape {None if array is None else array.shape}", expected=f"shape {shape}")
        if not np.isfinite(array).all():
            raise SettingsError(
                f"{int(np.sum(~np.isfinite(array)))} values of {name} are not finite",
                expected="finite numbers",
                remedy="look at the draws behind them; they are not dropped silently",
            )
    if (samples.energy is None) != (samples.energy_error is None):
        raise SettingsError("energy without energy_error, or the reverse", expected="both or neither")
    if surface.f.ndim != basis.n_s:
        raise SettingsError(f"a surface over {surface.f.ndim} torsions", expected=f"{basis.n_s}, as in the basis")


def _with_offsets(
    basis: SeparableBasis, design: sparse.csr_array, *, surface: int | None = None, energy: bool = False
) -> sparse.csr_array:
    """Append the columns of the unknown constants, minus one where a row has it: of each map's F, and last of A."""
    constants = np.zeros(basis.n_maps + 1)
    if surface is not None:
        constants[surface] = -1.0
    if energy:
        constants[-1] = -1.0
    columns = sparse.csr_array(np.tile(constants, (design.shape[0], 1)))
    return sparse.hstack([design, columns], format="csr")


def _check_marginals(basis: SeparableBasis, marginals: Sequence[FreeEnergySurface]) -> None:
    found, wanted = [part.names for part in marginals], [grid.names for grid in basis.maps.grids]
    if found != wanted:
        raise SettingsError(f"marginals over {found}", expected=f"one per map, over {wanted}")


def _surface_rows(basis: SeparableBasis, k: int, part: FreeEnergySurface, settings: FitSettings) -> _MapRows:
    """Rows ``G_k(grid) - c_k = F_k`` for every bin with a value of the marginal over map k's torsions."""
    dimensions, block = part.f.ndim, basis.blocks[k]
    axis = np.linspace(-math.pi, math.pi, part.f.shape[0], endpoint=False)
    mesh = np.stack(np.meshgrid(*(axis,) * dimensions, indexing="ij"), axis=-1).reshape(-1, dimensions)
    known = np.isfinite(part.f.ravel())  # inf means "nothing known" there: no row, the prior fills in
    f, error = part.f.ravel()[known], part.error.ravel()[known]
    below = f <= settings.surface_cap_kT
    tolerance = np.where(below, settings.surface_tolerance_kT, settings.tolerance_above_cap_kT)
    error = np.where(np.isnan(error), settings.tolerance_above_cap_kT, error)
    variance = error**2 + tolerance**2
    grid = basis.maps.grids[k].design(mesh[known])
    before, after = (sparse.csr_array((len(f), size)) for size in (block.start, basis.size - block.stop))
    design = sparse.hstack([before, grid, after], format="csr")
    return _MapRows(_Rows(_with_offsets(basis, design, surface=k), f, 1.0 / variance, variance), below)


def _force_targets(basis: SeparableBasis, samples: BeadSamples) -> FloatArray:
    """``d(A + ln J)/d(s, b)``, ``[M, n_s + n_b]``; the beads' Jacobian does not depend on torsions."""
    targets = samples.gradient.copy()
    targets[:, basis.n_s :] += basis.log_jacobian_gradient(samples.b)
    return targets


def _force_rows(
    basis: SeparableBasis,
    designs: Iterable[sparse.csr_array],
    targets: FloatArray,
    samples: BeadSamples,
    tolerance: FloatArray,
    settings: FitSettings,
) -> list[_Rows]:
    """Mean-force rows of every coordinate, Boltzmann-weighted.

    The points count as ``kish_ess`` independent ones. As long as the tolerance (the thermal scatter of the force about
    its conditional mean) outweighs the draws' own errors, the weights are the Boltzmann weights up to a factor,
    which is what makes the marginals exact.
    """
    omega = samples.omega
    boltzmann = omega / np.sum(omega**2)
    rows = []
    for i, design in enumerate(designs):
        variance = samples.gradient_error[:, i] ** 2 + tolerance[i] ** 2
        share = settings.torsion_force_weight if i < basis.n_s else 1.0
        rows.append(_Rows(_with_offsets(basis, design), targets[:, i], share * boltzmann / variance, variance))
    return rows


def _energy_residual(basis: SeparableBasis, samples: BeadSamples, coefficients: FloatArray) -> FloatArray:
    """``A + ln J - U`` at the samples, Boltzmann-weighted mean removed, ``[M]`` kT."""
    assert samples.energy is not None
    residual = samples.energy + basis.log_jacobian(samples.b)
    residual = residual - basis.values(samples.s, samples.b) @ coefficients
    return np.asarray(residual - samples.omega @ residual)


def _energy_rows(basis: SeparableBasis, samples: BeadSamples, first_pass: FloatArray, settings: FitSettings) -> _Rows:
    """Rows ``U - c_A = A + ln J`` with the separable form's own misfit as tolerance."""
    assert samples.energy is not None
    assert samples.energy_error is not None
    omega = samples.omega
    residual = _energy_residual(basis, samples, first_pass)
    tolerance2 = max(float(omega @ (residual**2 - samples.energy_error**2)), 1e-6)
    variance = samples.energy_error**2 + tolerance2
    weight = settings.energy_weight * omega / np.sum(omega**2) / variance
    target = samples.energy + basis.log_jacobian(samples.b)
    design = _with_offsets(basis, basis.values(samples.s, samples.b), energy=True)
    return _Rows(design, target, weight, variance)


def _solve(basis: SeparableBasis, prior: sparse.csr_array, rows: Iterable[_Rows]) -> tuple[FloatArray, FloatArray]:
    """Solve the normal equations; coefficients ``[P]`` (kT) and their covariance ``[P, P]``.

    The covariance is the sandwich ``H^-1 B H^-1``, ``B = sum weight^2 variance x x^T``: right for any weights as
    long as rows scatter independently with the stated variances (neighbouring bins of one surface do so only roughly).
    """
    rows = list(rows)
    size = basis.size + basis.n_maps + 1
    normal, middle, right = np.zeros((size, size)), np.zeros((size, size)), np.zeros(size)
    normal[: basis.size, : basis.size] = prior.toarray()
    for block in basis.blocks:  # constants can move between blocks for free: hold the mean of each at zero
        length = block.stop - block.start
        normal[block, block] += 1.0 / (length * _GAUGE_SD) ** 2
    for row in rows:
        weighted = row.design.multiply(row.weight[:, None]).tocsr()
        normal += (weighted.T @ row.design).toarray()
        middle += (weighted.T @ weighted.multiply(row.variance[:, None])).toarray()
        right += weighted.T @ row.target
    used = np.diag(normal) > 0  # a constant without rows is not an unknown
    x, covariance = np.zeros(size), np.zeros((size, size))
    # Rows of very different weight: with a unit diagonal no unknown drowns in the rounding of another.
    scale = 1.0 / np.sqrt(np.diag(normal)[used])
    both = np.outer(scale, scale)
    try:
        factor = cho_factor(normal[np.ix_(used, used)] * both)
    except LinAlgError as error:
        raise SettingsError(
            f"the rows do not determine the coarse potential ({error})",
            expected="samples in every part of each term's range",
            remedy="use fewer knots or more samples",
        ) from error
    x[used] = scale * cho_solve(factor, scale * right[used])
    half = cho_solve(factor, middle[np.ix_(used, used)] * both)
    covariance[np.ix_(used, used)] = cho_solve(factor, half.T) * both
    covariance = 0.5 * (covariance + covariance.T)
    return x[: basis.size], covariance[: basis.size, : basis.size]


def _weighted_variance(values: FloatArray, omega: FloatArray) -> FloatArray:
    return np.asarray(omega @ (values - omega @ values) ** 2)


def _energy_rms(basis: SeparableBasis, samples: BeadSamples, coefficients: FloatArray) -> float:
    if samples.energy is None:
        return math.nan
    return float(np.sqrt(samples.omega @ _energy_residual(basis, samples, coefficients) ** 2))


def _force_misfit(designs: Iterable[sparse.csr_array], targets: FloatArray, coefficients: FloatArray) -> FloatArray:
    return targets - np.stack([design @ coefficients for design in designs], axis=1)


def _surface_rms(maps: Iterable[_MapRows], coefficients: FloatArray) -> float:
    squares, count = 0.0, 0
    for part in maps:
        fitted = part.rows.design[:, : len(coefficients)] @ coefficients
        misfit = (part.rows.target - fitted)[part.below]
        squares, count = squares + len(misfit) * float(np.std(misfit)) ** 2, count + len(misfit)
    return math.sqrt(squares / count)


def _shifted_to_zero(potential: CoarsePotential) -> CoarsePotential:
    """Give every block a minimum of zero; B-splines add up to one, so a constant is a shift of all coefficients."""
    basis, coefficients = potential.basis, potential.coefficients.copy()
    for k, grid in enumerate(basis.maps.grids):
        coefficients[basis.blocks[k]] -= potential.map_grid(k, 10 * grid.knots).min() / potential.kT
    for i, term in enumerate(basis.terms):
        table, _ = potential.term_table(i, np.linspace(term.lo, term.hi, 50 * term.intervals + 1))
        coefficients[basis.blocks[basis.n_maps + i]] -= table.min() / potential.kT
    return replace(potential, coefficients=coefficients)
