"""A coarse system for OpenMM: tabulated forces in one ``openmm.System``, its XML, and a script that runs it.

OpenMM 8: Eastman et al., doi:10.1021/acs.jpcb.3c06662; optional (``pip install ccg_gmx[openmm]``). A tabulated function
is a natural cubic spline through its points and *zero* outside them, so tables reach as far as anything can get.

All pairs live in one force, as OpenMM wants one list of exclusions: the tables of the type pairs are laid one behind
the other on one axis, ``slot * length + r``, and a small integer table finds the slot. Between two tables there are
points enough for the spline's ringing at the seam (a factor 0.27 per point) to die out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ccg_gmx.errors import ToolMissingError
from ccg_gmx.export.coarse_system import CoarseSystem
from ccg_gmx.export.gromacs_tables import circle_points
from ccg_gmx.export.openmm_script import SCRIPT
from ccg_gmx.potential.curves import Curve
from ccg_gmx.potential.model import pair_key
from ccg_gmx.records import FloatArray

GROUPS = {"bond": 1, "angle": 2, "dihedral": 3, "cmap": 4, "pair": 5}
"""Force group of each kind of term, so that its energy can be asked for by itself."""

_EXPRESSIONS = {
    "bond": (2, "distance(p1, p2)"),
    "angle": (3, "angle(p1, p2, p3)"),
    "dihedral": (4, "dihedral(p1, p2, p3, p4)"),
}
_BOND_POINTS, _ANGLE_POINTS, _CIRCLE = 4001, 1801, 1440
_PAIR_SPACING_NM = 0.0005
_SEAM = 60  # points on either side of a pair table


def build_openmm_system(system: CoarseSystem) -> Any:
    """Return the ``openmm.System``, periodic in the box of the last frame.

    Raises:
        ToolMissingError: if OpenMM is not installed.
    """
    openmm = import_openmm()
    made = openmm.System()
    for mass in system.topology.masses.tolist():
        made.addParticle(mass)
    made.setDefaultPeriodicBoxVectors(*(openmm.Vec3(*row) for row in system.box[-1].tolist()))
    for kind in _EXPRESSIONS:
        for name in system.names(kind):
            made.addForce(_bonded(openmm, system, kind, name))
    if system.names("cmap"):
        made.addForce(_maps(openmm, system))
    if system.model.pairs:
        made.addForce(_pairs(openmm, system))
    for force in made.getForces():
        if not isinstance(force, openmm.CustomNonbondedForce):
            force.setUsesPeriodicBoundaryConditions(True)
    return made


def openmm_files(system: CoarseSystem) -> dict[str, str]:
    """Text of every file by name: the system and its start (last frame) as XML, and a script that runs it.

    Raises:
        ToolMissingError: if OpenMM, which writes the XML, is not installed.
    """
    openmm = import_openmm()
    made = build_openmm_system(system)
    context = openmm.Context(made, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(system.positions[-1])
    start = context.getState(positions=True, velocities=True, parameters=True)
    return {
        "system.xml": openmm.XmlSerializer.serialize(made),
        "start.xml": openmm.XmlSerializer.serialize(start),
        "run.py": SCRIPT.replace("TEMPERATURE", f"{system.model.temperature_K:g}"),
    }


def import_openmm() -> Any:
    """Import OpenMM.

    Raises:
        ToolMissingError: if it is not installed.
    """
    try:
        import openmm
    except ImportError as error:
        raise ToolMissingError(
            "OpenMM is not installed", remedy="pip install openmm, or choose another engine"
        ) from error
    return openmm


def _bonded(openmm: Any, system: CoarseSystem, kind: str, name: str) -> Any:
    """All terms of one name; of OpenMM's bonded forces only the compound one reads tables."""
    beads, expression = _EXPRESSIONS[kind]
    force = openmm.CustomCompoundBondForce(beads, f"table({expression})")
    force.addTabulatedFunction("table", openmm.Continuous1DFunction(*_table(kind, system.model.bonded[name])))
    for row in system.topology.bonded_beads(name).tolist():
        force.addBond(row)
    force.setName(f"{kind} {name}")
    force.setForceGroup(GROUPS[kind])
    return force


def _table(kind: str, curve: Curve) -> tuple[list[float], float, float, bool]:
    """Values, first and last point, and whether they close a circle.

    A spline that is not periodic has no curvature at its ends: they lie where no coordinate gets.
    """
    if kind == "dihedral":
        value, _ = curve.value_and_slope(circle_points(_CIRCLE))
        return [*value.tolist(), float(value[0])], -math.pi, math.pi, True
    end = math.pi if kind == "angle" else max(2.0 * curve.hi, 0.5)
    points = _ANGLE_POINTS if kind == "angle" else _BOND_POINTS
    value, _ = curve.value_and_slope(np.linspace(0.0, end, points, dtype=np.float64))
    return value.tolist(), 0.0, end, False


def _maps(openmm: Any, system: CoarseSystem) -> Any:
    """CMAPs: OpenMM counts both torsions from 0 and wants the first running fastest."""
    force = openmm.CMAPTorsionForce()
    for name in system.names("cmap"):
        n = system.model.maps[name].knots
        n *= 1 + n % 2  # an even number of points has one at 0
        turned = np.roll(system.model.maps[name].on_grid(n), (n // 2, n // 2), axis=(0, 1))
        number = force.addMap(n, turned.T.ravel().tolist())
        for beads in system.topology.bonded_beads(name).tolist():
            force.addTorsion(number, *beads[:4], *beads[1:])
    force.setName("cmap")
    force.setForceGroup(GROUPS["cmap"])
    return force


def _pairs(openmm: Any, system: CoarseSystem) -> Any:
    types = system.topology.types
    present = sorted(system.model.pairs)
    slots = {pair: i + 1 for i, pair in enumerate(present)}  # slot 0 is empty: types that do not interact
    points = math.ceil(system.model.cutoff / _PAIR_SPACING_NM) + 1
    length = (points + 2 * _SEAM) * _PAIR_SPACING_NM
    tables = [_padded(system.model.pairs[pair], points) for pair in present]
    axis = np.concatenate([np.zeros(points + 2 * _SEAM), *tables, np.zeros(1)])
    which = [float(slots.get(pair_key(a, b), 0)) for b in types for a in types]
    force = openmm.CustomNonbondedForce("pair(slot(type1, type2) * length + r)")
    start = -_SEAM * _PAIR_SPACING_NM
    force.addGlobalParameter("length", length)
    force.addTabulatedFunction(
        "pair", openmm.Continuous1DFunction(axis.tolist(), start, start + (len(axis) - 1) * _PAIR_SPACING_NM)
    )
    force.addTabulatedFunction("slot", openmm.Discrete2DFunction(len(types), len(types), which))
    force.addPerParticleParameter("type")
    for index in system.topology.type_index.tolist():
        force.addParticle([float(index)])
    for first, second in system.topology.excluded_pairs.tolist():
        force.addExclusion(first, second)
    force.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
    force.setCutoffDistance(system.model.cutoff)
    force.setName("pair")
    force.setForceGroup(GROUPS["pair"])
    return force


def _padded(curve: Curve, points: int) -> FloatArray:
    """Values ``[points + 2 seams]`` from r = 0 on; before 0 a straight line goes on, behind the cut-off are zeros."""
    r = np.arange(-_SEAM, points + _SEAM) * _PAIR_SPACING_NM
    value, slope = curve.value_and_slope(np.maximum(r, 0.0))
    return np.asarray(value + slope * np.minimum(r, 0.0))
