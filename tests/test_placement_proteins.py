"""Placement of proteins that nobody here made: adenylate kinase (3,341 atoms) and lysozyme, from MDAnalysisTests."""

from __future__ import annotations

import re
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from placement_systems import Atoms, log_determinant
from torch import Tensor

from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.molecule.mapping import bead_mapping_from_atoms
from ccg_gmx.molecule.placement.plan import plan_topology
from ccg_gmx.molecule.placement.transform import Placement
from ccg_gmx.molecule.topology import parse_tpr_dump

pytest.importorskip("MDAnalysisTests", reason="MDAnalysisTests is not installed")
torch.set_num_threads(1)
BEADS = {"C-alpha": ("CA",), "backbone": ("N", "CA", "C")}
each_resolution = pytest.mark.parametrize("resolution", BEADS)


@cache
def adenylate_kinase() -> tuple[Atoms, np.ndarray]:
    """Atoms with the first frame, and ten frames ``[10, 3341, 3]`` nm of a transition between two states."""
    import MDAnalysis
    from MDAnalysisTests.datafiles import DCD, PSF

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        universe = MDAnalysis.Universe(PSF, DCD)
        frames = np.array([ts.positions.astype(np.float64) / 10 for ts in universe.trajectory[::10]])
        atoms = universe.atoms
        system = Atoms(
            tuple(atoms.names),
            tuple(atoms.resnames),
            atoms.resids.astype(np.int64),
            atoms.masses.astype(np.float64),
            universe.bonds.indices.astype(np.int64),
            frames[0],
        )
    return system, frames


@cache
def placed(resolution: str) -> Placement:
    system, _ = adenylate_kinase()
    return system.at(system.find(*BEADS[resolution]))


@cache
def fragment(resolution: str, first: int, last: int) -> tuple[Placement, Tensor]:
    """Residues first .. last alone, and their frames."""
    system, frames = adenylate_kinase()
    keep = np.flatnonzero((system.residue_ids >= first) & (system.residue_ids <= last))
    place = np.full(len(system), -1)
    place[keep] = np.arange(len(keep))
    bonds = place[system.bonds]
    part = Atoms(
        tuple(system.names[k] for k in keep),
        tuple(system.residue_names[k] for k in keep),
        system.residue_ids[keep],
        system.masses[keep],
        bonds[(bonds >= 0).all(axis=1)],
        system.positions[keep],
    )
    return part.at(part.find(*BEADS[resolution])), torch.as_tensor(frames[:, keep])


@each_resolution
def test_a_whole_protein_comes_back(resolution):
    placement, x = placed(resolution), torch.as_tensor(adenylate_kinase()[1])
    y, log_volume = placement.split(x)
    beads = placement.bead_positions(x)
    back, again = placement.join(beads, y)
    assert (back - x).abs().max() < 1e-12
    assert torch.equal(placement.bead_positions(back), beads)
    assert (again - log_volume).abs().max() < 1e-9
    assert placement.plan.open_bonds == ()
    assert len(placement.levels) <= 10


@each_resolution
@pytest.mark.parametrize(("first", "last"), [(1, 12), (80, 92), (200, 214)])
def test_log_jacobian_of_fragments(resolution, first, last):
    placement, x = fragment(resolution, first, last)
    y, log_volume = placement.split(x)
    for k in (0, 7):
        exact = log_determinant(placement, placement.bead_positions(x)[k], y[k])
        assert log_volume[k].item() == pytest.approx(exact, abs=1e-7)


@each_resolution
def test_residues_of_a_kind_share_their_keys(resolution):
    """Inside the chain, atoms of one residue kind differ in nothing but the kind of a neighbouring proline."""
    placement = placed(resolution)
    rows = [row for row in placement.plan.rows if 3 < row.residue < 210]
    kinds = {(*row.key.split()[:2],) for row in rows}
    keys = {row.key for row in rows}
    assert len(keys) <= 1.05 * len(kinds)
    inside, _ = fragment(resolution, 60, 110)
    known = set(placement.plan.keys)
    interior = [row for row in inside.plan.rows if 2 < row.residue < 48]
    assert sum(row.key in known for row in interior) == len(interior)  # a model of the whole restores the part


@each_resolution
def test_handedness_of_every_frame(resolution):
    placement, x = placed(resolution), torch.as_tensor(adenylate_kinase()[1])
    assert len(placement.plan.system.handed_centres()) >= 214 - 20  # all residues but glycine, and ILE and THR twice
    assert placement.chirality_errors(x).max() == 0
    y, _ = placement.split(placement.relabel(x))
    names = np.array([row.key.split()[0] for row in placement.plan.rows])
    outside = (~placement.inside(y)).any(0).reshape(3, -1).any(0).numpy()
    assert set(names[outside]) <= {"ARG"}  # guanidinium groups turn over in this biased trajectory; nothing else does


@pytest.mark.gmx
def test_disulfides_of_lysozyme_in_a_run_input(gmx: Gmx):
    """Four disulfides, solvent left out: everything comes back, no bond is open."""
    from MDAnalysisTests.datafiles import TPR2024

    dump = gmx.dump(Path(TPR2024))
    topology = parse_tpr_dump(dump)
    kept = [atom for atom, name in enumerate(topology.residue_names) if name != "SOL"]
    triples = re.findall(r"^ +x\[ *\d+\]=\{(.*), (.*), (.*)\}", dump, re.MULTILINE)
    structure = np.array(triples, dtype=np.float64)[kept]
    beads = [k + 1 for k, atom in enumerate(kept) if topology.names[atom] == "CA"]
    mapping = bead_mapping_from_atoms([f"B{k}" for k in range(len(beads))], beads, len(kept))
    placement = Placement(plan_topology(topology, mapping, structure, kept))
    sulfur = [row for row in placement.plan.rows if row.key.startswith("CYS2 SG ")]
    assert [row.role for row in sulfur].count("bridge") == 4
    assert [row.role for row in sulfur].count("primary") == 4
    assert placement.plan.open_bonds == ()
    x = torch.as_tensor(structure)[None]
    y, log_volume = placement.split(x)
    assert (placement.join(placement.bead_positions(x), y)[0] - x).abs().max() < 1e-12
    assert torch.isfinite(log_volume).all()


@each_resolution
def test_proline_closes_at_the_atom_between_its_two_tetrahedral_ones(resolution: str) -> None:
    placement = placed(resolution)
    keys = {row.key for row in placement.plan.rows if row.key.startswith("PRO ")}
    closing = [key for key in keys if " bridge " in key and not key.startswith("PRO N ")]
    assert [key.split()[1:5] for key in closing] == [["CG", "bridge", "CB", "CD"]]
    assert "PRO CD primary N CA CB CB circle" in keys
    assert "PRO CB offset CA N C C window-90" in keys
