"""The smooth noise of draws, and the number of draws it asks for: no bias where the naive rule has one."""

from __future__ import annotations

import numpy as np
import pytest

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.variance import VarianceModel, draws_needed, smooth_noise
from ccg_gmx.records import WeightedDraws


def weights(chi2: np.ndarray, K: int, rng: np.random.Generator) -> np.ndarray:
    """``[M, K]`` logarithms of lognormal weights of mean 1 and relative variance chi2.

    Gamma weights would not do: for them alone the sample mean is independent of the sample's relative variance (Lukacs
    1955), and judging a mean by its own draws would be harmless.
    """
    sigma2 = np.log(1 + chi2)[:, None]
    return np.sqrt(sigma2) * rng.standard_normal((len(chi2), K)) - sigma2 / 2


def true_chi2(s: np.ndarray) -> np.ndarray:
    return 1.5 * np.exp(np.cos(s[:, 0]) + 0.5 * np.sin(s[:, 0] - s[:, -1]))


def pilot(dims: int, points: int, K: int, seed: int) -> WeightedDraws:
    rng = np.random.default_rng(seed)
    s = rng.uniform(-np.pi, np.pi, (points, dims))
    return WeightedDraws(s, weights(true_chi2(s), K, rng), np.zeros(points), points * K)


@pytest.mark.parametrize("dims", [1, 2, 4])
def test_model_follows_the_true_variance(dims: int) -> None:
    model = VarianceModel.fit(pilot(dims, 3000, 128, 0))
    s = np.random.default_rng(1).uniform(-np.pi, np.pi, (500, dims))
    ratio = model(s) / true_chi2(s)
    assert np.sqrt(np.mean(np.log(ratio) ** 2)) < 0.2
    assert np.mean(ratio) == pytest.approx(1, abs=0.1)
    n = 8
    axis = -np.pi + 2 * np.pi / n * np.arange(n)
    at = np.stack([x.ravel() for x in np.meshgrid(*[axis] * dims, indexing="ij")], axis=-1)
    np.testing.assert_allclose(model.on_grid(n).ravel(), model(at))


def test_weightless_points_and_a_perfect_flow_have_a_finite_variance() -> None:
    draws = pilot(2, 300, 8, 2)
    none = draws.log_w.copy()
    none[:150] = -np.inf
    s = draws.s
    assert np.isfinite(VarianceModel.fit(WeightedDraws(s, none, draws.log_rho, 2400))(s)).all()
    perfect = VarianceModel.fit(WeightedDraws(s, np.zeros((300, 8)), draws.log_rho, 2400))(s)
    assert (perfect > 0).all()
    assert perfect.max() < 0.01


def test_draws_needed_by_hand() -> None:
    chi2 = np.array([0.0, 0.5, 1.0, 1.01, 3.0, 1000.0])
    # bias chi2 / 2K <= 0.05 asks for 10 chi2; error sqrt(chi2 / K) <= 0.5 for 4 chi2
    assert draws_needed(chi2, 0.05, 0.5, 4, 256).tolist() == [4, 8, 16, 16, 32, 256]
    assert draws_needed(chi2, 10.0, 0.25, 2, 256).tolist() == [2, 8, 16, 32, 64, 256]
    K = draws_needed(np.linspace(0.1, 20, 300), 0.01, 0.1, 2, 2**14)
    assert (np.linspace(0.1, 20, 300) / (2 * K) <= 0.01).all()
    assert (np.linspace(0.1, 20, 300) / K <= 0.01 + 1e-12).all()


@pytest.mark.parametrize(
    ("chi2", "bias", "error", "limits"),
    [
        ([np.nan], 0.1, 0.1, (2, 64)),
        ([-1.0], 0.1, 0.1, (2, 64)),
        ([1.0], 0.0, 0.1, (2, 64)),
        ([1.0], 0.1, 0.1, (3, 64)),
        ([1.0], 0.1, 0.1, (2, 60)),
        ([1.0], 0.1, 0.1, (64, 2)),
        ([1.0], 0.1, 0.1, (1, 64)),
    ],
)
def test_refusals(chi2: list[float], bias: float, error: float, limits: tuple[int, int]) -> None:
    with pytest.raises(CcgError):
        draws_needed(np.array(chi2), bias, error, *limits)


def test_stopping_on_own_weights_is_biased_and_a_pilot_is_not() -> None:
    """Mean of Z^/Z over 6000 points, exactly 1 without a bias; the pilot's draws are other ones."""
    rng = np.random.default_rng(3)
    s = rng.uniform(-np.pi, np.pi, (6000, 2))
    chi2 = true_chi2(s)
    w = np.exp(weights(chi2, 64, rng))

    # naive: start with 8 draws, double until the point's own draws say that the error is below 0.3 kT
    naive = np.full(len(s), np.nan)
    for K in (8, 16, 32, 64):
        mean = w[:, :K].mean(axis=1)
        quiet = w[:, :K].var(axis=1, ddof=1) / mean**2 / K < 0.3**2
        naive = np.where(np.isnan(naive) & (quiet | (K == 64)), mean, naive)
    naive_error = naive.std() / np.sqrt(len(s))
    assert naive.mean() < 1 - 8 * naive_error
    assert naive.mean() < 0.95

    K = draws_needed(VarianceModel.fit(pilot(2, 1000, 32, 4))(s), 1.0, 0.3, 8, 64)
    assert len(np.unique(K)) > 2
    planned = np.where(np.arange(64) < K[:, None], w, 0).sum(axis=1) / K
    assert planned.mean() == pytest.approx(1, abs=3.3 * planned.std() / np.sqrt(len(s)))


def test_noise_of_a_point_does_not_know_its_own_draws() -> None:
    """Change one point's noise: that of all others moves, its own does not (but for the record's level)."""
    rng = np.random.default_rng(5)
    s, noise, record = rng.uniform(-np.pi, np.pi, (400, 2)), rng.gamma(2, size=400), np.zeros(400, dtype=np.int64)
    before = smooth_noise(s, noise, record, 8)
    changed = noise.copy()
    changed[7] *= 50
    after = smooth_noise(s, changed, record, 8)
    level = np.median(np.delete(after / before, 7))
    move = np.log(after / before / level)
    near = np.linalg.norm(np.angle(np.exp(1j * (s - s[7]))), axis=1) < 0.4
    near[7] = False
    assert move[near].mean() > 0.2
    assert abs(move[7]) < 0.05


def test_level_is_the_mean_noise_of_each_record() -> None:
    rng = np.random.default_rng(6)
    s, record = rng.uniform(-np.pi, np.pi, (2000, 3)), np.repeat([0, 1], 1000)
    noise = np.where(record == 0, 0.1, 10.0) * rng.lognormal(sigma=1.0, size=2000)
    smooth = smooth_noise(s, noise, record, 8)
    for index, level in enumerate((0.1, 10.0)):
        # a lognormal's mean is sqrt(e) above its median; its relative spread is 1.31
        assert smooth[record == index].mean() == pytest.approx(level * np.exp(0.5), rel=4 * 1.31 / np.sqrt(1000))
    assert smooth_noise(s[:1], noise[:1], record[:1], 8) == pytest.approx(noise[:1])
