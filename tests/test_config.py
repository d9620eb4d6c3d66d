"""The workflow file: what is accepted, and the one line that says which line of it is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from small_cycle import ROOT, SETTINGS, WORKFLOW

from ccg_gmx.cycle.config import Workflow, load_workflow
from ccg_gmx.cycle.kinds import MODELS, json_schema
from ccg_gmx.errors import SettingsError

TEXT = """\
system: alanine dipeptide
temperature_K: 300
seed: 1
topology: ../topologies/alanine_dipeptide/topol.top
structure: ../topologies/alanine_dipeptide/conf.gro
coarse:
  beads: {C_ACE: 5, N_ALA: 7, CA_ALA: 9, C_ALA: 15, N_NME: 17}
  torsions:
    phi: [5, 7, 9, 15]
    psi: [7, 9, 15, 17]
basins:
  - {name: C7eq, ranges: {phi: [-180, 0], psi: [-180, 180]}}
fine_md:
  starts:
    - {name: C7eq, torsions: {phi: -83, psi: 75}}
  runs_per_start: 2
"""


@pytest.fixture
def write(tmp_path: Path):
    """Return a function that writes a workflow file two folders below copies of its inputs."""
    shutil.copytree(ROOT / "topologies" / "alanine_dipeptide", tmp_path / "topologies" / "alanine_dipeptide")
    folder = tmp_path / "workflows"
    folder.mkdir()

    def written(text: str) -> Path:
        path = folder / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return written


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_workflow(path, overrides)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def line_of(text: str, start: str) -> int:
    """Return the number (from 1) of the line that starts with a text."""
    return next(number for number, line in enumerate(text.splitlines(), 1) if line.startswith(start))


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_workflow_is_valid(path: Path) -> None:
    """Keys and values; a template for own files names files that are not there."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert MODELS[content.get("kind", "cycle")].model_validate(content).system


def test_paths_become_absolute() -> None:
    workflow = load_workflow(WORKFLOW)
    assert workflow.temperature_K == 300.0
    assert list(workflow.coarse.beads.values()) == [5, 7, 9, 15, 17]
    paths = [workflow.topology, workflow.structure, workflow.reference]
    assert all(path is not None and path.is_absolute() and path.is_file() for path in paths)


def test_paths_are_relative_to_the_file_and_not_to_the_folder_of_the_process(write, tmp_path, monkeypatch) -> None:
    path = write(TEXT)
    monkeypatch.chdir(ROOT)
    assert load_workflow(path).topology == tmp_path.resolve() / "topologies" / "alanine_dipeptide" / "topol.top"


def test_overrides_replace_single_values() -> None:
    workflow = load_workflow(
        WORKFLOW, ("temperature_K=310", "fine_md.steps=50000", "reference=null", "draws.points=64")
    )
    assert (workflow.temperature_K, workflow.fine_md.steps, workflow.draws.points) == (310.0, 50000, 64)
    assert workflow.reference is None
    assert workflow.fine_md.starts == load_workflow(WORKFLOW).fine_md.starts


def test_the_last_override_of_a_key_wins() -> None:
    assert load_workflow(WORKFLOW, ("seed=3", "seed=4")).seed == 4


def test_settings_of_the_small_cycle_are_all_known() -> None:
    assert load_workflow(WORKFLOW, SETTINGS).fine_md.runs_per_start == 1


def test_workflow_survives_json() -> None:
    workflow = load_workflow(WORKFLOW, SETTINGS)
    again = Workflow.model_validate(workflow.model_dump(mode="json"))
    assert again == workflow
    assert list(again.coarse.torsions) == list(workflow.coarse.torsions)


@pytest.mark.parametrize(
    ("wrong", "instead_of", "words"),
    [
        ("temprature_K: 300", "temperature_K: 300", ("temprature_K", "unknown key")),
        ("temperature_K: -300", "temperature_K: 300", ("temperature_K", "greater than 0", "-300")),
        ("temperature_K: warm", "temperature_K: 300", ("temperature_K", "number", "'warm'")),
        ("seed: -1", "seed: 1", ("seed", "-1")),
        ("  runs_per_start: 0", "  runs_per_start: 2", ("fine_md.runs_per_start", "0")),
        ("    phi: [5, 7, 9]", "    phi: [5, 7, 9, 15]", ("coarse.torsions.phi",)),
        ("    phi: [5, 7, 9, CA]", "    phi: [5, 7, 9, 15]", ("coarse.torsions.phi", "integer", "'CA'")),
        ("topology: nothing.top", "topology: ../topologies", ("topology", "nothing.top")),
    ],
)
def test_wrong_value_is_one_line_that_names_the_files_line(
    write, wrong: str, instead_of: str, words: tuple[str, ...]
) -> None:
    number = line_of(TEXT, instead_of)
    lines = TEXT.splitlines()
    lines[number - 1] = wrong
    message = complaint(write("\n".join(lines) + "\n"))
    assert all(word in message for word in words)
    if "nothing.top" not in wrong:  # a well-formed path of a file that is not there: no matter of the YAML
        assert f"mine.yaml, line {number}:" in message


