"""Overlaps by van der Waals radii: which pairs count, how many there are, and a choice of candidates that avoids them.

A pair of heavy atoms clashes below 0.8 of the sum of the radii of Bondi (doi:10.1021/j100785a001), or below 0.7 if both
are N, O, F or S, which hydrogen bonds pull together. Only pairs more than three bonds apart count. Hydrogens do not: by
Bondi's radii 80 % of the frames of fine dynamics of chignolin in vacuum would clash, so the mark would say nothing.

Candidates: a block has M independent draws; one is taken with probability proportional to its factor
g = exp(-COST_PER_CLASH n), n its clashes with what is placed before. The density of what is taken is then
q(y) g(y) / mean(g) in the extended space of all candidates, so weights stay exact: Rosenbluth sampling, Siepmann &
Frenkel, doi:10.1080/00268979200100061.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ccg_gmx.backmap.system import Atoms, BackmapSystem
from ccg_gmx.molecule.images import points_with_images
from ccg_gmx.molecule.kernel_lanes import compiled
from ccg_gmx.records import FloatArray, IntArray

FACTOR, POLAR_FACTOR = 0.8, 0.7
"""Part of the sum of radii below which a pair clashes; the second if both may share a hydrogen bond."""
SOFT_HYDROGEN_NM = 0.10
COST_PER_CLASH = 8.0
"""kT that a candidate pays for each clash; -ln g."""
UNREACHABLE = 60.0
"""kT that a candidate pays whose bridges do not reach, or that turns a stereocentre over."""
NEAR_NM = 1.4
"""Blocks whose residues' beads are nearer than this are looked at, beyond the reach of the longest side chain."""

BONDI_NM = {6: 0.170, 7: 0.155, 8: 0.152, 9: 0.147, 12: 0.173, 15: 0.180, 16: 0.180, 17: 0.175, 35: 0.185}
OTHER_NM = 0.17
_MASSES = {1: 1.008, 6: 12.011, 7: 14.007, 8: 15.999, 9: 18.998, 12: 24.305, 15: 30.974, 16: 32.06, 17: 35.45}
_POLAR = (7, 8, 9, 16)


@dataclass(frozen=True, eq=False)
class ContactRules:
    """What counts as a clash.

    Attributes:
        radii: ``[N]`` nm, 0 for hydrogens.
        soft: ``[N]`` nm, the radii that candidates are judged by: hydrogens on carbon count too, with 0.1 nm.
        polar: ``[N]`` N, O, F or S.
        near_start: ``[N + 1]`` and ``near_atoms``: atoms within three bonds of each atom, itself included.
        near_atoms: see there.
    """

    radii: FloatArray
    soft: FloatArray
    polar: NDArray[np.bool_]
    near_start: IntArray
    near_atoms: IntArray


def elements(masses: FloatArray) -> IntArray:
    """Atomic numbers ``[N]`` by the nearest mass; -1 where none is within 0.5 amu (heavy hydrogens among them)."""
    numbers = np.array(list(_MASSES), dtype=np.int64)
    table = np.array(list(_MASSES.values()))
    nearest = np.abs(np.asarray(masses)[:, None] - table[None, :]).argmin(axis=1)
    found = numbers[nearest]
    found[np.abs(masses - table[nearest]) > 0.5] = -1
    found[np.asarray(masses) < 4.1] = 1  # deuterium and hydrogens made heavy for long time steps
    return found


def contact_rules(atoms: Atoms) -> ContactRules:
    """Radii, hydrogen bonds and bonded neighbourhoods of a system."""
    number, n = elements(atoms.masses), len(atoms)
    around: list[set[int]] = [set() for _ in range(n)]
    for i, j in np.asarray(atoms.bonds, dtype=np.int64).tolist():
        around[i].add(j)
        around[j].add(i)
    near = []
    for atom in range(n):
        reached = {atom}
        for _ in range(3):
            reached |= {j for i in reached for j in around[i]}
        near.append(sorted(reached))
    hydrogen = number == 1
    on_polar = [any(number[j] in _POLAR for j in around[k]) for k in range(n)]
    radii = np.array([BONDI_NM.get(int(z), OTHER_NM) for z in number])
    return ContactRules(
        radii=np.where(hydrogen, 0.0, radii),
        soft=np.where(hydrogen, np.where(on_polar, 0.0, SOFT_HYDROGEN_NM), radii),
        polar=np.isin(number, _POLAR),
        near_start=np.cumsum([0, *map(len, near)]).astype(np.int64),
        near_atoms=np.array([j for found in near for j in found], dtype=np.int64),
    )


def clash_counts(rules: ContactRules, positions: FloatArray, box: FloatArray | None = None) -> IntArray:
    """Number of clashing pairs ``[T]`` of frames ``[T, N, 3]`` nm; cost linear in the atoms.

    Args:
        rules: what clashes.
        positions: of all atoms.
        box: ``[T, 3, 3]`` nm, whose periodic images count too; None for none.
    """
    reach = 2.0 * FACTOR * float(rules.radii.max())
    counts = np.zeros(len(positions), dtype=np.int64)
    for k, frame in enumerate(positions):
        if np.isfinite(frame).all():
            pairs, squares = _near_pairs(frame, np.zeros((3, 3)) if box is None else box[k], reach)
            counts[k] = _count(pairs, squares, rules.radii, rules.polar, rules.near_start, rules.near_atoms)
    return counts


