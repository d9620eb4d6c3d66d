"""Running ``plumed driver`` and ``gmx mdrun`` with the plug-in, and reading what they write."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ccg_gmx.engine.plumed import Kernel
from ccg_gmx.engine.plumed_build import Plugin
from ccg_gmx.engine.process import Finished, capture
from ccg_gmx.export.contract import Quantity, Signature, energy, torsion
from ccg_gmx.export.feature_perceptron import Feature, FeaturePerceptron, all_distances

BOX_NM = 4.0
TORSION_ATOMS = ((0, 1, 2, 3), (1, 2, 3, 4))
TORSION_LINES = "phi: TORSION ATOMS=1,2,3,4\npsi: TORSION ATOMS=2,3,4,5\n"

Array = NDArray[np.float64]

OUTPUTS = (energy("f"), Quantity("turn", "rad", (-math.pi, math.pi)))
FORMATS = [("json", "float64"), ("pt", "float32"), ("pt", "float64"), ("pt2", "float32"), ("pt2", "float64")]


def mixed_model() -> FeaturePerceptron:
    """One torsion and the distances of four atoms, two outputs."""
    torch.manual_seed(3)
    return FeaturePerceptron.build([Feature("sincos", 0), *all_distances(4)], 1, [12, 12, 2])


MIXED = Signature((torsion("phi"),), OUTPUTS, atoms=4, temperature_K=300.0)


def torsion_model(outputs: int = 1, seed: int = 0) -> FeaturePerceptron:
    """4-32-32-n over sine and cosine of two torsions."""
    torch.manual_seed(seed)
    return FeaturePerceptron.build([Feature("sincos", 0), Feature("sincos", 1)], 2, [32, 32, outputs])


def torsion_signature(*outputs: Quantity, temperature: float | None = 300.0) -> Signature:
    """Two torsions called phi and psi."""
    named = (torsion("phi"), torsion("psi"))
    return Signature(named, outputs or (energy(),), temperature_K=temperature, references=("A. Nobody, 2026",))


def chain(frames: int, seed: int = 0, atoms: int = 5) -> Array:
    """Positions ``[frames, atoms, 3]`` nm of a chain that bends at random, neighbours 0.15 nm apart."""
    steps = np.random.default_rng(seed).normal(size=(frames, atoms, 3))
    steps *= 0.15 / np.linalg.norm(steps, axis=-1, keepdims=True)
    return 1.0 + np.cumsum(steps, axis=1)


def dihedrals(positions: Array) -> Array:
    """The two torsions ``[2]`` of five atoms ``[5, 3]``, IUPAC sign."""
    out = []
    for i, j, k, m in TORSION_ATOMS:
        a, b, c = positions[j] - positions[i], positions[k] - positions[j], positions[m] - positions[k]
        first, second = np.cross(a, b), np.cross(b, c)
        out.append(np.arctan2(np.linalg.norm(b) * a @ second, first @ second))
    return np.array(out)


def write_xyz(path: Path, positions: Array, box: Sequence[float] = (BOX_NM,) * 3) -> Path:
    """Frames ``[T, N, 3]`` nm for ``--ixyz``, box lengths on the second line."""
    with path.open("w") as out:
        for frame in positions:
            out.write(f"{len(frame)}\n{' '.join(f'{length:.10f}' for length in box)}\n")
            out.writelines(f"X {x:.14f} {y:.14f} {z:.14f}\n" for x, y, z in frame)
    return path


def driver(
    kernel: Kernel,
    plugin: Plugin,
    folder: Path,
    lines: str,
    positions: Array,
    *options: str,
    box: Sequence[float] = (BOX_NM,) * 3,
) -> Finished:
    """Run the lines over the frames; lengths in nm, LOAD is put in front."""
    (folder / "plumed.dat").write_text(f"LOAD FILE={plugin.library}\n{lines}\n")
    write_xyz(folder / "frames.xyz", positions, box)
    command = [*kernel.command, "driver", "--plumed", "plumed.dat", "--ixyz", "frames.xyz", "--length-units", "nm"]
    return capture([*command, *options], cwd=folder, env=environment(plugin))


def environment(plugin: Plugin, **more: str) -> Mapping[str, str]:
    """Environment of a program that loads the kernel."""
    return {**os.environ, "PLUMED_KERNEL": str(plugin.kernel), "OMP_NUM_THREADS": "1", "GMX_MAXBACKUP": "-1", **more}


def columns(path: Path) -> dict[str, Array]:
    """A file of PLUMED as column name -> values."""
    lines = path.read_text().splitlines()
    names = next(line for line in lines if line.startswith("#! FIELDS")).split()[2:]
    rows = np.array([[float(word) for word in line.split()] for line in lines if line and not line.startswith("#")])
    return dict(zip(names, rows.T, strict=True))


def numeric_gradient(function: object, point: Array, step: float = 1e-5) -> Array:
    """Central differences of a scalar function, same shape as the point."""
    out = np.zeros_like(point)
    for index in np.ndindex(point.shape):
        moved = [point.copy(), point.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        out[index] = (function(moved[0]) - function(moved[1])) / (2 * step)  # type: ignore[operator]
    return out


def evaluate(model: torch.nn.Module, inputs: Array) -> Array:
    """Values ``[n_out]`` of a model in eager float64 at ``[n_in]``."""
    import copy

    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        return exact(torch.tensor(inputs, dtype=torch.float64)[None])[0].numpy()


def refused(done: Finished, message: str) -> None:
    """The run stopped with one line that says so."""
    assert done.returncode != 0
    text = done.stdout + done.stderr
    lines = [line for line in text.splitlines() if re.search(message, line)]
    assert lines, text[-2000:]
    assert "frame #" not in text  # libtorch's own backtrace
