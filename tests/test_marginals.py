"""Free energies over three and four torsions: marginals against quadrature, calibrated errors, and two estimators."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import chi2 as chi2_law

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.fourier import FourierBasis
from ccg_gmx.free_energy.joint_fit import JointFitSettings, SurfaceFit, fit_surface
from ccg_gmx.free_energy.marginals import (
    axes_of,
    marginal_surface,
    marginal_with_slopes,
    quadrature_points,
    weighted_marginal,
)
from ccg_gmx.free_energy.surface import Basin, delta_f, forward_kl, grid, probability, rmsd_kT, shifted
from ccg_gmx.free_energy.torsion_grid import grid_points
from ccg_gmx.records import FloatArray, FreeEnergySurface, WeightedDraws

SMALL = JointFitSettings(order=2, pair_order=1, triple_order=1)
NAMES = ("a", "b", "c", "d")


class Torus:
    """Torsions that interact in neighbouring pairs and weakly in one triple; lognormal weights whose noise varies."""

    def __init__(self, dims: int) -> None:
        self.dims, self.names = dims, NAMES[:dims]

    def f(self, s: FloatArray) -> FloatArray:
        angles = [s[..., axis] for axis in range(self.dims)]
        single = sum((1.5 - 0.3 * i) * np.cos(x - 0.7 * i) + 0.8 * np.sin(2 * x) for i, x in enumerate(angles))
        pairs = sum(1.2 * np.cos(x - y) for x, y in pairwise(angles))
        return single + pairs + 0.4 * np.cos(angles[0] + angles[1] - angles[2]) - 3.0

    def draws(self, points: int, K: int, rng: np.random.Generator, scale: float = 1.0) -> WeightedDraws:
        """Draw uniform points; the weights' relative variance is about ``scale``."""
        s = rng.uniform(-np.pi, np.pi, (points, self.dims))
        sigma2 = np.log(1 + scale * (1.2 + np.cos(s[:, 0])))[:, None]
        log_w = np.sqrt(sigma2) * rng.standard_normal((points, K)) - sigma2 / 2 - self.f(s)[:, None]
        return WeightedDraws(s, log_w, np.full(points, -self.dims * np.log(2 * np.pi)), points * K)

    def marginal(self, axes: tuple[int, ...], n: int) -> FreeEnergySurface:
        """Quadrature on 60 points per hidden axis: exact to rounding for waves this long."""
        sizes = [n if axis in axes else 60 for axis in range(self.dims)]
        mesh = np.meshgrid(*map(grid_points, sizes), indexing="ij", sparse=True)
        hidden = tuple(axis for axis in range(self.dims) if axis not in axes)
        f = -logsumexp(-self.f(_Columns(mesh)), axis=hidden)
        f = f if axes == tuple(sorted(axes)) else f.T
        return shifted(f, tuple(self.names[axis] for axis in axes), 300.0)


class _Columns:
    """Lets ``f`` read ``s[..., axis]`` from sparse axes, which broadcast to the whole grid."""

    def __init__(self, columns: list[FloatArray]) -> None:
        self.columns = columns

    def __getitem__(self, key: tuple[object, int]) -> FloatArray:
        return self.columns[key[1]]


def exact_fit(system: Torus) -> SurfaceFit:
    """The system itself as a fit without any error: its coefficients by projection on a grid."""
    basis = FourierBasis(2, system.dims, (2, 1, 1))
    n = 6
    design = basis.grid_design(n)
    c = np.linalg.lstsq(design, system.f(grid(n, system.dims)), rcond=None)[0]
    return SurfaceFit(2, system.dims, c, np.zeros((basis.size,) * 2), 1.0, 1, 1.0, basis.limits)


@pytest.fixture(scope="module")
def fits() -> list[SurfaceFit]:
    return [fit_surface(Torus(4).draws(1500, 16, np.random.default_rng(seed)), SMALL) for seed in range(40)]


def test_limited_basis_has_what_its_limits_say() -> None:
    basis = FourierBasis(8, 4, (8, 6, 2, 1))
    k = np.where(basis.index > 8, basis.index - 8, basis.index)
    parts = (k > 0).sum(axis=1)
    assert basis.size == 1 + 4 * 16 + 6 * 12**2 + 4 * 4**3 + 2**4 == 1201
    assert len(np.unique(basis.index, axis=0)) == basis.size
    for number, limit in enumerate((8, 6, 2, 1), start=1):
        assert k[parts == number].max() == limit
    assert FourierBasis(8, 5, (8, 2)).size == 1 + 5 * 16 + 10 * 4**2
    assert FourierBasis(8, 2).size == 17**2