def _near_pairs(frame: FloatArray, box: FloatArray, reach: float) -> tuple[IntArray, FloatArray]:
    """Pairs ``[n, 2]`` of atoms within ``reach``, each once, and their squared distances ``[n]`` in nm^2."""
    from scipy.spatial import cKDTree

    _, images, owner = points_with_images(frame, box, reach)
    pairs = cKDTree(images).query_pairs(reach, output_type="ndarray").astype(np.int64)
    pairs = pairs[pairs.min(axis=1, initial=len(images)) < len(frame)]  # others are images of such
    squares = ((images[pairs[:, 0]] - images[pairs[:, 1]]) ** 2).sum(axis=1)
    atoms = np.sort(owner[pairs], axis=1)
    if len(images) == len(frame):
        return atoms, squares
    nearest = np.lexsort((squares, atoms[:, 1], atoms[:, 0]))
    atoms, squares = atoms[nearest], squares[nearest]
    first = np.ones(len(atoms), dtype=bool)
    first[1:] = (atoms[1:] != atoms[:-1]).any(axis=1)
    first &= atoms[:, 0] != atoms[:, 1]
    return atoms[first], squares[first]


@compiled
def _clashes(i, j, square, radii, polar, near_start, near_atoms):  # type: ignore[no-untyped-def]
    if radii[i] == 0.0 or radii[j] == 0.0:
        return False
    limit = (POLAR_FACTOR if polar[i] and polar[j] else FACTOR) * (radii[i] + radii[j])
    if square >= limit * limit:
        return False
    for k in range(near_start[i], near_start[i + 1]):  # noqa: SIM110  numba knows no all()
        if near_atoms[k] == j:
            return False
    return True


@compiled
def _count(pairs, squares, radii, polar, near_start, near_atoms):  # type: ignore[no-untyped-def]
    total = 0
    for p in range(len(pairs)):
        if _clashes(pairs[p, 0], pairs[p, 1], squares[p], radii, polar, near_start, near_atoms):
            total += 1
    return total


@dataclass(frozen=True, eq=False)
class Turn:
    """Blocks that are drawn in one pass, in the order in which candidates are taken.

    Attributes:
        start: ``[b + 1]`` and ``atoms``: the atoms of each block.
        atoms: see there.
        origin: ``[b]`` point of the bead of each block.
    """

    start: IntArray
    atoms: IntArray
    origin: IntArray


@dataclass(frozen=True, eq=False)
class Surround:
    """Which atoms stand around which bead.

    Attributes:
        beads: ``[n]`` points.
        start: ``[n + 1]`` and ``atoms``: the atoms that hang on each bead, its own included.
        atoms: see there.
    """

    beads: IntArray
    start: IntArray
    atoms: IntArray


def surround_of(system: BackmapSystem) -> Surround:
    """Every atom with the bead at the origin of its block."""
    points = system.bead_points.tolist()
    hanging: dict[int, list[int]] = {point: [] for point in points}
    alone = set(system.beads.tolist())
    for table in system.blocks.kinds:
        for frame, atoms in zip(table.frames[:, 0].tolist(), table.atoms.tolist(), strict=True):
            hanging[frame] += atoms
            alone.difference_update(atoms)
    for point, atom in zip(points, system.beads.tolist(), strict=True):
        hanging[point] += [atom] if atom in alone else []
    groups = [hanging[point] for point in points]
    start = np.cumsum([0, *map(len, groups)]).astype(np.int64)
    return Surround(system.bead_points, start, np.array([atom for group in groups for atom in group], dtype=np.int64))


def choose(
    candidates: FloatArray,
    reachable: NDArray[np.bool_],
    placed: NDArray[np.bool_],
    uniform: FloatArray,
    turn: Turn,
    surround: Surround,
    rules: ContactRules,
    box: FloatArray | None = None,
) -> tuple[IntArray, FloatArray]:
    """Take one candidate of every block of a turn, one block after the other.

    Args:
        candidates: ``[M, T, P, 3]`` nm, points; in each, all blocks of the turn are drawn anew. The first holds the
            present state of blocks that are placed already.
        reachable: ``[M, T, b]`` whether the bridges of a block reach and its stereocentres are right.
        placed: ``[N]`` atoms placed before this turn.
        uniform: ``[T, b]`` random numbers in [0, 1).
        turn: the blocks.
        surround: atoms around beads.
        rules: what clashes.
        box: ``[T, 3, 3]`` nm, whose periodic images count too, each bead's nearest one; None for none.

    Returns:
        The candidate ``[T, b]`` of every block, and ``[T]`` sum of ln(g / mean g).
    """
    chosen = np.zeros(uniform.shape, dtype=np.int64)
    log_g = np.zeros(len(uniform))
    _choose(
        np.ascontiguousarray(candidates),
        np.ascontiguousarray(reachable),
        placed,
        np.ascontiguousarray(uniform),
        turn.start,
        turn.atoms,
        turn.origin,
        surround.beads,
        surround.start,
        surround.atoms,
        rules.soft,
        rules.polar,
        rules.near_start,
        rules.near_atoms,
        np.zeros((len(uniform), 3, 3)) if box is None else np.ascontiguousarray(box, dtype=np.float64),
        chosen,
        log_g,
    )
    return chosen, log_g


