"""The score card: restored frames against fine frames that the training never saw.

Every bond, bond angle and torsion of the bond graph with an atom that is no bead belongs to a class: the residue's name
and the names of its atoms. What spans two residues belongs to the one that holds most of its atoms, of two halves to
the later one; of the other residue it counts only whether its atom is in a ring, a proline's. So phi is a matter of its
own residue, and C-N-CA has one class for each residue after the bond, not one for each pair: force fields know no pairs
of side chains either (CHARMM22: C, NH1 and CT1 whatever the side chain, other types for GLY and PRO).

Atoms that only their labels tell apart are of one name, CD* and OD* for instance (:mod:`ccg_gmx.backmap.equivalent`).

The Jensen-Shannon divergence of a class compares its values in restored frames with those in held-out fine frames with
the same beads. Few values differ by chance; what chance explains is given beside each class and subtracted from none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import chdtri

from ccg_gmx.backmap.contacts import ContactRules, clash_counts
from ccg_gmx.backmap.equivalent import pooled_names
from ccg_gmx.backmap.system import Atoms, BackmapSystem
from ccg_gmx.molecule.placement.system import BondedSystem
from ccg_gmx.records import FloatArray, IntArray

PER_BIN, LEAST_BINS, MOST_BINS = 50, 4, 48
"""Values per bin that the number of bins is chosen by, and its limits."""
ENOUGH = 500
"""Held-out values from which on a class counts in the summary; classes with fewer are listed."""
MARK_NATS = 0.05
"""Divergence from which on a class is counted as one that differs."""
CHANCE = 0.99
"""Part of the classes of one and the same distribution that stay below ``ClassScore.chance``."""
ROTAMER_ATOMS = ("CG", "OG", "OG1", "CG1", "SG")
"""Fourth atom of chi1."""


@dataclass(frozen=True, eq=False)
class GeometryClass:
    """One class of bonds, angles or torsions.

    Attributes:
        kind: ``bonds``, ``angles`` or ``torsions``.
        name: residue and atoms.
        atoms: ``[m, 2..4]`` its members.
    """

    kind: str
    name: str
    atoms: IntArray


@dataclass(frozen=True)
class ClassScore:
    """How much a class differs.

    Attributes:
        kind: as in :class:`GeometryClass`.
        name: likewise.
        js: Jensen-Shannon divergence in nats.
        floor: what as many independent values of one distribution would give on average, (bins - 1) (1/n + 1/m) / 8.
        fine: number of fine values.
        edges: ``[bins + 1]`` nm or radians.
        p_fine: ``[bins]`` fractions of fine values.
        p_restored: ``[bins]`` fractions of restored values.
        chance: what independent values of one distribution would exceed in 1 % of such classes (:data:`CHANCE`).
    """

    kind: str
    name: str
    js: float
    floor: float
    fine: int
    edges: FloatArray
    p_fine: FloatArray
    p_restored: FloatArray
    chance: float = math.nan


def geometry_classes(system: BackmapSystem) -> list[GeometryClass]:
    """Classes of all bonds, angles and torsions that are not of beads alone."""
    atoms, beads = system.atoms, set() if system.centres else set(system.beads.tolist())
    found: dict[tuple[str, str], list[tuple[int, ...]]] = {}
    pooled = pooled_names(system.placement.plan.system)
    for kind, members in _paths(atoms):
        if not beads.issuperset(members):
            found.setdefault((kind, _name(system, members, pooled)), []).append(members)
    return [GeometryClass(kind, name, np.array(own)) for (kind, name), own in sorted(found.items())]


def _paths(atoms: Atoms) -> Iterable[tuple[str, tuple[int, ...]]]:
    around: list[list[int]] = [[] for _ in range(len(atoms))]
    for i, j in np.asarray(atoms.bonds).tolist():
        around[i].append(j)
        around[j].append(i)
    for j, neighbours in enumerate(around):
        for i in neighbours:
            if i < j:
                yield "bonds", (i, j)
            for k in neighbours:
                if i < k:
                    yield "angles", (i, j, k)
        for k in (k for k in neighbours if j < k):
            for i in (i for i in neighbours if i != k):
                for end in (end for end in around[k] if end not in (i, j)):
                    yield "torsions", (i, j, k, end)


def _name(system: BackmapSystem, members: tuple[int, ...], pooled: dict[int, str]) -> str:
    """Name of a class, the same in either direction: its residue, and the atoms as seen from there; see the module."""
    residues, graph = system.residues, system.placement.plan.system
    own = [int(residues[atom]) for atom in members]
    home = max(own, key=lambda residue: (own.count(residue), residue))
    labels = [_label(graph, atom, home, pooled) + _ring_of_other(system, atom, home) for atom in members]
    first = members[own.index(home)]
    return f"{system.atoms.residue_names[first]} {min('-'.join(labels), '-'.join(labels[::-1]))}"


def _label(graph: BondedSystem, atom: int, home: int, pooled: dict[int, str]) -> str:
    """Name of an atom as seen from a residue, or the common one of all that are equivalent to it."""
    label = graph.local_label(atom, home)
    return label if atom not in pooled else label[: len(label) - len(graph.graph.names[atom])] + pooled[atom]


def _ring_of_other(system: BackmapSystem, atom: int, home: int) -> str:
    """``(PRO)`` for an atom of another residue that is in a small ring."""
    graph = system.placement.plan.system
    if int(system.residues[atom]) == home or not any(graph.in_small_ring(atom, j) for j in graph.neighbours(atom)):
        return ""
    return f"({system.atoms.residue_names[atom]})"


def measure(kind: str, atoms: IntArray, positions: FloatArray) -> FloatArray:
    """Values ``[T m]`` of one class in frames ``[T, N, 3]`` nm: nm or radians."""
    points = [positions[:, column] for column in atoms.T]
    if kind == "bonds":
        return np.linalg.norm(points[0] - points[1], axis=-1).ravel()
    if kind == "angles":
        u, v = points[0] - points[1], points[2] - points[1]
        cross = np.linalg.norm(np.cross(u, v), axis=-1)
        return np.arctan2(cross, (u * v).sum(-1)).ravel()
    axis, u, v = points[2] - points[1], points[1] - points[0], points[3] - points[2]
    n = np.cross(axis, v)
    sine = (u * n).sum(-1) * np.linalg.norm(axis, axis=-1)
    return np.arctan2(sine, (np.cross(u, axis) * n).sum(-1)).ravel()


def compare_class(found: GeometryClass, fine: FloatArray, restored: FloatArray) -> ClassScore:
    """Histogram one class in fine and restored frames ``[T, N, 3]`` nm."""
    a, b = (measure(found.kind, found.atoms, frames) for frames in (fine, restored))
    bins = int(np.clip(min(len(a), len(b)) // PER_BIN, LEAST_BINS, MOST_BINS))
    if found.kind == "torsions":
        edges = np.linspace(-math.pi, math.pi, bins + 1)
    else:
        low, high = float(a.min()), float(a.max())
        margin = 0.05 * max(high - low, 1e-6)
        edges = np.linspace(low - margin, high + margin, bins + 1)
    p, q = (np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(values) for values in (a, b))
    used = int(((p > 0) | (q > 0)).sum())
    # 8 JS / (1/n + 1/m) follows chi squared of bins - 1 degrees of freedom, as G^2 does.
    unit = (1.0 / len(a) + 1.0 / len(b)) / 8.0
    chance = unit * float(chdtri(used - 1, 1.0 - CHANCE)) if used > 1 else 0.0
    return ClassScore(found.kind, found.name, jensen_shannon(p, q), unit * (used - 1), len(a), edges, p, q, chance)


def jensen_shannon(p: FloatArray, q: FloatArray) -> float:
    """Jensen-Shannon divergence of two discrete distributions in nats."""
    middle = 0.5 * (p + q)
    parts = []
    for one in (p, q):
        there = one > 0
        parts.append(float((one[there] * np.log(one[there] / middle[there])).sum()))
    return 0.5 * sum(parts)


def score_classes(system: BackmapSystem, fine: FloatArray, restored: FloatArray) -> list[ClassScore]:
    """Compare all classes, the least alike first.

    Args:
        system: of the frames.
        fine: ``[T, N, 3]`` nm, relabelled.
        restored: ``[R, N, 3]`` nm on the beads of the fine frames.
    """
    scores = [compare_class(found, fine, restored) for found in geometry_classes(system)]
    return sorted(scores, key=lambda score: -score.js)


def summarise_classes(scores: list[ClassScore]) -> dict[str, Any]:
    """Largest and mean divergence of each kind, over the classes with enough values and over all.

    ``above`` counts all classes above :data:`MARK_NATS`; ``above_chance`` those of them that also exceed what chance
    explains.
    """
    summary: dict[str, Any] = {}
    for kind in ("bonds", "angles", "torsions"):
        own = [score for score in scores if score.kind == kind]
        counted = [score for score in own if score.fine >= ENOUGH] or own
        if not own:
            continue
        worst = max(counted, key=lambda score: score.js)
        summary[f"js_{kind}_max"] = worst.js
        summary[f"js_{kind}_worst"] = worst.name
        summary[f"js_{kind}_worst_floor"] = worst.floor
        summary[f"js_{kind}_mean"] = float(np.mean([score.js for score in counted]))
        summary[f"js_{kind}_classes"] = len(counted)
        summary[f"js_{kind}_max_of_all"] = max(score.js for score in own)
        summary[f"js_{kind}_classes_of_all"] = len(own)
        above = [score for score in own if score.js > MARK_NATS]
        summary[f"js_{kind}_above"] = len(above)
        summary[f"js_{kind}_above_chance"] = sum(score.js > score.chance for score in above)
        summary[f"js_{kind}_not_chance"] = sum(score.js > score.chance for score in own)
    return summary


def rotamers(system: BackmapSystem, fine: FloatArray, restored: FloatArray) -> dict[str, dict[str, list[float]]]:
    """Populations of gauche+, trans and gauche- of chi1 by residue, fine and restored."""
    atoms, found = system.atoms, {}
    for residue in range(int(system.residues[-1]) + 1):
        place = {atoms.names[k]: int(k) for k in np.flatnonzero(system.residues == residue)}
        fourth = next((name for name in ROTAMER_ATOMS if name in place), None)
        if fourth is None or not {"N", "CA", "CB"} <= set(place):
            continue
        chi = np.array([[place["N"], place["CA"], place["CB"], place[fourth]]])
        found[system.residue_label(residue)] = {
            name: _wells(measure("torsions", chi, frames)) for name, frames in (("fine", fine), ("restored", restored))
        }
    return found


def _wells(chi: FloatArray) -> list[float]:
    well = np.floor(np.mod(chi, 2.0 * math.pi) / (2.0 * math.pi / 3.0)).astype(int)
    return [float(np.mean(well == k)) for k in range(3)]


def diversity_nm(samples: FloatArray, beads: IntArray) -> float:
    """Root mean square distance of restored atoms between two samples of one coarse frame, nm.

    Args:
        samples: ``[T, K, N, 3]`` nm; K samples of each coarse frame.
        beads: atoms that do not differ.
    """
    if samples.shape[1] < 2:
        return math.nan
    others = np.setdiff1d(np.arange(samples.shape[2]), beads)
    return float(np.sqrt(2.0 * samples[:, :, others].var(axis=1, ddof=1).sum(-1).mean()))


def frame_facts(
    system: BackmapSystem, rules: ContactRules, positions: FloatArray, beads: FloatArray, box: FloatArray | None
) -> dict[str, Any]:
    """Bead deviation, handedness and clashes of restored frames.

    Args:
        system: of the frames.
        rules: what clashes.
        positions: ``[R, N, 3]`` nm.
        beads: ``[R, n, 3]`` nm they were restored on.
        box: ``[R, 3, 3]`` nm; None: no periodic images.
    """
    import torch

    wrong = system.placement.chirality_errors(torch.as_tensor(positions))
    clashes = clash_counts(rules, positions, box)
    return {
        "frames": len(positions),
        "max_bead_deviation_nm": float(np.abs(system.bead_positions(positions) - beads).max()),
        "chirality_errors": int(wrong.sum()),
        "clash_fraction": float(np.mean(clashes > 0)),
    }
