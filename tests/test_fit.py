"""Coarse potential: recovery, calibration, exact marginals of a non-separable system, sampling, walls, file."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ccg_gmx.errors import CheckpointError, SettingsError
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.potential.basis import SeparableBasis, SplineTerm, TorsionGrid
from ccg_gmx.potential.fit import BeadSamples, CoarsePotential, FitResidual, FitSettings, fit_coarse_potential
from ccg_gmx.records import FloatArray, FreeEnergySurface, WeightedDraws

COORDINATES = (Coordinate("bond", "bond", "positive"), Coordinate("angle", "angle", "polar"))
CENTRE, SD = np.array([0.14, 2.0]), np.array([0.004, 0.06])
GRID = 36
PHASES = np.array([0.0, 1.0])
AXIS = -math.pi + np.arange(GRID) * 2 * math.pi / GRID


def free_energy(s: FloatArray) -> FloatArray:
    return 2.0 * np.cos(s) + np.sin(2.0 * s + 0.5)


def surface(error: float = 0.02, noise: FloatArray | float = 0.0) -> FreeEnergySurface:
    f = free_energy(AXIS) + noise
    return FreeEnergySurface(f - f.min(), np.full(GRID, error), ("phi",), 300.0)


def basis_of(b: FloatArray) -> SeparableBasis:
    terms = tuple(SplineTerm.covering(c, b[:, i]) for i, c in enumerate(COORDINATES))
    return SeparableBasis(terms, TorsionGrid(("phi",), 24))


class Chain:
    """A(s, b) = F(s) + Gaussian of b, whose mean moves with s and whose components correlate: not separable."""

    def __init__(self, shift: float, correlation: float) -> None:
        self.shift = shift * SD
        self.covariance = np.array([[1.0, correlation], [correlation, 1.0]]) * np.outer(SD, SD)
        self.precision = np.linalg.inv(self.covariance)

    def delta(self, s: FloatArray, b: FloatArray) -> FloatArray:
        return b - CENTRE - self.shift * np.cos(s + PHASES)

    def energy(self, s: FloatArray, b: FloatArray) -> FloatArray:
        d = self.delta(s, b)
        return free_energy(s[:, 0]) + 0.5 * np.einsum("mi,ij,mj->m", d, self.precision, d)

    def gradient(self, s: FloatArray, b: FloatArray) -> FloatArray:
        by_b = self.delta(s, b) @ self.precision
        by_s = -2.0 * np.sin(s[:, 0]) + 2.0 * np.cos(2.0 * s[:, 0] + 0.5)
        by_s += np.sum(by_b * self.shift * np.sin(s + PHASES), axis=1)
        return np.column_stack([by_s, by_b])

    def samples(self, m: int, rng: np.random.Generator, *, noise: FloatArray, weighted: bool = True) -> BeadSamples:
        """Points from a broad proposal (uniform in s, 1.5 times too wide in b), with importance weights."""
        s = rng.uniform(-math.pi, math.pi, (m, 1))
        width = 1.5 * np.sqrt(SD**2 + self.shift**2 / 2)
        b = CENTRE + width * rng.normal(size=(m, 2))
        log_proposal = -0.5 * np.sum(((b - CENTRE) / width) ** 2, axis=1)
        log_weight = -self.energy(s, b) - log_proposal
        return BeadSamples(
            s=s,
            b=b,
            log_weight=log_weight if weighted else np.zeros(m),
            gradient=self.gradient(s, b) + noise * rng.normal(size=(m, 3)),
            gradient_error=np.tile(noise, (m, 1)),
            energy=self.energy(s, b) + 0.1 * rng.normal(size=m),
            energy_error=np.full(m, 0.1),
        )


NOISE = np.array([0.3, 0.3 / SD[0], 0.3 / SD[1]])


def moments(potential: CoarsePotential, i: int) -> tuple[float, float]:
    """Mean and variance of the model's marginal of b_i, by quadrature."""
    x, log_p = potential.term_density(i)
    mass = np.exp(log_p) * (x[1] - x[0])
    mean = float(np.sum(mass * x))
    return mean, float(np.sum(mass * (x - mean) ** 2))


def exact_moments(chain: Chain, i: int) -> tuple[float, float]:
    s = np.linspace(-math.pi, math.pi, 2000, endpoint=False)
    p = np.exp(-free_energy(s))
    p /= p.sum()
    mean = CENTRE[i] + chain.shift[i] * np.cos(s + PHASES[i])
    return float(p @ mean), float(p @ mean**2 - (p @ mean) ** 2 + chain.covariance[i, i])


