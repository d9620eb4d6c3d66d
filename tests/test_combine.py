"""Combination of independent surfaces: right weights, calibrated errors, and a test of agreement that is one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest
from systems import TorusLadder

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.combine import Agreement, combine_fits, combine_surfaces, error_with_members
from ccg_gmx.free_energy.joint_fit import JointFitSettings, SurfaceFit, fit_surface
from ccg_gmx.free_energy.surface import grid, probability, shifted
from ccg_gmx.records import FloatArray, FreeEnergySurface

SYSTEM = TorusLadder(widen=1.85)
SETTINGS = JointFitSettings(order=2)
N = 24
EXACT = shifted(SYSTEM.f(grid(N, 2)).reshape(N, N), ("phi", "psi"), 300.0)
P = probability(EXACT)


def fit(points: int, seed: int) -> SurfaceFit:
    return fit_surface(SYSTEM.draws(points, 16, seed), SETTINGS)


@pytest.fixture(scope="module")
def triples() -> list[tuple[list[SurfaceFit], SurfaceFit, Agreement]]:
    """One turn with 300 points, one with 300 more and a last one with 900, a hundred times."""
    out = []
    for repeat in range(100):
        fits = [fit(points, 10 * repeat + i) for i, points in enumerate((300, 300, 900))]
        out.append((fits, *combine_fits(fits)))
    return out


def centred(f: FloatArray) -> FloatArray:
    """f relative to its Boltzmann mean, minus the exact one."""
    difference = f - EXACT.f
    return difference - (P * difference).sum()


def test_combined_fit_is_calibrated_and_better_than_its_parts(triples) -> None:
    covered, own, squares = [], [], []
    for fits, combined, _ in triples:
        surface = combined.surface(N, EXACT.names, 300.0)
        off = centred(surface.f)
        covered.append((np.abs(off) < 1.96 * surface.error).mean())
        squares.append((P * off**2).sum())
        own.append((P * centred(fits[2].surface(N, EXACT.names, 300.0).f) ** 2).sum())
    # The bins of one surface are correlated: a hundred surfaces know their mean coverage to about 1.5 %.
    assert 0.92 < np.mean(covered) < 0.98
    # 1500 points in all against the 900 of the best part: a variance 0.6 times as large.
    assert np.mean(squares) == pytest.approx(0.6 * np.mean(own), rel=0.25)
    assert triples[0][1].points == 1500


def test_p_value_of_fits_is_uniform_and_finds_a_shifted_fit(triples) -> None:
    p = np.array([agreement.p_value for _, _, agreement in triples])
    assert kstest(p, "uniform").pvalue > 0.01
    found = []
    for fits, _, _ in triples[:20]:
        moved = fits[0].coefficients.copy()
        moved[1] += 0.5  # 0.5 cos psi, four times the error of this fit
        combined, agreement = combine_fits([replace(fits[0], coefficients=moved), *fits[1:]])
        found.append(not agreement.agree)
        if found[-1]:
            assert "do not agree" in agreement.words()
            assert agreement.excess > 1
            honest = combine_fits(fits)[0].errors(np.zeros((1, 2)))
            assert combined.errors(np.zeros((1, 2))) > 1.2 * honest
    assert np.mean(found) > 0.9


def test_constant_between_fits_is_no_disagreement(triples) -> None:
    fits, combined, agreement = triples[0]
    lifted = [replace(part, coefficients=part.coefficients + 7.0 * (np.arange(25) == 0)) for part in fits]
    again, same = combine_fits([lifted[0], *fits[1:]])
    assert same.p_value == pytest.approx(agreement.p_value)
    np.testing.assert_allclose(again.coefficients[1:], combined.coefficients[1:])
    assert "agree" in agreement.words()


def test_fits_that_cannot_be_combined(triples) -> None:
    fits = triples[0][0]
    with pytest.raises(CcgError, match="at least two fits"):
        combine_fits(fits[:1])
    with pytest.raises(CcgError, match="same basis"):
        combine_fits([fits[0], fit_surface(SYSTEM.draws(300, 16, 0), JointFitSettings(order=1))])


def test_three_torsions() -> None:
    rng, fits = np.random.default_rng(0), []
    for _ in range(2):
        s = rng.uniform(-np.pi, np.pi, (2000, 3))
        f = np.cos(s).sum(axis=1)[:, None]
        draws = SYSTEM.draws(1, 2, 0)
        log_w = np.log(rng.gamma(2.0, 0.5, (2000, 8))) - f
        fits.append(fit_surface(replace(draws, s=s, log_w=log_w, log_rho=np.zeros(2000)), JointFitSettings(order=1)))
    combined, agreement = combine_fits(fits)
    assert agreement.p_value > 1e-3
    at = rng.uniform(-np.pi, np.pi, (500, 3))
    assert combined.errors(at).mean() == pytest.approx(fits[0].errors(at).mean() / np.sqrt(2), rel=0.1)


# Grids


def noisy(rng: np.random.Generator, scale: float, offset: float) -> FreeEnergySurface:
    error = scale * np.exp(EXACT.f / 6)
    return FreeEnergySurface(EXACT.f + offset + error * rng.standard_normal((N, N)), error, EXACT.names, 300.0)


def test_combined_grid_is_calibrated_and_its_p_value_uniform() -> None:
    rng, p, covered = np.random.default_rng(1), [], []
    for _ in range(200):
        combined, agreement = combine_surfaces([noisy(rng, 0.05, 0.0), noisy(rng, 0.1, 3.0), noisy(rng, 0.1, -2.0)])
        p.append(agreement.p_value)
        off = combined.f - EXACT.f
        weight = combined.error**-2
        off = off - (weight * off).sum() / weight.sum()
        covered.append((np.abs(off) < 1.96 * combined.error).mean())
    assert kstest(p, "uniform").pvalue > 0.01
    assert np.mean(covered) == pytest.approx(0.95, abs=0.005)
    np.testing.assert_allclose(combined.error, 0.05 * np.exp(EXACT.f / 6) / np.sqrt(1.5))


def test_bins_that_one_grid_does_not_know_come_from_the_others() -> None:
    rng = np.random.default_rng(2)
    parts = [noisy(rng, 0.01, 0.0), noisy(rng, 0.01, 5.0)]
    for part, rows in zip(parts, (slice(0, 8), slice(16, 20)), strict=True):
        part.f[rows], part.error[rows] = np.inf, np.nan
    parts[0].f[20:], parts[0].error[20:] = np.inf, np.nan
    parts[1].f[20:22], parts[1].error[20:22] = np.inf, np.nan
    combined, agreement = combine_surfaces(parts)
    assert np.isinf(combined.f[20:22]).all()
    assert np.isnan(combined.error[20:22]).all()
    known = np.isfinite(combined.f)
    assert known.sum() == 22 * N
    off = (combined.f - EXACT.f)[known] - (combined.f - EXACT.f)[10, 0]
    assert np.abs(off / (0.05 + EXACT.f[known] / 20)).max() < 4
    assert agreement.degrees_of_freedom == 8 * N - 1


def test_grids_that_differ_are_found_and_the_error_says_so() -> None:
    rng = np.random.default_rng(3)
    parts = [noisy(rng, 0.05, 0.0), noisy(rng, 0.05, 1.0)]
    parts[1].f[:12] += 0.5
    combined, agreement = combine_surfaces(parts)
    assert agreement.p_value < 1e-6
    assert combined.error.mean() == pytest.approx(agreement.excess * parts[0].error.mean() / np.sqrt(2))


def test_grids_that_cannot_be_combined() -> None:
    rng = np.random.default_rng(4)
    parts = [noisy(rng, 0.05, 0.0), noisy(rng, 0.05, 1.0)]
    with pytest.raises(CcgError, match="at least two"):
        combine_surfaces([parts[0], replace(parts[1], temperature_K=310.0)])
    parts[0].error[:12], parts[1].error[12:] = np.nan, np.nan
    with pytest.raises(CcgError, match="too few bins in common"):
        combine_surfaces(parts)


# Members


def test_error_with_members_by_hand() -> None:
    assert error_with_members(0.3, [1.0]) == 0.3
    assert error_with_members(0.3, [1.0, 1.1, 0.9]) == 0.3
    assert error_with_members(0.01, [1.0, 1.1, 0.9]) == pytest.approx(0.1 / np.sqrt(3) * 4.30265 / 1.95996, rel=1e-5)


@pytest.mark.parametrize("own", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("members", [3, 5])
def test_error_with_members_covers_whatever_the_members_own_errors_are(members: int, own: float) -> None:
    """``own``: standard deviation of what is peculiar to a member, its sampling noise being 1."""
    rng = np.random.default_rng(members)
    values = rng.normal(0, np.hypot(1, own), (2000, members))
    errors = np.array([error_with_members(members**-0.5, row) for row in values])
    covered = (np.abs(values.mean(axis=1)) < 1.96 * errors).mean()
    assert 0.92 < covered < 0.98