@compiled
def _choose(  # type: ignore[no-untyped-def]
    x, reachable, placed_before, uniform, b_start, b_atoms, b_origin, beads, s_start, s_atoms,
    radii, polar, near_start, near_atoms, boxes, chosen, log_g,
):  # fmt: skip
    n_candidates, n_frames, n_atoms = x.shape[0], x.shape[1], x.shape[2]
    cost, close, shift = np.zeros(n_candidates), np.zeros(n_atoms, dtype=np.int64), np.zeros((n_atoms, 3))
    for t in range(n_frames):
        placed = placed_before.copy()
        source = np.zeros(n_atoms, dtype=np.int64)  # candidate in which a placed atom of this turn stands
        for b in range(len(b_origin)):
            cost[:] = 0.0
            for m in range(n_candidates):
                if not reachable[m, t, b]:
                    cost[m] = UNREACHABLE
            own = b_atoms[b_start[b] : b_start[b + 1]]
            for i in own:  # placed already where blocks are drawn anew
                placed[i] = False
            n_close = _close(
                x, t, own, b_origin[b], placed, source, beads, s_start, s_atoms, radii, boxes[t], close, shift
            )
            for k in range(n_close):
                j = close[k]
                for i in own:
                    for m in range(n_candidates):
                        square = 0.0
                        for c in range(3):
                            square += (x[m, t, i, c] - x[source[j], t, j, c] + shift[k, c]) ** 2
                        if _clashes(i, j, square, radii, polar, near_start, near_atoms):
                            cost[m] += COST_PER_CLASH
            for a in range(len(own)):  # overlaps inside the block
                for a2 in range(a):
                    i, j = own[a], own[a2]
                    for m in range(n_candidates):
                        square = 0.0
                        for c in range(3):
                            square += (x[m, t, i, c] - x[m, t, j, c]) ** 2
                        if _clashes(i, j, square, radii, polar, near_start, near_atoms):
                            cost[m] += COST_PER_CLASH
            least = cost.min()
            total = np.exp(least - cost).sum()
            left, take = uniform[t, b] * total, n_candidates - 1
            for m in range(n_candidates):
                left -= np.exp(least - cost[m])
                if left < 0.0:
                    take = m
                    break
            chosen[t, b] = take
            log_g[t] += least - cost[take] - np.log(total / n_candidates)
            for i in own:
                placed[i] = True
                source[i] = take


@compiled
def _close(  # type: ignore[no-untyped-def]
    x, t, own, origin, placed, source, beads, s_start, s_atoms, radii, box, close, shift
):  # fmt: skip
    """Placed atoms that some candidate of a block may touch, into ``close``; their number is returned.

    ``shift`` gets the lattice vector to take from each, so that its bead is the image nearest to the block's.
    """
    n_candidates, count = x.shape[0], 0
    centre, turn, reach, largest = np.zeros(3), np.zeros(3), 0.0, 0.0
    for m in range(n_candidates):
        for i in own:
            for c in range(3):
                centre[c] += x[m, t, i, c] / (n_candidates * len(own))
    for i in own:
        largest = max(largest, radii[i])
        for m in range(n_candidates):
            reach = max(reach, _square(x[m, t, i], centre))
    reach = np.sqrt(reach) + FACTOR * (largest + radii.max())
    for k in range(len(beads)):
        _lattice_vector(x[0, t, beads[k]], x[0, t, origin], box, turn)
        if _square_of_image(x[0, t, beads[k]], x[0, t, origin], turn) > NEAR_NM * NEAR_NM:
            continue
        for s in range(s_start[k], s_start[k + 1]):
            j = s_atoms[s]
            if not placed[j] or radii[j] == 0.0:
                continue
            if _square_of_image(x[source[j], t, j], centre, turn) < reach * reach:
                close[count] = j
                shift[count] = turn
                count += 1
    return count


@compiled
def _lattice_vector(a, b, box, found):  # type: ignore[no-untyped-def]
    """Lattice vector ``found`` that makes a - b - found short; 0 in a box of zeros."""
    found[:] = 0.0
    for axis in (2, 1, 0):
        if box[axis, axis] > 0.0:
            turns = np.round((a[axis] - b[axis] - found[axis]) / box[axis, axis])
            for c in range(3):
                found[c] += turns * box[axis, c]


@compiled
def _square(a, b):  # type: ignore[no-untyped-def]
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2


@compiled
def _square_of_image(a, b, turn):  # type: ignore[no-untyped-def]
    return (a[0] - turn[0] - b[0]) ** 2 + (a[1] - turn[1] - b[1]) ** 2 + (a[2] - turn[2] - b[2]) ** 2
