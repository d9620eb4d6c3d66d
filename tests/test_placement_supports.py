"""Placement on beads: rings and disulfides close; supports keep handedness, planar states and equal atoms."""

import math

import numpy as np
import pytest
import torch
from placement_systems import Atoms, bond_lengths, draws, frames, placements, rows_of, shipped

from ccg_gmx.molecule import nerf

torch.set_num_threads(1)

# --- rings and bridges -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["chignolin, backbone", "chignolin, C-alpha", "cystine, C-alpha and ends", "cyclohexane"]
)
def test_every_bond_of_a_draw_is_a_coordinate_or_given(name):
    """Rings, peptide bonds between C-alpha beads and disulfides close in every draw that is not thrown away."""
    placement = placements()[name]
    beads, y = draws(placement, 400, 11, spread=0.15)
    n = placement.n_rows
    centred = placement.split(placement.relabel(frames(placement, 1, 0, 0.0)))[0]
    y[:, 2 * n :] = y[:, 2 * n :] - y[:, 2 * n :].mean(0) + centred[:, 2 * n :]
    x, log_volume = placement.join(beads, y)
    x = x[torch.isfinite(log_volume)]
    assert len(x) > 40
    reference = bond_lengths(placement, frames(placement, 1, 0, 0.0))
    assert (bond_lengths(placement, x) - reference).abs().max() < 6 * 0.003


def test_aromatic_rings_and_proline_are_closed_by_bridges():
    placement = placements()["chignolin, backbone"]
    system = placement.plan.system
    role = {row.atom: row.role for row in placement.plan.rows}
    assert len(system.small_ring_bonds) == 6 + 10 + 5  # TYR, TRP (nine atoms, one shared bond), PRO
    assert list(role.values()).count("bridge") == 4  # one for each ring
    supports = {
        row.atom: placement.coordinates[2 * placement.n_rows + k].support for k, row in enumerate(placement.plan.rows)
    }
    aromatic = [a for a, row in role.items() if system.residue_names[a] in ("TYR", "TRP") and row == "bridge"]
    assert all(supports[atom] == "window" for atom in aromatic)


def test_aromatic_rings_are_flat_in_the_middle_of_their_supports():
    placement = placements()["chignolin, backbone"]
    beads, y = draws(placement, 1, 0, spread=0.0)
    system = placement.plan.system
    flat = placement.split(frames(placement, 1, 0, 0.0))[0]
    windows = torch.tensor([c.support == "window" and c.centre in (0.0, math.pi) for c in placement.coordinates])
    x, log_volume = placement.join(beads, torch.where(windows, y, flat))
    assert torch.isfinite(log_volume).all()
    for residue in ("TYR", "TRP"):
        ring = sorted({a for pair in system.small_ring_bonds for a in pair if system.residue_names[a] == residue})
        centred = x[0, ring] - x[0, ring].mean(0)
        assert torch.linalg.svdvals(centred)[-1] < 1e-3  # nm; out of the plane


def test_a_bridge_out_of_reach_has_no_volume():
    placement = placements()["cystine, C-alpha and ends"]
    x = frames(placement, 2, 12, 0.002)
    y, _ = placement.split(x)
    row = next(k for k, row in enumerate(placement.plan.rows) if row.role == "bridge")
    y = y.clone()
    y[0, row], y[0, placement.n_rows + row] = 0.05, 0.05
    y.requires_grad_()
    again, log_volume = placement.join(placement.bead_positions(x), y)
    assert log_volume[0] == -math.inf
    assert torch.isfinite(log_volume[1])
    assert torch.isfinite(again).all()
    log_volume[1].backward(retain_graph=True)
    assert torch.isfinite(y.grad).all()
    y.grad = None
    again.sum().backward()
    assert torch.isfinite(y.grad).all()


def test_a_disulfide_is_reached_from_both_sides():
    placement = placements()["cystine, backbone"]
    first, second = (placement.plan.rows[k] for k in sorted(rows_of(placement, "CYS", "SG")))
    assert first.key == "CYS SG primary CB *:CB CA CA circle"
    assert second.key == "CYS SG bridge CB *:SG CA CA circle"
    assert placement.plan.system.bonded(first.atom, second.atom)


# --- supports --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["alanine", "tripeptide", "chignolin, backbone", "cystine, backbone"])
def test_handedness_is_carried_by_the_supports(name):
    """Torsions anywhere within a sixth of their supports' ends: no stereocentre turns over."""
    placement = placements()[name]
    beads, y = draws(placement, 10_000 if name == "chignolin, backbone" else 1000, 13, spread=0.66)
    x, log_volume = placement.join(beads, y)
    x = x[torch.isfinite(log_volume)]
    assert len(x) > 20
    assert placement.chirality_errors(frames(placement, 5, 0)).max() == 0
    assert placement.chirality_errors(x).max() == 0


