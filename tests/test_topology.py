"""Reading gmx dump: a small hand-written dump without GROMACS, the real one with it."""

import re
from pathlib import Path

import numpy as np
import pytest

from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import fine_run
from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.topology import (
    check_cutoff,
    parse_tpr_dump,
    require_supported,
    require_unconstrained,
    torsion_atoms,
)

PEROXIDE = """\
peroxide.tpr:
inputrec:
   integrator                     = sd
   dt                             = 0.001
   pbc                            = xyz
   coulombtype                    = Cut-off
   coulomb-modifier               = None
   rcoulomb                       = 1.2
   epsilon-r                      = 1
   epsilon-rf                     = inf
   vdw-type                       = Cut-off
   vdw-modifier                   = None
   rvdw                           = 1.1
   pull                           = false
   applied-forces:
     electric-field:
       x:
         E0                       = 0
         omega                    = 0
     colvars:
       active                     = false
grpopts:
   nrdf:          12
   ref-t:         310
   tau-t:           1
topology:
   name="peroxide"
   #atoms                         = 4
   #molblock                      = 1
   molblock (0):
      moltype              = 0 "HOOH"
      #molecules                     = 1
      #posres_xA                     = 0
   bIntermolecularInteractions    = false
   ffparams:
      atnr=2
      ntypes=9
         functype[0]=LJ_SR, c6= 1.00000000e-03, c12= 2.00000000e-06
         functype[1]=LJ_SR, c6= 3.00000000e-04, c12= 4.00000000e-07
         functype[2]=LJ_SR, c6= 3.00000000e-04, c12= 4.00000000e-07
         functype[3]=LJ_SR, c6= 0.00000000e+00, c12= 0.00000000e+00
         functype[4]=BONDS, b0A= 9.60000e-02, cbA= 4.50000e+05, b0B= 9.60000e-02, cbB= 4.50000e+05
         functype[5]=BONDS, b0A= 1.45000e-01, cbA= 2.00000e+05, b0B= 1.45000e-01, cbB= 2.00000e+05
         functype[6]=ANGLES, thA= 1.00000e+02, ctA= 4.00000e+02, thB= 1.00000e+02, ctB= 4.00000e+02
         functype[7]=PDIHS, phiA= 0.00000000e+00, cpA= 5.00000000e+00, phiB= 0.00000000e+00, cpB= 5.00000000e+00, mult=2
         functype[8]=LJ14, c6A= 0.00000000e+00, c12A= 1.00000000e-09, c6B= 0.00000000e+00, c12B= 1.00000000e-09
      reppow                         = 12
      fudgeQQ                        = 0.5
cmap
   moltype (0):
      name="HOOH"
      atoms:
         atom (4):
            atom[     0]={type=  1, typeB=  1, ptype=    Atom, m= 1.00800e+00, q= 4.00000e-01, mB= 1.00800e+00, \
qB= 4.00000e-01, resind=    0, atomnumber=  1}
            atom[     1]={type=  0, typeB=  0, ptype=    Atom, m= 1.60000e+01, q=-4.00000e-01, mB= 1.60000e+01, \
qB=-4.00000e-01, resind=    0, atomnumber=  8}
            atom[     2]={type=  0, typeB=  0, ptype=    Atom, m= 1.60000e+01, q=-4.00000e-01, mB= 1.60000e+01, \
qB=-4.00000e-01, resind=    0, atomnumber=  8}
            atom[     3]={type=  1, typeB=  1, ptype=    Atom, m= 1.00800e+00, q= 4.00000e-01, mB= 1.00800e+00, \
qB= 4.00000e-01, resind=    0, atomnumber=  -1}
         atom (4):
            atom[0]={name="H1"}
            atom[1]={name="O1"}
            atom[2]={name="O2"}
            atom[3]={name="H2"}
         type (4):
            type[0]={name="H",nameB="H"}
         residue (1):
            residue[0]={name="HOO", nr=7, ic=' '}
      excls:
         numLists=4
         excls[0][num=4]={0, 1,
            2, 3}
         excls[1][num=4]={0, 1, 2, 3}
         excls[2][num=4]={0, 1, 2, 3}
         excls[3][num=4]={0, 1, 2, 3}
      Bond:
         nr: 9
         iatoms:
            0 type=4 (BONDS)   1   0
            1 type=5 (BONDS)   1   2
            2 type=4 (BONDS)   2   3
      Angle:
         nr: 8
         iatoms:
            0 type=6 (ANGLES)   0   1   2
            1 type=6 (ANGLES)   1   2   3
      Proper Dih.:
         nr: 5
         iatoms:
            0 type=7 (PDIHS)   0   1   2   3
      LJ-14:
         nr: 3
         iatoms:
            0 type=8 (LJ14)   0   3
box (3x3):
   box[    0]={ 3.00000e+00,  0.00000e+00,  0.00000e+00}
   box[    1]={ 0.00000e+00,  3.00000e+00,  0.00000e+00}
   box[    2]={ 0.00000e+00,  0.00000e+00,  3.00000e+00}
"""


