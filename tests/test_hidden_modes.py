"""The hidden-mode test: its statistics on made walkers, and on alanine dipeptide with and without a hidden torsion."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from ccg_gmx.commands.check import check
from ccg_gmx.cycle.stages.hidden_modes import (
    HiddenModeReport,
    check_hidden_modes,
    choose_points,
    load_check,
    run_check,
)
from ccg_gmx.cycle.stages.hidden_walkers import free_torsions, make_seeds
from ccg_gmx.cycle.store import Work
from ccg_gmx.cycle.system import System
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import fine_run
from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.hidden_modes import (
    HiddenModeSettings,
    WalkerSeries,
    find_hidden_modes,
    mode_words,
    separate_states,
    split_r_hat,
)
from ccg_gmx.free_energy.torsion_grid import grid, shifted
from ccg_gmx.molecule.structure import read_structure
from ccg_gmx.molecule.topology import parse_tpr_dump
from ccg_gmx.molecule.trajectory import make_whole
from ccg_gmx.report.hidden_modes import save_plot, worst_coordinate

ALANINE = Path(__file__).resolve().parent.parent / "topologies" / "alanine_dipeptide"
BEADS = {"C_ACE": 5, "N_ALA": 7, "CA_ALA": 9, "C_ALA": 15, "N_NME": 17}
TORSIONS = {"phi": [5, 7, 9, 15], "psi": [7, 9, 15, 17]}
HIDDEN = "torsion C5-N7-CA9-C15"
SETTINGS = HiddenModeSettings()


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- statistics ----------------------------------------------------------------------------------------------------


def series(values: np.ndarray, energy: np.ndarray | None = None, period: float = 2 * np.pi) -> WalkerSeries:
    """One coordinate of walkers at one point, half of them hot; ``values [B, T]``."""
    B, T = values.shape
    energy = np.random.default_rng(0).standard_normal((B, T)) if energy is None else energy
    return WalkerSeries(
        values[..., None], energy, ("torsion a",), np.array([period]), np.zeros((1, 1)), np.zeros(B, dtype=np.int64),
        np.arange(B) < B // 2, 15.0,
    )  # fmt: skip


def test_split_r_hat_by_hand() -> None:
    values = np.array([[0.0, 2.0, 0.0, 2.0], [4.0, 6.0, 4.0, 6.0]])[..., None]
    # halves of length 2: within 2, means 1, 1, 5, 5, whose variance is 16/3
    assert split_r_hat(values)[0] == pytest.approx(np.sqrt(1 / 2 + (16 / 3) / 2))
    drift = np.array([[0.0, 0.0, 5.0, 5.0]] * 2)[..., None]
    assert split_r_hat(drift)[0] == np.inf, "a walker that has not come to rest differs from itself"
    assert split_r_hat(np.ones((2, 4, 1)))[0] == pytest.approx(np.sqrt(1 / 2))


def test_r_hat_of_equal_walkers_is_one() -> None:
    """For W walkers of T independent samples its mean is 1 + O(1/T): 1.003 at T = 150 at the most."""
    values = np.random.default_rng(1).standard_normal((8, 150, 500))
    r_hat = split_r_hat(values)
    assert abs(r_hat.mean() - 1) < 0.005
    assert r_hat.max() < 1.1


def test_states_by_hand() -> None:
    low, high = np.array([0.0, 0.5, 3.0, 3.2]), np.array([1.0, 1.5, 3.5, 4.0])
    assert separate_states(low, high, np.inf).tolist() == [0, 0, 1, 1]
    assert separate_states(low, high + np.array([0, 0, 0, 3.0]), 2 * np.pi).max() == 0, (
        "joined across the end of the circle"
    )
    bridge = separate_states(np.append(low, 1.2), np.append(high, 3.1), np.inf)
    assert bridge.max() == 0, "a walker that moves between two states joins them"
    assert separate_states(np.zeros(2), np.full(2, 7.0), 2 * np.pi).tolist() == [0, 0]


def test_walkers_that_start_at_one_value_still_leave_a_cut_of_the_circle() -> None:
    low = np.array([1.0, 1.0, 4.1, 4.1])
    assert separate_states(low, low + 0.5, 2 * np.pi).tolist() == [0, 0, 1, 1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-3.1, 3.1), st.floats(0.01, 0.6)), min_size=2, max_size=8), st.floats(-10, 10))
def test_states_on_a_circle_do_not_depend_on_its_origin(ranges: list[tuple[float, float]], turn: float) -> None:
    low = np.array([a for a, _ in ranges])
    high = low + [b for _, b in ranges]
    gaps = np.abs((low[:, None] - high[None, :] + np.pi) % (2 * np.pi) - np.pi)
    if gaps.min() < 1e-6:
        return  # touching ends: rounding decides
    here = separate_states(low, high, 2 * np.pi)
    there = separate_states(low + turn, high + turn, 2 * np.pi)
    assert ((here[:, None] == here) == (there[:, None] == there)).all()


def test_two_states_are_found_across_the_end_of_the_circle() -> None:
    rng = np.random.default_rng(2)
    centre = np.repeat([np.pi, 1.0], 4)[:, None]
    values = (centre + 0.15 * rng.standard_normal((8, 100)) + np.pi) % (2 * np.pi) - np.pi
    modes, r_hat = find_hidden_modes(series(values), SETTINGS)
    assert r_hat > 3
    (mode,) = modes
    assert [round(state.value) % 360 for state in mode.states] == [57, 180]
    assert sum(state.hot for state in mode.states) == 4
    assert "walkers stay in 2 states of torsion a" in mode_words(mode, ("phi",))


def test_states_too_high_in_energy_do_not_count() -> None:
    rng = np.random.default_rng(3)
    values = np.repeat([-1.0, 1.0], 4)[:, None] + 0.15 * rng.standard_normal((8, 100))
    for gap, found in ((5.0, 1), (15.0, 0)):
        energy = np.repeat([0.0, gap], 4)[:, None] + rng.standard_normal((8, 100))
        modes, _ = find_hidden_modes(series(values, energy), SETTINGS)
        # at 15 kT the energy itself tells the two groups apart, and it is not relevant either
        assert len(modes) == found


def test_fine_frames_say_which_state_they_know() -> None:
    rng = np.random.default_rng(4)
    values = np.repeat([-1.0, 1.0], 4)[:, None] + 0.15 * rng.standard_normal((8, 100))
    fine = rng.uniform(-0.2, 0.2, (50, 1)), np.full((50, 1), -1.0) + 0.05 * rng.standard_normal((50, 1))
    (mode,), _ = find_hidden_modes(series(values), SETTINGS, fine)
    assert [state.fine_frames for state in mode.states] == [50, 0]
    assert "no fine frame" in mode_words(mode, ("phi",))


@pytest.mark.parametrize("correlation", [0.0, 0.9, 0.98])
def test_slow_coordinates_with_one_peak_are_no_hidden_modes(correlation: float) -> None:
    """200 sets of 8 walkers, correlated over up to a third of their length: no alarm, where R-hat alone gives many."""
    rng = np.random.default_rng(5)
    alarms = slow = 0
    for _ in range(200):
        noise = rng.standard_normal((8, 150)) * np.sqrt(1 - correlation**2)
        x = np.empty((8, 150))
        x[:, 0] = rng.standard_normal(8)
        for t in range(1, 150):
            x[:, t] = correlation * x[:, t - 1] + noise[:, t]
        modes, r_hat = find_hidden_modes(series(0.2 * x, np.zeros((8, 150))), SETTINGS)
        alarms += len(modes)
        slow += r_hat > SETTINGS.r_hat
    assert alarms <= 2, "1.5 % of sets at 95 % confidence"
    if correlation == 0.98:
        assert slow > 100


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(CcgError, match="at least 4"):
        find_hidden_modes(series(np.zeros((2, 3))), SETTINGS)


# --- points --------------------------------------------------------------------------------------------------------


def test_points_are_lows_then_draws_then_starts() -> None:
    s = grid(60, 2)
    f = (4 * (1 - np.cos(s[:, 0] - 1.0)) + 3 * (1 - np.cos(2 * s[:, 1]))).reshape(60, 60)
    points = choose_points(("phi", "psi"), 8, 1, shifted(f, ("phi", "psi"), 300.0))
    np.testing.assert_allclose(np.sort(points[:2, 1] % np.pi), 0, atol=0.11)
    np.testing.assert_allclose(points[:2, 0], 1.0, atol=0.06)
    assert points.shape == (8, 2)
    assert (choose_points(("phi", "psi"), 8, 1, shifted(f, ("phi", "psi"), 300.0)) == points).all()
    given = choose_points(("phi",), 3, 1, None, [{"phi": 90.0}])
    assert given[0, 0] == pytest.approx(np.pi / 2)
    assert given[1, 0] < 0 < given[2, 0]


# --- molecules -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dump(gmx: Gmx, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("system")
    mdp = fine_run(300.0, 1000, 1, output_every=100)
    return gmx.dump(gmx.grompp(mdp, ALANINE / "conf.gro", ALANINE / "topol.top", folder / "system.tpr"))


def system_with(dump: str, *names: str) -> System:
    topology = parse_tpr_dump(dump)
    positions, box = read_structure(ALANINE / "conf.gro")
    structure = make_whole(positions[None], box[None], topology.bonds)[0]
    return System.build(topology, structure, BEADS, {name: TORSIONS[name] for name in names}, 300.0)


def folder_of(dump: str, system: System, folder: Path) -> Path:
    """The folder that the ``system`` stage would have written."""
    folder.mkdir()
    (folder / "system.dump").write_text(dump)
    np.save(folder / "structure.npy", system.structure)
    facts = {
        "beads": BEADS, "torsions": {name: TORSIONS[name] for name in system.torsion_names}, "temperature_K": 300.0
    }  # fmt: skip
    (folder / "system.json").write_text(json.dumps(facts))
    return folder


@pytest.mark.gmx
def test_seeds_turn_every_free_torsion_and_keep_the_supports(dump: str) -> None:
    system = system_with(dump, "psi")
    beads, others = free_torsions(system)
    assert [system.coordinates.b[k].name for k in beads] == [HIDDEN]
    assert all("rotor" in system.coordinates.y[k].name for k in others)
    assert len(others) == 3
    seeds = make_seeds(system, np.array([[1.0], [-2.0]]), None, SETTINGS.model_copy(update={"walkers": 40}), 1)
    s, b, y = system.coordinates.split(seeds.positions)
    torch.testing.assert_close(s[:, 0], torch.tensor([1.0, -2.0], dtype=torch.float64)[seeds.point])
    assert bool(system.coordinates.in_support(y).all())
    phi = b[seeds.hot, beads[0]].numpy()
    assert np.histogram(phi, bins=4, range=(-np.pi, np.pi))[0].min() > 5
    cold = b[~seeds.hot, beads[0]].numpy()
    assert np.ptp(cold) < 1e-9, "cold seeds have the torsions of the starting structure"


@pytest.mark.gmx
def test_a_hidden_torsion_is_found(dump: str, tmp_path: Path) -> None:
    """psi alone: phi crosses its barrier in about 0.4 us. 12 of 12 seeds find it, at 3 to 5 of 8 points each."""
    system = system_with(dump, "psi")
    work = Work(
        tmp_path, {"hidden_modes": {"points": 4}, "starts": [{"psi": 8.0}, {"psi": -100.0}]},
        {"system": folder_of(dump, system, tmp_path / "system")}, 1, {}, lambda *_: None,
    )  # fmt: skip
    check_hidden_modes(work)
    report, walkers = load_check(tmp_path)
    assert not report.passed
    assert HIDDEN in {mode.coordinate for mode in report.modes}
    mode = next(mode for mode in report.modes if mode.coordinate == HIDDEN)
    values = [state.value for state in mode.states]
    assert min(values) < -50
    assert 30 < max(values) < 90
    assert report.evaluations < 500_000
    assert worst_coordinate(report, walkers) == HIDDEN
    save_plot(report, walkers, tmp_path / "walkers.png")
    assert (tmp_path / "walkers.png").stat().st_size > 10_000
    content = json.loads((tmp_path / "hidden_modes.json").read_text())
    assert content["passed"] is False
    assert any(HIDDEN in line for line in content["words"])


@pytest.mark.gmx
def test_with_both_torsions_nothing_is_hidden(dump: str) -> None:
    """25 of 25 seeds pass (no false alarm; above 11 % of them would be excluded at 95 % confidence)."""
    system = system_with(dump, "phi", "psi")
    points = np.radians([[-83.0, 75.0], [-155.0, 160.0], [72.0, -60.0], [-80.0, -40.0]])
    report, run = run_check(system, points, SETTINGS, 1)
    assert report.passed, report.words()
    assert report.evidence().modes == ()
    assert np.isnan(report.hot_gap_kT)
    off = (run.frames.s - points[run.point_of_frame] + np.pi) % (2 * np.pi) - np.pi
    assert np.degrees(off.std()) < 10, "held at its point"
    assert "no slow motion is hidden" in report.words()[0]


def test_points_without_walkers_do_not_pass() -> None:
    report = HiddenModeReport(("phi",), ((0.0,),), (1,), (), 0.0, 15.0, {"torsion a": 7}, np.nan, 10.0, 1)
    assert not report.passed
    assert not report.evidence().compared
    assert any("7 walkers left the assumed state of torsion a" in line for line in report.words())


# --- command -------------------------------------------------------------------------------------------------------


@pytest.mark.gmx
def test_command_on_a_workflow(gmx: Gmx, tmp_path: Path) -> None:
    lines = {
        "version": 1, "system": "psi", "topology": str(ALANINE / "topol.top"), "structure": str(ALANINE / "conf.gro"),
        "coarse": {"beads": BEADS, "torsions": {"psi": TORSIONS["psi"]}},
        "fine_md": {"starts": [{"name": "a", "torsions": {"psi": 8.0}}, {"name": "b", "torsions": {"psi": -100.0}}]},
    }  # fmt: skip
    workflow = tmp_path / "psi.yaml"
    workflow.write_text(json.dumps(lines))
    result = CliRunner().invoke(check, ["hidden-modes", str(workflow), "--points", "2", "--json"])
    assert result.exit_code == 3, result.output
    content = json.loads(result.output)
    assert len(content["points_degrees"]) == 2
    assert content["modes"]


def test_command_refuses_what_is_neither_workflow_nor_run(tmp_path: Path) -> None:
    for source, message in ((tmp_path, "no results.json"), (tmp_path / "missing.yaml", "no file or folder")):
        with pytest.raises(CcgError, match=message):
            CliRunner().invoke(check, ["hidden-modes", str(source)], catch_exceptions=False)