def test_noiseless_separable_potential_is_recovered() -> None:
    chain, rng = Chain(0.0, 0.0), np.random.default_rng(1)
    samples = chain.samples(2000, rng, noise=np.full(3, 1e-3))
    potential = fit_coarse_potential(basis_of(samples.b), surface(1e-3), samples)
    s, b = samples.s, samples.b
    central = np.all(np.abs(b - CENTRE) < 4 * SD, axis=1)
    exact = chain.energy(s, b) + potential.basis.log_jacobian(b)
    deviation = (potential.values(s, b) / potential.kT - exact)[central]
    assert np.std(deviation) < 0.01
    assert potential.residual.energy_rms == pytest.approx(0.1, rel=0.2)  # the noise put on A
    assert potential.residual.surface_rms < 0.01


def test_covariance_is_calibrated() -> None:
    """z-scores of noisy repeats: the mean of z^2 is 1 within 4 of its standard errors, each below 0.15."""
    chain, settings = Chain(0.0, 0.0), FitSettings(surface_tolerance_kT=1e-3, term_roughness_kT=50.0, energy_weight=0.0)
    r = [np.linspace(c - 2.5 * s, c + 2.5 * s, 7) for c, s in zip(CENTRE, SD, strict=True)]
    truth = [
        (0.5 * ((x - c) / s) ** 2 + jac(x))
        for x, c, s, jac in zip(r, CENTRE, SD, (lambda x: 2 * np.log(x), lambda x: np.log(np.sin(x))), strict=True)
    ]
    z2: dict[str, list[float]] = {"grid": [], "bond": [], "angle": []}
    reference = chain.samples(4000, np.random.default_rng(2), noise=NOISE)
    basis = basis_of(reference.b)
    for seed in range(150):
        rng = np.random.default_rng(100 + seed)
        samples = chain.samples(600, rng, noise=NOISE)
        potential = fit_coarse_potential(basis, surface(0.1, 0.1 * rng.normal(size=GRID)), samples, settings)
        for i, name in ((0, "bond"), (1, "angle")):
            design = basis.terms[i].design(r[i]).toarray()
            z2[name].append(_mean_z2(potential, design, i + 1, truth[i]))
        design = basis.torsions.design(AXIS[::3, None]).toarray()
        z2["grid"].append(_mean_z2(potential, design, 0, free_energy(AXIS[::3])))
    for name, values in z2.items():
        error = np.std(values) / math.sqrt(len(values))
        assert error < 0.15
        assert abs(np.mean(values) - 1.0) < 4 * error, name


def _mean_z2(potential: CoarsePotential, design: FloatArray, block: int, truth: FloatArray) -> float:
    """Mean squared z-score of differences to the first point: a potential has no zero."""
    where = potential.basis.blocks[block]
    contrast = design[1:] - design[0]
    difference = contrast @ potential.coefficients[where] - (truth[1:] - truth[0])
    variance = np.einsum("rp,pq,rq->r", contrast, potential.covariance[where, where], contrast)
    return float(np.mean(difference**2 / variance))


def test_marginals_of_a_non_separable_system_are_exact() -> None:
    """Correlated b whose mean moves with s: one-dimensional marginals within 4 standard errors of the exact ones."""
    chain, rng = Chain(1.0, 0.7), np.random.default_rng(3)
    samples = chain.samples(20000, rng, noise=NOISE)
    potential = fit_coarse_potential(basis_of(samples.b), surface(), samples)
    n_eff = 1.0 / np.sum(samples.omega**2)
    for i in range(2):
        mean, variance = moments(potential, i)
        exact_mean, exact_variance = exact_moments(chain, i)
        # A shift of a force by d moves the mean by d * variance; the force scatters by its rms residual.
        error = potential.residual.force_rms[1 + i] / math.sqrt(n_eff) * exact_variance
        assert abs(mean - exact_mean) < 4 * error
        relative = 2 * potential.residual.force_rms[1 + i] * math.sqrt(exact_variance / n_eff)
        assert abs(variance / exact_variance - 1) < 4 * relative
    deviation = potential.grid(GRID) / potential.kT - (free_energy(AXIS) - free_energy(AXIS).min())
    assert np.std(deviation) < 0.05


