"""Surfaces of frames of known densities on the torus, with and without a bias; minima and passes of known maps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.bootstrap import BootstrapSettings
from ccg_gmx.free_energy.frames import FrameSettings, FrameSurface, frame_surface
from ccg_gmx.free_energy.minima import barriers, minima
from ccg_gmx.free_energy.surface import Basin, grid, histogram_surface, probability, shifted

LEFT, RIGHT = (Basin(name=n, ranges={"phi": r}) for n, r in (("left", (-180, 0)), ("right", (0, 180))))
SETTINGS = FrameSettings(bins=24, bootstrap=BootstrapSettings(resamples=100))


def energy(phi: np.ndarray) -> np.ndarray:
    """Two wells in kT, at -90 and +90 degrees, the right one higher."""
    return -1.5 * np.cos(2 * (phi - np.pi / 2)) - 0.6 * np.sin(phi)


def walk(u: object, frames: int, rng: np.random.Generator, step: float = 1.5) -> np.ndarray:
    """Metropolis walk on the circle: correlated frames of exp(-u)."""
    moves, tests = rng.uniform(-step, step, frames), np.log(rng.random(frames))
    out, phi = np.empty(frames), float(rng.uniform(-np.pi, np.pi))
    here = u(phi)  # type: ignore[operator]
    for k in range(frames):
        there = u(phi + moves[k])  # type: ignore[operator]
        if tests[k] < here - there:
            phi, here = (phi + moves[k] + np.pi) % (2 * np.pi) - np.pi, there
        out[k] = phi
    return out


def exact_bins(n: int) -> np.ndarray:
    """``[n]`` probability of each bin, integrated over it."""
    fine = -np.pi + 2 * np.pi * (np.arange(200 * n) + 0.5) / (200 * n) - np.pi / n
    p = np.exp(-energy(fine)).reshape(n, 200).sum(axis=1)
    return p / p.sum()


def exact_difference() -> float:
    phi = (np.arange(20_000) + 0.5) * np.pi / 20_000
    return float(np.log(np.exp(-energy(-phi)).sum() / np.exp(-energy(phi)).sum()))


def half_bias(phi: np.ndarray) -> np.ndarray:
    """A static bias that takes half of the energy away."""
    return -0.5 * energy(phi)


def test_unbiased_frames_recover_the_density_within_errors() -> None:
    s = walk(energy, 30_000, np.random.default_rng(0))[:, None]
    found = frame_surface(s, np.zeros(30_000, dtype=int), ("phi",), 300.0, settings=SETTINGS)
    z = (probability(found.surface) / exact_bins(24) - 1) / found.surface.error
    assert np.isfinite(z).all()
    # 23 free bins, errors of about 30 blocks: the limits hold in 99.8 % if bins were independent
    assert chi2.ppf(0.001, 23) / 23 * 0.5 < np.mean(z**2) < chi2.ppf(0.999, 23) / 23 * 1.5
    assert found.kish_ess == pytest.approx(30_000)
    assert found.warnings == ()
    assert found.surface.f.min() == 0


@pytest.mark.parametrize("biased", [False, True])
def test_coverage_of_the_difference_between_basins(biased: bool) -> None:
    rng, hits, repeats = np.random.default_rng(1), 0, 60
    for _ in range(repeats):
        s = walk((lambda x: energy(x) + half_bias(x)) if biased else energy, 3000, rng)[:, None]
        u_bias = half_bias(s[:, 0]) if biased else None
        run = np.zeros(3000, dtype=int)
        found = frame_surface(
            s, run, ("phi",), 300.0, u_bias=u_bias, basins=[LEFT, RIGHT],
            settings=FrameSettings(bins=12, bootstrap=BootstrapSettings(resamples=60)),
        )  # fmt: skip
        (d,) = found.differences
        # t of the typical 20 degrees of freedom
        hits += abs(d.f - exact_difference()) < 2.09 * d.error
    assert hits >= 51, "fewer than 51 of 60 at 95 % coverage has a chance of 0.1 %"


def test_a_constant_bias_is_none() -> None:
    s = walk(energy, 4000, np.random.default_rng(2))[:, None]
    run = np.zeros(4000, dtype=int)
    plain = frame_surface(s, run, ("phi",), 300.0, settings=SETTINGS)
    biased = frame_surface(s, run, ("phi",), 300.0, u_bias=np.full(4000, 700.0), settings=SETTINGS)
    np.testing.assert_allclose(biased.surface.f, plain.surface.f, atol=1e-9)
    np.testing.assert_allclose(biased.surface.error, plain.surface.error, rtol=1e-9)
    assert biased.kish_ess == pytest.approx(4000)


def test_surface_is_the_weighted_histogram() -> None:
    s = walk(energy, 2000, np.random.default_rng(3))[:, None]
    u_bias = half_bias(s[:, 0])
    found = frame_surface(s, np.zeros(2000, dtype=int), ("phi",), 310.0, u_bias=u_bias, settings=SETTINGS)
    np.testing.assert_array_equal(found.surface.f, histogram_surface(s, 24, ("phi",), 310.0, u_bias).f)
    first = histogram_surface(s[:1000], 24, ("phi",), 310.0, u_bias[:1000])
    np.testing.assert_allclose(found.halves[0].f, first.f, rtol=1e-12)


def two_torsions(frames: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([walk(energy, frames, rng), walk(lambda x: -np.cos(x), frames, rng)], axis=-1)


def test_two_torsions_with_smoothing() -> None:
    s = two_torsions(8000, 4)
    settings = FrameSettings(bins=36, kde_degrees=8.0, bootstrap=BootstrapSettings(resamples=50))
    found = frame_surface(s, np.repeat([0, 1], 4000), ("phi", "psi"), 300.0, settings=settings)
    exact = energy(grid(36, 2)[:, 0]) - np.cos(grid(36, 2)[:, 1])
    low = (exact.reshape(36, 36) - exact.min() < 3) & np.isfinite(found.surface.error)
    p = np.where(low, probability(found.surface), 0.0)
    away = np.where(low, found.surface.f - exact.reshape(36, 36), 0.0)
    z = (away - (p * away).sum() / p.sum())[low] / found.surface.error[low]
    assert low.sum() > 200
    assert 0.3 < np.mean(z**2) < 2.5  # neighbours share their noise, and the kernel flattens the wells a little


def test_three_torsions() -> None:
    s = np.concatenate([two_torsions(3000, 5), two_torsions(3000, 6)[:, :1]], axis=1)
    settings = FrameSettings(bins=10, bootstrap=BootstrapSettings(resamples=20))
    found = frame_surface(s, np.zeros(3000, dtype=int), ("a", "b", "c"), 300.0, settings=settings)
    assert found.surface.f.shape == (10, 10, 10)


def test_a_smoothed_surface_ends_near_its_frames() -> None:
    s = np.random.default_rng(0).normal(0, 0.1, size=(500, 1))
    settings = FrameSettings(bins=72, kde_degrees=5.0, bootstrap=BootstrapSettings(resamples=20))
    f = frame_surface(s, np.zeros(500, dtype=int), ("phi",), 300.0, settings=settings).surface.f
    assert np.isfinite(f[36 - 3 : 36 + 4]).all()
    assert np.isinf(f[[0, 18, 54]]).all()


def test_bins_of_one_visit_have_no_error() -> None:
    s = np.concatenate([np.random.default_rng(0).normal(0, 0.1, 999), [2.0]])[:, None]
    found = frame_surface(s, np.zeros(1000, dtype=int), ("phi",), 300.0, settings=SETTINGS)
    lonely = round((2.0 + np.pi) * 24 / (2 * np.pi))
    assert np.isfinite(found.surface.f[lonely])
    assert np.isnan(found.surface.error[lonely])
    assert np.isfinite(found.surface.error[12])


# Warnings


def made(s: np.ndarray, **more: object) -> FrameSurface:
    return frame_surface(s[:, None], np.zeros(len(s), dtype=int), ("phi",), 300.0, settings=SETTINGS, **more)


def test_collapsed_weights_are_said_in_words() -> None:
    s = walk(energy, 4000, np.random.default_rng(7))
    bias = 60 * np.cos(s - 2.9)
    found = made(s, u_bias=bias)
    assert any("weights collapse" in word for word in found.warnings)
    assert found.kish_ess < 100
    assert not any("weights" in word for word in made(s).warnings)


def test_a_drift_is_said_in_words() -> None:
    rng = np.random.default_rng(8)
    steady = made(rng.normal(0.0, 0.5, 6000))
    assert steady.warnings == ()
    drifting = made(rng.normal(0.0, 0.5, 6000) + np.linspace(-0.4, 0.4, 6000))
    assert drifting.warnings


def test_a_basin_visited_once_or_never() -> None:
    rng = np.random.default_rng(9)
    never = made(rng.normal(-1.5, 0.3, 3000), basins=[LEFT, RIGHT])
    assert never.differences[0].f == np.inf
    assert np.isnan(never.differences[0].error)
    assert any("no frame is in right" in word for word in never.warnings)
    once = made(np.concatenate([rng.normal(-1.5, 0.3, 2900), rng.normal(1.5, 0.3, 100)]), basins=[LEFT, RIGHT])
    assert np.isfinite(once.differences[0].error)
    assert any("too short" in word or "rough guess" in word for word in once.warnings)


def test_bad_frames_are_refused() -> None:
    run = np.zeros(10, dtype=int)
    s = np.zeros((10, 1))
    with pytest.raises(CcgError, match="finite torsions"):
        frame_surface(np.full((10, 1), np.nan), run, ("phi",), 300.0)
    with pytest.raises(CcgError, match="at least 4"):
        frame_surface(s[:2], run[:2], ("phi",), 300.0)
    with pytest.raises(CcgError, match="finite numbers"):
        frame_surface(s, run, ("phi",), 300.0, u_bias=np.full(10, np.inf))
    with pytest.raises(CcgError, match="basin left names"):
        frame_surface(s, run, ("psi",), 300.0, basins=[LEFT, RIGHT])


# Minima


def test_minima_and_pass_of_two_wells() -> None:
    surface = shifted(energy(grid(72, 1)[:, 0]), ("phi",), 300.0)
    low, high = minima(surface)
    assert low.degrees == (90.0,)
    assert high.degrees == (-90.0,)
    assert (low.f, low.depth) == (0.0, np.inf)
    assert high.f == pytest.approx(1.2)
    (over,) = barriers(surface, [LEFT, RIGHT])
    top = max(surface.f[i] for i in (0, 36)), min(surface.f[i] for i in (0, 36))
    assert over.f == pytest.approx(top[1], abs=0.05), "the lower of the two ways round"
    assert over.forward == pytest.approx(over.f - 1.2, abs=1e-9)
    assert high.depth == pytest.approx(over.forward)


def test_noise_makes_no_deep_minima() -> None:
    points = grid(60, 2)
    exact = energy(points[:, 0]) - 2 * np.cos(points[:, 1])
    noise = 0.1 * np.random.default_rng(0).standard_normal(3600)
    noisy = shifted((exact + noise).reshape(60, 60), ("phi", "psi"), 300.0)
    assert len(minima(noisy, 0.0)) > 8
    found = minima(noisy, 0.5)
    assert len(found) == 2
    np.testing.assert_allclose([m.degrees for m in found], [(90, 0), (-90, 0)], atol=25)


def test_islands_are_joined_by_nothing() -> None:
    f = np.full(36, np.inf)
    f[5:8], f[20:23] = [1, 0, 1], [2, 1, 2]
    surface = shifted(f, ("phi",), 300.0)
    assert [m.depth for m in minima(surface)] == [np.inf, np.inf]
    assert barriers(surface, [LEFT, RIGHT])[0].f == np.inf
    nowhere = Basin(name="nowhere", ranges={"phi": (100, 120)})
    assert barriers(surface, [LEFT, nowhere]) == []


def test_passes_cross_the_border_and_equal_cells() -> None:
    flat = shifted(np.zeros((6, 6)), ("phi", "psi"), 300.0)
    assert len(minima(flat, 0.5)) == 1
    f = np.array([0.0, 1, 5, 9, 5, 1, 0.5, 2])  # the way from 0 to 6 is over the border, by 7
    surface = shifted(f, ("phi",), 300.0)
    a, b = (Basin(name=n, ranges={"phi": r}) for n, r in (("a", (-181, -170)), ("b", (80, 100))))
    assert barriers(surface, [a, b])[0].f == 2.0
