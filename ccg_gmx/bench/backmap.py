"""``ccg bench backmap``: restored frames per second against the number of atoms.

Two sets of molecules, on their backbone beads N, CA and C: alanine dipeptide, CLN025 and adenylate kinase (the last
from MDAnalysisTests, where that is installed), and ACE-(ALA)n-NME helices, all sizes of which have the same kinds of
blocks. The cost does not depend on the weights of the flow, so nothing is trained: only whitening is fitted. Every
number is the fastest of several repeats, sizes taken in turn.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccg_gmx.backmap.data import read_fine, read_source
from ccg_gmx.backmap.model import BackmapFlow, BackmapSettings
from ccg_gmx.backmap.restore import CHUNK_ATOMS
from ccg_gmx.backmap.sampling import Sampler
from ccg_gmx.backmap.system import BEAD_SETS, BackmapSystem, make_system, relabelled
from ccg_gmx.bench.energy import torch_threads
from ccg_gmx.bench.peptides import polyalanine
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import fine_run
from ccg_gmx.errors import SettingsError
from ccg_gmx.molecule.structure import read_structure
from ccg_gmx.molecule.trajectory import read_frames

ROOT = Path(__file__).resolve().parents[2]
PROTEINS, HELICES = "proteins", "helices"
SHIPPED = ("alanine_dipeptide", "cln025")
RESIDUES = (1, 15, 333)
"""Of the helices."""
NOISE_NM = 0.003
CANDIDATES = 8
DRAWN, CHOSEN, SCORED = "draws with ln q", f"draws with ln q, {CANDIDATES} candidates", "ln q of given frames"


def bench_backmap(repeats: int = 3, threads: tuple[int, ...] = (1, 2), molecules: str = PROTEINS) -> dict[str, Any]:
    """Measure.

    Args:
        repeats: of every measurement.
        threads: numbers of torch threads.
        molecules: ``proteins`` or ``helices``.

    Returns:
        Rows with atoms, threads, what is done and frames per second; and for each thread count and work the largest
        ratio of costs per atom.

    Raises:
        SettingsError: there are no such molecules here.
    """
    systems = _proteins() if molecules == PROTEINS else _helices()
    jobs = [_jobs(system) for system in systems.values()]
    rows = []
    for count in threads:
        with torch_threads(count):
            best = [{name: float("inf") for name in work} for _, _, work in jobs]
            for _ in range(repeats):
                for fastest, (_, _, work) in zip(best, jobs, strict=True):
                    for name, job in work.items():
                        fastest[name] = min(fastest[name], _seconds(job))
            for fastest, (atoms, frames, _) in zip(best, jobs, strict=True):
                rows += [
                    {"atoms": atoms, "threads": count, "work": name, "frames_per_s": frames / seconds}
                    for name, seconds in fastest.items()
                ]
    return {"molecules": list(systems), "beads": "N, CA, C", "rows": rows, "cost_per_atom_ratio": _ratios(rows)}


def _proteins() -> dict[str, BackmapSystem]:
    """Molecules of this checkout, and adenylate kinase or a helix of as many atoms."""
    gmx, found = Gmx.find(), {}
    with tempfile.TemporaryDirectory(prefix="ccg-bench-") as name:
        for molecule in SHIPPED:
            folder = ROOT / "topologies" / molecule
            if not folder.is_dir():
                raise SettingsError(
                    f"no folder {folder}", expected="a checkout of ccg_gmx", remedy="--molecules helices"
                )
            mdp = fine_run(300.0, 1000, 1, output_every=100, cutoff_nm=2.0)
            tpr = gmx.grompp(mdp, folder / "conf.gro", folder / "topol.top", Path(name) / f"{molecule}.tpr")
            source = read_source(tpr)
            found[molecule] = make_system(source.atoms, BEAD_SETS["backbone"], read_structure(folder / "conf.gro")[0])
    large = _adenylate_kinase()
    return found | ({"adenylate_kinase": large} if large else {f"ALA{RESIDUES[-1]}": _helix(gmx, RESIDUES[-1])})


def _adenylate_kinase() -> BackmapSystem | None:
    """3,341 atoms, from the test data of MDAnalysis; None where they are not installed."""
    try:
        from MDAnalysisTests.datafiles import DCD, PSF  # type: ignore[import-untyped]
    except ImportError:
        return None
    source = read_source(Path(PSF))
    return make_system(source.atoms, BEAD_SETS["backbone"], read_fine(source, [Path(DCD)], stride=98).positions[0])


def _helices() -> dict[str, BackmapSystem]:
    gmx = Gmx.find()
    return {f"ALA{count}": _helix(gmx, count) for count in RESIDUES}


def _helix(gmx: Gmx, residues: int) -> BackmapSystem:
    with tempfile.TemporaryDirectory(prefix="ccg-bench-") as name:
        source = read_source(polyalanine(gmx, residues, Path(name)))
        reference = read_frames(Path(name) / "box.gro", len(source.atoms)).positions[0]
        return make_system(source.atoms, BEAD_SETS["backbone"], reference)


def _jobs(system: BackmapSystem) -> tuple[int, int, dict[str, Callable[[], object]]]:
    """Atoms, frames at once, and what is timed."""
    atoms = len(system.atoms)
    frames = max(2, CHUNK_ATOMS // atoms)
    noise = np.random.default_rng(1).normal(scale=NOISE_NM, size=(frames, atoms, 3))
    x = relabelled(system, system.reference + noise)
    flow = BackmapFlow.of_system(system, BackmapSettings()).requires_grad_(False)
    view = flow.view(system)
    flow.fit(x, view)
    beads: Tensor = system.placement.bead_positions(x)
    generator = torch.Generator().manual_seed(1)
    plain, choosing = Sampler(flow, system), Sampler(flow, system, CANDIDATES)
    few = beads[: max(1, frames // CANDIDATES)]
    share = -(-frames // len(few))

    def chosen() -> None:
        for _ in range(share):
            choosing.draw(few, generator)

    work: dict[str, Callable[[], object]] = {
        DRAWN: lambda: plain.draw(beads, generator),
        SCORED: lambda: flow.log_prob(x, view),
        CHOSEN: chosen,
    }
    choosing.draw(few[:1], generator)  # compiles
    return atoms, frames, work


def _seconds(job: Callable[[], object]) -> float:
    begin = time.perf_counter()
    job()
    return time.perf_counter() - begin


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Largest over smallest cost per atom, for each work and number of threads."""
    costs: dict[str, list[float]] = {}
    for row in rows:
        key = f"{row['work']}, {row['threads']} thread{'s' * (row['threads'] > 1)}"
        costs.setdefault(key, []).append(1.0 / (row["frames_per_s"] * row["atoms"]))
    return {name: max(values) / min(values) for name, values in costs.items()}


def bench_text(result: Any) -> str:
    """The result for people."""
    lines = [
        f"{', '.join(result['molecules'])} on {result['beads']}",
        f"{'atoms':>6} {'threads':>7} {'frames/s':>10} {'us/atom':>8}  work",
    ]
    for row in result["rows"]:
        cost = 1e6 / (row["frames_per_s"] * row["atoms"])
        lines.append(f"{row['atoms']:>6} {row['threads']:>7} {row['frames_per_s']:>10.1f} {cost:>8.2f}  {row['work']}")
    lines += [
        f"cost per atom, largest / smallest: {value:.2f} ({name})"
        for name, value in result["cost_per_atom_ratio"].items()
    ]
    return "\n".join(lines)
