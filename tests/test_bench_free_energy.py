"""The free energy benchmark: its statistics against known answers, its walkers, and a tiny run of everything."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from small_cycle import ROOT, SETTINGS

from ccg_gmx.bench import metadynamics, plain_md
from ccg_gmx.bench.convergence import (
    Point,
    PowerLaw,
    arrival,
    best_forward_kl,
    fit_one_over_n,
    fit_power_law,
    group_point,
)
from ccg_gmx.bench.free_energy import Bench, Options
from ccg_gmx.bench.free_energy_plot import plot_free_energy
from ccg_gmx.bench.free_energy_result import MdResult
from ccg_gmx.bench.metadynamics import BIAS_FACTOR, Hills
from ccg_gmx.bench.our_cycle import cycle_turns
from ccg_gmx.bench.plain_md import Counter, MdTask, flat_bins, run_md, torsions_of
from ccg_gmx.bench.two_state import Transitions, relaxation, short_walker_factor, two_states
from ccg_gmx.commands.bench_free_energy import bench_free_energy
from ccg_gmx.errors import CcgError, SettingsError, StoreError
from ccg_gmx.free_energy.reference import load_reference
from ccg_gmx.free_energy.surface import Basin, grid, histogram_surface, probability, shifted
from ccg_gmx.records import FloatArray, IntArray
from ccg_gmx.units import thermal_energy

LEFT = Basin(name="left", ranges={"phi": (-180, 0), "psi": (-180, 180)})
RIGHT = Basin(name="right", ranges={"phi": (0, 180), "psi": (-180, 180)})
REFERENCE = ROOT / "topologies" / "alanine_dipeptide" / "reference" / "surface.npz"


def two_wells(depth: float, n: int = 40) -> FloatArray:
    """F in kT: minima at phi = -90 and +90 degrees, the right one higher by ``depth``, barriers of about 6 kT."""
    phi, psi = grid(n, 2).T
    f = 3 * (1 + np.cos(2 * phi)) + depth * (np.sin(phi) + 1) / 2 + 2 * (1 - np.cos(psi))
    return f.reshape(n, n)


def nested_points(values: FloatArray, c: float) -> list[Point]:
    """Points of KL = c / N chi-square(1), from one normal number per walker, groups of 1, 2, 4, ... walkers."""
    points, size = [], 1
    while size <= len(values):
        means = values.reshape(-1, size).mean(axis=1)
        points.append(Point(1000.0 * size, float(c / 1000 * (means**2).mean()), 0.0, len(means), math.inf, True))
        size *= 2
    return points


def test_power_law_finds_a_known_constant_with_honest_errors():
    """Over 400 repeats z = (found - true) / error has mean 0 and spread 1, within four standard errors of either.

    One point has a skewed logarithm, so the spread may miss 1 by 10 % more.
    """
    rng = np.random.default_rng(1)
    laws = [fit_power_law(nested_points(rng.normal(size=64), c=7.0)) for _ in range(400)]
    slope = np.array([(law.slope + 1) / law.slope_error for law in laws])
    constant = np.array([math.log(law.c / 7.0) / (law.c_error / law.c) for law in laws])
    for z in (slope, constant):
        assert abs(z.mean()) < 4 / math.sqrt(400) * z.std()
        assert abs(z.std() - 1) < 0.1 + 4 / math.sqrt(800)
    assert laws[0].slope_error < 0.3


def test_the_plateau_before_the_law_is_left_out():
    """KL = c / N from 8,000 steps on, a plateau before: only what follows is fitted."""
    kl = [0.1, 0.1, 0.1, 0.1, 0.05, 0.025, 0.0125, 0.00625, 0.003125]
    groups = [2**k for k in range(len(kl) - 1, -1, -1)]
    points = [
        # the mean over G groups whose expected logarithm is that of the law
        Point(1000.0 * 2**k, kl[k] * math.exp(_log_bias(groups[k])), 0.0, groups[k], math.inf, True)
        for k in range(len(kl))
    ]
    law = fit_one_over_n(points)
    assert law is not None
    assert law.established
    assert law.first >= 4000
    assert law.c == pytest.approx(800, rel=0.15)


def _log_bias(groups: int) -> float:
    from scipy.special import digamma

    return float(digamma(groups / 2) + math.log(2 / groups))


def test_a_curve_that_does_not_fall_is_not_called_a_law():
    points = [Point(2.0**k, 0.1, 0.0, 512 >> k, math.inf, True) for k in range(8)]
    law = fit_one_over_n(points)
    assert law is not None
    assert not law.established
    assert fit_one_over_n(points[:2]) is None
    with pytest.raises(CcgError, match="falling numbers of groups"):
        fit_power_law(points[::-1])


def two_state_chain(k_ab: float, k_ba: float, steps: int, walkers: int, seed: int) -> IntArray:
    """States ``[walkers, steps]`` of a Markov chain started in equilibrium."""
    rng = np.random.default_rng(seed)
    state = rng.random(walkers) < k_ab / (k_ab + k_ba)
    path = np.empty((walkers, steps), dtype=np.int64)
    for step in range(steps):
        state = np.where(state, rng.random(walkers) >= k_ba, rng.random(walkers) < k_ab)
        path[:, step] = state
    return path


def test_two_state_chain_converges_as_tau_over_t():
    """Mean forward KL of a two-state chain is tau / T: slope -1 and c = tau within three standard errors.

    The exact variance of a chain in discrete time has tau = (1 + lambda) / (1 - lambda) / 2 with lambda = 1 - k.
    """
    k_ab, k_ba, steps, walkers = 0.02, 0.05, 8192, 256
    k = k_ab + k_ba
    tau = (2 - k) / k / 2
    p_b = k_ab / k
    n = 10
    p = np.zeros((n, n))
    p[2, 2], p[7, 7] = 1 - p_b, p_b
    path = two_state_chain(k_ab, k_ba, steps, walkers, seed=3)
    histograms = np.zeros((walkers, n, n), dtype=np.int64)
    histograms[:, 7, 7] = path.sum(axis=1)
    histograms[:, 2, 2] = steps - histograms[:, 7, 7]
    points = [group_point(p, histograms, 2**k, float(steps), independent=True) for k in range(6)]
    law = fit_power_law(points)
    assert abs(law.slope + 1) < 3 * law.slope_error
    assert law.slope_error < 0.2
    assert abs(law.c - tau) < 3 * law.c_error
    assert law.c_error < 0.1 * tau
    # the same from counted transitions and detailed balance
    change = np.diff(path, axis=1)
    counted = Transitions(
        int((change == 1).sum()), int((change == -1).sum()), *(float((path == i).sum()) for i in (0, 1))
    )
    found = relaxation(counted, p_b)
    assert found is not None
    assert abs(found.tau_steps - 1 / k) < 3 * found.tau_error
    assert found.tau_error < 0.02 / k


def test_short_equilibrium_walkers_know_more_than_their_length():
    assert short_walker_factor(1000.0, 1.0) == pytest.approx(1 - 1e-3)
    assert short_walker_factor(0.01, 1.0) == pytest.approx(0.005, rel=0.01)
    # against simulation: variance of the mean of a chain of length t, times t / (2 tau p_a p_b)
    path = two_state_chain(0.01, 0.01, 100, 40_000, seed=4)
    found = path.mean(axis=1).var() * 100 / (2 * 50 * 0.25)
    assert found == pytest.approx(short_walker_factor(100, 50), abs=0.02)


def test_a_law_of_short_walkers_or_of_groups_that_miss_a_state_does_not_count():
    points = nested_points(np.random.default_rng(8).normal(size=256), 50.0)
    rates = relaxation(Transitions(0, 9, 0.0, 900.0), 0.2)
    assert rates is not None
    assert rates.tau_steps == pytest.approx(80.0)
    for walker_steps, first, source in (
        (1000.0, 1e4, "fit"),
        (100.0, 1e4, "two-state theory"),  # short walkers: the law is that of their starts
        (1000.0, 1e3, "two-state theory"),  # groups that see the rarer state twice, or not at all
    ):
        law = PowerLaw(-1.05, 0.1, 50.0, 5.0, first, 1e5, True)
        assert MdResult(points, law, rates, Transitions(), walker_steps, 0.2).source == source
    law = PowerLaw(-1.05, 0.1, 50.0, 5.0, 1e3, 1e5, True)
    assert MdResult(points, law, None, Transitions(), 1.0, 0.2).source == "fit"
    assert MdResult(points, None, None, Transitions(), 1.0, 0.2).source is None


def test_no_transition_no_rate():
    assert relaxation(Transitions(steps_a=1e6, steps_b=1e5), 0.1) is None
    # three ways out in 300 steps, and detailed balance fixes the way in
    found = relaxation(Transitions(0, 3, 0.0, 300.0), 0.2)
    assert found is not None
    assert found.tau_steps == pytest.approx(80.0)


def test_best_smoothing_is_never_worse_and_never_infinite():
    p = np.exp(-two_wells(2.0))
    p /= p.sum()
    rng = np.random.default_rng(5)
    few = rng.multinomial(300, p.ravel()).reshape(p.shape)
    many = rng.multinomial(10**8, p.ravel()).reshape(p.shape)
    score, converged = best_forward_kl(p, few), best_forward_kl(p, many)
    assert math.isinf(score.raw)
    assert 0.005 < score.kl < 0.5
    assert score.kernel_degrees > 0
    assert converged.kl <= converged.raw
    assert converged.kl < 1e-5
    with pytest.raises(CcgError, match="0 samples"):
        best_forward_kl(p, 0 * few)


def test_raw_score_is_that_of_the_package():
    from ccg_gmx.free_energy.surface import forward_kl

    reference = shifted(two_wells(1.0, 12), ("phi", "psi"), 300.0)
    s = np.random.default_rng(6).uniform(-np.pi, np.pi, size=(20_000, 2))
    surface = histogram_surface(s, 12, ("phi", "psi"), 300.0)
    counts = np.bincount(flat_bins(s, 12), minlength=144).reshape(12, 12)
    assert best_forward_kl(probability(reference), counts).raw == pytest.approx(forward_kl(reference, surface))


def test_arrival_interpolates_or_goes_on_as_one_over_n():
    n = [1e3, 1e4, 1e5]
    assert arrival(n, [1.0, 0.1, 0.01], 0.1 / math.sqrt(10)).evaluations == pytest.approx(1e4 * math.sqrt(10))
    beyond = arrival(n, [1.0, 0.1, 0.01], 1e-3)
    assert beyond.extrapolated
    assert beyond.evaluations == pytest.approx(1e6)
    assert arrival(n, [1.0, 0.1, 0.01], 2.0).evaluations == 1e3
    # down, up again, down: only the last way down counts
    assert arrival([1, 2, 4, 8], [0.5, 0.05, 0.4, 0.05], 0.1).evaluations > 4
    with pytest.raises(CcgError, match="without a finite forward KL"):
        arrival([1.0], [math.inf], 0.1)


def test_cores_and_populations_of_two_wells():
    surface = shifted(two_wells(2.0), ("phi", "psi"), 300.0)
    states = two_states(surface, LEFT, RIGHT)
    phi = grid(40, 2)[:, 0].reshape(40, 40)
    assert set(np.sign(phi[states.core == 0])) == {-1.0}
    assert set(np.sign(phi[states.core == 1])) == {1.0}
    # symmetric barriers at 0 and 180 degrees: the committor splits there, apart from the barrier bins themselves
    box = probability(surface)[(phi > 0) & (phi < 3.1)].sum()
    assert states.p_b == pytest.approx(box, rel=0.05)
    assert states.committor[states.core == 1].min() == 1
    assert states.committor[states.core == 0].max() == 0


def test_a_core_may_cross_the_edge_of_the_grid_and_must_not_be_the_same():
    moved = np.roll(two_wells(2.0), 10, axis=0)  # wells at 0 and 180 degrees
    surface = shifted(moved, ("phi", "psi"), 300.0)
    around = Basin(name="trans", ranges={"phi": (90, -90), "psi": (-180, 180)})
    middle = Basin(name="cis", ranges={"phi": (-90, 90), "psi": (-180, 180)})
    states = two_states(surface, middle, around)
    assert states.core[0, 20] == 1
    assert states.core[39, 20] == 1
    with pytest.raises(CcgError, match="common core"):
        two_states(surface, middle, middle)


def test_bins_never_visited_separate_states():
    f = two_wells(2.0)
    f[[0, 20]] = np.inf  # the barriers at -180 and 0 degrees
    with pytest.raises(CcgError, match="not connected"):
        two_states(shifted(f, ("phi", "psi"), 300.0), LEFT, RIGHT)


def test_shipped_reference_has_two_states():
    reference = load_reference(REFERENCE)
    states = two_states(reference.surface, LEFT, RIGHT)
    phi = grid(100, 2)[:, 0].reshape(100, 100)
    assert states.p_b == pytest.approx(probability(reference.surface)[phi >= 0].sum(), rel=0.02)
    assert 0.02 < states.p_b < 0.03


def test_counter_follows_the_core_visited_last():
    core = np.full((4, 4), -1)
    core[0, 0], core[2, 2] = 0, 1
    counter = Counter(core, 2)
    a, b, between = (-np.pi, -np.pi), (0.0, 0.0), (-np.pi / 2, 0.0)
    for first, second in ((between, a), (b, a), (between, b), (a, between), (b, b)):
        counter.add(np.array([first, second]))
    assert counter.n_ab.tolist() == [1, 1]
    assert counter.n_ba.tolist() == [1, 0]
    assert counter.samples_a.tolist() == [1, 2]
    assert counter.samples_b.tolist() == [3, 3]
    assert counter.counts.sum(axis=1).tolist() == [5, 5]


def test_hills_fill_a_well_and_stop_growing():
    """Walkers that stay put in one well: the bias grows by less and less, and the density is the bias's."""
    kT = thermal_energy(300.0)
    hills = Hills(36, kT)
    s = np.zeros((4, 2))
    heights = []
    for _ in range(1000):
        before = hills.bias[18, 18]
        hills.deposit(s, np.full(4, before))
        heights.append(hills.bias[18, 18] - before)
    assert heights[0] == pytest.approx(4 * metadynamics.HILL_KJ_MOL)
    expected = 4 * metadynamics.HILL_KJ_MOL * np.exp(-(hills.bias[18, 18] - heights[-1]) / ((BIAS_FACTOR - 1) * kT))
    assert heights[-1] == pytest.approx(expected)
    assert heights[-1] < 0.05 * heights[0]
    f = -np.log(hills.density())
    drop = BIAS_FACTOR / (BIAS_FACTOR - 1) * hills.bias[18, 18] / kT
    assert f[0, 0] - f[18, 18] == pytest.approx(drop, rel=1e-6)


