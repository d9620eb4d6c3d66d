"""Surfaces from walkers under a static bias, on potentials over a torus whose integrals are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.biased_walkers import BasinVisits, BiasTarget, WeightedHistograms
from ccg_gmx.free_energy.surface import Basin, delta_f, forward_kl, histogram_surface, noise_floor, probability, shifted
from ccg_gmx.free_energy.torsion_grid import grid_points
from ccg_gmx.molecule.langevin import Langevin, LangevinState
from ccg_gmx.molecule.torsion_bias import TorsionBias, biased
from ccg_gmx.records import FreeEnergySurface
from ccg_gmx.units import thermal_energy

KT = thermal_energy(300.0)
NAMES = ("phi", "psi")


def reduced(x, y, cos, sin):  # type: ignore[no-untyped-def]
    """Potential in kT over the torus, two deep wells and barriers of 4 kT."""
    return 2.0 * cos(x - 0.4) + 1.5 * cos(2 * y) + sin(x + y)


def exact(bins: int, fine: int = 40) -> FreeEnergySurface:
    """Free energy of the bins of :func:`reduced` by quadrature."""
    offsets = ((np.arange(fine) + 0.5) / fine - 0.5) * 2 * np.pi / bins
    axis = (grid_points(bins)[:, None] + offsets).ravel()
    u = reduced(axis[:, None], axis[None, :], np.cos, np.sin).reshape(bins, fine, bins, fine)
    return shifted(-logsumexp(-u, axis=(1, 3)), NAMES, 300.0)


def fill(histograms: WeightedHistograms, s: np.ndarray, log_w: np.ndarray) -> WeightedHistograms:
    """Add frames ``[T, W, n_s]``."""
    for frame, weights in zip(s, log_w, strict=True):
        histograms.add(frame, weights)
    return histograms


def histograms_2d(bins: int, groups: int = 16) -> WeightedHistograms:
    return WeightedHistograms(NAMES, [(0, 1), (1,)], bins, groups, 300.0)


@pytest.fixture(scope="module")
def walkers() -> tuple[np.ndarray, np.ndarray]:
    """Torsions ``[T, W, 2]`` and log-weights of Langevin walkers that feel 0.4 of the potential: bias -0.6 u."""

    def energy_and_gradient(r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = r[:, 0, 0], r[:, 0, 1]
        by_x = -2.0 * torch.sin(x - 0.4) + torch.cos(x + y)
        by_y = -3.0 * torch.sin(2 * y) + torch.cos(x + y)
        gradient = 0.4 * KT * torch.stack([by_x, by_y], dim=-1)[:, None]
        return 0.4 * KT * reduced(x, y, torch.cos, torch.sin), gradient

    frames = []

    def keep(state: LangevinState, _: torch.Tensor) -> None:
        frames.append(state.positions[:, 0].numpy())

    langevin = Langevin(energy_and_gradient, [1.0], 300.0, 1.0, 0.1, seed=11)
    start = torch.rand(640, 1, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 * np.pi
    langevin.run(langevin.run(langevin.start(start), 200), 4000, every=10, callback=keep)
    s = (np.array(frames) + np.pi) % (2 * np.pi) - np.pi
    return s, -0.6 * reduced(s[..., 0], s[..., 1], np.cos, np.sin)


def test_walkers_under_a_bias_recover_the_surface_within_their_error_bars(walkers: tuple[np.ndarray, np.ndarray]):
    """95 % intervals of 16 groups (t with 15 degrees of freedom: 2.13 errors) hold the truth in 90 to 99 % of bins."""
    found, truth = fill(histograms_2d(12), *walkers).with_error((0, 1)), exact(12)
    difference = found.f - truth.f
    difference -= (probability(truth) * difference).sum()
    covered = (np.abs(difference) < 2.13 * found.error).mean()
    assert 0.90 <= covered <= 0.99
    assert found.error.max() < 0.1
    unweighted = fill(histograms_2d(12), walkers[0], 0 * walkers[1]).surface((0, 1))
    assert forward_kl(truth, unweighted) > 1000 * forward_kl(truth, found)


def test_noise_floor_is_the_distance_from_the_truth(walkers: tuple[np.ndarray, np.ndarray]):
    """The forward KL to the exact surface is what halves and groups say it is, to a factor of 1.5 for 900 bins."""
    histograms, truth = fill(histograms_2d(30), *walkers), exact(30)
    distance = forward_kl(truth, histograms.surface((0, 1)))
    assert distance / 1.5 < noise_floor(*histograms.halves((0, 1))) < distance * 1.5
    assert distance / 1.5 < histograms.group_floor((0, 1)) < distance * 1.5
    assert distance < 2e-3


def test_delta_f_of_the_halves_brackets_the_truth(walkers: tuple[np.ndarray, np.ndarray]):
    histograms = fill(histograms_2d(24), *walkers)
    basins = [Basin(name=name, ranges={"phi": box, "psi": (-180, 180)}) for name, box in
              (("right", (0, 180)), ("left", (-180, 0)))]  # fmt: skip
    sums = [delta_f(histograms.surface((0, 1), [group]), *basins) for group in range(16)]
    error = np.std(sums, ddof=1) / 4
    assert error < 0.02
    assert abs(np.mean(sums) - delta_f(exact(24), *basins)) < 4 * error


def springs(r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Four atoms held by springs between neighbours and next neighbours: their torsion is free, f(phi) is flat."""
    energy, gradient = torch.zeros(len(r), dtype=r.dtype), torch.zeros_like(r)
    for i, j, length in ((0, 1, 0.15), (1, 2, 0.15), (2, 3, 0.15), (0, 2, 0.25), (1, 3, 0.25)):
        delta = r[:, i] - r[:, j]
        distance = delta.norm(dim=1)
        energy += 0.5 * 5e4 * (distance - length) ** 2
        pull = (5e4 * (distance - length) / distance)[:, None] * delta
        gradient[:, i] += pull
        gradient[:, j] -= pull
    return energy, gradient


