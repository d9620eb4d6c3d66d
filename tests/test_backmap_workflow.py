"""Backmap workflows: the file, restoration as a stage, marks, and a small run from fine MD to a page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backmap_systems import fitted, frames, system
from click.testing import CliRunner
from small_cycle import ROOT

from ccg_gmx.backmap import restore as restoration
from ccg_gmx.backmap.checkpoint import BackmapModel, load_model, save_model
from ccg_gmx.backmap.data import HeldOut
from ccg_gmx.backmap.jobs import _save_held_out, held_out_path
from ccg_gmx.cli import main
from ccg_gmx.cycle.backmap import stages
from ccg_gmx.cycle.backmap.config import BackmapWorkflow, Marks
from ccg_gmx.cycle.backmap.summary import Mark, judge, marks
from ccg_gmx.cycle.kinds import json_schema, load_any
from ccg_gmx.cycle.store import RECORD, Job, Store, read_json
from ccg_gmx.errors import SettingsError
from ccg_gmx.molecule.trajectory import read_frames, write_trr

CHIGNOLIN = ROOT / "workflows" / "chignolin_backmap.yaml"
ALANINE = ROOT / "topologies" / "alanine_dipeptide"
NAME, BEADS = "alanine_tripeptide", ("C", "N", "CA")


# --- the file -----------------------------------------------------------------------------------------------------


def test_the_chignolin_workflow_is_valid_and_its_paths_are_absolute() -> None:
    workflow = load_any(CHIGNOLIN)
    assert isinstance(workflow, BackmapWorkflow)
    assert workflow.minimisation_topology == ROOT / "topologies" / "chignolin" / "topol.top"
    assert all(path.is_absolute() and path.is_file() for path in workflow.input_files.values())
    assert set(json_schema("backmap")["properties"]) == set(BackmapWorkflow.model_fields)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trajectories=[a.xtc]", "give either trajectories or fine_md"),
        ("topology=md.tpr", "fine_md needs a .top as topology, and a structure"),
        ("structure=null", "fine_md needs a .top as topology, and a structure"),
        ("fine_md.steps=1600001", "steps must be a multiple of output_every = 2000"),
        ("training.held_out_fraction=0", "the score card is about held-out frames"),
        ("coarse=nowhere.xtc", "coarse: no file"),
        ("structure=nowhere.gro", "structure: no file"),
        ("minimise={topology: nowhere.top}", "minimise.topology: no file"),
        ("topology=no_such_package:md.top", "data of the Python package no_such_package, which is not installed"),
        ("structure=numpy:md.gro", "the Python package numpy has no file md.gro"),
        ("restore.format=pdb", "restore.format"),
        ("marks.js_torsion=0.1", "unknown key"),
        ("marks.clash_fraction=-1", "marks.clash_fraction"),
    ],
)
def test_bad_files_are_named_in_one_line(override: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_any(CHIGNOLIN, (override,))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_complaints_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("version: 1\nkind: backmap\nsystem: x\ntopology: a.psf\nbaeds: ca\n")
    with pytest.raises(SettingsError, match=r"x\.yaml, line 5: baeds: unknown key"):
        load_any(tmp_path / "x.yaml")


def test_trajectories_and_their_minimisation_need_topologies_of_their_own(tmp_path: Path) -> None:
    text = "version: 1\nkind: backmap\nsystem: x\ntopology: a.{}\ntrajectories: [a.xtc]\n{}\n"
    for suffix, more, words in (
        ("top", "", "trajectories need a .tpr or .psf as topology"),
        ("tpr", "minimise: {frames: 2}", "minimise needs minimise.topology"),
    ):
        (tmp_path / "x.yaml").write_text(text.format(suffix, more))
        with pytest.raises(SettingsError, match=words):
            load_any(tmp_path / "x.yaml")


def test_trajectories_of_a_psf_need_no_gromacs() -> None:
    given = {"kind": "backmap", "system": "x", "trajectories": ["x.dcd"], "topology": "x.psf"}
    assert not BackmapWorkflow.model_validate(given).needs_gromacs
    for more in ({"topology": "x.tpr"}, {"minimise": {"topology": "x.top"}}):
        assert BackmapWorkflow.model_validate({**given, **more}).needs_gromacs


def test_files_of_a_python_package_are_found() -> None:
    tests = pytest.importorskip("MDAnalysisTests", reason="MDAnalysisTests is not installed")
    workflow = load_any(ROOT / "workflows" / "adenylate_kinase_backmap.yaml")
    assert isinstance(workflow, BackmapWorkflow)
    assert workflow.topology == Path(tests.__file__).resolve().parent / "data" / "adk.psf"
    assert all(path.is_file() for path in workflow.trajectories)


# --- marks --------------------------------------------------------------------------------------------------------

FRAMES = {"frames": 40, "max_bead_deviation_nm": 0.0, "chirality_errors": 0, "clash_fraction": 0.005}
GEOMETRY = {
    f"js_{kind}_{name}": value
    for kind in ("torsions", "bonds", "angles")
    for name, value in (("max", 0.01), ("worst", "ALA CB-CA"), ("classes", 7))
}


def verdict(wanted: Marks | None = None, card: dict[str, Any] | None = None, **changed: Any) -> tuple[bool, list[str]]:
    restored = {**FRAMES, **GEOMETRY, **changed}
    return judge(marks(restored, {**FRAMES, "frames": 8, **(card or {})}, wanted or Marks()))


def test_kept_marks_are_listed_with_their_numbers() -> None:
    trusted, reasons = verdict()
    assert trusted
    assert len(reasons) == 6
    assert (
        "frames with a clash: 0.50 % (wanted at most 1.00 %), in 40 restored frames and 8 of the score card" in reasons
    )
    assert reasons[3].endswith("0.0100 nats (wanted at most 0.0200 nats), ALA CB-CA, the worst of 7 classes")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"max_bead_deviation_nm": 2e-6}, "largest bead deviation: 2.0e-06 nm (wanted at most 1.0e-06 nm)"),
        ({"chirality_errors": 1}, "chirality errors: 1 (wanted at most 0)"),
        ({"clash_fraction": 0.0101}, "frames with a clash: 1.01 %"),
        ({"card": {"clash_fraction": 0.02}}, "frames with a clash: 2.00 %"),
        ({"js_torsions_max": 0.021}, "torsions from held-out fine frames: 0.0210 nats"),
        ({"js_bonds_max": 0.051}, "bonds from held-out fine frames: 0.0510 nats"),
        ({"js_angles_max": None}, "angles from held-out fine frames: not measured (wanted at most 0.0500 nats)"),
        ({"js_angles_max": float("nan")}, "angles from held-out fine frames: nan"),
    ],
)
def test_a_missed_mark_is_named(changed: dict[str, Any], words: str) -> None:
    trusted, reasons = verdict(**changed)
    assert not trusted
    assert len(reasons) == 1
    assert reasons[0].startswith("not yet, because: ")
    assert words in reasons[0]


def test_a_mark_that_is_null_is_told_but_not_judged() -> None:
    trusted, reasons = verdict(Marks(clash_fraction=None), clash_fraction=0.7)
    assert trusted
    assert any("frames with a clash: 70.00 % (not judged)" in reason for reason in reasons)
    assert Mark("x", 1.0, None, str).passed is None


# --- restoration as a stage ---------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Folder as the training leaves it, with 12 held-out frames."""
    folder = tmp_path / "train-0"
    folder.mkdir()
    save_model(BackmapModel(fitted(NAME, BEADS), system(NAME, BEADS), {"steps": 0}), folder / stages.MODEL)
    _save_held_out(held_out_path(folder / stages.MODEL), HeldOut(frames(system(NAME, BEADS), 12, 8).numpy()))
    (folder / RECORD).write_text("{}")
    return folder