def test_weights_of_metadynamics_undo_a_static_bias():
    """Samples of the biased density, weighted, are the unbiased density: chi-square below its 99.9 % quantile."""
    from scipy.stats import chi2

    kT, n = thermal_energy(300.0), 12
    hills = Hills(n, kT)
    f = two_wells(1.0, n)
    hills.bias = 0.8 * kT * (f.max() - f)
    biased = np.exp(-f - hills.bias / kT).ravel()
    rng = np.random.default_rng(7)
    draws = 200_000
    chosen = rng.choice(n * n, size=draws, p=biased / biased.sum())
    hills.count(grid(n, 2)[chosen], hills.bias.ravel()[chosen] - hills.offset())
    weight = np.exp((hills.bias.ravel() - hills.offset()) / kT)
    counts = hills.weights.ravel() / weight
    expected = biased / biased.sum() * draws
    assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(0.999, n * n - 1)
    found, exact = hills.weights.ravel() / hills.weights.sum(), np.exp(-f).ravel() / np.exp(-f).sum()
    assert np.abs(found / exact - 1).max() < 0.3


@pytest.fixture(scope="module")
def bench(gmx: Any, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A benchmark in a folder, nothing of it done but the system."""
    out = tmp_path_factory.mktemp("bench")
    made = Bench(Options("alanine-dipeptide", out, md_steps=8 * 400, walkers=4, segment_steps=200))
    assert made.system.topology.n_atoms == 22
    return made


@pytest.mark.gmx
def test_starts_are_where_they_were_drawn(bench: Bench):
    weights = np.zeros((100, 100))
    weights[70, 38] = 1.0  # C7ax: 72, -43 degrees
    starts = plain_md.equilibrium_starts(bench.system, bench.torsions, weights, 3, seed=1)
    degrees = np.degrees(torsions_of(torch.from_numpy(starts), bench.torsions))
    assert np.abs(degrees - [72.0, -43.2]).max() < 12  # half a bin, and the restraint's 2 degrees of spread, five times
    energy = bench.system.energy()(torch.from_numpy(starts))
    assert float(energy.max()) < 150  # kJ/mol; 33 kT above a minimum of -60 is 20


@pytest.mark.gmx
def test_torsions_are_those_of_the_coordinates(bench: Bench):
    x = torch.from_numpy(bench.system.structure)[None]
    s, _, _ = bench.system.coordinates.split(bench.system.coordinates.relabel(x))
    np.testing.assert_allclose(torsions_of(x, bench.torsions), s.numpy(), atol=1e-9)


@pytest.mark.gmx
def test_walkers_go_on_where_they_were(bench: Bench, tmp_path: Path):
    def task(name: str, segments: int) -> MdTask:
        folder = tmp_path / name
        if not folder.exists():
            folder.mkdir()
            np.save(folder / "core.npy", bench.states.core)
            np.save(folder / "starts.npy", np.repeat(bench.system.structure[None], 3, axis=0))
        return MdTask(folder, bench.system_folder, bench.torsions, 5, segments, 100, 0.001, 1.0)

    run_md(task("whole", 5))
    run_md(task("parts", 2))
    run_md(task("parts", 5))
    whole, parts = (plain_md.load_histograms([task(name, 5)], 5) for name in ("whole", "parts"))
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name])
    assert whole["counts"].sum(axis=(1, 2)).tolist() == [10, 10, 10]
    two, four = (plain_md.load_histograms([task("whole", 5)], n)["counts"] for n in (2, 4))
    assert (four >= two).all()
    other = MdTask(task("whole", 5).folder, bench.system_folder, bench.torsions, 6, 5, 100, 0.001, 1.0)
    with pytest.raises(StoreError, match="walkers of other settings"):
        run_md(other)


@pytest.mark.gmx
def test_a_longer_earlier_run_counts_and_other_walkers_are_refused(bench: Bench):
    before = bench.run_plain_md()["equilibrium"]
    assert [task.segments for task in before] == [4, 4]
    shorter = Bench(replace(bench.options, md_steps=800))
    assert [task.segments for task in shorter.run_plain_md()["equilibrium"]] == [4, 4]
    points = plain_md.md_curve(bench.p, before)
    assert [point.evaluations for point in points] == [200, 400, 800, 1600, 3200]
    assert [point.independent for point in points] == [False, False, True, True, True]
    with pytest.raises(StoreError, match="equilibrium_0 holds 2 walkers; expected 4"):
        Bench(replace(bench.options, walkers=8)).run_plain_md()


@pytest.mark.gmx
def test_two_benchmarks_keep_out_of_each_others_folder(bench: Bench):
    import fcntl

    with (bench.out / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="in use by another benchmark"):
            bench.run(("md",))


def test_unknown_systems_and_workflows_without_a_reference_are_refused(tmp_path: Path):
    with pytest.raises(SettingsError, match="expected alanine-dipeptide or"):
        Bench(Options("water", tmp_path))
    with pytest.raises(SettingsError, match="names no reference"):
        Bench(Options("alanine-dipeptide", tmp_path, overrides=("reference=null",)))


@pytest.mark.gmx
@pytest.mark.slow
def test_a_tiny_run_of_everything(gmx: Any, tmp_path: Path):
    """No number is worth anything; every number is there, and a second run is a look-up."""
    arguments = ["--out", str(tmp_path / "bench"), "--seeds", "1", "--md-steps", "6400", "--walkers", "8"]
    arguments += ["--segment-steps", "400", "--enhanced-steps", "30000", "--quiet", "--json"]
    arguments += [word for item in SETTINGS for word in ("--set", item)]
    picture = tmp_path / "cost.png"
    result = CliRunner().invoke(bench_free_energy, [*arguments, "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (seed,) = found["seeds"]
    assert seed["evaluations"] > 80_000
    assert seed["wall_s"] > 0
    assert {"forward_kl", "noise_floor", "rmsd_kT", "delta_f_kJ_mol", "delta_f_error"} <= set(seed)
    evaluations = [turn["evaluations"] for turn in seed["turns"]]
    assert evaluations == sorted(evaluations)
    assert evaluations[-1] == seed["evaluations"]
    assert len(evaluations) >= 2
    assert found["enhanced"]["method"] == "AWH"
    assert found["md"]["largest_N"] == 6400
    assert found["md"]["single_start"]["evaluations"] == pytest.approx(seed["evaluations"], rel=0.02)
    assert found["md"]["steps_per_s_one_core"]["gromacs"] > 100
    assert {"ratio_to_md", "ratio_to_md_wall", "ratio_to_md_range", "machine", "noise_floor"} <= set(found)
    assert picture.stat().st_size > 10_000
    again = CliRunner().invoke(bench_free_energy, [argument for argument in arguments if argument != "--json"])
    assert again.exit_code == 0, again.output
    assert "plain MD from one structure" in again.stdout
    # the last surface, before the coarse run and the restored frames, is not the whole cost
    assert cycle_turns(tmp_path / "bench" / "cycle_seed1", 1)[-1].evaluations < seed["evaluations"]


@pytest.mark.gmx
@pytest.mark.slow
def test_metadynamics_of_the_implicit_solvent_system(gmx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Some picoseconds: the bias grows, resuming gives the same surfaces, and they can be scored."""
    monkeypatch.setattr(metadynamics, "SURFACES", 3)
    made = Bench(Options("alanine-dipeptide-obc1", tmp_path, overrides=(f"reference={REFERENCE}",)))

    def task(name: str) -> metadynamics.MetadynamicsTask:
        return metadynamics.MetadynamicsTask(
            tmp_path / name, made.system_folder, made.torsions, 1, 16 * 500 * 6, 0.001, 0.5, 100
        )

    metadynamics.run_metadynamics(task("whole"))
    monkeypatch.setattr(metadynamics, "report_steps", lambda done, _: _stop(done))
    with pytest.raises(KeyboardInterrupt):
        metadynamics.run_metadynamics(task("parts"))
    monkeypatch.setattr(metadynamics, "report_steps", lambda *_: None)
    metadynamics.run_metadynamics(task("parts"))
    whole, parts = (metadynamics.metadynamics_curve(task(name), made.p) for name in ("whole", "parts"))
    assert whole.kl == parts.kl
    assert whole.evaluations == (16_000, 32_000, 48_000)
    assert all(math.isfinite(value) for value in whole.kl)
    assert whole.kl[-1] < whole.kl[0]


def _stop(done: int) -> None:
    if done == 2:
        raise KeyboardInterrupt


def test_plot_draws_what_is_measured_and_what_is_not(tmp_path: Path):
    turns = [SimpleNamespace(evaluations=n, wall_s=n / 1e4, forward_kl=3e3 / n) for n in (1e6, 4e6)]
    points = [{"evaluations": 1e5 * 4**k, "kl": 0.5 / 2**k, "error": 0.1 / 2**k if k < 5 else None} for k in range(6)]
    curve = {"evaluations": [1e6, 1e7], "kl": [0.1, 0.01], "raw": [None, 0.01]}
    result = {
        "system": "alanine dipeptide",
        "temperature_K": 300.0,
        "noise_floor": 3e-4,
        "published": "published",
        "ratio_to_md": 2500.0,
        "ratio_to_md_range": [2000.0, 3000.0],
        "seeds": [{"forward_kl": 7.5e-4, "turns": [vars(turn) for turn in turns]}],
        "md": {
            "points": points,
            "extrapolated_by": "two-state theory",
            "extrapolated": {"0.001": 1e10},
            "single_start": {"evaluations": 4e6, "forward_kl": 0.2},
            "steps_per_s_one_core": {"langevin": 5e5, "gromacs": None},
        },
        "enhanced": {
            "method": "AWH",
            "ratio": 9.0,
            "seeds": [curve],
            "mean": {"evaluations": [1e6, 1e7], "forward_kl": [0.1, 0.01]},
            "evaluations_at_0.001": {"evaluations": 1e8, "extrapolated": True},
            "steps_per_s_one_core": 2e4,
        },
        "machine": {"cores": 2},
    }
    plot_free_energy(result, tmp_path / "cost.svg")
    text = (tmp_path / "cost.svg").read_text()
    assert text.count("stroke-dasharray") >= 4
    plot_free_energy(result, tmp_path / "cost.png")