def test_handedness_on_c_alpha_beads_is_that_of_the_reference_wherever_n_and_c_are():
    placement = placements()["chignolin, C-alpha"]
    beads, y = draws(placement, 1000, 13, spread=0.999)
    x, _ = placement.join(beads, y)
    names, n_found = placement.plan.system.graph.names, 0
    for row in placement.plan.rows:
        if names[row.atom] == "CB":
            ends = (row.angle_ref, row.torsion_ref, row.atom)
            assert {names[atom] for atom in ends} == {"N", "C", "CB"}
            c, n, cb = (x[:, atom] - x[:, row.parent] for atom in ends)
            volume = (torch.linalg.cross(c, n) * cb).sum(1)
            assert (volume > 0).all() or (volume < 0).all()
            reference = placement.plan.system.reference
            c, n, cb = (reference[atom] - reference[row.parent] for atom in ends)
            assert np.sign(np.cross(c, n) @ cb) == volume[0].sign()
            n_found += 1
    assert n_found == 7


def test_a_mirror_image_is_outside_and_counted():
    placement = placements()["chignolin, backbone"]
    mirrored = frames(placement, 3, 14) * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    assert (placement.chirality_errors(mirrored) == len(placement.plan.system.handed_centres())).all()
    y, _ = placement.split(mirrored)
    assert not placement.in_support(y).any()
    assert (placement.join(placement.bead_positions(mirrored), y)[0] - mirrored).abs().max() < 1e-12


def test_a_united_ch_keeps_its_handedness():
    system = shipped("alanine_dipeptide")
    ha = system.find("HA")[0]
    keep = [atom for atom in range(len(system)) if atom != ha]
    place = {atom: k for k, atom in enumerate(keep)}
    masses = system.masses.copy()
    masses[system.find("CA")[0]] = 13.019
    bonds = np.array([[place[i], place[j]] for i, j in system.bonds.tolist() if ha not in (i, j)])
    names, residues = (tuple(t[a] for a in keep) for t in (system.names, system.residue_names))
    united = Atoms(names, residues, system.residue_ids[keep], masses[keep], bonds, system.positions[keep])
    placement = united.at(united.find("N", "CA", "C"))
    (cb,) = rows_of(placement, "ALA", "CB")
    assert placement.coordinates[2 * placement.n_rows + cb].support == "window"
    assert len(placement.plan.system.handed_centres()) == 1
    mirrored = frames(placement, 2, 1) * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    assert (placement.chirality_errors(mirrored) == 1).all()


@pytest.mark.parametrize(("name", "residue"), [("glycine", "GLY"), ("chignolin, C-alpha", "GLY")])
def test_the_two_hydrogens_of_ch2_are_told_apart_by_sign(name, residue):
    placement = placements()[name]
    x = frames(placement, 4, 15)
    for first, second in zip(*(rows_of(placement, residue, atom) for atom in ("HA1", "HA2")), strict=True):
        swapped = x.clone()
        atoms = [placement.plan.rows[k].atom for k in (first, second)]
        swapped[:, atoms] = x[:, atoms[::-1]]
        assert placement.in_support(placement.split(placement.relabel(x))[0]).all()
        assert not placement.in_support(placement.split(placement.relabel(swapped))[0]).any()


def test_peptide_bonds_between_c_alpha_beads_keep_trans():
    placement = placements()["chignolin, C-alpha"]
    beads, y = draws(placement, 2000, 16, spread=0.999)
    x, log_volume = placement.join(beads, y)
    system, graph = placement.plan.system, placement.plan.system.graph
    bridges = [row for row in placement.plan.rows if row.role == "bridge" and graph.names[row.atom] == "N"]
    assert len(bridges) == 9
    points = x[torch.isfinite(log_volume)].permute(2, 1, 0)
    assert points.shape[2] > 50
    for row in bridges:
        omega = nerf.dihedral(*(points[:, [a]] for a in (row.torsion_ref, row.angle_ref, row.atom, row.parent)))
        assert abs(system.dihedral(row.torsion_ref, row.angle_ref, row.atom, row.parent)) > math.radians(90)
        assert omega.abs().min() > math.radians(90)


def test_rotors_share_one_third_of_the_circle():
    placement = placements()["chignolin, backbone"]
    rotors = placement.plan.rotors
    names = [{placement.plan.system.graph.names[atom] for atom in rotor} for rotor in rotors]
    assert names.count({"H1", "H2", "H3"}) == 1
    assert names.count({"HG21", "HG22", "HG23"}) == 2
    assert len(rotors) == 3
    x = frames(placement, 30, 17)
    turned = x.clone()
    for rotor in rotors:
        turned[:, list(rotor)] = x[:, [rotor[1], rotor[2], rotor[0]]]
    assert not placement.in_support(placement.split(turned)[0]).any()
    assert torch.equal(placement.relabel(turned), placement.relabel(x))
    assert placement.in_support(placement.split(placement.relabel(turned))[0]).all()


def test_supports_are_described():
    text = " ".join(placements()["chignolin, C-alpha"].describe_supports())
    for words in ("bridges", "tetrahedral", "planar", "trans", "three identical"):
        assert words in text
