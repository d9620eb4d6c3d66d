"""What one internal coordinate is: its kind, and the support its density is allowed to have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Support = Literal["positive", "polar", "circle", "window", "rotor"]


@dataclass(frozen=True)
class Coordinate:
    """One internal coordinate.

    Support, not clean-up after the fact, carries the symmetries (handedness, identical hydrogens, cis/trans):

    * ``positive``: bond length in nm, (0, inf)
    * ``polar``: bond angle in radians, (0, pi)
    * ``circle``: torsion in radians on the full circle [-pi, pi)
    * ``window``: torsion or sibling offset confined to (centre - width/2, centre + width/2) radians
    * ``rotor``: mean torsion of three identical atoms, on a circle of circumference ``width`` = 2 pi / 3,
      represented in [centre - width/2, centre + width/2)

    Attributes:
        name: for people, e.g. ``bond C5-O6`` (1-based atom numbers).
        kind: bond, angle or torsion.
        support: see above.
        centre: radians; middle of the window or of the rotor's period (0 otherwise).
        width: radians; length of the window or period (2 pi for ``circle``, unused for bonds and angles).
    """

    name: str
    kind: Literal["bond", "angle", "torsion"]
    support: Support
    centre: float = 0.0
    width: float = 2.0 * math.pi
