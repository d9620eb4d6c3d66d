"""The proposal of coarse points: its draws follow the density that it says they have."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import TorusSurface

from ccg_gmx.cycle.proposal import (
    GridProposal,
    allocation,
    cells_per_torsion,
    mixture_proposal,
    uniform_proposal,
)
from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.joint_fit import JointFitSettings, fit_surface
from ccg_gmx.free_energy.surface import forward_kl, grid, shifted
from ccg_gmx.records import WeightedDraws

N = 12


def random_proposal(n_s: int, seed: int = 0) -> GridProposal:
    weights = np.random.default_rng(seed).gamma(0.5, size=(N,) * n_s)
    return GridProposal(weights / weights.sum())


def cell_of(s: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the nearest grid point's index, by distance on the circle rather than by rounding."""
    points = -np.pi + 2 * np.pi / N * np.arange(N)
    distance = np.abs(np.angle(np.exp(1j * (s[..., None] - points))))
    return tuple(distance.argmin(axis=-1).T)


@pytest.mark.parametrize("n_s", [1, 2])
def test_density_is_normalised_over_the_torus(n_s: int) -> None:
    """Midpoint rule on cells four times finer: exact for a piecewise constant density."""
    fine = -np.pi + 2 * np.pi / (4 * N) * (np.arange(4 * N) + 0.5)
    s = np.stack([axis.ravel() for axis in np.meshgrid(*[fine] * n_s, indexing="ij")], axis=-1)
    density = np.exp(random_proposal(n_s).log_density(s))
    assert density.sum() * (2 * np.pi / (4 * N)) ** n_s == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("n_s", [1, 2, 3, 4])
