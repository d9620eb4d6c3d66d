"""The README: what it names exists, what it shows runs, what it promises is what the code does."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from small_cycle import ROOT, SETTINGS

from ccg_gmx.cli import main
from ccg_gmx.cycle.config import Workflow, load_workflow
from ccg_gmx.free_energy.diagnostics import DiagnosticSettings
from ccg_gmx.molecule.topology import COVERED

README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
ONE_TURN = ("cycle.members=1", "cycle.min_turns=1", "cycle.max_turns=1")
PATH_LIKE = re.compile(r"(?:ccg_gmx|docs|scripts|tests|topologies|workflows)(?:/[\w.-]+)*/?")


def blocks(language: str, text: str = README) -> list[str]:
    """Fenced blocks of one language, without the indentation of the list they stand in."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return ["\n".join(line.removeprefix(indent) for line in body.splitlines()) for indent, body in found]


def block(language: str, word: str) -> str:
    """The one block that holds a word."""
    (found,) = [text for text in blocks(language) if word in text]
    return found


def shell_lines(text: str = README) -> list[str]:
    """All commands a page shows: lines of bash blocks and inline code."""
    lines = [line.split(" #")[0] for part in blocks("bash", text) for line in part.splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def ccg_calls() -> list[list[str]]:
    """Every ``ccg ...`` call of README and guides as words, brackets of the synopsis removed."""
    lines = [line for text in (README, *GUIDES.values()) for line in shell_lines(text)]
    calls = [re.sub(r"[\[\]]", " ", line) for line in dict.fromkeys(lines) if re.match(r"ccg\s+\w", line)]
    return [shlex.split(call)[1:] for call in calls]


def summary_row(key: str) -> list[str]:
    """The cells of a key's row in the table of numbers."""
    (row,) = [line for line in README.splitlines() if line.startswith(f"| `{key}`")]
    return [cell.strip() for cell in row.strip("|").split("|")]


# --- what it names exists ------------------------------------------------------------------------------------------


def test_make_targets_exist() -> None:
    named = {match for line in shell_lines() for match in re.findall(r"^make (\w+)", line)}
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "setup"} <= named
    assert named <= targets