def test_unknown_key_deep_in_a_group_is_named_with_its_line(write) -> None:
    message = complaint(write(TEXT + "draws:\n  points: 512\n  pionts: 512\n"))
    assert f"line {len(TEXT.splitlines()) + 3}: draws.pionts: unknown key" in message


def test_several_mistakes_are_counted(write) -> None:
    assert "and 1 more" in complaint(write(TEXT + "one: 1\ntwo: 2\n"))


def test_missing_key_is_named(write) -> None:
    text = "\n".join(line for line in TEXT.splitlines() if not line.startswith("structure:"))
    assert "structure: Field required" in complaint(write(text))


def test_basin_with_other_torsions_is_refused(write) -> None:
    message = complaint(write(TEXT.replace("{phi: [-180, 0], psi:", "{phi: [-180, 0], omega:")))
    assert "basin C7eq" in message
    assert "omega" in message
    assert "phi" in message


def test_basin_of_more_than_a_turn_is_refused(write) -> None:
    assert "phi" in complaint(write(TEXT.replace("{phi: [-180, 0],", "{phi: [-180, 300],")))


def test_yaml_syntax_error_is_one_line_with_its_place(write) -> None:
    message = complaint(write(TEXT.replace("seed: 1", "seed: [1")))
    assert "not valid YAML" in message
    assert "line" in message


def test_key_given_twice_is_refused_with_both_lines(write) -> None:
    message = complaint(write(TEXT + "seed: 2\n"))
    assert f"line {len(TEXT.splitlines()) + 1}: seed stands on line {line_of(TEXT, 'seed:')} already" in message


def test_key_given_twice_on_one_line_is_refused(write) -> None:
    assert "psi stands on line" in complaint(write(TEXT.replace("phi: -83, psi: 75", "phi: -83, psi: 75, psi: 76")))


def test_anchors_and_merges_are_not_duplicates(write) -> None:
    text = (
        TEXT.replace("runs_per_start: 2", "steps: &n 50000")
        + "energy: &e {steps: *n}\nlikelihood: {<<: *e, batch: 7}\n"
    )
    workflow = load_workflow(write(text))
    assert (workflow.energy.steps, workflow.likelihood.steps, workflow.likelihood.batch) == (50000, 50000, 7)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n", "null\n"])
def test_file_without_settings_is_refused(write, text: str) -> None:
    assert "holds no workflow" in complaint(write(text))


def test_file_that_is_not_there(tmp_path: Path) -> None:
    assert "nothing.yaml" in complaint(tmp_path / "nothing.yaml")


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    assert "cannot read workflow" in complaint(tmp_path)


def test_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(bytes(range(256)))
    assert "cannot read workflow" in complaint(path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("temperature_K=-1", ("--set temperature_K=-1", "greater than 0")),
        ("draws={pionts: 3}", ("--set draws={pionts: 3}", "draws.pionts", "unknown key")),
        ("nothing=1", ("--set nothing=1", "unknown key")),
        ("seed", ("--set seed", "key.subkey=value")),
        ("=1", ("--set =1",)),
        ("seed.part=1", ("--set seed.part=1", "not a group")),
        ("seed=[1", ("--set seed=[1",)),
    ],
)
def test_wrong_override_names_itself(override: str, words: tuple[str, ...]) -> None:
    message = complaint(WORKFLOW, override)
    assert all(word in message for word in words)
    assert WORKFLOW.name not in message


def test_more_turns_asked_for_than_allowed() -> None:
    assert "max_turns is below min_turns" in complaint(WORKFLOW, "cycle.min_turns=3", "cycle.max_turns=2")


def test_parts_of_the_proposal_above_one() -> None:
    assert "together are above 1" in complaint(WORKFLOW, "draws.uniform_fraction=0.9", "draws.coarse_fraction=0.2")


def test_fine_runs_shorter_than_what_is_left_out() -> None:
    assert "discard_ps" in complaint(WORKFLOW, "fine_md.steps=5000", "fine_md.discard_ps=10")


def test_neither_starts_nor_trajectories() -> None:
    assert "neither starts nor trajectories" in complaint(WORKFLOW, "fine_md={steps: 5000}")


def test_trajectory_that_is_not_there() -> None:
    message = complaint(WORKFLOW, "fine_md={trajectories: [{tpr: mine.tpr, trajectory: mine.trr}]}")
    assert "fine_md.trajectories" in message
    assert "mine.trr" in message


def test_schema_describes_the_whole_file() -> None:
    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Workflow.model_fields)
    assert set(schema["required"]) == {"system", "topology", "structure", "coarse", "fine_md"}
    for name, definition in schema["$defs"].items():
        assert definition["additionalProperties"] is False, name
