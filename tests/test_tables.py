"""``ccg tables``: from files of ``ccg map`` to a model, resumed after a kill, with its bad input in one line each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from soft_fluid import TEMPERATURE, beads, known_pair, monte_carlo

from ccg_gmx.cli import main
from ccg_gmx.cycle.table_fit import fit_tables
from ccg_gmx.cycle.table_request import ModelRun, TableFolder, TableRequest
from ccg_gmx.errors import SettingsError, StoreError
from ccg_gmx.molecule.trr_blocks import TrrWriter
from ccg_gmx.potential.distributions_file import load_distributions, save_distributions
from ccg_gmx.potential.evaluate import energies_and_forces
from ccg_gmx.potential.inversion import BasisSettings
from ccg_gmx.potential.layout import ModelLayout
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.records import BeadFrames
from ccg_gmx.report.table_plots import draw_result

COUNT, BOX = 64, 1.9


def write(prefix: Path, sample: BeadFrames, forces: bool) -> None:
    with TrrWriter(prefix.with_name(f"{prefix.name}.trr"), COUNT, forces=forces) as writer:
        writer.write(sample)
    beads(COUNT).save(prefix.with_name(f"{prefix.name}.topology.json"))


@pytest.fixture(scope="module")
def mapped(tmp_path_factory) -> Path:
    """A fluid with the forces of its potential, as `ccg map` would leave it."""
    prefix = tmp_path_factory.mktemp("mapped") / "fluid"
    sample = monte_carlo(known_pair(), COUNT, BOX, 800, 5)
    forces = energies_and_forces(known_pair(), beads(COUNT), sample).forces
    write(prefix, BeadFrames(sample.positions, sample.time, sample.box, forces), True)
    return prefix


def request(prefix: Path, method: str, **options) -> TableRequest:
    basis = BasisSettings(pair_spacing=0.03)
    paths = prefix.with_name(f"{prefix.name}.trr"), prefix.with_name(f"{prefix.name}.topology.json")
    values = {"basis": basis, "bin_width": 0.01, "iterations": 5, "tolerance": 0.13, "peak_tolerance": 0.1, **options}
    return TableRequest(method, *paths, TEMPERATURE, 0.9, **values)


class Runs:
    """A runner by Monte Carlo that counts its runs, and can be killed in one."""

    def __init__(self, killed_in: int | None = None) -> None:
        self.folders: list[str] = []
        self.killed_in = killed_in

    def __call__(self, model: CoarseModel, folder: Path, seed: int) -> ModelRun:
        self.folders.append(folder.parent.name)
        if len(self.folders) - 1 == self.killed_in:
            raise KeyboardInterrupt
        sample = monte_carlo(model, COUNT, BOX, 400, seed)
        return ModelRun(lambda: iter([sample]), info={"engine": "test"})


@pytest.mark.parametrize("method", ["ibi", "re"])
def test_iterations_converge_and_resume_to_the_same_result(mapped: Path, tmp_path: Path, method: str) -> None:
    whole = fit_tables(request(mapped, method), tmp_path / "whole", Runs())
    assert whole["converged"]
    assert whole["tables"]["rdf_error_ratio"] <= 0.13
    assert whole["tables"]["first_peak_ratio"] == pytest.approx(1.0, abs=0.1)
    assert [record["seed"] for record in whole["iterations"]] == list(range(1, len(whole["iterations"]) + 1))
    with pytest.raises(KeyboardInterrupt):
        fit_tables(request(mapped, method), tmp_path / "killed", Runs(killed_in=1))
    runs = Runs()
    again = fit_tables(request(mapped, method), tmp_path / "killed", runs)
    assert runs.folders[0] == "iteration_001"  # iteration 0 was finished
    assert again["tables"] == whole["tables"]
    first, second = (CoarseModel.load(tmp_path / name / "model.npz") for name in ("whole", "killed"))
    np.testing.assert_array_equal(first.pairs["W", "W"].coefficients, second.pairs["W", "W"].coefficients)
    draw_result(tmp_path / "whole", 0.1)
    assert {"convergence.png", "distributions.png", "potentials.png", "tables"} <= {
        path.name for path in (tmp_path / "whole").iterdir()
    }
    fit_tables(request(mapped, method), tmp_path / "killed", none := Runs())
    assert none.folders == []


def test_relative_entropy_finds_the_pressure_that_inversion_misses(mapped: Path, tmp_path: Path) -> None:
    """The true potential has 550 +- 12 bar, its direct inversion 1540; g is nearly the same, Newton steps see it."""
    summary = fit_tables(request(mapped, "re", iterations=4, tolerance=1e-9), tmp_path, Runs())
    start, *_, last = [record["pressure_bar"] for record in summary["iterations"]]
    assert start > 1400
    assert last == pytest.approx(550, abs=250)


def test_iterations_that_do_not_converge_say_so(mapped: Path, tmp_path: Path) -> None:
    summary = fit_tables(request(mapped, "ibi", iterations=1, tolerance=1e-9, peak_tolerance=1e-9), tmp_path, Runs())
    assert not summary["converged"]
    ratios = [record["ratio"] for record in summary["iterations"]]
    assert summary["tables"]["rdf_error_ratio"] == min(ratios)


def test_pressure_moves_towards_its_target(mapped: Path, tmp_path: Path) -> None:
    options = {"iterations": 3, "pressure_bar": 550.0, "tolerance": 0.01}
    summary = fit_tables(request(mapped, "ibi", **options), tmp_path, Runs())
    off = [abs(record["pressure_bar"] - 550.0) for record in summary["iterations"]]
    assert off[-1] < 0.7 * off[0]  # the direct inversion is 1000 bar too high; a step is limited to 0.1 kT


def test_folder_of_another_job_is_refused(mapped: Path, tmp_path: Path) -> None:
    fit_tables(request(mapped, "bi"), tmp_path / "out")
    with pytest.raises(StoreError, match="other settings"):
        fit_tables(request(mapped, "bi", bin_width=0.005), tmp_path / "out")
    TableFolder(tmp_path / "out", request(mapped, "bi", iterations=9))  # limits may change
    with pytest.raises(SettingsError):
        fit_tables(request(mapped, "bi", bin_width=0.0), tmp_path / "new")
    fit_tables(request(mapped, "bi"), tmp_path / "new")  # nothing was there yet
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(StoreError, match="not empty"):
        fit_tables(request(mapped, "bi"), tmp_path / "mine")


def test_distributions_file_round_trip(mapped: Path, tmp_path: Path) -> None:
    fit_tables(request(mapped, "bi"), tmp_path / "out")
    found = load_distributions(tmp_path / "out" / "target.npz")
    save_distributions(found, tmp_path / "again.npz")
    again = load_distributions(tmp_path / "again.npz")
    np.testing.assert_array_equal(found.pairs["W", "W"].g, again.pairs["W", "W"].g)
    assert (found.frames, found.volume) == (again.frames, again.volume)


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["tables", *map(str, arguments), "--quiet"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_force_matching_from_the_command_line(mapped: Path, tmp_path: Path) -> None:
    out = tmp_path / "fm"
    options = ("--temperature", 300, "--cutoff", 0.9, "--pair-spacing", 0.02, "--out", out, "--json")
    code, text, error = invoke("fm", mapped, *options)
    assert (code, error) == (0, "")
    summary = json.loads(text)
    assert summary["force_matching"]["explained"] > 0.999
    curve = CoarseModel.load(out / "model.npz").pairs["W", "W"]
    x = np.linspace(0.42, 0.88, 30)
    wanted = known_pair().pairs["W", "W"].value_and_slope(x)[0]
    np.testing.assert_allclose(curve.value_and_slope(x)[0], wanted, atol=0.05)
    rows = np.loadtxt(out / "tables" / "pair_W-W.xvg")
    np.testing.assert_allclose(rows[:, 1], curve.value_and_slope(rows[:, 0])[0], rtol=1e-6, atol=1e-6)
    assert {"potentials.png", "distributions.png", "summary.json", "request.json"} <= {p.name for p in out.iterdir()}
    assert not [path for path in out.rglob("*") if path.suffix == ".part"]


@pytest.fixture(scope="module")
def without_forces(tmp_path_factory) -> Path:
    prefix = tmp_path_factory.mktemp("plain") / "fluid"
    write(prefix, monte_carlo(known_pair(), COUNT, BOX, 3, 5), False)
    return prefix


BAD = {
    "no forces": (("fm", "P", "--cutoff", 0.9), "without forces"),
    "beyond half the box": (("bi", "P", "--cutoff", 1.4), "half the box is 0.95 nm"),
    "empty rdf": (("bi", "P", "--cutoff", 0.1), "is empty up to 0.1 nm"),
    "no cut-off": (("bi", "P"), "no --cutoff for the pairs W-W"),
    "both": (("bi", "P", "--cutoff", 0.9, "--bonded-only"), "--bonded-only with --cutoff"),
    "range": (("bi", "P", "--cutoff", 0.9, "--r-max", 0.5), "a range that contains the cut-off"),
    "pressure": (("bi", "P", "--cutoff", 0.9, "--pressure", 1), "a target pressure for bi"),
    "no files": (("bi", "P/nothing", "--cutoff", 0.9), "the files of ccg map"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_no_result(name: str, without_forces: Path, tmp_path: Path) -> None:
    (method, prefix, *options), words = BAD[name]
    place = str(without_forces) + str(prefix).removeprefix("P")
    code, text, error = invoke(method, place, "--temperature", 300, "--out", tmp_path / "out", *options)
    assert (code, text) == (2, "")
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "model.npz").exists()


def test_unknown_types_are_refused() -> None:
    stranger = CoarseModel(300.0, pairs={("X", "X"): known_pair().pairs["W", "W"]})
    with pytest.raises(SettingsError, match="bead type X of the model"):
        ModelLayout(stranger, beads(3))
