"""Which values each number of a placed atom may take; the rules of :mod:`ccg_gmx.molecule.supports` for any system.

The centres come from a short list (0, pi, +pi/2, -pi/2, pi/3), not from the numbers of one structure, so atoms of equal
residues share one support and one model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.molecule.placement.order import Step
from ccg_gmx.molecule.placement.system import BondedSystem
from ccg_gmx.molecule.supports import PLANAR_OFFSET, PLANAR_TORSION, TETRAHEDRAL_OFFSET

ROTOR_CENTRE = math.pi / 3.0
"""Middle of every rotor's third of the circle: a staggered methyl lies there, away from the seam."""

ROTOR_PERIOD = 2.0 * math.pi / 3.0

SENTENCES = {
    "bond": "Bond lengths are positive and bond angles lie in (0, 180) degrees.",
    "bridge": "bridges have both bond lengths as coordinates: rings, disulfides and stretches between beads close.",
    "handedness": "offsets on tetrahedral centres keep the sign they have in the reference (L, D, pro-R, pro-S).",
    "planar": "offsets on planar centres stay within 90 degrees of 180.",
    "trans": "torsions between planar centres stay within 90 degrees of 180 (trans), as in the reference.",
    "cis": "torsions between planar centres stay within 90 degrees of 0 (cis), as in the reference.",
    "rotor": "groups of three identical atoms keep their order; their mean torsion covers a third of the circle once.",
}
"""What each decision assumes, after the number of times it was taken."""


@dataclass(frozen=True)
class TorsionDecision:
    """Support of a torsion.

    Attributes:
        support: ``circle``, ``window`` or ``rotor``.
        centre: radians.
        width: radians.
        reason: a key of :data:`SENTENCES`, or None where nothing is assumed.
    """

    support: str
    centre: float = 0.0
    width: float = 2.0 * math.pi
    reason: str | None = None

    @property
    def tag(self) -> str:
        """Short name, part of what makes two atoms alike: ``window+90``."""
        return self.support + ("" if self.support == "circle" else f"{round(math.degrees(self.centre)):+d}")


FREE = TorsionDecision("circle")


def decide_torsion(
    system: BondedSystem, step: Step, rotor_heads: set[int], walked: BondedSystem | None = None
) -> TorsionDecision:
    """Support of the torsion of one step.

    Args:
        system: all bonds, which say what kind of centre an atom is.
        step: how the atom is placed.
        rotor_heads: first atoms of rotors.
        walked: the bonds and the reference that the step was planned with, if they are others (inside groups).
    """
    full, walked = system, walked or system
    if step.atom in rotor_heads:
        return TorsionDecision("rotor", ROTOR_CENTRE, ROTOR_PERIOD, "rotor")
    value = walked.dihedral(step.atom, step.parent, step.angle_ref, step.measured_from)
    if step.role == "bridge":
        return _bridge(walked, full, step, value)
    if not walked.bonded(step.parent, step.angle_ref):
        return FREE
    if walked.bonded(step.parent, step.measured_from):
        return _offset(full, step.parent, value)
    if not walked.bonded(step.angle_ref, step.torsion_ref):
        return FREE
    return _planar_torsion(full, (step.parent, step.angle_ref), value)


def _offset(system: BondedSystem, centre: int, value: float) -> TorsionDecision:
    """Offset between two neighbours of one atom about the bond to a third: handedness, or a planar centre."""
    degree, (low, high) = system.graph.degree(centre), TETRAHEDRAL_OFFSET
    if (degree == 4 or system.united_ch(centre)) and low < abs(value) < high:
        return TorsionDecision("window", math.copysign(math.pi / 2, value), math.pi, "handedness")
    if degree == 3 and abs(value) > PLANAR_OFFSET:
        return TorsionDecision("window", math.pi, math.pi, "planar")
    return FREE


def _bridge(walked: BondedSystem, full: BondedSystem, step: Step, value: float) -> TorsionDecision:
    """A bridge is flat if it and the end that carries the torsion's reference are planar centres."""
    ends = [end for end in (step.parent, step.angle_ref) if walked.bonded(end, step.torsion_ref)]
    return _planar_torsion(full, (step.atom, *ends[:1]), value) if ends else FREE


def _planar_torsion(system: BondedSystem, centres: tuple[int, ...], value: float) -> TorsionDecision:
    flat = min(abs(value), math.pi - abs(value)) < PLANAR_TORSION
    if not flat or not all(system.trigonal(atom) for atom in centres):
        return FREE
    trans = abs(value) > math.pi / 2
    return TorsionDecision("window", math.pi if trans else 0.0, math.pi, "trans" if trans else "cis")


def step_coordinates(
    system: BondedSystem, step: Step, decision: TorsionDecision
) -> tuple[Coordinate, Coordinate, Coordinate]:
    """The three coordinates of a placed atom: bond; angle or second bond; torsion."""
    label = system.graph.labels
    kind = "bond" if system.bonded(step.atom, step.parent) else "distance"
    first = Coordinate(f"{kind} {label((step.atom, step.parent))}", "bond", "positive")
    if step.role == "bridge":
        second = Coordinate(f"bond {label((step.atom, step.angle_ref))}", "bond", "positive")
    else:
        second = Coordinate(f"angle {label((step.atom, step.parent, step.angle_ref))}", "angle", "polar")
    noun = "rotor" if decision.support == "rotor" else ("torsion" if step.role in ("primary", "bridge") else "offset")
    name = f"{noun} {label((step.atom, step.parent, step.angle_ref, step.measured_from))}"
    third = Coordinate(name, "torsion", decision.support, decision.centre, decision.width)  # type: ignore[arg-type]
    return first, second, third


def describe(steps: Sequence[Step], decisions: Sequence[TorsionDecision]) -> tuple[str, ...]:
    """The assumptions of the supports, one sentence for each kind, with the number of times it is made."""
    counts = Counter(decision.reason for decision in decisions if decision.reason)
    counts["bridge"] = sum(step.role == "bridge" for step in steps)
    return SENTENCES["bond"], *(f"{counts[key]} {text}" for key, text in SENTENCES.items() if counts[key])