def test_without_boltzmann_weights_the_marginals_are_wrong() -> None:
    """The same rows, unweighted: the test above is able to fail."""
    chain, rng = Chain(1.0, 0.7), np.random.default_rng(3)
    samples = chain.samples(20000, rng, noise=NOISE, weighted=False)
    potential = fit_coarse_potential(basis_of(samples.b), surface(), samples)
    mean, _ = moments(potential, 0)
    exact_mean, exact_variance = exact_moments(chain, 0)
    assert abs(mean - exact_mean) > 0.1 * math.sqrt(exact_variance)


@pytest.fixture(scope="module")
def potential() -> CoarsePotential:
    samples = Chain(0.5, 0.3).samples(3000, np.random.default_rng(4), noise=NOISE)
    return fit_coarse_potential(basis_of(samples.b), surface(), samples)


def test_gradients_are_those_of_the_values(potential: CoarsePotential) -> None:
    rng = np.random.default_rng(5)
    s, b = rng.uniform(-math.pi, math.pi, (50, 1)), CENTRE + 8 * SD * rng.normal(size=(50, 2))  # walls too
    q, gradient = np.column_stack([s, b]), potential.gradients(s, b)
    for i, step in enumerate((1e-6, 1e-8, 1e-6)):
        shift = step * np.eye(3)[i]
        up, down = (potential.values((q + k * shift)[:, :1], (q + k * shift)[:, 1:]) for k in (1, -1))
        np.testing.assert_allclose((up - down) / (2 * step), gradient[:, i], rtol=1e-4, atol=1e-3 / step * 1e-7)


def test_walls_rise_on_both_sides(potential: CoarsePotential) -> None:
    for i, term in enumerate(potential.basis.terms):
        top = 0.5 if term.coordinate.kind == "bond" else math.pi
        below, above = np.linspace(term.lo, 0.0, 300), np.linspace(term.hi, top, 300)
        for x, sign in ((below, -1.0), (above, 1.0)):
            value, slope = potential.term_table(i, x)
            assert (np.diff(value) > 0).all()
            stiffness = np.diff(sign * slope) / np.abs(np.diff(x)) / potential.kT
            assert (stiffness > 0.999 * term.min_curvature).all()


def test_sampling_follows_the_stated_density(potential: CoarsePotential) -> None:
    """Chi-square of s and of each b against bin masses by quadrature; a right sampler fails once in 10^4."""
    s, b = potential.sample(40000, seed=6)
    assert (s >= -math.pi).all()
    assert (s < math.pi).all()
    edges = np.linspace(-math.pi, math.pi, 41)
    fine = (edges[:-1, None] + (np.arange(50) + 0.5) * (edges[1] - edges[0]) / 50).reshape(-1, 1)
    mass = np.exp(potential.log_density_s(fine)).reshape(40, 50).mean(axis=1) * (edges[1] - edges[0])
    assert mass.sum() == pytest.approx(1.0, abs=1e-6)
    assert stats.chisquare(np.histogram(s[:, 0], edges)[0], mass / mass.sum() * len(s)).pvalue > 1e-4
    for i in range(2):
        x, log_p = potential.term_density(i)
        cumulative = np.concatenate([[0.0], np.cumsum(np.exp(log_p[1:] / 2 + log_p[:-1] / 2) * np.diff(x))])
        assert stats.kstest(np.interp(b[:, i], x, cumulative), "uniform").pvalue > 1e-4


def test_raised_temperature_draws_carry_their_density(potential: CoarsePotential) -> None:
    """Reweighting draws at three times the temperature gives the mean of cos(s) at one, within 4 standard errors."""
    s = potential.sample_s(20000, seed=7, temperature_factor=3.0)
    ratio = np.exp(potential.log_density_s(s) - potential.log_density_s(s, 3.0))
    assert ratio.mean() == pytest.approx(1.0, abs=4 * ratio.std() / math.sqrt(len(s)))
    fine = np.linspace(-math.pi, math.pi, 2000, endpoint=False)[:, None]
    exact = np.average(np.cos(fine[:, 0]), weights=np.exp(potential.log_density_s(fine)))
    terms = ratio * (np.cos(s[:, 0]) - exact)
    assert abs(terms.mean()) < 4 * terms.std() / math.sqrt(len(s))


