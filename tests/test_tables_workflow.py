"""Tables workflows: the file, and a small run from water to a page (two methods, one iteration)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from small_cycle import ROOT

from ccg_gmx.cli import main
from ccg_gmx.cycle.kinds import json_schema, load_any
from ccg_gmx.cycle.tables.config import IterationSettings, TablesWorkflow
from ccg_gmx.cycle.tables.summary import judge
from ccg_gmx.errors import SettingsError
from ccg_gmx.potential.model import CoarseModel

WATER = ROOT / "workflows" / "spce_water.yaml"


def refused(*overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_any(WATER, overrides)
    return str(caught.value)


def test_the_water_workflow_is_valid_and_its_paths_are_absolute() -> None:
    workflow = load_any(WATER)
    assert isinstance(workflow, TablesWorkflow)
    assert workflow.methods == ["ibi", "fm"]
    assert all(path.is_absolute() and path.is_file() for path in workflow.input_files.values())
    assert set(json_schema("tables")["properties"]) == set(TablesWorkflow.model_fields)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("kind=table", "a workflow of kind 'table'; expected kind: cycle or tables or backmap"),
        ("methods=[ibi, ibi]", "each once"),
        ("methods=[msm]", "methods.0"),
        ("potential.cutoff_nm=0", "iterations.pressure_bar needs pairs"),
        ("final_steps=150", "multiple of coarse_md.output_every"),
        ("coarse_md.settle_steps=100000", "leaves nothing of 100000 steps"),
        ("fine_md.tpr=run.tpr", "expected mdps, or tpr and trajectory"),
        ("fine_md={tpr: run.tpr, trajectory: run.trr}", "fine_md.tpr: no file"),
        ("mapping=nowhere.yaml", "mapping: no file"),
        ("iterations.mots=3", "unknown key"),
    ],
)
def test_bad_files_are_named_in_one_line(override: str, words: str) -> None:
    text = refused(override)
    assert words in text
    assert "\n" not in text


def test_a_minimisation_is_no_run_that_counts(tmp_path: Path) -> None:
    only = f"fine_md.mdps=[{ROOT}/topologies/spce_water/em.mdp]"
    result = CliRunner().invoke(main, ["run", str(WATER), "--out", str(tmp_path / "out"), "--quiet", "--set", only])
    assert result.exit_code == 2
    assert "em.mdp: integrator steep with 1000 steps" in result.stderr


def outcome(ratio: float, bar: float = 40.0, stopped: bool = True) -> dict[str, Any]:
    return {
        "rdf_error_ratio": ratio,
        "rdf_squared_error": 0.01 * ratio,
        "rdf_noise": 1e-6,
        "rdf_noise_limit": 1.5e-6,
        "bonded_error": 0.0,
        "bonded_noise": 0.0,
        "iterations": 3,
        "first_peak_ratio": 1.01,
        "pressure_bar": bar,
        "pressure_error": 30.0,
        "pressure_target_bar": 1.0,
        "stopped_by_itself": stopped,
    }


def test_verdict_names_what_is_missing() -> None:
    check = {"max_abs_diff_kJ_mol_per_molecule": 2e-5, "engines": {"ccg": "0", "openmm": "8"}, "agrees": True}
    runs = {"ibi": {"engine": "openmm"}, "fm": {"engine": "openmm", "first_peak_ratio": 0.9}}

    def verdict(block: dict[str, Any], **changed: Any) -> tuple[bool, list[str]]:
        return judge({"ibi": block}, runs, {**check, **changed}, IterationSettings())

    trusted, reasons = verdict(outcome(0.005))
    assert trusted
    assert "RDF error 0.50% of the start's after 3 iterations" in reasons[0]
    assert reasons[1] == "force matching: its tables run (openmm), first peak 0.900 of the target's"
    trusted, reasons = verdict(outcome(0.2, bar=900.0))
    assert not trusted
    assert reasons == [
        "not yet, because of iterative Boltzmann inversion: RDF error 20.00% of the start's after 3 iterations, "
        "first peak 1.010 of the target's, pressure 900 +- 30 bar, wanted 1"
    ]
    assert not verdict(outcome(0.005, bar=80.0))[0]
    noisy = {"rdf_squared_error": 0.002, "rdf_noise": 0.0019, "rdf_noise_limit": 0.0025}
    trusted, reasons = verdict({**outcome(0.2), **noisy})
    assert trusted
    assert "RDF error 20.00% of the start's, of which sampling noise explains 19.00% after 3" in reasons[0]
    assert not verdict({**outcome(0.2), **noisy, "rdf_squared_error": 0.0026})[0]
    assert verdict(outcome(0.005, stopped=False))[0], "the run with a new seed decides"
    assert not verdict(outcome(0.005), agrees=False)[0]
    bonded = {"rdf_squared_error": None, "rdf_noise": None, "first_peak_ratio": None, "pressure_target_bar": None}
    bonded |= {"bonded_error": 0.12, "bonded_noise": 0.10}
    trusted, reasons = verdict({**outcome(0.9), **bonded})
    assert trusted
    assert "bonded distributions differ by 0.120, their errors explain 0.100 after 3 iterations" in reasons[0]
    assert not verdict({**outcome(0.9), **bonded, "bonded_error": 0.2})[0]


@dataclass(frozen=True)
class Finished:
    """A run folder, its arguments and its summary."""

    folder: Path
    arguments: list[str]
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def finished(gmx: object, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    pytest.importorskip("openmm", reason="no engine for pairs: OpenMM is not installed")
    folder = tmp_path_factory.mktemp("water")
    water = ROOT / "topologies" / "spce_water"
    for name, steps in (("em", 1000), ("md", 500_000)):
        text = (water / f"{name}.mdp").read_text()
        few = {"em": 20, "md": 1500}[name]
        assert f"= {steps}" in text
        (folder / f"{name}.mdp").write_text(text.replace(f"= {steps}", f"= {few}").replace("= 250 ", "= 50 "))
        (folder / f"{name}.mdp").write_text((folder / f"{name}.mdp").read_text().replace("= 250\n", "= 50\n"))
    overrides = [
        f"fine_md={{mdps: [{folder}/em.mdp, {folder}/md.mdp], discard_ps: 0.5}}",
        "coarse_md={engine: openmm, steps: 2000, settle_steps: 200, output_every: 100, dt_ps: 0.004}",
        *("final_steps=1000", "iterations.most=1", "potential.pair_spacing_nm=0.03"),
    ]
    arguments = ["run", str(WATER), "--out", str(folder / "out"), "--quiet"]
    arguments += [part for item in overrides for part in ("--set", item)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 3, result.output  # one iteration is too few
    return Finished(folder / "out", arguments, json.loads((folder / "out" / "summary.json").read_text()))


@pytest.mark.gmx
@pytest.mark.slow
def test_a_small_run_leaves_models_exports_and_a_page(finished: Finished) -> None:
    summary, folder = finished.summary, finished.folder
    assert not summary["converged"]
    assert summary["tables"]["method"] == "ibi"
    assert summary["tables"]["iterations"] == 1
    assert {"rdf_error_ratio", "first_peak_ratio", "pressure_bar", "pressure_error"} <= set(summary["tables"])
    assert summary["energy_evaluations"]["coarse_md_steps"] == 2 * 2000 + 2 * 1000
    assert summary["beads"]["beads"] == 512
    assert summary["methods"]["fm"]["force_matching"]["explained"] > 0.01
    assert summary["export"]["agrees"], summary["export"]
    for name in ("ibi", "fm"):
        assert list(CoarseModel.load(folder / "tables" / name / "model.npz").pairs) == [("W", "W")]
        assert (folder / "tables" / name / "pair_W-W.xvg").is_file()
    assert (folder / "export" / "openmm").is_dir()
    page = (folder / "report.html").read_text()
    assert page.count("<img ") == 7  # a potential and a distribution of both, three pictures of convergence
    assert "Iterative Boltzmann inversion" in page


@pytest.mark.gmx
@pytest.mark.slow
def test_run_again_it_resumes_and_the_page_can_be_made_again(finished: Finished) -> None:
    stages = {path.name: path.stat().st_mtime_ns for path in (finished.folder / "stages").iterdir()}
    assert CliRunner().invoke(main, finished.arguments).exit_code == 3
    assert {path.name: path.stat().st_mtime_ns for path in (finished.folder / "stages").iterdir()} == stages
    again = json.loads((finished.folder / "summary.json").read_text())
    assert again["tables"] == finished.summary["tables"]
    page = finished.folder / "report.html"
    before = page.read_text()
    page.unlink()
    assert CliRunner().invoke(main, ["report", str(finished.folder)]).exit_code == 0
    assert page.read_text() == before
    status = CliRunner().invoke(main, ["status", str(finished.folder), "--json"])
    assert "not converged" in json.loads(status.output)["words"]
