"""Write the pair potentials of a coarse model for PLUMED: the files of the action PAIR_TABLE of our plug-in.

GROMACS has no tabulated non-bonded pairs since 2020. PAIR_TABLE adds them as a bias: GROMACS gets forces and virial and
treats everything else itself. Formats and keywords are described in plumed_plugins/README.md.

A pair curve is a cubic between its knots, its continuation below them a parabola, so a table with nodes at the knots
and as many more below as fit is the curve itself and not an approximation of it (below the first node, which is
nearer to zero than one knot spacing, the table is a straight line).
"""

from __future__ import annotations

import math
from itertools import combinations_with_replacement, groupby
from pathlib import Path

import numpy as np

from ccg_gmx.errors import SettingsError
from ccg_gmx.molecule.coarse_topology import CoarseTopology
from ccg_gmx.potential.curves import Curve
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.records import FloatArray

INPUT, TABLES, TYPES, EXCLUSIONS, ENERGIES = (
    "plumed.dat",
    "pairs.tables",
    "pairs.types",
    "pairs.exclusions",
    "pairs.energy",
)
LIBRARY = "libccg_torch_model.so"
"""Name in LOAD where no path is given: the plug-in of ``ccg plumed build``."""


def pair_files(
    model: CoarseModel,
    topology: CoarseTopology,
    *,
    library: Path | str = LIBRARY,
    threads: int = 1,
    print_every: int = 0,
) -> dict[str, str]:
    """Text of every file by name: plumed.dat, tables, types and, where there are any, exclusions.

    Args:
        model: the potentials; must have pairs.
        topology: the beads, in the order of the MD engine's atoms.
        library: what LOAD names.
        threads: OpenMP threads of the action.
        print_every: steps between lines with the pair energy in ``pairs.energy``; 0 for none.

    Raises:
        SettingsError: if the model has no pairs, or does not belong to the topology.
    """
    model.check(topology)
    if not model.pairs:
        raise SettingsError("a model without pair potentials", expected="at least one pair of bead types")
    excluded = (topology.excluded_pairs + 1).tolist()
    line = f"pairs: PAIR_TABLE ATOMS=1-{topology.n_beads} FILE={TABLES} TYPES={TYPES}"
    line += f" EXCLUSIONS={EXCLUSIONS}" if excluded else ""
    lines = [f"LOAD FILE={library}", f"{line} TEMP={model.temperature_K!r} THREADS={threads}"]
    if print_every:
        lines.append(f"PRINT ARG=pairs.bias STRIDE={print_every} FILE={ENERGIES} FMT=%.10g")
    files = {INPUT: "\n".join(lines) + "\n", TABLES: table_text(model, topology), TYPES: _types_text(topology)}
    if excluded:
        files[EXCLUSIONS] = "".join(f"{i} {j}\n" for i, j in excluded)
    return files


def table_text(model: CoarseModel, topology: CoarseTopology) -> str:
    """The table file of all pairs of types.

    Args:
        model: the potentials.
        topology: the beads, whose numbers by type go into the file's contract.
    """
    counts = np.bincount(topology.type_index, minlength=len(topology.types)).tolist()
    out = ["ccg_pair_tables 1", "kind pair", "units nm kJ/mol", f"temperature {model.temperature_K!r}"]
    out += [f"type {name} {count}" for name, count in zip(topology.types, counts, strict=True)]
    for first, second in combinations_with_replacement(topology.types, 2):
        curve = model.pair(first, second)
        if curve is None:
            out.append(f"none {first} {second}")
            continue
        r, value, slope = pair_nodes(curve)
        out.append(f"table {first} {second} {float(r[0])!r} {curve.spacing!r} {len(r)}")
        rows = np.stack([r, value, slope], axis=1).tolist()
        out += [f"{a!r} {b!r} {c!r}" for a, b, c in rows]
    return "\n".join(out) + "\n"


def pair_nodes(curve: Curve) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Knots of a pair curve, and evenly on below them as far as r stays positive.

    Args:
        curve: the pair.

    Returns:
        ``[K]`` r in nm, value in kJ/mol and slope in kJ/mol/nm; the last node is the cut-off.
    """
    below = math.floor(curve.lo / curve.spacing + 1e-9)
    knots = curve.size - 3 + below
    first = max(0.0, curve.hi - knots * curve.spacing)
    r = first + curve.spacing * np.arange(knots + 1, dtype=np.float64)
    value, slope = curve.value_and_slope(r)
    # the last node may lie a rounding below the cut-off
    value[-1] = slope[-1] = 0.0
    return r, value, slope


def _types_text(topology: CoarseTopology) -> str:
    """Lines FIRST LAST TYPE for each run of equal types."""
    out, first = [], 1
    for name, run in groupby(topology.bead_types):
        last = first + len(list(run)) - 1
        out.append(f"{first} {last} {name}\n")
        first = last + 1
    return "".join(out)