def restore_job(model: Path, **more: Any) -> Job:
    settings = {
        "samples": 2,
        "candidates": 4,
        "rounds": 1,
        "sweeps": 0,
        "frames": None,
        "format": "trr",
        **more.pop("settings", {}),
    }
    return Job("restore", stages.restore, settings, {"model": model, **more}, seed=5)


def test_without_coarse_frames_the_beads_of_held_out_frames_are_restored(model: Path, tmp_path: Path) -> None:
    folder = Store(tmp_path / "run").run([restore_job(model)])[0]
    facts = read_json(folder / "restored.json")
    assert (facts["frames"], facts["coarse_frames"]) == (24, 12)
    of = system(NAME, BEADS)
    restored = read_frames(folder / "restored" / "restored.trr", len(of.atoms)).positions
    expected = np.repeat(frames(of, 12, 8).numpy()[:, of.beads], 2, axis=0)
    assert np.abs(restored[:, of.beads] - expected).max() < 1e-6
    assert facts["max_bead_deviation_nm"] < 1e-6
    assert facts["chirality_errors"] == 0


def test_coarse_frames_of_the_user_are_restored(model: Path, tmp_path: Path) -> None:
    of = system(NAME, BEADS)
    beads = frames(of, 5, 9).numpy()[:, of.beads]
    write_trr(tmp_path / "cg.trr", beads, np.arange(5.0), np.zeros((3, 3)))
    job = restore_job(model, coarse=tmp_path / "cg.trr", settings={"frames": 3, "format": "xtc"})
    folder = Store(tmp_path / "run").run([job])[0]
    assert read_json(folder / "restored.json")["coarse_frames"] == 3
    restored = read_frames(folder / "restored" / "restored.xtc", len(of.atoms)).positions
    assert np.abs(restored[:, of.beads] - np.repeat(beads[:3], 2, axis=0)).max() < 1e-6