def test_two_torsions_are_sampled_jointly() -> None:
    basis = SeparableBasis((), TorsionGrid(("phi", "psi"), 24))
    axis = -math.pi + np.arange(48) * 2 * math.pi / 48
    mesh = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    c = np.linalg.lstsq(basis.torsions.design(mesh).toarray(), 6 * np.cos(mesh[:, 0] - mesh[:, 1]), rcond=None)[0]
    residual = FitResidual(np.zeros(2), np.zeros(2), math.nan, 0.0, 0)
    potential = CoarsePotential(basis, c, np.zeros((c.size, c.size)), 300.0, residual)
    s = potential.sample_s(20000, seed=8)
    counts, _, _ = np.histogram2d(s[:, 0], s[:, 1], bins=12, range=[[-math.pi, math.pi]] * 2)
    fine = -math.pi + (np.arange(240) + 0.5) * 2 * math.pi / 240
    points = np.stack(np.meshgrid(fine, fine, indexing="ij"), axis=-1).reshape(-1, 2)
    mass = np.exp(potential.log_density_s(points)).reshape(12, 20, 12, 20).sum(axis=(1, 3))
    expected = mass / mass.sum() * len(s)
    many = expected > 5
    chi2 = np.sum((counts - expected)[many] ** 2 / expected[many])
    assert stats.chi2.sf(chi2, many.sum() - 1) > 1e-4


def test_unknown_bins_are_counted_and_bridged() -> None:
    """No value in a tenth of the bins: the surface there is smooth and finite, and the record says how many."""
    samples = Chain(0.0, 0.0).samples(1000, np.random.default_rng(10), noise=NOISE)
    holed = surface()
    f, error = holed.f.copy(), holed.error.copy()
    f[4:7], error[4:7] = np.inf, np.nan
    holed = dataclasses.replace(holed, f=f, error=error)
    potential = fit_coarse_potential(basis_of(samples.b), holed, samples)
    assert potential.residual.unknown_bins == 3
    grid = potential.grid(GRID) / potential.kT
    assert np.abs(grid - (free_energy(AXIS) - free_energy(AXIS).min())).max() < 0.5


def test_draws_become_samples_with_bias_removed() -> None:
    """Log-normal weights: A from K draws, corrected, averages to its exact value within 4 standard errors."""
    rng, sigma, m, k = np.random.default_rng(11), 0.3, 4000, 50
    draws = WeightedDraws(
        s=np.zeros((m, 1)),
        log_w=sigma * rng.normal(size=(m, k)) - 0.5 * sigma**2 - 2.0,  # Z = exp(-2), A = 2
        log_rho=np.zeros(m),
        evaluations=m * k,
        b=np.tile(CENTRE, (m, 1)),
        gradient=np.zeros((m, 3)),
        gradient_error=np.ones((m, 3)),
    )
    samples = BeadSamples.from_draws(draws, np.zeros(m))
    assert samples.energy is not None
    assert samples.energy_error is not None
    error = samples.energy.std() / math.sqrt(m)
    assert abs(samples.energy.mean() - 2.0) < 4 * error + 2e-5  # next order of the bias: (chi^2 / K)^2
    assert samples.energy_error.mean() == pytest.approx(samples.energy.std(), rel=0.1)
    with pytest.raises(SettingsError):
        BeadSamples.from_draws(dataclasses.replace(draws, b=None), np.zeros(m))


def test_file_round_trip_and_bad_files(potential: CoarsePotential, tmp_path: Path) -> None:
    path = tmp_path / "potential.npz"
    potential.save(path)
    again = CoarsePotential.load(path)
    assert again.basis == potential.basis
    np.testing.assert_array_equal(again.coefficients, potential.coefficients)
    np.testing.assert_array_equal(again.residual.force_rms, potential.residual.force_rms)
    assert [p.name for p in tmp_path.iterdir()] == ["potential.npz"]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError):
        CoarsePotential.load(path)
    with pytest.raises(CheckpointError):
        CoarsePotential.load(tmp_path / "absent.npz")


def test_bad_rows_are_named(potential: CoarsePotential) -> None:
    samples = Chain(0.0, 0.0).samples(100, np.random.default_rng(12), noise=NOISE)
    gradient = samples.gradient.copy()
    gradient[3, 1] = np.nan
    with pytest.raises(SettingsError, match="1 values of gradient are not finite"):
        fit_coarse_potential(potential.basis, surface(), dataclasses.replace(samples, gradient=gradient))
    with pytest.raises(SettingsError, match="log_weight of shape"):
        fit_coarse_potential(potential.basis, surface(), dataclasses.replace(samples, log_weight=np.zeros(3)))
    with pytest.raises(SettingsError, match="temperature factor"):
        potential.sample_s(3, 1, temperature_factor=-1.0)
