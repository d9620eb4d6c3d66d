"""The command line itself: help with an example everywhere, JSON for machines, exit codes, progress bars."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from small_cycle import ROOT, WORKFLOW, ccg

import ccg_gmx
from ccg_gmx import cli
from ccg_gmx.cycle.kinds import json_schema
from ccg_gmx.cycle.store import write_json
from ccg_gmx.errors import SettingsError

COMMANDS = sorted(cli.main.commands)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def summary(converged: bool, **changes: object) -> dict[str, Any]:
    """Return the least that ``ccg run`` prints."""
    return {
        "converged": converged,
        "verdict": {"trusted": converged, "reasons": ["these numbers can be trusted because of this"]},
        "free_energy": {},
        "coarse_md": {"forward_kl": 0.012, "ns_per_day": 1000.0},
        **changes,
    }


def pretend(monkeypatch: pytest.MonkeyPatch, result: dict[str, Any] | Exception) -> None:
    """Let ``ccg run`` find a finished run."""

    def run_workflow(*_: object, **__: object) -> dict[str, Any]:
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr("ccg_gmx.api.run_workflow", run_workflow)


# Help


def test_the_commands_of_this_step_are_there() -> None:
    assert {"doctor", "energy", "report", "run", "schema", "status"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_one_example_that_parses(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    text = " ".join(result.output.split())
    examples = re.findall(rf"Example: ccg ({command}.*?)(?: Options:|$)", text)
    assert len(examples) == 1
    words = examples[0].split(" > ")[0].split()
    cli.main.commands[command].make_context(command, words[1:])  # raises a usage error otherwise


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_the_whole_names_every_command(flag: str) -> None:
    result = invoke(flag)
    assert result.exit_code == 0
    assert all(f"\n  {command} " in result.output for command in COMMANDS)


def test_version() -> None:
    assert invoke("--version").output.strip() == f"ccg, version {ccg_gmx.__version__}"


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["run"], ["run", "--nothing"], ["energy", "a", "b", "--frames", "0"]]
)
def test_usage_errors_end_with_2_and_name_the_help(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "--help" in result.stderr


def test_help_needs_no_heavy_import() -> None:
    """A command line that loads torch to print its help feels broken."""
    script = (
        "import sys, ccg_gmx.cli; print([m for m in ('torch', 'numpy', 'MDAnalysis', 'pydantic') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.strip() == "[]"


# For machines


def test_schema_is_json() -> None:
    assert json.loads(invoke("schema").output) == json.loads(json.dumps(json_schema()))


def test_doctor_is_json_and_says_what_is_missing() -> None:
    result = invoke("doctor", "--json")
    parts = {part["name"]: part for part in json.loads(result.output)["parts"]}
    assert parts["torch"]["found"] is True
    assert result.exit_code in (0, 2)
    assert all(part["how_to_get"] and part["cost_when_missing"] for part in parts.values())


def test_doctor_without_gmx_ends_with_2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("GMXBIN", raising=False)
    result = invoke("doctor", "--json")
    assert result.exit_code == 2
    (gromacs,) = [part for part in json.loads(result.output)["parts"] if part["name"] == "GROMACS"]
    assert gromacs["found"] is False


def test_run_prints_strict_json(monkeypatch: pytest.MonkeyPatch) -> None:
    infinite = {"forward_kl": float("inf"), "ns_per_day": 1.0}
    pretend(monkeypatch, summary(True, coarse_md=infinite))
    result = invoke("run", WORKFLOW, "--json")
    assert json.loads(result.stdout)["coarse_md"] == {"forward_kl": None, "ns_per_day": 1.0}


def test_status_of_stages_as_text_and_as_json(tmp_path: Path) -> None:
    stage = tmp_path / "stages" / "fine_md-0"
    partial = tmp_path / "stages" / ".partial-likelihood-1"
    for folder in (stage, partial):
        folder.mkdir(parents=True)
    write_json(stage / "stage.json", {"name": "fine_md", "wall_s": 12.5})
    write_json(partial / "progress.json", {"done": 1, "total": 4})
    text = invoke("status", tmp_path)
    assert text.exit_code == 0
    assert re.search(r"fine_md +1 +12\.5", text.stdout)
    assert "under way: likelihood, 25 %" in text.stdout
    machine = json.loads(invoke("status", tmp_path, "--json").stdout)
    assert machine["stages"] == {"fine_md": {"done": 1, "wall_s": 12.5}}
    assert machine["under_way"] == [{"stage": "likelihood", "percent": 25.0}]


@pytest.mark.gmx
def test_energy_as_table_and_as_json(alanine_tpr: Path, alanine_trr: Path) -> None:
    text = invoke("energy", alanine_tpr, alanine_trr, "--frames", 5)
    assert text.exit_code == 0
    assert "5 frames" in text.stdout
    assert "Angle" in text.stdout
    table = json.loads(invoke("energy", alanine_tpr, alanine_trr, "--check", "--json").stdout)
    assert table["frames"] == 201
    assert max(term["max_abs_diff_kJ_mol"] for term in table["terms"].values()) <= 1e-3


# Exit codes


@pytest.mark.parametrize(("converged", "code"), [(True, 0), (False, 3)])
def test_run_says_by_its_exit_code_whether_to_trust_it(
    monkeypatch: pytest.MonkeyPatch, converged: bool, code: int
) -> None:
    pretend(monkeypatch, summary(converged))
    result = invoke("run", WORKFLOW, "--out", "somewhere")
    assert result.exit_code == code
    assert "these numbers can be trusted because of this" in result.stdout
    assert "report: somewhere/report.html" in result.stdout


def test_run_prints_the_comparison_with_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = {"forward_kl": 0.004, "noise_floor": 0.0003, "reference_delta_f_kJ_mol": 9.09}
    block = {"delta_f": "C7ax - C7eq", "delta_f_kJ_mol": 9.25, "delta_f_error": 0.1}
    pretend(monkeypatch, summary(True, reference=reference, free_energy=block))
    output = invoke("run", WORKFLOW).stdout
    assert "4.00e-03" in output
    assert "9.25 +- 0.10 kJ/mol (reference 9.09)" in output


def test_a_mistake_is_one_line_and_2(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, SettingsError("found\nthis", expected="that", remedy="do so"))
    result = invoke("run", WORKFLOW)
    assert result.exit_code == 2
    assert result.stderr == "ccg: found this; expected that; do so\n"
    assert result.stdout == ""


def test_a_bug_is_no_mistake_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ZeroDivisionError("ours"))
    result = invoke("run", WORKFLOW)
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)  # with its traceback


def test_default_folder_is_named_after_the_workflow(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, summary(True))
    assert "report: runs/alanine_dipeptide/report.html" in invoke("run", WORKFLOW).stdout


def test_module_and_script_are_the_same_command() -> None:
    assert ccg("--version").stdout == invoke("--version").stdout


# Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal(), True), (io.StringIO(), False)])
def test_bar_is_for_terminals_and_long_stages(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, shown: bool
) -> None:
    """A log gets no line for a stage of a moment, so that an error is the only line there is."""
    monkeypatch.setattr(sys, "stderr", stream)
    bar = cli.Bar("fine_md", 4)
    bar.update_to(1.5)
    bar.update_to(4)
    bar.close()
    assert bool(stream.getvalue()) is shown
    if shown:
        assert "fine_md 100%" in stream.getvalue()
        assert "left" in stream.getvalue()