def test_density_is_that_of_the_nearest_grid_point(n_s: int) -> None:
    proposal = random_proposal(n_s)
    s = np.random.default_rng(1).uniform(-np.pi, np.pi, size=(500, n_s))
    expected = np.log(proposal.probability[cell_of(s)]) - n_s * np.log(2 * np.pi / N)
    np.testing.assert_allclose(proposal.log_density(s), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_s", [1, 2, 3, 4])
def test_draws_are_stratified_over_the_cells(n_s: int) -> None:
    """Cell counts differ from their expectation by less than 1 at either end of the cell's stretch, for any seed."""
    proposal, count = random_proposal(n_s), 5000
    s = proposal.draw(count, np.random.default_rng(2))
    assert s.shape == (count, n_s)
    assert s.min() >= -np.pi
    assert s.max() < np.pi
    counts = np.zeros((N,) * n_s)
    np.add.at(counts, cell_of(s), 1)
    assert np.abs(counts - count * proposal.probability).max() < 2


def test_draws_fill_their_cells_evenly() -> None:
    """Position within the cell against a uniform law: the Kolmogorov distance of 4000 draws at 99.9 % confidence."""
    s = random_proposal(1).draw(4000, np.random.default_rng(3))[:, 0]
    within = np.sort(((s + np.pi) / (2 * np.pi / N) + 0.5) % 1)
    ideal = (np.arange(4000) + 0.5) / 4000
    assert np.abs(within - ideal).max() < 1.95 / np.sqrt(4000)


def test_draws_come_in_no_order() -> None:
    """Halves of the draws are alike: members and blocks may be cut anywhere."""
    s = random_proposal(1).draw(4000, np.random.default_rng(4))[:, 0]
    first, second = (np.bincount(cell_of(half[:, None])[0], minlength=N) for half in (s[:2000], s[2000:]))
    expected = 2000 * random_proposal(1).probability
    # hypergeometric halves: a count's variance is a half of the expectation's at most; 4.5 sigma for 12 cells
    assert (np.abs(first - second) < 4.5 * np.sqrt(2 * expected) + 2).all()


def test_same_seed_same_draws() -> None:
    draws = [random_proposal(2).draw(64, np.random.default_rng(seed)) for seed in (5, 5, 6)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_empty_cells_are_never_drawn_and_weigh_nothing() -> None:
    probability = np.zeros(N)
    probability[[0, 5]] = 0.25, 0.75
    proposal = GridProposal(probability)
    s = proposal.draw(1000, np.random.default_rng(7))
    assert set(cell_of(s)[0]) == {0, 5}
    assert (s[np.abs(s) > 3] < 0).any()  # cell 0 is centred on -pi: half of it is at the upper end
    assert (s > 3).any()
    with np.errstate(divide="ignore"):
        assert np.isneginf(proposal.log_density(np.zeros((1, 1))))


def test_importance_weights_of_the_draws_integrate_the_torus() -> None:
    """The mean of 1/density is the torus' area; its standard error over 20 000 draws, five of them."""
    proposal = mixture_proposal(random_f(2), None, uniform=0.25, coarse_fraction=0.25, temperature_factor=2.0)
    inverse = np.exp(-proposal.log_density(proposal.draw(20_000, np.random.default_rng(8))))
    error = inverse.std(ddof=1) / np.sqrt(len(inverse))
    assert abs(inverse.mean() - (2 * np.pi) ** 2) < 5 * error


def random_f(n_s: int, seed: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 12, size=(N,) * n_s)


def test_uniform_proposal_is_flat() -> None:
    s = np.random.default_rng(10).uniform(-np.pi, np.pi, size=(50, 2))
    np.testing.assert_allclose(uniform_proposal(7, 2).log_density(s), -2 * np.log(2 * np.pi), atol=1e-12)
    assert uniform_proposal(7, 2).n_s == 2


@given(
    uniform=st.floats(0.01, 1.0),
    share=st.floats(0.0, 1.0),
    factor=st.floats(1.0, 10.0),
    seed=st.integers(0, 1000),
)
def test_mixture_holds_its_three_parts(uniform: float, share: float, factor: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    f, coarse = rng.uniform(0, 30, (N, N)), rng.gamma(0.3, size=(N, N))
    coarse_fraction = share * (1 - uniform)
    mixed = mixture_proposal(
        f, coarse, uniform=uniform, coarse_fraction=coarse_fraction, temperature_factor=factor
    ).probability
    raised = np.exp(-f / factor) / np.exp(-f / factor).sum()
    expected = uniform / N**2 + coarse_fraction * coarse / coarse.sum() + (1 - uniform - coarse_fraction) * raised
    np.testing.assert_allclose(mixed, expected, rtol=1e-9)
    assert mixed.sum() == pytest.approx(1.0)
    assert mixed.min() >= 0.999 * uniform / N**2  # no point of the torus is ever out of reach


def test_without_coarse_frames_their_share_goes_to_the_surface() -> None:
    f = random_f(1)
    mixed = mixture_proposal(f, None, uniform=0.2, coarse_fraction=0.5, temperature_factor=1.0).probability
    np.testing.assert_allclose(mixed, 0.2 / N + 0.8 * np.exp(-f) / np.exp(-f).sum(), rtol=1e-12)


def test_offset_of_f_does_not_matter() -> None:
    one, other = (
        mixture_proposal(random_f(2) + shift, None, uniform=0.1, coarse_fraction=0, temperature_factor=2).probability
        for shift in (0.0, 5000.0)
    )
    np.testing.assert_allclose(one, other, rtol=1e-8)


@pytest.mark.parametrize(("n_s", "cells"), [(1, 100), (2, 100), (3, 36), (4, 24), (5, 12), (6, 12)])
def test_cells_per_torsion(n_s: int, cells: int) -> None:
    assert cells_per_torsion(n_s) == cells
    assert uniform_proposal(None, n_s).probability.shape == (cells,) * n_s


def test_too_many_torsions() -> None:
    with pytest.raises(CcgError, match="7 torsions"):
        cells_per_torsion(7)


def test_forty_thousand_points_in_four_torsions_are_quick() -> None:
    f = np.random.default_rng(0).uniform(0, 12, (24,) * 4)
    proposal = mixture_proposal(f, None, uniform=0.2, coarse_fraction=0, temperature_factor=2)
    start = time.process_time()
    s = proposal.draw(40_000, np.random.default_rng(1))
    inverse = np.exp(-proposal.log_density(s))
    assert time.process_time() - start < 1, "about 0.02 s on an idle core"
    error = inverse.std() / 200
    assert abs(inverse.mean() - (2 * np.pi) ** 4) < 4 * error


@given(uniform=st.floats(0.01, 0.4), share=st.floats(0.0, 0.3), fraction=st.floats(0.0, 0.3), seed=st.integers(0, 1000))
def test_mixture_with_disagreement_holds_its_four_parts(
    uniform: float, share: float, fraction: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    f, coarse, variance = rng.uniform(0, 30, (6, 6, 6)), rng.gamma(0.3, size=(6, 6, 6)), rng.gamma(0.3, size=(6, 6, 6))
    mixed = mixture_proposal(
        f,
        coarse,
        uniform=uniform,
        coarse_fraction=share,
        temperature_factor=3.0,
        disagreement=variance,
        disagreement_fraction=fraction,
    ).probability
    raised = np.exp(-f / 3)
    expected = (
        uniform / 216
        + share * coarse / coarse.sum()
        + fraction * raised * variance / (raised * variance).sum()
        + (1 - uniform - share - fraction) * raised / raised.sum()
    )
    np.testing.assert_allclose(mixed, expected, rtol=1e-9)
    assert mixed.min() >= 0.999 * uniform / 216


def test_agreement_leaves_its_share_to_the_surface() -> None:
    f = random_f(2)
    without, agreed, absent = (
        mixture_proposal(f, None, uniform=0.2, coarse_fraction=0, temperature_factor=2, **more).probability
        for more in (
            {},
            {"disagreement": np.zeros_like(f), "disagreement_fraction": 0.4},
            {"disagreement_fraction": 0.4},
        )
    )
    np.testing.assert_allclose(agreed, without, rtol=1e-12)
    np.testing.assert_allclose(absent, without, rtol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"uniform": 0.0},
        {"uniform": 0.7},
        {"coarse_fraction": -0.1},
        {"disagreement": np.full((N, N), np.nan)},
        {"disagreement": np.full((N, N), -1.0)},
    ],
)
def test_wrong_parts_are_refused(change: dict) -> None:
    given_parts = {
        "uniform": 0.2,
        "coarse_fraction": 0.2,
        "disagreement_fraction": 0.2,
        "disagreement": np.ones((N, N)),
    }
    with pytest.raises(CcgError):
        mixture_proposal(random_f(2), np.ones((N, N)), temperature_factor=2, **{**given_parts, **change})


def test_allocation_is_neymans_with_a_floor() -> None:
    rng = np.random.default_rng(11)
    f, chi2 = rng.uniform(0, 9, (N, N, N)), rng.gamma(2, size=(N, N, N)) + 0.1
    for exponent in (0.5, 1.0):
        wanted = np.exp(-f) ** exponent * np.sqrt(chi2)
        found = allocation(f + 70, chi2, uniform=0.2, exponent=exponent).probability
        np.testing.assert_allclose(found, 0.2 / N**3 + 0.8 * wanted / wanted.sum(), rtol=1e-9)
        assert found.sum() == pytest.approx(1)
    for uniform, variance in ((0.0, chi2), (0.2, 0 * chi2)):
        with pytest.raises(CcgError, match="floor"):
            allocation(f, variance, uniform=uniform)


def test_allocation_by_bins_minimises_what_it_says() -> None:
    """Error of independent bins, sum p chi2 / n: no perturbation of the allocation lowers it."""
    rng = np.random.default_rng(12)
    f, chi2 = rng.uniform(0, 6, N), rng.gamma(2, size=N) + 0.1
    p = np.exp(-f) / np.exp(-f).sum()
    for exponent, size in ((0.5, p), (1.0, p**2)):
        best = allocation(f, chi2, uniform=1e-12, exponent=exponent).probability
        for _ in range(20):
            other = best * np.exp(0.1 * rng.standard_normal(N))
            assert (size * chi2 / best).sum() < (size * chi2 * other.sum() / other).sum()


def test_allocation_lowers_the_error_of_the_joint_fit() -> None:
    """Same number of draws: forward KL against uniform points and against the Boltzmann density, 10 repeats each."""
    system, n = TorusSurface(), 36
    exact = shifted(system.f(grid(n, 2)).reshape(n, n), system.names, system.temperature_K)

    def chi2(s: np.ndarray) -> np.ndarray:
        return 2 * np.exp(1.5 * np.cos(s[:, 0]))

    def mean_kl(proposal: GridProposal) -> tuple[float, float]:
        scores = []
        for seed in range(10):
            rng = np.random.default_rng(seed)
            s = proposal.draw(1500, rng)
            shape = 1 / chi2(s)[:, None]
            log_w = np.log(rng.gamma(shape, 1 / shape, (1500, 8))) - system.f(s)[:, None]
            fit = fit_surface(WeightedDraws(s, log_w, proposal.log_density(s), log_w.size), JointFitSettings(order=3))
            scores.append(forward_kl(exact, shifted(fit.basis.on_grid(n, fit.coefficients), system.names, 300.0)))
        return float(np.mean(scores)), float(np.var(scores) / 10)

    chosen, spread = mean_kl(allocation(exact.f, chi2(grid(n, 2)).reshape(n, n), uniform=0.1))
    for other in (uniform_proposal(n, 2), allocation(exact.f, np.ones((n, n)), uniform=0.1, exponent=1.0)):
        worse, more = mean_kl(other)
        assert worse - chosen > 2 * np.sqrt(spread + more)


def test_file_round_trip(tmp_path: Path) -> None:
    proposal = random_proposal(2)
    proposal.save(tmp_path / "proposal.npz")
    np.testing.assert_array_equal(GridProposal.load(tmp_path / "proposal.npz").probability, proposal.probability)