def test_limited_basis_spans_plane_waves() -> None:
    """cos and sin of k.s with the components of k bounded as the products are, whatever their signs."""
    basis, rng = FourierBasis(3, 3, (3, 2, 1)), np.random.default_rng(0)
    s = rng.uniform(-np.pi, np.pi, (300, 3))
    design = basis.design(s)
    for k, inside in (
        ((3, 0, 0), True),
        ((2, 0, -2), True),
        ((1, -1, 1), True),
        ((3, 1, 0), False),
        ((2, 1, 1), False),
    ):
        for wave in (np.cos(s @ k), np.sin(s @ k)):
            rest = wave - design @ np.linalg.lstsq(design, wave, rcond=None)[0]
            assert bool(np.abs(rest).max() < 1e-10) is inside


def test_limited_basis_on_grids_and_its_gradient() -> None:
    basis, rng = FourierBasis(3, 4, (3, 2, 1)), np.random.default_rng(1)
    c, s = rng.normal(size=basis.size), rng.uniform(-np.pi, np.pi, (9, 4))
    design = basis.design(grid(5, 4))
    np.testing.assert_allclose(basis.on_grid(5, c).ravel(), design @ c, atol=1e-11)
    np.testing.assert_allclose(basis.grid_design(5), design, atol=1e-13)
    weights = rng.random((5,) * 4)
    np.testing.assert_allclose(basis.moments([grid_points(5)] * 4, weights), weights.ravel() @ design, atol=1e-9)
    nodes = [rng.uniform(-3, 3, n) for n in (2, 4, 3, 5)]
    points = np.stack([x.ravel() for x in np.meshgrid(*nodes, indexing="ij")], axis=-1)
    np.testing.assert_allclose(basis.on_nodes(nodes, c).ravel(), basis.design(points) @ c, atol=1e-12)
    h = 1e-5
    for axis, step in enumerate(h * np.eye(4)):
        slope = (basis.design(s + step) - basis.design(s - step)) @ c / (2 * h)
        np.testing.assert_allclose(basis.gradient(s, c)[:, axis], slope, atol=1e-6)


@pytest.mark.parametrize(("dims", "axes"), [(3, (0, 1)), (3, (2, 0)), (3, (1,)), (4, (0, 2)), (4, (3, 1)), (4, (2,))])
def test_marginal_of_an_exact_fit_is_the_quadrature(dims: int, axes: tuple[int, ...]) -> None:
    system = Torus(dims)
    exact = system.marginal(axes, 20)
    found = exact_fit(system).marginal(axes, 20, system.names, 300.0)
    assert found.names == exact.names
    np.testing.assert_allclose(found.f, exact.f, atol=1e-7)
    by_grid = marginal_surface(exact_fit(system).surface(20, system.names, 300.0), axes)
    assert by_grid.names == exact.names
    np.testing.assert_allclose(by_grid.f, exact.f, atol=1e-3)


def test_slopes_are_the_derivative_by_the_coefficients() -> None:
    fit, rng = exact_fit(Torus(4)), np.random.default_rng(2)
    direction, h = rng.normal(size=fit.basis.size), 1e-4
    for axes in ((3, 1), (2,)):
        high, low = (
            marginal_with_slopes(fit.basis, fit.coefficients + step * direction, axes, 6)[0] for step in (h, -h)
        )
        slopes = marginal_with_slopes(fit.basis, fit.coefficients, axes, 6)[1]
        np.testing.assert_allclose(slopes @ direction, (high - low).ravel() / (2 * h), atol=1e-5)


def test_marginal_over_all_torsions_is_the_surface() -> None:
    rng = np.random.default_rng(3)
    s = rng.uniform(-np.pi, np.pi, (600, 2))
    log_w = 2 * np.cos(s[:, :1] - s[:, 1:]) + 0.3 * rng.standard_normal((600, 8))
    fit = fit_surface(WeightedDraws(s, log_w, np.zeros(600), 4800), JointFitSettings(order=2))
    surface = fit.surface(100, ("a", "b"), 300.0)
    same, turned = (fit.marginal(axes, 100, ("a", "b"), 300.0) for axes in ((0, 1), (1, 0)))
    np.testing.assert_allclose(same.f, surface.f, atol=1e-10)
    np.testing.assert_allclose(same.error, surface.error, rtol=1e-6)
    np.testing.assert_allclose(turned.f, surface.f.T, atol=1e-10)
    assert turned.names == ("b", "a")


