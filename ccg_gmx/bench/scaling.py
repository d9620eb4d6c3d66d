"""Cost of one frame against the number of atoms, 22 to 492, as numbers and as a picture."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccg_gmx.bench import energy as bench
from ccg_gmx.bench.openmm_system import OpenMMEnergies
from ccg_gmx.bench.peptides import polyalanine
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.molecule.energy import ForceField
from ccg_gmx.molecule.topology import Topology, parse_tpr_dump
from ccg_gmx.molecule.trajectory import read_frames, write_trr
from ccg_gmx.records import FloatArray
from ccg_gmx.report import style

RESIDUES = (1, 5, 10, 20, 48)
_NOISE_NM = 0.002
_REPEATS = 3


def cost_per_frame(gmx: Gmx) -> list[dict[str, Any]]:
    """Time energy and gradient of ACE-(ALA)n-NME helices, one thread, each program in its own precision.

    Frames are the helix with random displacements of 0.002 nm: the cost does not depend on where the atoms are.

    Args:
        gmx: the GROMACS installation.

    Returns:
        one row per molecule: atoms, frames and microseconds ``{program: value}`` of wall-clock time per frame.
    """
    rows = []
    for residues in RESIDUES:
        with tempfile.TemporaryDirectory(prefix="ccg-bench-") as name:
            folder = Path(name)
            tpr = polyalanine(gmx, residues, folder)
            topology = parse_tpr_dump(gmx.dump(tpr))
            start = read_frames(folder / "box.gro", topology.n_atoms).positions
            # about the same work, and so about the same time, for every molecule
            frames = int(np.clip(2048 * (22 / topology.n_atoms) ** 2, 32, 2048))
            noise = np.random.default_rng(residues).normal(scale=_NOISE_NM, size=(frames, topology.n_atoms, 3))
            rates = _rates(gmx, folder, topology, start + noise)
        rows.append(
            {
                "atoms": topology.n_atoms,
                "frames": frames,
                "microseconds": {program: 1e6 / rate for program, rate in rates.items()},
            }
        )
    return rows


def _rates(gmx: Gmx, folder: Path, topology: Topology, positions: FloatArray) -> dict[str, float]:
    """Return frames per second of every program."""
    frames = len(positions)
    centred = positions - positions.mean(axis=1, keepdims=True)
    rates = {}
    with torch.no_grad(), bench.torch_threads(1):
        for dtype, precision in ((torch.float64, "float64"), (torch.float32, "float32")):
            x = torch.from_numpy(centred).to(dtype)
            for program, compiled in ((bench.KERNEL, True), (bench.TORCH, False)):
                if compiled or dtype == torch.float64:
                    force_field = ForceField(topology, dtype, compiled=compiled)
                    work = lambda: force_field.energy_and_gradient(x)  # noqa: B023, E731
                    rates[f"{program}, {precision}"] = frames / bench.fastest(work, _REPEATS)[0]
    write_trr(folder / "all.trr", positions, np.arange(float(frames)), topology.run.box_nm)
    write_trr(folder / "one.trr", positions[:1], np.zeros(1), topology.run.box_nm)
    rates[bench.RERUN] = bench.rerun_rate(gmx, folder, frames, 1, _REPEATS).per_s
    for platform in bench.PLATFORMS if find_spec("openmm") else ():
        theirs = OpenMMEnergies(topology, platform)
        rates[f"OpenMM {platform}"] = frames / bench.fastest(lambda: theirs(centred, True), _REPEATS)[0]  # noqa: B023
    return rates


def plot_scaling(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw cost per frame against atoms, both logarithmic; the name at the end of each line says whose it is.

    Args:
        rows: of :func:`cost_per_frame`.
        path: picture to write; its ending says the format (.png, .svg, .pdf).
    """
    atoms = [row["atoms"] for row in rows]
    with style.plot_style():
        figure = style.new_figure(6.4, 3.6)
        axes = style.axes_at(figure, 0.7, 0.47, 3.9, 2.85)
        axes.grid(True, color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        names = sorted(rows[-1]["microseconds"], key=lambda name: rows[-1]["microseconds"][name])
        colours = dict(zip(rows[-1]["microseconds"], cycle(style.SERIES), strict=False))
        for name in names:
            values = [row["microseconds"][name] for row in rows]
            axes.loglog(atoms, values, "o-", ms=3.5, color=colours[name])
        axes.set_xlabel("atoms")
        axes.set_ylabel("µs per frame, energy and gradient")
        axes.set_xticks(atoms, [str(count) for count in atoms])
        axes.minorticks_off()
        _name_lines(axes, colours, names, [rows[-1]["microseconds"][name] for name in names], atoms[-1])
        axes.set_title("ACE-(ALA)n-NME in vacuum, all pairs, one thread", loc="left")
        figure.savefig(path, dpi=200)


def _name_lines(axes: Any, colours: dict[str, str], names: list[str], values: list[float], last: int) -> None:
    """Write the names right of the lines' ends, moved apart where lines end close together."""
    low, high = np.log(axes.get_ylim())
    gap = 0.055
    heights: list[float] = []
    for value in values:
        height = (np.log(value) - low) / (high - low)
        heights.append(max(height, heights[-1] + gap) if heights else height)
    excess = max(heights[-1] - 1.0, 0.0)
    for name, height in zip(names, heights, strict=True):
        axes.text(1.03, height - excess, name, transform=axes.transAxes, color=colours[name], va="center", fontsize=8.5)
