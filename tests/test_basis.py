"""Spline basis: values, derivatives, periodicity, walls."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccg_gmx.errors import SettingsError
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.potential.basis import SeparableBasis, SplineTerm, TorsionGrid, cubic_weights

BOND = Coordinate("bond C-N", "bond", "positive")
ANGLE = Coordinate("angle C-N-CA", "angle", "polar")
BASIS = SeparableBasis(
    (SplineTerm(BOND, 0.12, 0.15, 9, 1e4), SplineTerm(ANGLE, 1.8, 2.4, 7, 50.0)), TorsionGrid(("phi", "psi"), 12)
)
angles = st.floats(-4.0, 4.0)


@given(t=st.floats(0.0, 1.0))
def test_weights_are_a_partition_of_unity(t: float) -> None:
    weights = cubic_weights(np.array([t]))
    assert (weights >= -1e-16).all()
    assert weights.sum() == pytest.approx(1.0, abs=1e-14)
    for order in (1, 2):
        assert cubic_weights(np.array([t]), order).sum() == pytest.approx(0.0, abs=1e-13)


@settings(max_examples=50)
@given(phi=angles, psi=angles, bond=st.floats(0.08, 0.2), angle=st.floats(1.2, 2.9), seed=st.integers(0, 99))
def test_derivatives_are_those_of_the_values(phi: float, psi: float, bond: float, angle: float, seed: int) -> None:
    """Central differences, inside the range and on the continuation outside."""
    c = np.random.default_rng(seed).normal(size=BASIS.size)
    q = np.array([phi, psi, bond, angle])
    steps = np.array([1e-5, 1e-5, 1e-6, 1e-5])
    points = np.concatenate([q + np.diag(steps), q - np.diag(steps)])
    values = BASIS.values(points[:, :2], points[:, 2:]) @ c
    numeric = (values[:4] - values[4:]) / (2 * steps)
    analytic = np.array([d @ c for d in BASIS.derivatives(q[None, :2], q[None, 2:])])[:, 0]
    scale = np.array([c.std() / h for h in (0.5, 0.5, 0.03 / 9, 0.6 / 7)])
    assert np.abs(numeric - analytic).max() <= 1e-5 * (np.abs(analytic) + scale).max()


def test_third_order_polynomials_are_in_the_span() -> None:
    """The span of cubic B-splines holds every cubic, its slope and its curvature: nothing is scaled wrongly."""
    term = BASIS.terms[0]
    x = np.linspace(term.lo, term.hi, 200)
    polynomial = np.polynomial.Polynomial([1.0, -2.0, 3.0, 5.0])((x - 0.13) / 0.01)
    c = np.linalg.lstsq(term.design(x).toarray(), polynomial, rcond=None)[0]
    exact = np.polynomial.Polynomial([-2.0, 6.0, 15.0])((x - 0.13) / 0.01) / 0.01
    np.testing.assert_allclose(term.design(x) @ c, polynomial, atol=1e-10)
    np.testing.assert_allclose(term.design(x, 1) @ c, exact, atol=1e-7)


def test_continuation_is_the_edges_parabola() -> None:
    term, c = BASIS.terms[1], np.random.default_rng(1).normal(size=BASIS.terms[1].size)
    value, slope, curvature = (float((term.design(np.array([term.hi]), k) @ c)[0]) for k in range(3))
    d = np.array([0.1, 0.3])
    np.testing.assert_allclose(term.design(term.hi + d) @ c, value + slope * d + 0.5 * curvature * d**2, rtol=1e-12)
    np.testing.assert_allclose(term.design(term.hi + d, 2) @ c, curvature, rtol=1e-12)


@given(phi=angles, psi=angles)
def test_torsion_grid_is_periodic(phi: float, psi: float) -> None:
    grid, c = BASIS.torsions, np.random.default_rng(2).normal(size=BASIS.torsions.size)
    here = np.array([[phi, psi]])
    for turn in ([2 * math.pi, 0.0], [0.0, -2 * math.pi]):
        there = here + turn
        assert (grid.design(here) @ c)[0] == pytest.approx((grid.design(there) @ c)[0], abs=1e-11)
        assert (grid.design(here, 1) @ c)[0] == pytest.approx((grid.design(there, 1) @ c)[0], abs=1e-10)


@pytest.mark.parametrize("orders", [(0, 0), (1, 0), (0, 1)])
def test_grid_evaluation_agrees_with_points_and_axis_order(orders: tuple[int, int]) -> None:
    grid, n = BASIS.torsions, 30
    c = np.random.default_rng(3).normal(size=grid.size)
    axis = -math.pi + np.arange(n) * 2 * math.pi / n
    mesh = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    points = grid.design(mesh, axis=orders.index(1) if 1 in orders else None) @ c
    np.testing.assert_allclose(grid.on_grid(c, n, orders), points.reshape(n, n), atol=1e-11)


def test_first_torsion_is_the_first_axis() -> None:
    """A function of psi alone is constant along axis 0."""
    grid = BASIS.torsions
    axis = -math.pi + np.arange(36) * 2 * math.pi / 36
    mesh = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    c = np.linalg.lstsq(grid.design(mesh).toarray(), np.cos(mesh[:, 1]), rcond=None)[0]
    values = grid.on_grid(c, 36)
    np.testing.assert_allclose(values, np.broadcast_to(np.cos(axis), (36, 36)), atol=2e-3)


def test_bead_jacobian_of_a_chain() -> None:
    b = np.array([[0.13, 2.0], [0.14, 1.9]])
    np.testing.assert_allclose(BASIS.log_jacobian(b), np.log(b[:, 0] ** 2 * np.sin(b[:, 1])), rtol=1e-14)
    step = 1e-6
    for i in range(2):
        shift = step * np.eye(2)[i]
        numeric = (BASIS.log_jacobian(b + shift) - BASIS.log_jacobian(b - shift)) / (2 * step)
        np.testing.assert_allclose(BASIS.log_jacobian_gradient(b)[:, i], numeric, rtol=1e-7)


def test_roughness_costs_nothing_for_harmonic_wells_and_flat_grids() -> None:
    """Greville abscissae make the coefficients of a parabola a parabola: no third difference."""
    matrix = BASIS.roughness(1.0, 1.0)
    assert matrix.shape == (BASIS.size, BASIS.size)
    c = np.zeros(BASIS.size)
    c[BASIS.blocks[0]] = 3.0
    for block in BASIS.blocks[1:]:
        c[block] = (np.arange(block.stop - block.start) - 4.0) ** 2
    assert abs(c @ (matrix @ c)) < 1e-9
    c[5] += 1.0
    assert c @ (matrix @ c) > 1.0


def test_covering_spans_the_data() -> None:
    values = np.random.default_rng(4).normal(0.133, 0.003, 1000)
    term = SplineTerm.covering(BOND, values)
    assert term.lo < values.min()
    assert term.hi > values.max()
    assert 0.1 / 0.003**2 < term.min_curvature < 1.0 / 0.003**2


@pytest.mark.parametrize(
    "make",
    [
        lambda: SplineTerm(Coordinate("phi", "torsion", "circle"), 0.0, 1.0, 5, 1.0),
        lambda: SplineTerm(ANGLE, 1.0, 3.5, 5, 1.0),
        lambda: SplineTerm(BOND, 0.2, 0.1, 5, 1.0),
        lambda: SplineTerm.covering(BOND, np.full(10, 0.1)),
        lambda: TorsionGrid(("a", "b", "c")),
        lambda: TorsionGrid(("a",), 3),
    ],
)
def test_impossible_terms_are_refused(make: object) -> None:
    with pytest.raises(SettingsError):
        make()  # type: ignore[operator]