def test_quadrature_error_of_narrow_wells() -> None:
    """Wells of 7 degrees in all four torsions, steeper than those of peptides: below 1e-3 kT, and not by chance."""
    depth = 1 / np.deg2rad(7.0) ** 2
    basis = FourierBasis(8, 4, (8, 2))
    c = np.zeros(basis.size)
    for axis in range(4):
        for number, size in ((1, -np.cos(0.3)), (9, -np.sin(0.3))):  # -cos(s - 0.3): the well between grid points
            row = np.zeros(4, dtype=int)
            row[axis] = number
            c[(basis.index == row).all(axis=1)] = depth * size
    fine = marginal_with_slopes(basis, c, (0, 2), 8, 72)[0]
    default = marginal_with_slopes(basis, c, (0, 2), 8)[0]
    np.testing.assert_allclose(default, fine, atol=1e-3)
    coarse = marginal_with_slopes(basis, c, (0, 2), 8, 24)[0]  # refines by itself
    np.testing.assert_allclose(coarse, fine, atol=1e-3)
    with pytest.raises(CcgError, match="hidden torsions"):
        marginal_with_slopes(basis, c, (0, 2), 8, 10)


def test_quadrature_error_of_a_real_fit(fits: list[SurfaceFit]) -> None:
    default, fine = (fits[0].marginal((0, 1), 20, NAMES, 300.0, hidden_n=n) for n in (quadrature_points(4), 72))
    np.testing.assert_allclose(default.f, fine.f, atol=1e-6)
    np.testing.assert_allclose(default.error, fine.error, rtol=1e-4)


@pytest.mark.parametrize("axes", [(0, 1), (3, 1), (2,)])
def test_errors_of_marginals_are_calibrated(fits: list[SurfaceFit], axes: tuple[int, ...]) -> None:
    """Mean squared pull of 40 independent fits within four of its own standard errors of 1."""
    exact = Torus(4).marginal(axes, 10)
    p = probability(exact)
    z2 = []
    for fit in fits:
        found = fit.marginal(axes, 10, NAMES, 300.0)
        difference = found.f - exact.f
        z2.append(np.mean(((difference - (p * difference).sum()) / found.error) ** 2))
    spread = np.std(z2) / np.sqrt(len(fits))
    assert np.mean(z2) == pytest.approx(1, abs=4 * spread)
    assert spread < 0.15


def test_errors_at_points_of_four_torsions_are_calibrated(fits: list[SurfaceFit]) -> None:
    system = Torus(4)
    fine = grid(20, 4)
    p = np.exp(-system.f(fine))
    mean = (p * system.f(fine)).sum() / p.sum()
    s = np.random.default_rng(4).uniform(-np.pi, np.pi, (200, 4))
    z2 = []
    for fit in fits[:20]:
        centre = (p * fit.basis.on_grid(20, fit.coefficients).ravel()).sum() / p.sum()
        z2.append(np.mean(((fit.values(s) - centre - system.f(s) + mean) / fit.errors(s)) ** 2))
    assert np.mean(z2) == pytest.approx(1, abs=4 * np.std(z2) / np.sqrt(20))


def test_four_torsions_are_recovered_from_few_draws(fits: list[SurfaceFit]) -> None:
    """24 000 energies; 1500 points on 10 cells per torsion would leave 17 of 18 cells empty."""
    exact = Torus(4).marginal((0, 1), 20)
    scores = [forward_kl(exact, fit.marginal((0, 1), 20, NAMES, 300.0)) for fit in fits[:10]]
    assert np.mean(scores) < 5e-3
    assert rmsd_kT(exact, fits[0].marginal((0, 1), 20, NAMES, 300.0)) < 0.15
    assert fits[0].surface(8, NAMES, 300.0).f.shape == (8,) * 4
    assert np.isnan(fits[0].surface(8, NAMES, 300.0).error).all()


A = Basin(name="A", ranges={"a": (90, -90)})
B = Basin(name="B", ranges={"a": (-90, 90), "c": (0, 120)})
C = Basin(name="C", ranges={"a": (-90, 90), "b": (-20, 160), "c": (0, 120)})


def test_basins_of_four_torsions(fits: list[SurfaceFit]) -> None:
    truth = delta_f(Torus(4).marginal((0, 2), 36), A, B)
    z = []
    for fit in fits:
        value, error = fit.delta_f(A, B, n=36, names=NAMES)
        z.append((value - truth) / error)
        assert error < 0.2
    tail = chi2_law.ppf([5e-5, 1 - 5e-5], len(z)) / len(z)
    assert tail[0] < np.mean(np.square(z)) < tail[1]