def test_a_killed_restoration_goes_on_where_it_was(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoration, "CHUNK_ATOMS", 3 * len(system(NAME, BEADS).atoms) * 2 * 4)
    drawn: list[str] = []
    original = restoration._restore

    def run(folder: str, stop: float = np.inf) -> Path:
        def counted(*arguments: Any) -> Any:
            if drawn.count(folder) == stop:
                raise KeyboardInterrupt
            drawn.append(folder)
            return original(*arguments)

        monkeypatch.setattr(restoration, "_restore", counted)
        return Store(tmp_path / folder).run([restore_job(model)])[0]

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("killed", stop=2)
    folder = run("killed")
    assert drawn.count("killed") == drawn.count("whole") >= 4, "no piece is drawn twice"
    for name in ("restored.trr", "restored.npz"):
        assert (folder / "restored" / name).read_bytes() == (whole / "restored" / name).read_bytes()


# --- a whole run --------------------------------------------------------------------------------------------------

WORKFLOW = f"""\
version: 1
kind: backmap
system: alanine dipeptide
topology: {ALANINE}/topol.top
structure: {ALANINE}/conf.gro
beads: C,N,CA
seed: 3
fine_md: {{runs: 2, steps: 8000, hot_steps: 500, output_every: 40, cutoff_nm: 2.4}}
training: {{steps: 20, batch: 16, held_out_every: 10, held_out_fraction: 0.2}}
model: {{width: 16, context: 8, couplings: 1, bins: 4, flow_width: 8, lower_width: 4}}
restore: {{samples: 2, candidates: 2, rounds: 1}}
minimise: {{frames: 2, steps: 20}}
engine: {{workers: 1}}
"""


