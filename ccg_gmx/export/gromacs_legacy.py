"""Non-bonded tables for GROMACS <= 2019, the last release with the group scheme; GROMACS >= 2020 refuses them.

Seven columns: distance, then value and minus slope of the Coulomb, dispersion and repulsion part. The whole potential
is in the repulsion column, whose coefficient is 1 for all beads (so the dispersion column, whose coefficient is 0, and
the Coulomb column, without charges, are never used). Energy groups are the bead types, one table for each pair of them.
"""

from __future__ import annotations

import itertools
import re

import numpy as np

from ccg_gmx.export.coarse_system import CoarseSystem
from ccg_gmx.export.gromacs_system import MDP, TOPOLOGY, cmap_types, topology_text
from ccg_gmx.export.gromacs_tables import bond_points
from ccg_gmx.potential.curves import Curve
from ccg_gmx.records import FloatArray

FOLDER = "gromacs-2019"
"""Where the files go, beside topol.top of GROMACS >= 2025, whose .itp files and bonded tables they use."""

_SPACING_NM = 0.001
_EXTENSION_NM = 1.0  # GROMACS' table-extension: how far beyond the cut-off tables must go
_REPLACED = re.compile(
    r"(?mi)^[ \t]*(cutoff[-_]scheme|verlet[-_]buffer[-_]tolerance|rlist|coulombtype|coulomb[-_]modifier|rcoulomb"
    r"|vdwtype|vdw[-_]type|vdw[-_]modifier|rvdw|energygrps|energygrp[-_]table|ns[-_]type|nstlist)[ \t]*=.*\n?"
)


def legacy_files(system: CoarseSystem, mdp_text: str) -> dict[str, str]:
    """Text of every file by name, for a system with pairs.

    Args:
        system: the system.
        mdp_text: run parameters of GROMACS >= 2025; what concerns cut-offs is replaced.
    """
    types, cutoff = system.topology.types, system.model.cutoff
    r = bond_points(cutoff + _EXTENSION_NM, _SPACING_NM)
    pairs = list(itertools.combinations_with_replacement(types, 2))
    files = {f"table_{a}_{b}.xvg": _table(r, system.model.pair(a, b), f"{a}-{b}") for a, b in pairs}
    return {
        TOPOLOGY: topology_text(system, cmap_types(system), c12=1.0, prefix="../"),
        "index.ndx": _index(system),
        MDP: _mdp(mdp_text, types, cutoff),
        "table.xvg": _table(r, None, "default"),
        **files,
        "README.md": _readme(pairs),
    }


def _table(r: FloatArray, curve: Curve | None, title: str) -> str:
    value, slope = curve.value_and_slope(r) if curve else (np.zeros_like(r), np.zeros_like(r))
    rows = zip(r.tolist(), value.tolist(), (-slope).tolist(), strict=True)
    head = f"# {title}, GROMACS <= 2019 only: r, then value and minus slope of Coulomb, dispersion, repulsion\n"
    return head + "".join(f"{x:.6f} 0.0 0.0 0.0 0.0 {v:.10e} {f:.10e}\n" for x, v, f in rows)


def _index(system: CoarseSystem) -> str:
    topology = system.topology
    groups = {"System": np.arange(topology.n_beads)}
    groups |= {name: np.flatnonzero(topology.type_index == i) for i, name in enumerate(topology.types)}
    text = ""
    for name, beads in groups.items():
        numbers = [str(bead + 1) for bead in beads.tolist()]
        lines = [" ".join(numbers[i : i + 15]) for i in range(0, len(numbers), 15)]
        text += "\n".join([f"[ {name} ]", *lines, ""])
    return text


def _mdp(mdp_text: str, types: tuple[str, ...], cutoff_nm: float) -> str:
    kept = _REPLACED.sub("", mdp_text)
    pairs = "  ".join(f"{a} {b}" for a, b in itertools.combinations_with_replacement(types, 2))
    return f"""; GROMACS <= 2019 only: the group scheme and vdwtype = user went with release 2020
{kept.rstrip()}
cutoff-scheme = group
ns-type = grid
nstlist = 10
rlist = {cutoff_nm:.6g}
coulombtype = cut-off
rcoulomb = {cutoff_nm:.6g}
vdwtype = user
rvdw = {cutoff_nm:.6g}
energygrps = {" ".join(types)}
energygrp-table = {pairs}
"""


def _readme(pairs: list[tuple[str, str]]) -> str:
    names = ", ".join(f"table_{a}_{b}.xvg" for a, b in pairs)
    return f"""# Pair tables for GROMACS <= 2019

GROMACS 2020 and later refuse these files (`vdwtype = user` needs the group scheme, which is gone); with those use
plumed.dat in the folder above. With GROMACS 2019 and earlier, in this folder:

    gmx grompp -c ../conf.gro -n index.ndx && gmx mdrun -table table.xvg -tableb ../table_*.xvg

(leave `-tableb` out where there is no table_b, table_a or table_d file above). The pair tables are {names};
mdrun finds them by the name of table.xvg. They were not run here, as no such release is at hand.
"""
