"""Tests a built plug-in with a model whose value and derivative are known, in ``plumed driver`` and in ``gmx mdrun``.

The model is V(d) = 5 tanh(2 d - 1) kJ/mol of the distance d (nm) of two atoms that feel nothing else, so that the force
that mdrun writes is the plug-in's alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.plumed import Kernel
from ccg_gmx.engine.plumed_build import Plugin, fail
from ccg_gmx.engine.process import capture
from ccg_gmx.engine.run_files import write_text
from ccg_gmx.engine.settings import available_cores
from ccg_gmx.errors import CcgError, PluginError
from ccg_gmx.export.contract import Signature, energy
from ccg_gmx.export.feature_perceptron import Feature, FeaturePerceptron, Features
from ccg_gmx.export.torch_model import export_model

DISTANCE_NM = 0.7
_BOX = 6.0
_DRIVER_TOLERANCE, _MDRUN_TOLERANCE = 1e-9, 1e-5

_TOPOLOGY = """\
[ defaults ]
1 2 no 1.0 1.0
[ atomtypes ]
X 6 12.0 0.0 A 0.0 0.0
[ moleculetype ]
PAIR 0
[ atoms ]
1 X 1 PAIR X 1 0.0 12.0
2 X 1 PAIR X 2 0.0 12.0
[ system ]
two free atoms
[ molecules ]
PAIR 1
"""
# The second atom is across the periodic boundary: a plug-in that does not make molecules whole sees 5.3 nm.
_STRUCTURE = f"""\
two free atoms
    2
    1PAIR    X    1   0.100   3.000   3.000
    1PAIR    X    2{0.1 - DISTANCE_NM + _BOX:8.3f}   3.000   3.000
{_BOX:10.5f}{_BOX:10.5f}{_BOX:10.5f}
"""
_MDP = {
    "integrator": "md",
    "nsteps": "2",
    "dt": "0.001",
    "nstxout": "1",
    "nstfout": "1",
    "nstcalcenergy": "1",
    "cutoff-scheme": "Verlet",
    "verlet-buffer-tolerance": "-1",
    "rlist": "1.0",
    "rcoulomb": "1.0",
    "rvdw": "1.0",
    "coulombtype": "cut-off",
    "vdwtype": "cut-off",
    "gen-vel": "no",
}


def known_model() -> FeaturePerceptron:
    """Return V(d) = 5 tanh(2 d - 1) of the positions of two atoms."""
    first, last = nn.Linear(1, 1), nn.Linear(1, 1)
    for parameter, number in ((first.weight, 2.0), (first.bias, -1.0), (last.weight, 5.0), (last.bias, 0.0)):
        nn.init.constant_(parameter, number)
    return FeaturePerceptron(Features([Feature("distance", 0, 1)], 0), nn.Sequential(first, nn.Tanh(), last))


def known_answer(distance_nm: float) -> tuple[float, float]:
    """Return V and dV/dd, kJ/mol and kJ/mol/nm.

    Args:
        distance_nm: the distance.
    """
    tanh = math.tanh(2.0 * distance_nm - 1.0)
    return 5.0 * tanh, 10.0 * (1.0 - tanh * tanh)


def check_plugin(built: Plugin, gmx: Gmx | None, log: Callable[[str], None] = lambda line: None) -> dict[str, str]:
    """Run the known model through the plug-in.

    Args:
        built: the plug-in.
        gmx: GROMACS; None leaves mdrun out.
        log: called with a line about each step.

    Returns:
        Name of a program -> result in words.

    Raises:
        PluginError: if the plug-in cannot be loaded or gives a wrong answer.
    """
    kernel = Kernel(built.kernel, "")
    with TemporaryDirectory(prefix="ccg_plumed_") as temporary:
        folder = Path(temporary)
        write_text(folder / "conf.gro", _STRUCTURE)
        log("exporting a model with a known answer")
        models = _models(folder, with_torch=bool(built.torch))
        checks = {}
        log("plumed driver")
        checks["driver"] = _in_driver(built, kernel, models, folder) if kernel.program else "not tested (no program)"
        log("gmx mdrun -plumed")
        checks["mdrun"] = _in_mdrun(built, gmx, models, folder) if gmx else "not tested (no gmx)"
    return checks


def _models(folder: Path, *, with_torch: bool) -> dict[str, Path]:
    signature = Signature((), (energy(),), atoms=2)
    suffixes = ("json", "pt", "pt2") if with_torch else ("json",)
    examples = torch.tensor([[0.0, 0, 0, 0.3, 0, 0], [0.0, 0, 0, 0, 0.4, 0.5]], dtype=torch.float64)
    return {
        suffix: export_model(known_model(), signature, folder / f"known.{suffix}", dtype="float64", examples=examples)
        for suffix in suffixes
    }


def _in_driver(built: Plugin, kernel: Kernel, models: dict[str, Path], folder: Path) -> str:
    names = ",".join(f"{name}.energy" for name in models)
    lines = [f"LOAD FILE={built.library}"]
    lines += [f"{name}: TORCH_MODEL FILE={path} ATOMS=1,2" for name, path in models.items()]
    lines += [f"PRINT ARG={names} FILE=values FMT=%.14g", f"DUMPDERIVATIVES ARG={names} FILE=slopes FMT=%.14g"]
    write_text(folder / "driver.dat", "\n".join(lines) + "\n")
    done = capture(
        [*kernel.command, "driver", "--plumed", "driver.dat", "--igro", "conf.gro"], cwd=folder, env=_environment(built)
    )
    if done.returncode:
        fail("plumed driver with the plug-in", done, built.library.parent)
    value, slope = known_answer(DISTANCE_NM)
    for name, found in zip(models, _last_row(folder / "values")[1:], strict=True):
        _compare(f"driver, known.{name}", found, value, _DRIVER_TOLERANCE, built)
    # Derivatives by x1, y1, z1, x2, ..., then nine of the box; the first row is that of x1, where d grows.
    first = next(line for line in (folder / "slopes").read_text().splitlines() if not line.startswith("#")).split()
    for name, text in zip(models, first[2:], strict=True):
        _compare(f"driver, derivative of known.{name}", float(text), slope, _DRIVER_TOLERANCE, built)
    return "ok"


def _in_mdrun(built: Plugin, gmx: Gmx, models: dict[str, Path], folder: Path) -> str:
    write_text(folder / "topol.top", _TOPOLOGY)
    lines = [f"LOAD FILE={built.library}"]
    lines += [f"{name}: TORCH_MODEL FILE={path} ATOMS=1,2 BIAS" for name, path in models.items()]
    names = ",".join(f"{name}.bias" for name in models)
    write_text(folder / "mdrun.dat", "\n".join([*lines, f"PRINT ARG={names} FILE=biases FMT=%.14g"]) + "\n")
    tpr = gmx.grompp(_MDP, folder / "conf.gro", folder / "topol.top", folder / "pair.tpr", maxwarn=5)
    threads = min(2, available_cores())
    command = [str(gmx.path), "mdrun", "-s", str(tpr), "-plumed", "mdrun.dat", "-o", "pair.trr", "-nb", "cpu"]
    command += ["-ntmpi", "1", "-ntomp", str(threads), "-pin", "off"]
    done = capture(command, cwd=folder, env=_environment(built, threads))
    if done.returncode:
        fail("gmx mdrun with the plug-in", done, built.library.parent)
    value, slope = known_answer(DISTANCE_NM)
    first = next(line for line in (folder / "biases").read_text().splitlines() if not line.startswith("#")).split()
    for name, text in zip(models, first[1:], strict=True):
        _compare(f"mdrun, known.{name}", float(text), value, _MDRUN_TOLERANCE, built)
    _compare("mdrun, force", _first_force(folder / "pair.trr"), -slope * len(models), _MDRUN_TOLERANCE, built)
    return f"ok (GROMACS {gmx.version})"


def _environment(built: Plugin, threads: int = 1) -> dict[str, str]:
    return {
        **os.environ,
        "PLUMED_KERNEL": str(built.kernel),
        "OMP_NUM_THREADS": str(threads),  # mdrun refuses a value that differs from -ntomp
        "GMX_MAXBACKUP": "-1",
        "LC_ALL": "C",
    }


def _last_row(file: Path) -> list[float]:
    rows = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return [float(word) for word in rows[-1].split()]


def _first_force(trr: Path) -> float:
    """Force on the first atom along x in the first frame, kJ/mol/nm."""
    from MDAnalysis.lib.formats.libmdaxdr import TRRFile

    with TRRFile(str(trr)) as stream:
        return float(stream.read().f[0][0])


def _compare(what: str, found: float, wanted: float, tolerance: float, built: Plugin) -> None:
    if not math.isclose(found, wanted, rel_tol=tolerance):
        raise PluginError(
            f"the test of {built.library} ({what})",
            f"{found:.12g} instead of {wanted:.12g}",
            remedy="let PLUMED_KERNEL, plumed on PATH and the headers be of one installation, then "
            "`ccg plumed build --force`; if it stays, report it with `ccg doctor --json`",
        )


def try_gmx() -> Gmx | None:
    """Return the gmx of this machine; None where there is none that can do it."""
    try:
        return Gmx.find()
    except CcgError:
        return None