@dataclass(frozen=True)
class Finished:
    """A run folder, its arguments and its summary."""

    folder: Path
    file: Path
    arguments: list[str]
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def finished(gmx: object, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("backmap")
    (folder / "x.yaml").write_text(WORKFLOW)
    arguments = ["run", str(folder / "x.yaml"), "--out", str(folder / "out"), "--quiet"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 3, result.output  # 20 steps are too few
    assert "not yet, because: " in result.output
    assert f"model: {folder / 'out' / 'model.pt'}" in result.output
    summary = json.loads((folder / "out" / "summary.json").read_text())
    return Finished(folder / "out", folder / "x.yaml", arguments, summary)


@pytest.mark.gmx
def test_a_small_run_leaves_a_model_restored_frames_and_a_page(finished: Finished) -> None:
    summary, folder = finished.summary, finished.folder
    assert summary["kind"] == "backmap"
    assert not summary["converged"]
    assert set(summary["wall_s"]) == {"starts", "fine_md", "train", "restore", "card", "minimise"}
    assert summary["energy_evaluations"]["fine_md_steps"] == 2 * 8000 + 2 * 500
    assert summary["training"]["held_out_frames"] == 80
    restored = summary["restored"]
    assert restored["frames"] == 160
    assert restored["max_bead_deviation_nm"] <= 1e-6
    assert {"chirality_errors", "clash_fraction", "js_torsions_max", "js_bonds_max", "js_angles_max"} <= set(restored)
    assert restored["seconds_per_frame"] > 0
    minimised = summary["minimised"]
    assert minimised["energy_after_kJ_mol"]["median"] < minimised["energy_before_kJ_mol"]["median"]
    assert minimised["energy_fine_after_kJ_mol"]["median"] < minimised["energy_fine_kJ_mol"]["median"]
    assert minimised["max_bead_deviation_nm"] < 1e-6
    with np.load(folder / "minimised" / "minimised.npz", allow_pickle=False) as table:
        assert {len(table[name]) for name in ("before", "after", "fine_before", "fine_after")} == {2}
    page = (folder / "report.html").read_text()
    for words in ("Key numbers", "frames held out", "Energies before and after minimisation", "the least alike first"):
        assert words in page


@pytest.mark.gmx
def test_run_again_it_resumes_and_the_page_can_be_made_again(finished: Finished) -> None:
    stages_before = {path.name: path.stat().st_mtime_ns for path in (finished.folder / "stages").iterdir()}
    assert CliRunner().invoke(main, [*finished.arguments, "--json"]).exit_code == 3
    again = {path.name: path.stat().st_mtime_ns for path in (finished.folder / "stages").iterdir()}
    assert again == stages_before
    assert json.loads((finished.folder / "summary.json").read_text())["restored"] == finished.summary["restored"]
    page = finished.folder / "report.html"
    before = page.read_text()
    page.unlink()
    assert CliRunner().invoke(main, ["report", str(finished.folder)]).exit_code == 0
    assert page.read_text() == before
    status = CliRunner().invoke(main, ["status", str(finished.folder)])
    assert "finished, but marks missed" in status.output


@pytest.mark.gmx
def test_marks_alone_change_the_verdict_and_no_stage(finished: Finished) -> None:
    null = [f"marks.{name}=null" for name in ("js_torsions", "js_bonds", "js_angles")]
    arguments = finished.arguments + [part for item in null for part in ("--set", item)]
    number = len(list((finished.folder / "stages").iterdir()))
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "(not judged)" in result.output
    assert len(list((finished.folder / "stages").iterdir())) == number
    assert "finished and all marks kept" in CliRunner().invoke(main, ["status", str(finished.folder)]).output


@pytest.mark.gmx
def test_the_model_of_a_run_restores_other_frames_and_its_card_shows_energies(finished: Finished) -> None:
    out = finished.folder / "more" / "x.xtc"
    coarse = finished.folder / "restored" / "restored.xtc"  # all atoms: their beads are taken
    options = ["-o", str(out), "--frames", "2", "--minimise", str(ALANINE / "topol.top"), "--minimise-steps", "10"]
    model = str(finished.folder / "model.pt")
    result = CliRunner().invoke(main, ["backmap", model, str(coarse), *options, "--report", "--quiet"])
    assert result.exit_code == 0, result.output
    page = (out.parent / "x.card.html").read_text()
    assert "Energies before and after minimisation" in page
    assert "fine, minimised" in page


@pytest.mark.gmx
def test_the_training_of_a_workflow_file_makes_its_fine_runs(finished: Finished, tmp_path: Path) -> None:
    arguments = ["backmap", "train", str(finished.file), "-o", str(tmp_path / "m.pt"), "--quiet"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.held_out.npz", "m.md", "m.pt"]
    assert len(list((tmp_path / "m.md" / "stages").glob("fine_md-*"))) == 2
    one, other = (load_model(path).flow.state_dict() for path in (tmp_path / "m.pt", finished.folder / "model.pt"))
    assert all(torch.equal(one[name], other[name]) for name in one)
