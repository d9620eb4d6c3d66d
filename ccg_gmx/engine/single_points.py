"""Energies of an export's frames, in each engine that can read it.

Every function returns ``[T]`` kJ/mol for the kinds of terms it computes: bond, angle, dihedral, cmap, pair. GROMACS
computes no pairs in bulk, PLUMED nothing else, so the two make one engine where both are there.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.lammps import Lammps
from ccg_gmx.engine.plumed import find_kernel
from ccg_gmx.engine.plumed_setup import make_plugin
from ccg_gmx.engine.process import capture
from ccg_gmx.engine.run_files import write_text
from ccg_gmx.errors import PlumedError, ToolMissingError, TrajectoryError
from ccg_gmx.export.bundle import Bundle
from ccg_gmx.export.gromacs_system import MDP, STRUCTURE, TOPOLOGY
from ccg_gmx.export.openmm_system import GROUPS, import_openmm
from ccg_gmx.export.plumed_pairs import INPUT
from ccg_gmx.molecule.trajectory import write_trr
from ccg_gmx.potential.evaluate import energies_and_forces
from ccg_gmx.records import BeadFrames, FloatArray

_GROMACS_TERMS = {
    "Tab. Bonds": "bond",
    "Tab. Angles": "angle",
    "Tab. Dih.": "dihedral",
    "CMAP Dih.": "cmap",
    "Tab. Bonds NC": "pair",
}


@dataclass(frozen=True)
class SinglePoints:
    """Energies of T frames in one engine.

    Attributes:
        engine: its name.
        version: its version.
        terms: kind of term -> ``[T]`` kJ/mol; kinds that the model does not have are left out.
        forces: ``[T, n, 3]`` kJ/mol/nm where the engine gave those of all terms, or None.
    """

    engine: str
    version: str
    terms: dict[str, FloatArray]
    forces: FloatArray | None = None


def reference_points(bundle: Bundle) -> SinglePoints:
    """This package's own numbers, in float64."""
    system = bundle.system
    time = np.arange(len(system.positions), dtype=np.float64)
    found = energies_and_forces(system.model, system.topology, BeadFrames(system.positions, time, system.box))
    terms: dict[str, FloatArray] = {}
    for name, values in found.terms.items():
        kind = system.topology.kind(name) if name in system.topology.bonded_names else "pair"
        terms[kind] = terms.get(kind, 0.0) + values
    return SinglePoints("ccg", "float64", terms, found.forces)


def gromacs_points(bundle: Bundle, workdir: Path) -> SinglePoints:
    """``gmx mdrun -rerun`` with the export's tables.

    Raises:
        ToolMissingError: if there is no gmx.
        ToolError: if GROMACS refuses the export.
    """
    gmx, folder, system = Gmx.find(), bundle.folder / "gromacs", bundle.system
    mdp = (folder / MDP).read_text(encoding="utf-8")
    tpr = gmx.grompp(mdp, folder / STRUCTURE, folder / TOPOLOGY, workdir / "check.tpr")
    write_trr(workdir / "frames.trr", system.positions, np.arange(len(system.positions), dtype=np.float64), system.box)
    tables = sorted(folder.glob("table_[bad]*.xvg"))
    found = gmx.rerun(tpr, workdir / "frames.trr", workdir, tables=tables)
    terms = {kind: found[name] for name, kind in _GROMACS_TERMS.items() if name in found}
    unknown = found["Potential"] - np.sum([*terms.values(), np.zeros_like(found["Potential"])], axis=0)
    if len(unknown) != len(system.positions):
        raise TrajectoryError(f"gmx mdrun -rerun saw {len(unknown)} frames", expected=f"{len(system.positions)}")
    if np.abs(unknown).max() > 1e-3 * system.n_molecules:  # a term of no name above would pass unseen
        terms["other"] = unknown
    return SinglePoints("gromacs", f"{gmx.version}, {gmx.precision} precision", terms)