def test_every_part_of_a_dump():
    topology = parse_tpr_dump(PEROXIDE)
    assert topology.names == ("H1", "O1", "O2", "H2")
    assert topology.elements == ("H", "O", "O", "X")
    assert topology.residue_names == ("HOO",) * 4
    assert topology.residue_ids.tolist() == [7] * 4
    assert topology.masses.tolist() == [1.008, 16.0, 16.0, 1.008]
    assert topology.charges.tolist() == [0.4, -0.4, -0.4, 0.4]
    assert topology.c6.tolist() == [[1e-3, 3e-4], [3e-4, 0.0]]
    assert topology.c12[0, 0] == 2e-6
    assert topology.interactions["BONDS"].parameters.tolist() == [[0.096, 4.5e5], [0.145, 2e5], [0.096, 4.5e5]]
    assert topology.interactions["PDIHS"].atoms.tolist() == [[0, 1, 2, 3]]
    assert topology.interactions["PDIHS"].parameters.tolist() == [[0.0, 5.0, 2.0]]
    assert len(topology.interactions["PIDIHS"]) == 0
    assert topology.bonds.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert topology.fudge_qq == 0.5
    assert topology.run.temperature_K == 310.0
    assert topology.run.cutoff_nm == 1.1
    assert topology.run.box_nm.tolist() == np.diag([3.0] * 3).tolist()
    require_supported(topology)


def test_exclusion_list_that_goes_on_in_the_next_line():
    everything = {(i, j) for i in range(4) for j in range(i + 1, 4)}
    assert parse_tpr_dump(PEROXIDE).exclusions == everything
    with pytest.raises(TopologyError, match=r"exclusions of atom 1 list 3 atoms; expected the 4"):
        parse_tpr_dump(PEROXIDE.replace("excls[0][num=4]={0, 1,\n            2, 3}", "excls[0][num=4]={0, 1,\n    2}"))


def test_copies_of_a_molecule_are_written_out():
    topology = parse_tpr_dump(
        PEROXIDE.replace("#molecules                     = 1", "#molecules                     = 3").replace(
            "#atoms                         = 4", "#atoms                         = 12"
        )
    )
    assert topology.n_atoms == 12
    assert topology.bonds.tolist() == [[4 * c + i, 4 * c + i + 1] for c in range(3) for i in range(3)]
    assert topology.interactions["LJ14"].atoms.tolist() == [[0, 3], [4, 7], [8, 11]]
    assert len(topology.exclusions) == 18
    with pytest.raises(TopologyError, match=r"atom 5 \(H1 of HOO 7\).*one isolated molecule"):
        require_supported(topology)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0 type=7 (PDIHS)", "0 type=7 (RESTRDIHS)", "1 RESTRDIHS"),
        ("0 type=7 (PDIHS)", "0 type=7 (RBDIHS)", "the dump gives no rbcA"),
        ("0 type=8 (LJ14)   0   3", "0 type=8 (VSITE3)   0   3   1   2", "1 VSITE3"),
        ("0 type=4 (BONDS)   1   0", "0 type=4 (CONSTR)   1   0", "found 1 constraints.*constraints = none"),
        ("typeB=  1", "typeB=  0", "perturbed"),
        ("cpB= 5.00000000e+00", "cpB= 4.00000000e+00", "perturbed"),
        ("0]=LJ_SR", "0]=BHAM", "BHAM"),
        ("reppow                         = 12", "reppow                         = 9", "repulsion power 9"),
        ("Interactions    = false", "Interactions    = true", "intermolecular"),
        ("coulombtype                    = Cut-off", "coulombtype                    = PME", "coulombtype = PME"),
        ("coulomb-modifier               = None", "coulomb-modifier = Potential-switch", "coulomb-modifier = none or"),
        ("vdw-modifier                   = None", "vdw-modifier       = Force-switch", "vdw-modifier = none or"),
        ("pull                           = false", "pull                           = true", "use pull = no"),
        ("E0                       = 0", "E0                       = 1", "electric-field/x/E0 = 1"),
        ("colvars:\n       active                     = false", "colvars:\n       active   = true", "colvars"),
    ],
)
def test_what_is_not_covered_is_refused_by_name(old, new, message):
    assert PEROXIDE.count(old) >= 1
    with pytest.raises(TopologyError, match=message):
        require_supported(parse_tpr_dump(PEROXIDE.replace(old, new, 1)))


