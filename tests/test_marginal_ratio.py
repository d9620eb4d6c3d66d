"""Marginals where the fit cannot follow the surface: a wall in three torsions, against quadrature."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from scipy.special import expit, logsumexp

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.joint_fit import JointFitSettings, SurfaceFit, fit_surface
from ccg_gmx.free_energy.marginal_ratio import with_ratios
from ccg_gmx.free_energy.surface import Basin, delta_f, forward_kl, probability, shifted
from ccg_gmx.free_energy.torsion_grid import grid_points
from ccg_gmx.records import FloatArray, FreeEnergySurface, WeightedDraws

NAMES = ("a", "b", "c")
N = 36
SETTINGS = JointFitSettings(order=5, pair_order=3, triple_order=0)
AWAY, NEAR = Basin(name="away", ranges={"a": (90, -90)}), Basin(name="near", ranges={"a": (-90, 90)})


def f_of(s: FloatArray) -> FloatArray:
    """Wells of three torsions, and a ball of 14 kT that starts within a few degrees."""
    a, b, c = np.moveaxis(s, -1, 0)
    wells = 1.5 * np.cos(2 * a) + 1.2 * np.cos(2 * b + 0.5) + np.cos(c) + 0.7 * np.cos(a - b)
    return wells + 14.0 * expit(12.0 * (np.cos(a - 1.3) + np.cos(b - 1.2) + np.cos(c - 2.6) - 1.7)) - 4.0


@lru_cache
def exact(axes: tuple[int, ...]) -> FreeEnergySurface:
    fine = 3 * N
    sizes = [N if axis in axes else fine for axis in range(3)]
    mesh = np.stack(np.meshgrid(*map(grid_points, sizes), indexing="ij"), axis=-1)
    hidden = tuple(axis for axis in range(3) if axis not in axes)
    return shifted(-logsumexp(-f_of(mesh), axis=hidden), tuple(NAMES[axis] for axis in axes), 300.0)


def draws_of(rng: np.random.Generator, points: int = 3000, K: int = 16) -> list[list[WeightedDraws]]:
    """An even set and one of two numbers of draws from a density that favours one torsion's half; lognormal weights."""
    even = rng.uniform(-np.pi, np.pi, (points, 3))
    tilted = even.copy()
    tilted[:, 0] = np.where(rng.random(points) < 0.7, np.abs(even[:, 0]), -np.abs(even[:, 0]))
    tilt = np.where(tilted[:, 0] > 0, np.log(1.4), np.log(0.6))

    def record(s: FloatArray, log_tilt: FloatArray, draws: int) -> WeightedDraws:
        noise = 0.8 * rng.standard_normal((len(s), draws)) - 0.32
        return WeightedDraws(s, noise - f_of(s)[:, None], log_tilt - 3 * np.log(2 * np.pi), len(s) * draws)

    # the points of one set get their numbers of draws by place, as a plan does it
    many = tilted[:, 1] > 1.0
    return [
        [record(even, np.zeros(points), K)],
        [record(tilted[~many], tilt[~many], K), record(tilted[many], tilt[many], 4 * K)],
    ]


def fitted(rng: np.random.Generator) -> tuple[SurfaceFit, SurfaceFit]:
    draws = draws_of(rng)
    fit = fit_surface([record for together in draws for record in together], SETTINGS)
    return fit, with_ratios(fit, draws, SETTINGS)


@pytest.fixture(scope="module")
def pair() -> tuple[SurfaceFit, SurfaceFit]:
    return fitted(np.random.default_rng(0))


@pytest.mark.parametrize(("axes", "part"), [((0, 1), 0.2), ((0, 2), 0.8), ((1, 2), 0.8)])
def test_marginal_of_what_the_fit_cannot_follow(
    pair: tuple[SurfaceFit, SurfaceFit], axes: tuple[int, int], part: float
) -> None:
    """Forward KL of the fit alone and with the ratio, 1.6e-2 and 1.6e-3 in the pair that shows the ball best."""
    alone, corrected = (forward_kl(exact(axes), fit.marginal(axes, N, NAMES, 300.0)) for fit in pair)
    assert corrected < part * alone
    assert corrected < 3e-3


def test_errors_of_corrected_marginals_are_those_of_repeats() -> None:
    """20 repeats: mean squared deviation over variance, weighted as the forward KL is, and the error of delta_f."""
    ratios, z = [], []
    truth = delta_f(exact((0, 1)), NEAR, AWAY)
    p = probability(exact((0, 1)))
    for seed in range(20):
        _, fit = fitted(np.random.default_rng(100 + seed))
        found = fit.marginal((0, 1), N, NAMES, 300.0)
        deviation = -np.log(probability(found)) + np.log(p)
        deviation -= (p * deviation).sum()
        ratios.append((p * deviation**2).sum() / (p * found.error**2).sum())
        value, error = fit.delta_f(NEAR, AWAY, N, NAMES)
        z.append((value - truth) / error)
    assert 0.6 < np.mean(ratios) < 1.6
    # chi-square of 20 degrees of freedom, 99.9 %
    assert 5.9 < np.sum(np.square(z)) < 45.3


def test_one_torsion_and_the_order_of_two(pair: tuple[SurfaceFit, SurfaceFit]) -> None:
    _, fit = pair
    both, turned = (fit.marginal(axes, N, NAMES, 300.0) for axes in ((0, 1), (1, 0)))
    np.testing.assert_allclose(turned.f, both.f.T, atol=1e-10)
    np.testing.assert_allclose(turned.error, both.error.T, atol=1e-10)
    one = fit.marginal((0,), N, NAMES, 300.0)
    f = -logsumexp(-both.f, axis=1)
    np.testing.assert_allclose(one.f, f - f.min(), atol=1e-10)
    assert forward_kl(exact((0,)), one) < 1e-3
    assert (one.error < both.error.max()).all()


def test_fit_with_ratios_survives_its_file(pair: tuple[SurfaceFit, SurfaceFit], tmp_path) -> None:
    _, fit = pair
    fit.save(tmp_path / "fit.npz")
    again = SurfaceFit.load(tmp_path / "fit.npz")
    for before, after in zip(fit.ratios, again.ratios, strict=True):
        assert before.axes == after.axes
        np.testing.assert_array_equal(before.fit.covariance, after.fit.covariance)
    assert again.delta_f(NEAR, AWAY, N, NAMES) == fit.delta_f(NEAR, AWAY, N, NAMES)


def test_basins_of_three_torsions_use_the_fit_itself(pair: tuple[SurfaceFit, SurfaceFit]) -> None:
    corner = Basin(name="corner", ranges={"a": (0, 180), "b": (0, 180), "c": (0, 180)})
    assert pair[1].delta_f(corner, AWAY, N, NAMES) == pair[0].delta_f(corner, AWAY, N, NAMES)


def test_unknown_density_is_refused() -> None:
    draws = draws_of(np.random.default_rng(1), points=600)
    fit = fit_surface([record for together in draws for record in together], SETTINGS)
    draws[0][0].log_rho[3] = np.nan
    with pytest.raises(CcgError, match="unknown density"):
        with_ratios(fit, draws, SETTINGS)
