"""``ccg bench map``: frames per second of the mapping, beside a loop of MDAnalysis over molecules, and its memory.

Both read the same .trr files in the same process, taking turns. MDAnalysis gets the usual loop, one AtomGroup per bead
and ``center_of_mass()`` of each in every frame, without making molecules whole and without writing; ours makes them
whole, and writes positions (and forces, in a measurement of their own).
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import MDAnalysis
import numpy as np

from ccg_gmx.engine.map_trajectory import MapRequest, map_files
from ccg_gmx.molecule.bead_file import BeadSettings, MappingFile, MoleculeSettings
from ccg_gmx.molecule.molecule_types import MoleculeType
from ccg_gmx.molecule.system_mapping import SystemMapping, map_system
from ccg_gmx.molecule.trr_blocks import TrrWriter
from ccg_gmx.records import BeadFrames, FloatArray

TARGET_RATIO = 20.0
STREAM_MOLECULES = 8
_BLOCK_NUMBERS = 500_000
_MASSES = {"C": 12.011, "H": 1.008, "O": 15.9994}


@dataclass(frozen=True)
class BenchMolecule:
    """A molecule for the measurement.

    Attributes:
        elements: its atoms.
        bonds: pairs of atoms.
        beads: the atoms of each bead, numbers from 1.
        count: copies in the box.
    """

    elements: str
    bonds: tuple[tuple[int, int], ...]
    beads: tuple[tuple[int, ...], ...]
    count: int

    def mapping(self, count: int | None = None) -> SystemMapping:
        """Return the map of a box of it, unconstrained, at centres of mass."""
        n_atoms = len(self.elements)
        molecule = MoleculeType(
            name="MOL",
            names=tuple(f"{element}{index}" for index, element in enumerate(self.elements)),
            residue_names=("MOL",) * n_atoms,
            residue_ids=(1,) * n_atoms,
            residue_places=(1,) * n_atoms,
            masses=np.array([_MASSES[element] for element in self.elements]),
            links=np.array(self.bonds, dtype=np.int64),
            constraints=np.zeros((0, 2), dtype=np.int64),
        )
        beads = tuple(BeadSettings(name=f"B{n}", type="B", atoms=atoms) for n, atoms in enumerate(self.beads))
        return map_system(
            MappingFile(molecules={"MOL": MoleculeSettings(beads=beads)}), [(molecule, count or self.count)]
        )


MOLECULES = {
    "water, 512 molecules, 1 bead each": BenchMolecule("OHH", ((0, 1), (0, 2)), ((1, 2, 3),), 512),
    "hexane, 100 molecules, 3 beads each": BenchMolecule(
        "CHHHCHHCHHCHHCHHCHHH",
        (
            *((0, 4), (4, 7), (7, 10), (10, 13), (13, 16)),
            *((0, 1), (0, 2), (0, 3), (16, 17), (16, 18), (16, 19)),
            *((carbon, carbon + k) for carbon in (4, 7, 10, 13) for k in (1, 2)),
        ),
        ((1, 2, 3, 4, 5, 6, 7), (8, 9, 10, 11, 12, 13), (14, 15, 16, 17, 18, 19, 20)),
        100,
    ),
}


def bench_map(frames: int, repeats: int, stream_frames: int = 20_000, seed: int = 0) -> dict[str, Any]:
    """Measure the mapping.

    Args:
        frames: frames of each trajectory in the comparison.
        repeats: the fastest of so many counts.
        stream_frames: frames of the trajectory of 8 waters that memory is watched on.
        seed: of the random trajectories.

    Returns:
        systems {name: {frames_per_s, with_forces_frames_per_s, mdanalysis_frames_per_s, ratio, with_forces_ratio,
        max_abs_diff_nm}}, ratio (the smallest), target_ratio, and stream as of :func:`measure_stream`.
    """
    with tempfile.TemporaryDirectory(prefix="ccg-bench-map-") as folder:
        systems = {
            name: _compare(molecule, Path(folder), frames, repeats, seed) for name, molecule in MOLECULES.items()
        }
        stream = measure_stream(Path(folder), stream_frames, seed)
    return {
        "systems": systems,
        "ratio": min(entry["ratio"] for entry in systems.values()),
        "target_ratio": TARGET_RATIO,
        "stream": stream,
    }


def _compare(molecule: BenchMolecule, folder: Path, frames: int, repeats: int, seed: int) -> dict[str, Any]:
    mapping = molecule.mapping()
    trajectory = folder / "atoms.trr"
    write_random(trajectory, mapping, frames, seed)
    universe = _universe(mapping, trajectory)
    requests = {
        kind: MapRequest("", Path(), trajectory, folder / "beads", forces=None if kind == "positions" else "basic")
        for kind in ("positions", "forces")
    }
    best = dict.fromkeys((*requests, "mdanalysis"), np.inf)
    map_files(requests["forces"], mapping)  # compiles
    beads = np.zeros(0)
    for _ in range(repeats):
        for kind, request in requests.items():
            with _timed(best, kind):
                map_files(request, mapping)
        with _timed(best, "mdanalysis"):
            beads = _mdanalysis_centres(universe, mapping)
    ours = mapping.positions(*_read(trajectory, frames, mapping.n_atoms))
    return {
        "frames_per_s": frames / best["positions"],
        "with_forces_frames_per_s": frames / best["forces"],
        "mdanalysis_frames_per_s": frames / best["mdanalysis"],
        "ratio": best["mdanalysis"] / best["positions"],
        "with_forces_ratio": best["mdanalysis"] / best["forces"],
        "max_abs_diff_nm": float(np.abs(ours - beads).max()),
    }


@contextmanager
def _timed(best: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    best[name] = min(best[name], time.perf_counter() - start)


def _read(trajectory: Path, frames: int, n_atoms: int) -> tuple[Any, FloatArray]:
    from ccg_gmx.molecule.frame_stream import FrameChoice, stream_frames

    pieces = list(stream_frames(trajectory, n_atoms, FrameChoice()))
    return np.concatenate([piece.positions for piece in pieces]), np.concatenate([piece.box for piece in pieces])


def write_random(path: Path, mapping: SystemMapping, frames: int, seed: int) -> None:
    """Write a .trr of random whole molecules in a cubic box, with random forces, in pieces."""
    generator = np.random.default_rng(seed)
    molecule = mapping.maps[0].molecule
    count = mapping.n_atoms // molecule.n_atoms
    edge = 0.35 * max(count, 8) ** (1 / 3)
    block = max(1, _BLOCK_NUMBERS // (3 * mapping.n_atoms))
    with TrrWriter(path, mapping.n_atoms, forces=True) as writer:
        for start in range(0, frames, block):
            size = min(block, frames - start)
            places = generator.uniform(0.2 * edge, 0.8 * edge, (size, count, 1, 3))
            atoms = places + 0.03 * generator.standard_normal((size, count, molecule.n_atoms, 3))
            forces = generator.standard_normal((size, mapping.n_atoms, 3), dtype=np.float64)
            box = np.array(np.broadcast_to(edge * np.eye(3), (size, 3, 3)))
            moments = 0.5 * np.arange(start, start + size, dtype=np.float64)
            writer.write(BeadFrames(atoms.reshape(forces.shape), moments, box, forces))


def _universe(mapping: SystemMapping, trajectory: Path) -> MDAnalysis.Universe:
    molecule = mapping.maps[0].molecule
    count = mapping.n_atoms // molecule.n_atoms
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        universe = MDAnalysis.Universe.empty(
            mapping.n_atoms, count, atom_resindex=np.repeat(np.arange(count), molecule.n_atoms), trajectory=True
        )
        universe.add_TopologyAttr("masses", np.tile(molecule.masses, count))
        universe.load_new(str(trajectory))
    return universe


def _mdanalysis_centres(universe: MDAnalysis.Universe, mapping: SystemMapping) -> FloatArray:
    """Bead positions in nm by the loop of most users; its float32 Angstrom included."""
    molecule_map = mapping.maps[0]
    size = molecule_map.molecule.n_atoms
    groups = [
        universe.atoms[start + np.flatnonzero(molecule_map.members == bead)]
        for start in range(0, mapping.n_atoms, size)
        for bead in range(molecule_map.coarse.n_beads)
    ]
    beads = np.empty((len(universe.trajectory), len(groups), 3))
    for index, _ in enumerate(universe.trajectory):
        for bead, group in enumerate(groups):
            beads[index, bead] = group.center_of_mass()
    return beads / 10.0


def measure_stream(folder: Path, frames: int, seed: int) -> dict[str, Any]:
    """Map a long trajectory of a small box, forces by the optimal map, and watch the memory of this process.

    Returns:
        frames, frames_per_s (fit, reading and writing together), peak_rss_MB of the process so far, and growth_MB of
        that peak over what a tenth of the frames took (15,000 at least: those fill a piece of the stream).
    """
    mapping = MOLECULES["water, 512 molecules, 1 bead each"].mapping(STREAM_MOLECULES)
    trajectory = folder / "long.trr"
    request = MapRequest("", Path(), trajectory, folder / "beads")
    peaks, seconds = [], 0.0
    for length in (min(max(frames // 10, 15_000), frames), frames):
        write_random(trajectory, mapping, length, seed)
        start = time.perf_counter()
        map_files(request, mapping)
        seconds = time.perf_counter() - start
        peaks.append(peak_rss_mb())
    trajectory.unlink()
    return {
        "frames": frames,
        "frames_per_s": frames / seconds,
        "peak_rss_MB": peaks[1],
        "growth_MB": peaks[1] - peaks[0],
    }


def peak_rss_mb() -> float:
    """Return the most memory this process has had, MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def bench_text(result: dict[str, Any]) -> str:
    """Lay the result out as a table."""
    lines = [f"{'frames/s':<38} {'positions':>10} {'+ forces':>10} {'MDAnalysis':>11} {'ratio':>7}"]
    for name, entry in result["systems"].items():
        ours = f"{entry['frames_per_s']:>10.0f} {entry['with_forces_frames_per_s']:>10.0f}"
        lines.append(f"{name:<38} {ours} {entry['mdanalysis_frames_per_s']:>11.1f} {entry['ratio']:>7.0f}")
    lines.append(f"smallest ratio {result['ratio']:.0f} (target {result['target_ratio']:.0f})")
    stream = result["stream"]
    lines.append(
        f"{stream['frames']} frames of 8 waters, optimal forces: {stream['frames_per_s']:.0f} frames/s, peak memory "
        f"{stream['peak_rss_MB']:.0f} MB, {stream['growth_MB']:.1f} MB more than for a tenth of them"
    )
    return "\n".join(lines)