@pytest.mark.parametrize("text", ["", "no dump at all", PEROXIDE.split("topology:")[0]])
def test_what_is_no_dump(text):
    with pytest.raises(TopologyError, match="gmx dump"):
        parse_tpr_dump(text)


def test_missing_pieces_are_noticed():
    with pytest.raises(TopologyError, match="function types is incomplete"):
        parse_tpr_dump(re.sub(r".*functype\[5\].*\n", "", PEROXIDE))
    with pytest.raises(TopologyError, match="rvdw"):
        parse_tpr_dump(re.sub(r".*rvdw .*\n", "", PEROXIDE))
    with pytest.raises(TopologyError, match="no thermostat"):
        _ = parse_tpr_dump(re.sub(r".*ref-t.*\n", "", PEROXIDE)).run.temperature_K


def test_cutoff_and_box():
    topology = parse_tpr_dump(PEROXIDE)
    frames = np.zeros((2, 4, 3))
    frames[1, 3] = [0.5, 0.5, 0.5]
    check_cutoff(topology, frames)
    frames[1, 3] = [1.2, 0.0, 0.0]
    with pytest.raises(TopologyError, match=r"1.200 nm wide but the cut-off is 1.1 nm"):
        check_cutoff(topology, frames)
    small = parse_tpr_dump(PEROXIDE.replace("3.00000e+00", "2.00000e+00"))
    frames[1, 3] = [1.0, 0.0, 0.0]
    check_cutoff(topology, frames)
    with pytest.raises(TopologyError, match=r"1.000 nm wide in a box of 2 nm"):
        check_cutoff(small, frames)


def test_torsion_atoms():
    topology = parse_tpr_dump(PEROXIDE)
    assert torsion_atoms(topology, [1, 2, 3, 4]) == (0, 1, 2, 3)
    assert torsion_atoms(topology, [4, 3, 2, 1]) == (3, 2, 1, 0)
    with pytest.raises(TopologyError, match=r"no atom 0, 9 .* numbered 1\.\.4"):
        torsion_atoms(topology, [0, 1, 2, 9])
    with pytest.raises(TopologyError, match=r"atoms 1 \(H1 of HOO 7\) and 3 \(O2 of HOO 7\) are not bonded"):
        torsion_atoms(topology, [1, 3, 2, 4])
    for indices in ([1, 2, 3], [1, 2, 3, 3]):
        with pytest.raises(TopologyError, match="four different"):
            torsion_atoms(topology, indices)


@pytest.mark.gmx
def test_alanine_dipeptide(gmx: Gmx, alanine_tpr: Path):
    topology = parse_tpr_dump(gmx.dump(alanine_tpr))
    require_supported(topology)
    counts = {name: len(listed) for name, listed in topology.interactions.items() if len(listed)}
    assert counts == {"BONDS": 21, "ANGLES": 36, "PDIHS": 38, "PIDIHS": 4, "LJ14": 41}
    assert topology.n_atoms == 22
    assert len(topology.exclusions) == 98
    assert len(topology.bonds) == 21
    assert "".join(topology.elements) == "CHHHCONHCHCHHHCONHCHHH"
    assert abs(topology.charges.sum()) < 1e-6
    assert topology.run.temperature_K == 300.0
    assert torsion_atoms(topology, [5, 7, 9, 15]) == (4, 6, 8, 14)


@pytest.mark.gmx
def test_constraints_are_counted_and_refused(gmx: Gmx, alanine_dir: Path, tmp_path: Path):
    mdp = fine_run(300.0, 100, seed=1)
    lines = {**dict(mdp.items()), "constraints": "h-bonds"}
    tpr = gmx.grompp(lines, alanine_dir / "conf.gro", alanine_dir / "topol.top", tmp_path / "c.tpr", maxwarn=2)
    topology = parse_tpr_dump(gmx.dump(tpr))
    assert len(topology.bonds) == 21
    with pytest.raises(TopologyError, match=r"found 12 constraints .*expected none, because weights need"):
        require_unconstrained(topology)