def lammps_points(bundle: Bundle, workdir: Path) -> SinglePoints:
    """LAMMPS' ``rerun``.

    Raises:
        ToolMissingError: if there is no LAMMPS.
        LammpsError: if it refuses the export.
    """
    lammps, system = Lammps.find(), bundle.system
    terms, forces = lammps.single_points(bundle.folder / "lammps", system.positions, system.box, workdir)
    return SinglePoints("lammps", lammps.version, terms, forces)


def openmm_points(bundle: Bundle, workdir: Path) -> SinglePoints:
    """OpenMM's Reference platform, in float64, on the system that system.xml holds.

    Raises:
        ToolMissingError: if OpenMM is not installed.
    """
    openmm = import_openmm()
    system = openmm.XmlSerializer.deserialize((bundle.folder / "openmm" / "system.xml").read_text(encoding="utf-8"))
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    terms: dict[str, list[float]] = {kind: [] for kind in GROUPS}
    forces = []
    for frame, box in zip(bundle.system.positions, bundle.system.box, strict=True):
        context.setPeriodicBoxVectors(*(openmm.Vec3(*row) for row in box.tolist()))
        context.setPositions(frame)
        for kind, group in GROUPS.items():
            terms[kind].append(context.getState(energy=True, groups={group}).getPotentialEnergy()._value)
        forces.append(context.getState(forces=True).getForces(asNumpy=True)._value)
    arrays = {kind: np.array(values, dtype=np.float64) for kind, values in terms.items()}
    return SinglePoints("openmm", f"{openmm.__version__}, Reference", arrays, np.array(forces, dtype=np.float64))


def plumed_points(bundle: Bundle, workdir: Path) -> SinglePoints:
    """``plumed driver`` with our plug-in, which is built if need be.

    Raises:
        ToolMissingError: if PLUMED, its program or what building needs is missing.
        PlumedError: if PLUMED refuses the export.
    """
    kernel = find_kernel()
    if kernel.program is None:
        raise ToolMissingError("PLUMED's kernel is there, its program `plumed` is not", remedy="put it on PATH")
    plugin = make_plugin(test=False)
    folder = bundle.folder / ("plumed" if "plumed" in bundle.manifest.engines else "gromacs")
    text = (folder / INPUT).read_text(encoding="utf-8")
    text = re.sub(r"(?m)^PRINT .*\n", "", re.sub(r"(?m)^LOAD .*$", lambda _: f"LOAD FILE={plugin.library}", text))
    write_text(workdir / INPUT, f"{text}PRINT ARG=pairs.bias FILE={workdir / 'energies'} FMT=%.16g\n")
    write_text(workdir / "frames.gro", _gro(bundle.system.positions, bundle.system.box))
    command = [*kernel.command, "driver", "--plumed", str(workdir / INPUT), "--igro", str(workdir / "frames.gro")]
    environment = {**os.environ, "PLUMED_KERNEL": str(kernel.library), "OMP_NUM_THREADS": "1", "LC_ALL": "C"}
    done = capture(command, cwd=folder, env=environment)
    if done.returncode or not (workdir / "energies").exists():
        lines = [line for line in (done.stderr + done.stdout).splitlines() if "error" in line.lower()]
        raise PlumedError("plumed driver", lines[-1].strip() if lines else f"exit status {done.returncode}")
    rows = np.loadtxt(workdir / "energies", ndmin=2, dtype=np.float64)
    if len(rows) != len(bundle.system.positions):
        raise TrajectoryError(f"plumed driver saw {len(rows)} frames", expected=f"{len(bundle.system.positions)}")
    return SinglePoints("plumed", kernel.version or "unknown", {"pair": rows[:, 1]})


def _gro(positions: FloatArray, box: FloatArray) -> str:
    """Frames as .gro with ten decimals, one behind the other."""
    lines: list[str] = []
    for frame, edges in zip(positions.tolist(), box, strict=True):
        order = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))
        lines += ["frame", str(len(frame))]
        lines += [
            f"{(i + 1) % 100000:5d}{'BEAD':<5s}{'B':>5s}{(i + 1) % 100000:5d}" + "".join(f"{x:16.10f}" for x in bead)
            for i, bead in enumerate(frame)
        ]
        lines.append(" ".join(f"{edges[i, j]:.10f}" for i, j in order))
    return "\n".join([*lines, ""])
