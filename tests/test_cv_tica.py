"""TICA against processes with known time scales; weights; lags that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
from cv_systems import double_well, double_well_eigenvalue, frames, ornstein_uhlenbeck

from ccg_gmx.cv.lagged import lagged_pairs
from ccg_gmx.cv.tica import tica, timescales
from ccg_gmx.cv.train import CvSettings, learn
from ccg_gmx.errors import CcgError, SettingsError, TrajectoryError

TIMES = np.array([20.0, 5.0, 1.0])
MIX = np.array([[1.0, 0.4, -0.3], [-0.5, 1.0, 0.7], [0.2, -0.6, 1.0]])


def test_time_scales_of_a_linear_process_are_analytic() -> None:
    """A lag-1 autocorrelation r of T frames of an AR(1) process has the variance (1 - r^2) / T (Bartlett)."""
    total = 40_000
    data = frames(ornstein_uhlenbeck(TIMES, total, np.random.default_rng(1)) @ MIX.T)
    found = learn(data, CvSettings(method="tica", count=3, lag_ps=1.0))
    exact = np.exp(-1.0 / TIMES)
    sigma = np.sqrt((1 - exact**2) / total)
    first = found.timescales[0]
    # three values within 4.3 sigma: false alarm 5e-5
    assert np.abs((first.eigenvalues - exact) / sigma).max() < 4.3
    np.testing.assert_allclose(first.eigenvalue_errors, sigma, rtol=0.5)
    np.testing.assert_allclose(first.ps, TIMES, atol=4.3 * float((TIMES**2 * sigma / exact).max()))
    assert not found.warnings
    # the first variable is the first process: columns of the model in terms of the mixed features
    unmixed = np.corrcoef(found.cv.T, (data.values @ np.linalg.inv(MIX).T).T)[:3, 3:]
    assert np.abs(np.diag(unmixed)).min() > 0.99
    # -lag / log of an estimate with its error from the resamples, at every lag
    for other in found.timescales[1:]:
        assert abs(other.ps[0] - TIMES[0]) < 4.3 * other.errors_ps[0]


def test_bootstrap_errors_cover() -> None:
    """60 independent data sets: |z| < 1.96 in 57 +- 1.7 of them; fewer than 50 has a chance of 1e-3."""
    exact, inside = np.exp(-1.0 / 20.0), 0
    for seed in range(60):
        x = ornstein_uhlenbeck(TIMES[:1], 3000, np.random.default_rng(100 + seed))
        found = timescales(x, lagged_pairs(frames(x), 1.0))
        inside += abs(found.eigenvalues[0] - exact) < 1.96 * found.eigenvalue_errors[0]
    assert inside >= 50


def test_finds_the_slow_coordinate_of_a_double_well_in_loud_noise() -> None:
    rng = np.random.default_rng(2)
    slow = double_well(20_000, 50, rng)
    noise = 5.0 * rng.normal(size=(20_000, 2))
    turned = np.column_stack([slow, noise]) @ MIX.T
    found = learn(frames(turned, dt=0.1), CvSettings(method="tica", lag_ps=0.1))
    assert abs(np.corrcoef(found.cv[:, 0], slow)[0, 1]) > 0.999
    # x is not quite the eigenfunction: a lower bound, by the variational principle
    exact = double_well_eigenvalue(0.1, 3.0)
    first = found.timescales[0]
    assert exact - 0.06 < first.eigenvalues[0] < exact + 4 * first.eigenvalue_errors[0]


def test_several_runs_are_not_joined_and_lags_do_not_cross() -> None:
    run = np.repeat([0, 1], [30, 50])
    pairs = lagged_pairs(frames(np.random.default_rng(0).normal(size=(80, 1)), run=run, dt=0.5), 2.0)
    assert len(pairs.first) == 26 + 46
    assert (run[pairs.first] == run[pairs.second]).all()
    np.testing.assert_array_equal(pairs.second - pairs.first, 4)


def test_weights_of_starts_give_the_unbiased_tica_exactly() -> None:
    """Pairs that start from a distribution of another width; weights bring them back to equilibrium."""
    rng = np.random.default_rng(3)
    count, keep, wide = 60_000, np.exp(-1.0 / np.array([5.0, 1.0])), 1.3
    start = wide * rng.normal(size=(count, 2))
    end = keep * start + np.sqrt(1 - keep**2) * rng.normal(size=(count, 2))
    values = np.stack([start, end], axis=1).reshape(-1, 2)
    log_w = np.repeat((0.5 * (wide**-2 - 1) * start**2).sum(axis=1), 2)
    run = np.repeat(np.arange(count), 2)
    weighted = lagged_pairs(frames(values, run=run, log_w=log_w, weighting="start"), 1.0)
    plain = lagged_pairs(frames(values, run=run), 1.0)
    error = 2.0 / np.sqrt(count)  # generous: the estimate's own is about 1.5 / sqrt(count)
    np.testing.assert_allclose(tica(values, weighted, 2).eigenvalues, keep, atol=4 * error)
    assert abs(tica(values, plain, 2).eigenvalues[0] - keep[0]) > 6 * error


def test_stretched_time_without_a_bias_is_time() -> None:
    x = ornstein_uhlenbeck(TIMES, 2000, np.random.default_rng(4))
    plain = tica(x, lagged_pairs(frames(x), 3.0), 3)
    even = tica(x, lagged_pairs(frames(x, log_w=np.full(2000, 7.0), weighting="bias"), 3.0), 3)
    np.testing.assert_allclose(even.eigenvalues, plain.eigenvalues, rtol=1e-9)


def test_a_biased_run_gives_the_unbiased_slow_coordinate() -> None:
    """The bias takes 60 % of the barrier away; stretched time has the exact distribution, and D(x) exp(-V)."""
    rng = np.random.default_rng(5)
    barrier, bias, total = 4.0, 0.6, 40_000
    slow = double_well(total, 10, rng, barrier, bias)
    values = np.column_stack([slow, rng.normal(size=total)]) @ MIX[:2, :2].T
    log_w = -bias * barrier * (slow**2 - 1) ** 2
    data = frames(values, dt=0.02, log_w=log_w, weighting="bias")
    found = learn(data, CvSettings(method="tica", lag_ps=0.4))
    assert abs(np.corrcoef(found.cv[:, 0], slow)[0, 1]) > 0.998
    grid = np.linspace(-2.5, 2.5, 2001)
    exact = np.average(grid**2, weights=np.exp(-barrier * (grid**2 - 1) ** 2))
    np.testing.assert_allclose(np.average(slow**2, weights=data.weights), exact, rtol=0.02)
    wanted = double_well_eigenvalue(0.4, barrier, bias)
    first = found.timescales[0]
    assert (
        wanted - 0.02 - 4 * first.eigenvalue_errors[0] < first.eigenvalues[0] < wanted + 4 * first.eigenvalue_errors[0]
    )
    assert any("not physical" in word for word in found.warnings)


def test_frames_longer_than_the_lag_are_warned_of_or_refused() -> None:
    rng = np.random.default_rng(6)
    x = ornstein_uhlenbeck(TIMES, 2000, rng)
    mild = frames(x, log_w=1.2 * rng.normal(size=2000), weighting="bias")
    assert any("longer than the lag" in word for word in learn(mild, CvSettings(method="tica", lag_ps=2.0)).warnings)
    wild = frames(x, log_w=4.0 * rng.normal(size=2000), weighting="bias")
    with pytest.raises(TrajectoryError, match="longer than the lag"):
        lagged_pairs(wild, 1.0)


@pytest.mark.parametrize(
    ("lag", "message"), [(1000.0, "longest run"), (0.3, "multiple of the time"), (2.5, "multiple")]
)
def test_a_lag_that_does_not_fit_is_refused(lag: float, message: str) -> None:
    data = frames(np.random.default_rng(7).normal(size=(500, 2)))
    with pytest.raises((TrajectoryError, SettingsError), match=message):
        lagged_pairs(data, lag)


def test_bad_frames_are_refused() -> None:
    x = np.random.default_rng(8).normal(size=(100, 2))
    with pytest.raises(TrajectoryError, match="x1 is constant"):
        frames(np.column_stack([x[:, 0], np.full(100, 3.0)]))
    x[4, 0] = np.nan
    with pytest.raises(TrajectoryError, match="x0 is nan in frame 5"):
        frames(x)


def test_features_that_determine_each_other_need_the_ridge() -> None:
    x = ornstein_uhlenbeck(TIMES[:2], 3000, np.random.default_rng(9))
    data = frames(np.column_stack([x, x[:, 0] + x[:, 1]]))
    found = learn(data, CvSettings(method="tica", lag_ps=1.0))
    assert abs(np.corrcoef(found.cv[:, 0], x[:, 0])[0, 1]) > 0.99
    with pytest.raises(CcgError, match="variables of 3 features"):
        learn(data, CvSettings(method="tica", lag_ps=1.0, count=4))
