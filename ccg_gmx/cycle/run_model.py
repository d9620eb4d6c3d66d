"""The coarse molecule of a finished run as a coarse model, a topology and frames: what ``ccg export`` starts from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ccg_gmx.cycle.finished import FinishedRun
from ccg_gmx.cycle.stages.coarse import coarse_molecule, load_coarse_run
from ccg_gmx.cycle.system import System
from ccg_gmx.export.gromacs import CoarseMolecule
from ccg_gmx.export.gromacs_tables import circle_points
from ccg_gmx.molecule.coarse_topology import BondedKind, BondedType, CoarseMoleculeType, CoarseTopology
from ccg_gmx.potential.basis import PeriodicTerm
from ccg_gmx.potential.coarse import CoarsePotential
from ccg_gmx.potential.curves import Curve, CurveKind, TorsionMap
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.records import BeadFrames, FloatArray

_KINDS: dict[str, BondedKind] = {"bond": "bond", "angle": "angle", "torsion": "dihedral"}
_RESAMPLED_KNOTS = 360  # of a torsion that stays in its window: a spline on a part of the circle


def load_run_model(folder: Path) -> tuple[CoarseModel, CoarseTopology, BeadFrames]:
    """Read the coarse potential of a run and the frames of its coarse MD.

    Raises:
        StoreError: if the run is not finished or its files are gone.
        CcgError: if they cannot be read.
    """
    run = FinishedRun.open(folder, "the folder of a finished run, or MODEL.npz TOPOLOGY.json CONF")
    system = System.load(run.stage("system"))
    potential = CoarsePotential.load(run.stage("coarse_fit") / "potential.npz")
    positions = load_coarse_run(run.stage("coarse")).positions
    model, topology = coarse_model(potential, coarse_molecule(system))
    return model, topology, BeadFrames(positions, np.arange(len(positions), dtype=np.float64))


def coarse_model(potential: CoarsePotential, molecule: CoarseMolecule) -> tuple[CoarseModel, CoarseTopology]:
    """Express the cycle's potential, which is in kT, as a coarse model of one molecule.

    Bonds, angles, free torsions and maps keep their splines; a torsion that stays in a window becomes a periodic spline
    through 360 of its values.

    Args:
        potential: fitted potential.
        molecule: its beads.
    """
    bonded: dict[str, Curve] = {}
    maps: dict[str, TorsionMap] = {}
    terms: list[BondedType] = []
    for i, (term, beads) in enumerate(zip(potential.basis.terms, molecule.terms, strict=True)):
        name = term.coordinate.name
        bonded[name] = _term_curve(potential, i)
        terms.append(BondedType(name, _KINDS[term.coordinate.kind], (beads,)))
    for k, columns in enumerate(potential.basis.maps.columns):
        name = ", ".join(potential.basis.maps.grids[k].names)
        coefficients, covariance = _block(potential, k)
        if len(columns) == 1:
            bonded[name] = Curve("dihedral", -np.pi, np.pi, coefficients, covariance)
            terms.append(BondedType(name, "dihedral", (molecule.torsions[columns[0]],)))
        else:
            knots = potential.basis.maps.grids[k].knots
            first, second = (molecule.torsions[column] for column in columns)
            maps[name] = TorsionMap(coefficients.reshape(knots, knots), covariance)
            terms.append(BondedType(name, "cmap", ((*first, second[3]),)))
    return CoarseModel(potential.temperature_K, bonded, maps), CoarseTopology(((_molecule_type(molecule, terms), 1),))


def _block(potential: CoarsePotential, block: int) -> tuple[FloatArray, FloatArray]:
    """Coefficients (kJ/mol) of a block and their covariance."""
    where, kT = potential.basis.blocks[block], potential.kT
    return kT * potential.coefficients[where], kT**2 * potential.covariance[where, where]


def _term_curve(potential: CoarsePotential, i: int) -> Curve:
    term = potential.basis.terms[i]
    coefficients, covariance = _block(potential, potential.basis.n_maps + i)
    if isinstance(term, PeriodicTerm):
        return Curve("dihedral", -np.pi, np.pi, coefficients, covariance)
    if term.coordinate.kind == "torsion":
        values, _ = potential.term_table(i, circle_points(_RESAMPLED_KNOTS))
        return Curve("dihedral", -np.pi, np.pi, _periodic_coefficients(values))
    kind: CurveKind = "bond" if term.coordinate.kind == "bond" else "angle"
    return Curve(kind, term.lo, term.hi, coefficients, covariance, potential.kT * term.min_curvature)


def _periodic_coefficients(values: FloatArray) -> FloatArray:
    """Coefficients of the periodic cubic B-spline through values at its knots: weights 1/6, 4/6, 1/6, by Fourier."""
    angle = 2.0 * np.pi * np.fft.rfftfreq(len(values))
    return np.asarray(np.fft.irfft(np.fft.rfft(values) / ((2.0 + np.cos(angle)) / 3.0), len(values)))


def _molecule_type(molecule: CoarseMolecule, terms: list[BondedType]) -> CoarseMoleculeType:
    """Bead names get their number, as each must be unique; all pairs are excluded, as there are no pair potentials."""
    n = molecule.n_beads
    names = tuple(f"{name[:3]}{i + 1}" for i, name in enumerate(molecule.bead_names))
    return CoarseMoleculeType(
        name=molecule.name,
        bead_names=names,
        bead_types=names,
        masses=molecule.masses,
        residue_names=molecule.residue_names,
        residue_ids=molecule.residue_ids,
        bonded=tuple(terms),
        exclusions=tuple((i, j) for i in range(n) for j in range(i + 1, n)),
    )
