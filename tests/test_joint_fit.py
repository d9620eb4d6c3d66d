"""The joint surface fit: right, calibrated, better than bins, and honest where it knows nothing."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2 as chi2_law
from systems import TorusSurface

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.estimators import exp_estimate
from ccg_gmx.free_energy.fourier import FourierBasis
from ccg_gmx.free_energy.joint_fit import (
    JointFitSettings,
    PointEstimates,
    SurfaceFit,
    block_errors,
    fit_surface,
    jackknife,
)
from ccg_gmx.free_energy.surface import Basin, delta_f, forward_kl, grid, probability, rmsd_kT, shifted
from ccg_gmx.records import WeightedDraws

SYSTEM = TorusSurface()
SMALL = JointFitSettings(order=3)
A = Basin(name="A", ranges={"phi": (120, -120), "psi": (-180, 180)})
B = Basin(name="B", ranges={"phi": (-120, 120), "psi": (0, 120)})


def exact(n: int):
    return shifted(SYSTEM.f(grid(n, 2)).reshape(n, n), SYSTEM.names, SYSTEM.temperature_K)


@pytest.fixture(scope="module")
def fits() -> list[SurfaceFit]:
    return [fit_surface(SYSTEM.draws(1500, 8, np.random.default_rng(seed)), SMALL) for seed in range(100)]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_basis_and_its_gradient(dims: int) -> None:
    basis, rng = FourierBasis(2, dims), np.random.default_rng(0)
    s, c = rng.uniform(-np.pi, np.pi, (7, dims)), rng.normal(size=basis.size)
    h = 1e-5
    for axis in range(dims):
        step = h * np.eye(dims)[axis]
        slope = (basis.design(s + step) - basis.design(s - step)) @ c / (2 * h)
        np.testing.assert_allclose(basis.gradient(s, c)[:, axis], slope, atol=1e-7)
    np.testing.assert_allclose(basis.on_grid(5, c).ravel(), basis.design(grid(5, dims)) @ c)
    np.testing.assert_allclose(basis.grid_design(5), basis.design(grid(5, dims)), atol=1e-13)
    # Orthogonal on a grid that resolves it, so no function is there twice.
    gram = basis.grid_design(5).T @ basis.grid_design(5)
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-9)
    assert basis.wave_number()[0] == 0
    assert basis.wave_number().max() == pytest.approx(2 * np.sqrt(dims))


def test_absolute_values_and_gradient(fits: list[SurfaceFit]) -> None:
    s = np.random.default_rng(1).uniform(-np.pi, np.pi, (50, 2))
    low = SYSTEM.f(s) < -3
    assert np.abs(fits[0].values(s) - SYSTEM.f(s))[low].max() < 0.2
    assert np.abs(fits[0].gradient(s) - SYSTEM.gradient(s))[low].max() < 0.5


def test_errors_are_calibrated(fits: list[SurfaceFit]) -> None:
    n = 12
    reference = exact(n)
    p = probability(reference)
    z2 = []
    for fit in fits:
        surface = fit.surface(n, SYSTEM.names, SYSTEM.temperature_K)
        difference = surface.f - reference.f
        z2.append(((difference - (p * difference).sum()) / surface.error) ** 2)
    mean = np.mean(z2)
    # Bins of a surface are correlated: the spread of the mean comes from the 100 independent surfaces.
    spread = np.mean(z2, axis=(1, 2)).std() / np.sqrt(len(fits))
    assert mean == pytest.approx(1, abs=4 * spread)
    assert spread < 0.04
    np.testing.assert_allclose(fits[0].errors(grid(n, 2)), fits[0].surface(n, SYSTEM.names, 300.0).error.ravel())


def test_no_logarithm_bias_with_two_draws_per_point() -> None:
    """With K = 2 the bias of -ln mean w is of order one kT; averaging it over points cannot remove it."""
    rng, n = np.random.default_rng(3), 12
    low = exact(n).f < 4
    offsets, naive = [], []
    for _ in range(20):
        draws = SYSTEM.draws(3000, 2, rng)
        fit = fit_surface(draws, SMALL)
        offsets.append((fit.values(grid(n, 2)) - SYSTEM.f(grid(n, 2))).reshape(n, n)[low].mean())
        naive.append((exp_estimate(draws.log_w).f - SYSTEM.f(draws.s)).mean())
    assert np.mean(naive) > 0.3
    assert abs(np.mean(offsets)) < 4 * np.std(offsets) / np.sqrt(20)
    assert np.std(offsets) / np.sqrt(20) < 0.01


def test_delta_f_is_calibrated(fits: list[SurfaceFit]) -> None:
    truth = delta_f(exact(100), A, B)
    z = []
    for fit in fits:
        value, error = fit.delta_f(A, B)
        z.append((value - truth) / error)
        assert error < 0.1
    tail = chi2_law.ppf([5e-5, 1 - 5e-5], len(z)) / len(z)
    assert tail[0] < np.mean(np.square(z)) < tail[1]
    points = grid(100, 2)
    by_mask = fits[0].delta_f(A.mask(points, SYSTEM.names).reshape(100, 100), B.mask(points, SYSTEM.names))
    assert by_mask == pytest.approx(fits[0].delta_f(A, B))


def test_beats_bins_and_falls_with_the_number_of_draws() -> None:
    rng, n = np.random.default_rng(4), 20
    draws = SYSTEM.draws(4000, 8, rng)
    fit = fit_surface(draws, SMALL).surface(n, SYSTEM.names, SYSTEM.temperature_K)
    cell = np.floor((draws.s + np.pi) / (2 * np.pi / n) + 0.5).astype(int) % n
    total = np.zeros((n, n))
    np.add.at(total, tuple(cell.T), np.exp(draws.log_w).mean(axis=1))
    counts = np.zeros((n, n))
    np.add.at(counts, tuple(cell.T), 1)
    bins = shifted(-np.log(total / counts), SYSTEM.names, SYSTEM.temperature_K)
    assert forward_kl(exact(n), fit) < 0.1 * forward_kl(exact(n), bins)
    assert rmsd_kT(exact(n), fit) < 0.06


def test_sandwich_agrees_with_the_block_jackknife(fits: list[SurfaceFit]) -> None:
    draws = SYSTEM.draws(1500, 8, np.random.default_rng(0))
    stated = fits[0].surface(12, SYSTEM.names, 300.0).error
    blocked = block_errors(draws, 12, SMALL, blocks=20)
    assert np.median(blocked / stated) == pytest.approx(1, abs=0.2)
    error = jackknife(draws, lambda fit: np.array(fit.delta_f(A, B)[0]), SMALL, blocks=20)
    # 20 blocks know an error to 1 / sqrt(38) = 16 %.
    assert error == pytest.approx(fits[0].delta_f(A, B)[1], rel=0.6)


def test_lack_of_fit_is_one_when_the_basis_suffices_and_rises_when_not(fits: list[SurfaceFit]) -> None:
    values = np.array([fit.lack_of_fit for fit in fits])
    assert values.mean() == pytest.approx(1, abs=4 * values.std() / 10)
    draws = SYSTEM.draws(1500, 64, np.random.default_rng(5))
    poor = fit_surface(draws, JointFitSettings(order=1))
    assert poor.lack_of_fit > 3
    assert fit_surface(draws, SMALL).lack_of_fit < 1.2


def test_no_draws_no_confidence() -> None:
    draws = SYSTEM.draws(3000, 8, np.random.default_rng(6))
    here = np.abs(draws.s[:, 0]) > 1.0
    fit = fit_surface(PointEstimates.of(draws).take(here), JointFitSettings(order=6))
    s = np.array([[0.0, 0.5], [3.0, 0.5]])
    assert fit.errors(s)[0] > 10 * fit.errors(s)[1]
    assert abs(fit.values(s)[0] - SYSTEM.f(s)[0]) < 4 * fit.errors(s)[0]


def test_weightless_points_count() -> None:
    rng = np.random.default_rng(7)
    draws = SYSTEM.draws(3000, 8, rng)
    half = draws.log_w.copy()
    half[rng.random(3000) < 0.5] = -np.inf  # every other point finds nothing: Z is half as large
    fit = fit_surface(WeightedDraws(draws.s, half, draws.log_rho, draws.evaluations), SMALL)
    s = grid(12, 2)
    low = SYSTEM.f(s) < -3
    assert (fit.values(s) - SYSTEM.f(s))[low].mean() == pytest.approx(np.log(2), abs=0.1)


def test_several_flows_with_different_draws_per_point_and_an_offset() -> None:
    rng = np.random.default_rng(8)
    records = [SYSTEM.draws(800, 4, rng), SYSTEM.draws(1200, 16, rng)]
    fit = fit_surface(records, SMALL)
    assert fit.points == 2000
    shift = [WeightedDraws(r.s, r.log_w + 1000.0, r.log_rho, r.evaluations) for r in records]
    np.testing.assert_allclose(
        fit_surface(shift, SMALL).values(records[0].s), fit.values(records[0].s) - 1000, atol=1e-6
    )


def lognormal_draws(points: int, K: int, chi2: float, rng: np.random.Generator) -> WeightedDraws:
    """Draws of a flow of that relative variance, with the heavy tail that real weights have and gamma weights lack."""
    s = rng.uniform(-np.pi, np.pi, (points, 2))
    sigma2 = np.log(1 + chi2 * (1 + 0.5 * np.cos(s[:, 0])))[:, None]
    log_w = np.sqrt(sigma2) * rng.standard_normal((points, K)) - sigma2 / 2 - SYSTEM.f(s)[:, None]
    return WeightedDraws(s, log_w, np.full(points, -2 * np.log(2 * np.pi)), points * K)


def test_turns_are_combined() -> None:
    """An early bad flow (chi^2 = 30) beside a late good one: no worse than the good one alone, and calibrated.

    Its 16 draws cannot show chi^2 / K = 2. One noise model for both records would give them a shared weight.
    """
    n, repeats = 12, 30
    reference = exact(n)
    p = probability(reference)
    squares, z2 = {"good": [], "both": [], "one model": []}, []
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        bad, good = lognormal_draws(1500, 16, 30.0, rng), lognormal_draws(1500, 16, 1.0, rng)
        both = PointEstimates.of([bad, good])
        assert both.record.tolist() == [0] * 1500 + [1] * 1500
        cases = {"good": good, "both": both, "one model": replace(both, record=np.zeros(3000, dtype=np.int64))}
        for name, draws in cases.items():
            surface = fit_surface(draws, SMALL).surface(n, SYSTEM.names, SYSTEM.temperature_K)
            difference = surface.f - reference.f
            difference -= (p * difference).sum()
            squares[name].append((p * difference**2).sum())
            if name == "both":
                z2.append(np.mean((difference / surface.error) ** 2))
    gain = np.array(squares["good"]) - np.array(squares["both"])
    assert gain.mean() > 2 * gain.std() / np.sqrt(repeats)
    assert np.mean(squares["one model"]) > 3 * np.mean(squares["both"])
    assert np.mean(z2) == pytest.approx(1, abs=4 * np.std(z2) / np.sqrt(repeats))
    assert np.std(z2) / np.sqrt(repeats) < 0.06


def test_records_of_the_same_quality_lose_nothing() -> None:
    """Splitting draws into records must not change the fit beyond a small part of its error."""
    draws = SYSTEM.draws(3000, 8, np.random.default_rng(11))
    parts = [
        WeightedDraws(draws.s[rows], draws.log_w[rows], draws.log_rho[rows], 8000)
        for rows in (slice(0, 1000), slice(1000, 2000), slice(2000, 3000))
    ]
    whole, split = fit_surface(draws, SMALL), fit_surface(parts, SMALL)
    s = grid(12, 2)
    low = SYSTEM.f(s) < -3
    move = ((whole.values(s) - split.values(s)) / whole.errors(s))[low]
    assert np.sqrt(np.mean(move**2)) < 0.2
    np.testing.assert_allclose(split.errors(s)[low], whole.errors(s)[low], rtol=0.1)


def test_one_torsion() -> None:
    rng = np.random.default_rng(9)
    s = rng.uniform(-np.pi, np.pi, (400, 1))
    log_w = -2 * np.cos(s) + np.log(rng.gamma(2.0, 0.5, (400, 8)))
    surface = fit_surface(WeightedDraws(s, log_w, np.zeros(400), 3200), SMALL).surface(36, ("phi",), 300.0)
    assert rmsd_kT(shifted(2 * np.cos(grid(36, 1)[:, 0]), ("phi",), 300.0), surface) < 0.1


def test_save_and_load(fits: list[SurfaceFit], tmp_path: Path) -> None:
    fits[0].save(tmp_path / "fit.npz")
    back = SurfaceFit.load(tmp_path / "fit.npz")
    s = grid(5, 2)
    np.testing.assert_array_equal(back.values(s), fits[0].values(s))
    np.testing.assert_array_equal(back.errors(s), fits[0].errors(s))
    assert (back.points, back.lack_of_fit) == (1500, fits[0].lack_of_fit)
    draws = TorusSurface().draws(300, 4, np.random.default_rng(0))
    three = WeightedDraws(np.c_[draws.s, draws.s[:, 0]], draws.log_w, draws.log_rho, 1200)
    fit = fit_surface(three, JointFitSettings(order=2, pair_order=1, triple_order=0))
    fit.save(tmp_path / "three.npz")
    back = SurfaceFit.load(tmp_path / "three.npz")
    assert back.basis.limits == (2, 1, 0)
    np.testing.assert_array_equal(back.gradient(three.s), fit.gradient(three.s))


def test_orders_by_number_of_torsions() -> None:
    settings = JointFitSettings()
    assert (settings.limits(1), settings.limits(2)) == ((8,), (8, 8))
    assert settings.limits(3)[:3] == (8, 6, 2)
    assert FourierBasis(8, 4, settings.limits(4)).size == 1201


def test_refusals() -> None:
    draws = SYSTEM.draws(100, 4, np.random.default_rng(0))
    with pytest.raises(CcgError, match="weight"):
        fit_surface(WeightedDraws(draws.s, np.full((100, 4), -np.inf), draws.log_rho, 400), SMALL)
    with pytest.raises(CcgError, match="fixed beads"):
        fit_surface(WeightedDraws(draws.s, draws.log_w, draws.log_rho, 400, b=np.zeros((100, 7))), SMALL)
    with pytest.raises(CcgError, match="did not converge"):
        fit_surface(draws, JointFitSettings(order=3, max_iterations=1))


def test_size_of_a_real_problem_is_quick() -> None:
    draws = SYSTEM.draws(6000, 32, np.random.default_rng(0))
    start = time.process_time()
    fit_surface(draws)
    assert time.process_time() - start < 10, "about 0.5 s on an idle core"


def test_four_torsions_fit_in_seconds_and_little_memory() -> None:
    """1201 functions at 5000 points; 40 000 points take eight times as long."""
    rng = np.random.default_rng(0)
    s = rng.uniform(-np.pi, np.pi, (5000, 4))
    log_w = -2 * np.cos(s - 1).sum(axis=1, keepdims=True) + rng.standard_normal((5000, 16)) - 0.5
    tracemalloc.start()
    start = time.process_time()
    fit = fit_surface(WeightedDraws(s, log_w, np.zeros(5000), log_w.size))
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fit.basis.size == 1201
    assert seconds < 20, "about 2 s on an idle core"
    assert peak < 3.5 * 8 * 5000 * 1201, "the design matrix, a few blocks and P x P matrices"
    assert np.sqrt(np.mean((fit.values(s) - 2 * np.cos(s - 1).sum(axis=1)) ** 2)) < 0.3


def test_one_point_far_off_the_others_is_no_breakdown() -> None:
    # As of an untrained flow: at the first step the Hessian is singular in double precision.
    rng = np.random.default_rng(1)
    s = rng.uniform(-np.pi, np.pi, (64, 2))
    log_w = rng.normal(0, 3, (64, 64)) + 12 * rng.normal(size=(64, 1))
    log_w[0] -= 400
    fit = fit_surface(WeightedDraws(s, log_w, np.zeros(64), log_w.size), JointFitSettings(order=4))
    assert np.isfinite(fit.coefficients).all()
    assert np.isfinite(fit.covariance).all()