def test_a_free_torsion_stays_free_under_any_bias():
    """Atoms, bias on their torsion, integrator and weights together: f is flat within its error bars.

    The bias has wells of 6 kT in all; 95 % intervals (t with 15 degrees of freedom) hold 0 in most of 20 bins.
    """
    points = grid_points(40)
    bias = TorsionBias([(0, 1, 2, 3)], [((0,), 2 * KT * np.cos(points) + KT * np.sin(2 * points + 0.5))])
    histograms = WeightedHistograms(["phi"], [(0,)], 20, 16, 300.0)

    def sample(now: LangevinState, _: torch.Tensor) -> None:
        s = bias.torsions(now.positions).numpy()
        histograms.add(s, bias.energy(s) / KT)

    langevin = Langevin(biased(springs, bias), [12.0] * 4, 300.0, 5.0, 0.004, seed=2)
    chain = torch.tensor([[0.0, 0, 0], [0.1, 0.11, 0], [0.25, 0.11, 0], [0.35, 0, 0.02]], dtype=torch.float64)
    state = langevin.run(langevin.start(chain.repeat(256, 1, 1)), 2500)
    langevin.run(state, 6000, every=10, callback=sample)
    surface = histograms.with_error((0,))
    deviation = surface.f - (probability(surface) * surface.f).sum()
    assert surface.error.max() < 0.12
    assert (np.abs(deviation) < 2.13 * surface.error).mean() >= 0.8
    assert np.all(np.abs(deviation) < 5 * surface.error)


def test_each_frame_counts_with_its_own_bias():
    """Flat f under the bias -cos(2 phi) kT in four wide bins: the bias of the bin's centre would be 1 kT wrong."""
    rng = np.random.default_rng(3)
    x = rng.uniform(-np.pi, np.pi, 1_600_000)
    x = x[rng.random(len(x)) < np.exp(-np.cos(2 * x) - 1)][:480_000].reshape(150, 3200)
    one = WeightedHistograms(["phi"], [(0,)], 4, 16, 300.0)
    surface = fill(one, x[..., None], np.cos(2 * x)).with_error((0,))
    deviation = surface.f - (probability(surface) * surface.f).sum()
    assert surface.error.max() < 5e-3
    assert np.all(np.abs(deviation) < 5 * surface.error)
    centres = np.round(x / (np.pi / 2)) * np.pi / 2
    other = WeightedHistograms(["phi"], [(0,)], 4, 16, 300.0)
    assert np.ptp(fill(other, x[..., None], np.cos(2 * centres)).surface((0,)).f) > 0.5