def test_basins_agree_however_they_are_given(fits: list[SurfaceFit]) -> None:
    fit = fits[0]
    marginal = fit.marginal((0, 2), 100, NAMES, 300.0)
    assert fit.delta_f(A, B, names=NAMES)[0] == pytest.approx(delta_f(marginal, A, B), abs=1e-6)
    n = quadrature_points(4)
    value, error = fit.delta_f(A, C, names=NAMES)
    masks = [basin.mask(grid(n, 4), NAMES) for basin in (A, C)]
    assert fit.delta_f(*masks, n=n) == (pytest.approx(value), pytest.approx(error))
    with pytest.raises(CcgError, match="omega"):
        fit.delta_f(A, Basin(name="B", ranges={"omega": (0, 90)}), names=NAMES)
    with pytest.raises(CcgError, match="no grid point"):
        fit.delta_f(A, Basin(name="B", ranges={"b": (1, 2)}), names=NAMES)
    with pytest.raises(CcgError, match="names"):
        fit.delta_f(A, B)


def bin_averages(system: Torus, axes: tuple[int, int], n: int) -> FloatArray:
    """``[n, n]`` exact share of each cell: sums over 5 x 5 points of a finer grid centred on the cell's."""
    p = probability(system.marginal(axes, 5 * n))
    for axis in (0, 1):
        p = np.roll(p, 2, axis=axis)
    return p.reshape(n, 5, n, 5).sum(axis=(1, 3))


def test_weighted_marginal_is_right_and_calibrated() -> None:
    """Two records of different quality and proposal; cells that hold at least a hundred points' worth of weight."""
    system, n, z2 = Torus(4), 6, []
    exact = bin_averages(system, (0, 1), n)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        records = [system.draws(20_000, 4, rng), system.draws(5000, 4, rng, scale=5.0)]
        found = weighted_marginal(records, (0, 1), n, NAMES, 300.0)
        p = probability(found)
        z2.append((((np.log(p) - np.log(exact)) / found.error) ** 2)[exact > 0.01])
    per_repeat = np.mean(z2, axis=1)
    assert np.mean(z2) == pytest.approx(1, abs=4 * per_repeat.std() / np.sqrt(30) + 0.05)


def test_weighted_marginal_uses_the_density_of_its_points() -> None:
    rng = np.random.default_rng(5)
    s = rng.vonmises(0.5, 1.0, (200_000, 1))
    log_rho = (np.cos(s - 0.5) - np.log(2 * np.pi * np.i0(1.0)))[:, 0]
    found = weighted_marginal(WeightedDraws(s, np.zeros((200_000, 2)), log_rho, 400_000), (0,), 8, ("a",), 300.0)
    z = (-np.log(probability(found)) - np.log(8)) / found.error
    assert np.mean(z**2) < chi2_law.ppf(0.9999, 7) / 8
    assert found.error.max() < 0.02


def test_fit_and_weighted_marginal_agree(fits: list[SurfaceFit]) -> None:
    draws = Torus(4).draws(1500, 16, np.random.default_rng(0))
    n = 6
    raw = weighted_marginal(draws, (3, 1), n, NAMES, 300.0)
    fine = probability(fits[0].marginal((3, 1), 5 * n, NAMES, 300.0))
    p = np.roll(fine, (2, 2), axis=(0, 1)).reshape(n, 5, n, 5).sum(axis=(1, 3))
    seen = p > 0.01
    z = ((np.log(probability(raw)) - np.log(p)) / raw.error)[seen]
    assert np.sqrt(np.mean(z**2)) < 1.5


def test_empty_cells_of_a_weighted_marginal_are_unknown() -> None:
    s = np.array([[0.0, 0.0], [0.1, 3.0]])
    found = weighted_marginal(WeightedDraws(s, np.zeros((2, 2)), np.zeros(2), 4), (0,), 4, ("a", "b"), 300.0)
    assert found.f.tolist() == [np.inf, np.inf, 0.0, np.inf]
    assert np.isnan(found.error).tolist() == [True, True, False, True]


def test_refusals() -> None:
    system = Torus(4)
    fit, draws = exact_fit(system), system.draws(50, 4, np.random.default_rng(0))
    for axes in ((), (0, 0), (4,), (-1,), (0, 1, 2)):
        with pytest.raises(CcgError, match="axes"):
            fit.marginal(axes, 10, NAMES, 300.0)
    with pytest.raises(CcgError, match="names"):
        fit.marginal((0,), 10, NAMES[:2], 300.0)
    with pytest.raises(CcgError, match="even"):
        fit.marginal((0,), 10, NAMES, 300.0, hidden_n=25)
    with pytest.raises(CcgError, match="7 torsions"):
        quadrature_points(7)
    with pytest.raises(CcgError, match="density"):
        weighted_marginal(WeightedDraws(draws.s, draws.log_w, np.full(50, np.nan), 200), (0,), 4, NAMES, 300.0)
    assert axes_of(("c", "a"), NAMES) == (2, 0)
    with pytest.raises(CcgError, match="omega"):
        axes_of(("omega",), NAMES)