def test_the_demo_is_what_make_demo_runs() -> None:
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    assert 'ccg run workflows/alanine_dipeptide.yaml --out "$(OUT)"' in recipe[1]
    assert re.search(r"^OUT \?= runs/alanine_dipeptide$", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("words", ccg_calls(), ids=" ".join)
def test_ccg_commands_and_options_exist(words: list[str]) -> None:
    command = main.commands[words[0]]
    if isinstance(command, click.Group) and len(words) > 1:
        # `ccg backmap MODEL ...` is short for restore
        command = command.commands[words[1] if words[1] in command.commands else {"backmap": "restore"}[words[0]]]
    options = {name for parameter in command.params for name in (*parameter.opts, "--help")}
    assert {word for word in words if word.startswith("-")} <= options


def test_table_has_every_command_with_every_option() -> None:
    rows = re.findall(r"^\| `ccg (\w+(?: [a-z-]+)?)([^`]*)`", README, re.MULTILINE)
    commands = dict(main.commands)
    for group in [name for name, command in commands.items() if isinstance(command, click.Group)]:
        command = commands.pop(group)
        assert isinstance(command, click.Group)
        commands |= {f"{group} {name}": each for name, each in command.commands.items()}
    assert {name for name, _ in rows} == set(commands)
    for name, synopsis in rows:
        options = {p.opts[0] for p in commands[name].params if isinstance(p, click.Option) and not p.hidden}
        shown = set(re.findall(r"--[\w-]+", synopsis))
        assert shown <= options if synopsis.endswith("...") else shown == options, name  # ...: the most used ones


def test_paths_and_links_exist() -> None:
    links = re.findall(r"\]\(([^)]+)\)", re.sub(r"<!--.*?-->", "", README, flags=re.DOTALL))
    code = " ".join(shell_lines())
    named = {*links, *PATH_LIKE.findall(code)}
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("name", GUIDES)
def test_links_of_guides_exist(name: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", GUIDES[name])
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
    assert f"(docs/{name})" in README
    assert "://" not in GUIDES[name]


def test_picture_is_shown_when_it_is_there() -> None:
    picture = "docs/alanine_dipeptide.png"
    shown = picture in re.sub(r"<!--.*?-->", "", README, flags=re.DOTALL)
    assert shown == (ROOT / picture).is_file()


def test_settings_named_exist() -> None:
    named = set(re.findall(r"`((?:energy|draws|cycle|likelihood|coarse_md|fine_md|diagnostics)\.\w+)`", README))
    named |= {word.partition("=")[0] for words in ccg_calls() for word in words if re.match(r"\w+\.\w+=\d", word)}
    assert {"energy.steps", "cycle.max_turns"} <= named
    for name in named - {"coarse_md.forward_kl", "coarse_md.surface_kl"}:
        group, key = name.split(".")
        model = Workflow.model_fields[group].annotation
        assert model is not None
        assert key in model.model_fields, name


def test_thresholds_are_the_defaults() -> None:
    defaults = DiagnosticSettings()
    assert summary_row("free_energy.kish_fraction_median")[2] == (
        f"{defaults.kish_fraction_median:g}, {defaults.kish_fraction_low:g}"
    )
    trimmed = summary_row("free_energy.forward_ess_trimmed")
    assert float(trimmed[2]) == defaults.forward_ess_fraction
    assert f"the heaviest {defaults.forward_trim:.0%}".replace("%", " %") in trimmed[1]
    for key in ("pareto_k_bad_fraction", "sandwich_gap_kT", "doubling_drift_kT"):
        assert float(summary_row(f"free_energy.{key}")[2].split()[0]) == getattr(defaults, key), key
    assert f"k-hat above {defaults.pareto_k:g}" in README
    assert f"below {defaults.f_cap_kT:g} kT" in README


def test_environment_variables_named_are_used() -> None:
    script = (ROOT / "scripts" / "setup.sh").read_text()
    named = set(re.findall(r"`((?:CCG_|GMX|PIP_)\w+)(?:=\d)?`", README))
    assert named >= {"GMXBIN", "CCG_PYTHON", "CCG_NO_APT", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"}
    assert [name for name in named if name not in script] == []


def test_force_field_limits_are_those_of_the_code() -> None:
    assert {"BONDS", "UREY_BRADLEY", "RBDIHS", "CMAP", "LJ14"} < set(COVERED), "the README lists the covered terms"


def test_no_host_names() -> None:
    assert "://" not in README


def test_citations_are_in_the_citation_file() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    document = yaml.safe_load(citation)
    assert document["cff-version"] == "1.2.0"
    named = set(re.findall(r"(?:arXiv:|doi:)([\w./-]+\w)", README.split("## How to cite")[1]))
    assert {"2305.01243", "2402.01195"} < named
    assert [name for name in named if name not in citation] == []
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{document["version"]}"' in pyproject


# --- what it shows runs --------------------------------------------------------------------------------------------


def shell(folder: Path) -> dict[str, str]:
    """Environment with a ``ccg`` that is this tree's, as after ``source .venv/bin/activate``."""
    programs = folder / "programs"
    programs.mkdir()
    (programs / "ccg").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ccg_gmx.cli "$@"\n')
    (programs / "ccg").chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def bash(script: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


def test_doctor_and_schema(tmp_path: Path) -> None:
    env = shell(tmp_path)
    doctor = bash("ccg doctor", tmp_path, env)
    assert doctor.returncode in (0, 2)  # 2: something the cycle needs is missing here
    assert "GROMACS" in doctor.stdout
    schema = json.loads(bash("ccg schema", tmp_path, env).stdout)
    assert set(schema["properties"]) == set(Workflow.model_fields)


@pytest.mark.gmx
@pytest.mark.slow
def test_python_example_and_what_it_leaves(gmx: object, tmp_path: Path) -> None:
    example = block("python", "run_workflow")
    assert len(example.splitlines()) <= 10
    out = tmp_path / "out"
    few = f"overrides={(*SETTINGS, *ONE_TURN)}"
    small = example.replace('"runs/alanine_dipeptide"', repr(str(out))).replace("log=print", few)
    assert small.count(str(out)) == 1
    assert "overrides=" in small
    (tmp_path / "example.py").write_text(small)
    command = [sys.executable, str(tmp_path / "example.py")]
    result = subprocess.run(command, cwd=ROOT, env=shell(tmp_path), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^delta_f -?\d+\.\d\d \+- \d+\.\d\d kJ/mol$", result.stdout, re.MULTILINE)
    assert "noise floor 4.4e-05" in result.stdout
    check_outputs(out)


def check_outputs(out: Path) -> None:
    """The tables of files and numbers hold for a finished run."""
    section = README.split("## What a run leaves")[1].split("##")[0]
    files = re.findall(r"`([\w.]+/?)`", " ".join(re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)))
    assert len(files) == 10
    assert [name for name in files if not (out / name).exists()] == []
    summary = json.loads((out / "summary.json").read_text())
    section = README.split("## What the numbers mean")[1].split("##")[0]
    keys = re.findall(r"^\| `(\w+)\.(\w+)`((?:, `\w+`)*)", section, re.MULTILINE)
    assert len(keys) >= 9
    for group, key, more in keys:
        names = [
            key,
            *(name if not name.startswith("_") else f"kish_fraction{name}" for name in re.findall(r"\w+", more)),
        ]
        assert [name for name in names if name not in summary[group]] == [], group
    assert "converged" in summary


def own_folder(folder: Path) -> Path:
    """A tree with what the recipe takes from this one."""
    for name in ("topologies", "workflows"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.gmx
@pytest.mark.slow
def test_own_molecule_as_a_new_user(gmx: object, tmp_path: Path) -> None:
    section = README.split("## Your own molecule")[1].split("\n## ")[0]
    script = "\n".join(text for text in blocks("bash") if text.splitlines()[0].strip() in section)
    assert len(script.splitlines()) == 7
    script = script.replace(
        "{topol.top,conf.gro,md.mdp} .", "{topol.top,conf.gro,md.mdp} .\nsed -i s/1000000/200000/ md.mdp"
    )
    small = [item for item in (*SETTINGS, *ONE_TURN) if not item.startswith("fine_md.")]
    options = " ".join(f"--set {shlex.quote(item)}" for item in small)
    script = script.replace("--out run", f"--out run {options} || test $? = 3")
    result = bash(script, own_folder(tmp_path), shell(tmp_path))
    assert result.returncode == 0, result.stderr[-2000:]
    difference = re.search(r"largest difference of the total: ([\d.e+-]+) kJ/mol", result.stdout)
    assert difference is not None
    assert float(difference[1]) < 1e-3
    summary = json.loads((tmp_path / "runs" / "own" / "run" / "summary.json").read_text())
    assert summary["system"].startswith("glycine dipeptide")
    assert summary["restored"]["max_bead_deviation_nm"] < 1e-6
    assert "reference" not in summary
    assert "delta_f_kJ_mol" in summary["free_energy"]


def test_own_trajectory_workflow_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "workflows" / "own_trajectory.yaml").read_text()
    (tmp_path / "own.yaml").write_text(text)
    for name in ("topol.top", "conf.gro", "md.tpr", "md.trr"):
        (tmp_path / name).write_text("")
    workflow = load_workflow(tmp_path / "own.yaml")
    assert workflow.fine_md.trajectories[0].trajectory == tmp_path / "md.trr"
    assert workflow.reference is None
    starts = "fine_md.starts=[{name: C7ax, torsions: {phi: 72, psi: -60}}]"  # as its comment shows
    assert load_workflow(tmp_path / "own.yaml", (starts,)).fine_md.starts[0].torsions["phi"] == 72