def test_streaming_is_the_histogram_of_all_frames():
    rng = np.random.default_rng(5)
    s = rng.uniform(-np.pi, np.pi, (40, 64, 2))
    log_w = np.sort(rng.normal(700, 300, (40, 64)), axis=0)  # grows: the scale must follow without overflow
    histograms = fill(histograms_2d(8, groups=4), s, log_w)
    for marginal in ((0, 1), (1,)):
        names = tuple(NAMES[axis] for axis in marginal)
        whole = histogram_surface(s.reshape(-1, 2)[:, marginal], 8, names, 300.0, log_w.ravel())
        found = histograms.surface(marginal)
        assert found.names == names
        np.testing.assert_allclose(found.f, whole.f, rtol=1e-10)
    even = np.isin(np.arange(64) // 16, (0, 2))
    half = histogram_surface(s[:, even].reshape(-1, 2), 8, NAMES, 300.0, log_w[:, even].ravel())
    np.testing.assert_allclose(histograms.halves((0, 1))[0].f, half.f, rtol=1e-10)
    assert histograms.frames == 40 * 64
    w = np.exp(log_w - log_w.max())
    assert histograms.kish_fraction == pytest.approx(w.sum() ** 2 / (w**2).sum() / w.size)


def test_a_checkpoint_goes_on_bit_by_bit(walkers: tuple[np.ndarray, np.ndarray]):
    s, log_w = walkers[0][:20], walkers[1][:20]
    whole = fill(histograms_2d(10), s, log_w)
    again = histograms_2d(10)
    again.restore({key: value.copy() for key, value in fill(histograms_2d(10), s[:7], log_w[:7]).arrays().items()})
    fill(again, s[7:], log_w[7:])
    for key, value in whole.arrays().items():
        np.testing.assert_array_equal(again.arrays()[key], value)
    with pytest.raises(CcgError, match="other histograms"):
        histograms_2d(12).restore(whole.arrays())


def test_a_bin_that_some_group_never_saw_has_no_error():
    s = np.zeros((1, 8, 1))
    s[0, 0] = 2.0
    surface = fill(WeightedHistograms(["phi"], [(0,)], 8, 4, 300.0), s, np.zeros((1, 8))).with_error((0,))
    assert np.isfinite(surface.f).sum() == 2
    assert np.isfinite(surface.error).sum() == 1


def test_the_bias_makes_walkers_sample_the_mixture():
    truth = exact(60, fine=1)
    target = BiasTarget(boltzmann=0.2, root=0.5, uniform=0.3, cap_kJ_mol=4 * KT, smooth_degrees=0)
    bias = target.bias(truth) / KT
    p = probability(truth)
    sampled = p * np.exp(-bias)
    sampled /= sampled.sum()
    flat = np.minimum(np.exp(4.0) * np.exp(-truth.f), 1)
    expected = 0.2 * p + 0.5 * np.sqrt(p) / np.sqrt(p).sum() + 0.3 * flat / flat.sum()
    np.testing.assert_allclose(sampled, expected, rtol=1e-10)
    assert (p / sampled).max() < 1 / 0.2
    assert bias.max() == 0


def test_the_bias_ends_above_the_cap():
    f = np.minimum(60 * (1 - np.cos(grid_points(90))), 80.0)
    f[45] = np.inf
    bias = BiasTarget(cap_kJ_mol=10 * KT, smooth_degrees=0, boltzmann=0, root=0).bias(shifted(f, ("phi",), 300.0)) / KT
    above = np.isfinite(f) & (f > 10)
    assert np.isfinite(bias).all()
    assert np.ptp(bias[above]) < 1e-12
    np.testing.assert_allclose(np.ptp(bias), 10.0)


def test_visits_count_changes_of_basin():
    boxes = [Basin(name=name, ranges={"phi": box}) for name, box in (("a", (-100, -50)), ("b", (50, 100)))]
    visits = BasinVisits(boxes, ["phi"], walkers=4, groups=2)
    for degrees in ([-75, -75, 75, 0], [0, -75, 75, 0], [75, -75, -75, 75], [0, 75, 0, 0], [75, 75, 75, -75]):
        visits.add(np.radians(np.array(degrees, dtype=np.float64))[:, None])
    # group 1: walker 1 a -> b, walker 2 a -> b; group 2: walker 3 b -> a -> b, walker 4 begins in b -> a
    np.testing.assert_array_equal(visits.entries, [[0, 2], [2, 1]])
    assert visits.summary() == {"a": (0, 2), "b": (1, 3)}


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="even number"):
        histograms_2d(8, groups=3)
    with pytest.raises(ValueError, match="marginal"):
        WeightedHistograms(NAMES, [(0, 2)], 8, 4, 300.0)
    histograms = histograms_2d(8, groups=4)
    with pytest.raises(CcgError, match="groups"):
        histograms.add(np.zeros((6, 2)), np.zeros(6))
    with pytest.raises(CcgError, match="not finite"):
        histograms.add(np.full((4, 2), np.nan), np.zeros(4))
    with pytest.raises(CcgError, match="no marginal"):
        histograms.surface((0,))
