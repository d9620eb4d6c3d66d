"""Bond, angle and torsion geometry on batch-last tensors, and its inverse, the placement of atoms.

Layout ``[3, n, B]``: the batch is the last, contiguous dimension, so every operation is one long vector loop.
Torsions follow IUPAC (cis is 0, positive clockwise when looking along the middle bond), as in GROMACS and PLUMED.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TWO_PI = 2.0 * math.pi


def cross(a: Tensor, b: Tensor) -> Tensor:
    """Cross product along the first dimension, ``[3, ...]``."""
    ax, ay, az = a.unbind(0)
    bx, by, bz = b.unbind(0)
    return torch.stack((ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Dot product along the first dimension, ``[3, ...] -> [...]``."""
    ax, ay, az = a.unbind(0)
    bx, by, bz = b.unbind(0)
    return ax * bx + ay * by + az * bz


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Distance in nm of points ``[3, ...]`` (nm)."""
    d = a - b
    return dot(d, d).sqrt()


def angle(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Angle a-b-c in (0, pi); accurate near 0 and pi too, where an arc cosine is not."""
    u, v = a - b, c - b
    n = cross(u, v)
    return torch.atan2(dot(n, n).sqrt(), dot(u, v))


def dihedral(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Angle about the axis b-c from the half-plane of d to that of a, in [-pi, pi].

    It is the torsion a-b-c-d if d is bonded to c, and the improper offset of a from d if d is bonded to b:
    only the side of the axis on which d lies matters.
    """
    axis, u, v = c - b, b - a, d - c
    n = cross(axis, v)
    return torch.atan2(dot(u, n) * dot(axis, axis).sqrt(), dot(cross(u, axis), n))


def wrap(value: Tensor, centre: Tensor | float, period: float = TWO_PI) -> Tensor:
    """Shift by whole periods into [centre - period/2, centre + period/2); the derivative stays 1."""
    turns = torch.floor((value.detach() - centre) / period + 0.5)
    return value - turns * period


def local_frames(p: Tensor, a: Tensor, t: Tensor) -> Tensor:
    """Origin and orthonormal axes to place atoms from: p, along a -> p, in the half-plane of t, and normal to it.

    Args:
        p: ``[3, n, B]`` nm, bonded parents.
        a: ``[3, n, B]`` nm, angle references.
        t: ``[3, n, B]`` nm, torsion references, not on the line p-a.

    Returns:
        ``[4, 3, n, B]``.
    """
    along = p - a
    along = along * dot(along, along).rsqrt()
    normal = cross(a - t, along)
    normal = normal * dot(normal, normal).rsqrt()
    return torch.stack((p, along, cross(normal, along), normal))


def place_atoms(frames: Tensor, bond: Tensor, theta: Tensor, torsion: Tensor) -> Tensor:
    """Place atoms x with given |x-p|, angle x-p-a and dihedral x-p-a-t (natural extension reference frame).

    Reference: Parsons et al., doi:10.1002/jcc.20237.

    Args:
        frames: ``[4, 3, n, B]`` of :func:`local_frames`.
        bond: ``[n, B]`` nm.
        theta: ``[n, B]`` radians.
        torsion: ``[n, B]`` radians.

    Returns:
        ``[3, n, B]`` nm.
    """
    p, along, side, normal = frames.unbind(0)
    across = bond * torch.sin(theta)
    x = torch.addcmul(p, bond * torch.cos(theta), along, value=-1.0)
    x = torch.addcmul(x, across * torch.cos(torsion), side)
    return torch.addcmul(x, across * torch.sin(torsion), normal)
