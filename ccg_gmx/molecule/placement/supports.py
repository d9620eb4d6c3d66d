"""Which values each number of a placed atom may take; the rules of :mod:`ccg_gmx.molecule.supports` for any system.

The centres come from a short list (0, pi, +pi/2, -pi/2, pi/3), not from the numbers of one structure, so atoms of equal
residues share one support and one model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ccg_gmx.molecule import nerf
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.molecule.placement.order import Step
from ccg_gmx.molecule.placement.system import BondedSystem
from ccg_gmx.molecule.supports import PLANAR_OFFSET, PLANAR_TORSION, TETRAHEDRAL_OFFSET

ROTOR_CENTRE = math.pi / 3.0
"""Middle of every rotor's third of the circle: a staggered methyl lies there, away from the seam."""

AMIDE_TORSION = math.radians(90.0)
"""As PLANAR_TORSION, for the bond of an amide, which is cis or trans even where the reference strains it."""

ROTOR_PERIOD = 2.0 * math.pi / 3.0

SENTENCES = {
    "bond": "Bond lengths are positive and bond angles lie in (0, 180) degrees.",
    "bridge": "bridges have both bond lengths as coordinates: rings, disulfides and stretches between beads close.",
    "handedness": "offsets on tetrahedral centres keep the sign they have in the reference (L, D, pro-R, pro-S).",
    "planar": "offsets on planar centres stay within 90 degrees of 180.",
    "trans": "torsions between planar centres stay on the side of 180 degrees (trans), as in the reference.",
    "cis": "torsions between planar centres stay on the side of 0 degrees (cis), as in the reference.",
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


def decide_torsions(
    full: BondedSystem, walked: BondedSystem, steps: Sequence[Step], rotors: Sequence[tuple[int, int, int]]
) -> list[TorsionDecision]:
    """Supports of the torsions of steps.

    Args:
        full: all bonds, which say what kind of centre an atom is.
        walked: the bonds and the reference that the steps were planned with: the same, or those inside groups.
        steps: how the atoms are placed.
        rotors: three identical atoms each.
    """
    atoms = np.array([(s.atom, s.parent, s.angle_ref, s.measured_from) for s in steps], dtype=np.int64).reshape(-1, 4)
    points = torch.as_tensor(walked.reference.T)
    values = nerf.dihedral(*(points[:, column] for column in torch.as_tensor(atoms).T)).tolist()
    heads = {rotor[0] for rotor in rotors}
    return [_decide(full, walked, step, value, heads) for step, value in zip(steps, values, strict=True)]


def _decide(
    full: BondedSystem, walked: BondedSystem, step: Step, value: float, rotor_heads: set[int]
) -> TorsionDecision:
    if step.atom in rotor_heads:
        return TorsionDecision("rotor", ROTOR_CENTRE, ROTOR_PERIOD, "rotor")
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
    """A bridge keeps its side of the line between its ends where the torsion along the bonds is flat.

    The bonds' torsion is t - end - atom - other end, with the reference t bonded to that end: omega of a peptide bond.
    It decides, not the torsion about the line, to which t can be so close that small deviations look large.
    """
    for end, other in ((step.parent, step.angle_ref), (step.angle_ref, step.parent)):
        if walked.bonded(end, step.torsion_ref):
            along = walked.dihedral(step.torsion_ref, end, step.atom, other)
            side = math.pi if abs(value) > math.pi / 2 else 0.0
            flat = _planar_torsion(full, (step.atom, end), along)
            return replace(flat, centre=side) if flat.reason else FREE
    return FREE


def _planar_torsion(system: BondedSystem, centres: tuple[int, int], value: float) -> TorsionDecision:
    """A torsion between two planar centres keeps the side it has in the reference; any other is free."""
    flat = min(abs(value), math.pi - abs(value)) < (AMIDE_TORSION if system.amide(*centres) else PLANAR_TORSION)
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
