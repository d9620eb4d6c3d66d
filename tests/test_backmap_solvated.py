"""A solvated protein that nobody here made: adenylate kinase in water (OPLS, constraints), from MDAnalysisTests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from MDAnalysis.lib.formats.libmdaxdr import TRRFile

from ccg_gmx.backmap.checkpoint import load_model
from ccg_gmx.backmap.jobs import read_held_out
from ccg_gmx.cli import main
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.molecule.trajectory import read_frames, write_trr

files = pytest.importorskip("MDAnalysisTests.datafiles", reason="MDAnalysisTests is not installed")
ATOMS, SOLVATED, RESIDUES = 3341, 47681, 214


def ccg(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["backmap", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_solvent_is_left_out_and_said_so(gmx: Gmx, tmp_path: Path) -> None:
    """From .tpr and .xtc of the whole system to restored frames of the protein, whole, on their beads."""
    model = tmp_path / "m.pt"
    options = ("--steps", 2, "--batch", 4, "--held-out", 0.3, "--beads", "backbone")
    code, out, said = ccg("train", files.TPR, files.XTC, *options, "-o", model, "--json")
    assert code == 0, said
    assert f"left out {SOLVATED - ATOMS} atoms of solvent" in said
    facts = json.loads(out)
    assert facts["frames"] + facts["held_out_frames"] == 10
    assert f"left out {SOLVATED - ATOMS} atoms" in facts["left_out"]

    system = load_model(model).system
    held_out = read_held_out(model).positions
    assert held_out.shape[1:] == (ATOMS, 3)
    assert len(system.beads) == 3 * RESIDUES
    # The .xtc cuts the protein at the box: made whole, no bond is longer than any of a protein.
    bonds = system.atoms.bonds
    assert np.linalg.norm(held_out[:, bonds[:, 0]] - held_out[:, bonds[:, 1]], axis=-1).max() < 0.25

    write_trr(tmp_path / "cg.trr", held_out[:, system.beads], np.arange(float(len(held_out))), np.zeros((3, 3)))
    code, out, said = ccg(
        model, tmp_path / "cg.trr", "-o", tmp_path / "fine.trr", "--candidates", 1, "--rounds", 1, "--json"
    )
    assert code == 0, said
    facts = json.loads(out)
    assert facts["chirality_errors"] == 0
    assert facts["max_bead_deviation_nm"] <= 1e-6
    restored = read_frames(tmp_path / "fine.trr", ATOMS)
    assert np.abs(restored.positions[:, system.beads] - held_out[:, system.beads]).max() < 1e-6
    with TRRFile(str(tmp_path / "fine.trr")) as stream:
        assert len(stream) == len(held_out)


def test_weights_of_a_solute_are_refused(gmx: Gmx, tmp_path: Path) -> None:
    """Without its solvent the energy of the solute is no Boltzmann exponent."""
    model = tmp_path / "m.pt"
    code, _, said = ccg("train", files.TPR, files.XTC, "--steps", 1, "--batch", 2, "--beads", "ca", "-o", model)
    assert code == 0, said
    code, _, said = ccg(model, files.XTC, "-o", tmp_path / "fine.xtc", "--tpr", files.TPR, "--weights", "--quiet")
    assert code == 2
    assert said.count("\n") == 1
    assert "molecule in solvent" in said
