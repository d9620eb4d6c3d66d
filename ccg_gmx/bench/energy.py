"""``ccg bench energy``: how many energies and gradients per second, here and in the programs that also compute them.

Everything is timed in one run, on the same frames, on the same processor, each several times of which the fastest
counts: wall-clock time is what users wait for, and the fastest repeat is the one that other users of the machine
disturbed least. Processor time is given beside it, because it hardly depends on who else is computing.
"""

from __future__ import annotations

import os
import re
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccg_gmx.bench.openmm_system import OpenMMEnergies
from ccg_gmx.bench.peptides import polyalanine
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.process import supervise
from ccg_gmx.errors import MdrunError, SettingsError
from ccg_gmx.molecule.energy import ForceField
from ccg_gmx.molecule.topology import Topology, parse_tpr_dump
from ccg_gmx.molecule.trajectory import read_frames, write_trr
from ccg_gmx.records import FloatArray

FRAMES, REPEATS = 4096, 5
MIN_SECONDS = 0.1
PICTURES = (".png", ".svg", ".pdf")
RERUN, KERNEL, TORCH = "gmx mdrun -rerun", "ccg kernel", "ccg torch"
PLATFORMS = ("CPU", "Reference")
TARGETS = {RERUN: 20.0, "faster OpenMM platform": 8.0}
"""What this package promises: energy and gradient in float64 on one thread, as multiples of the others' speed."""

HOW = {
    KERNEL: "one call for all frames, compiled beforehand; energies and gradients in new arrays",
    TORCH: "the same call without the kernel: the torch operations that also run on GPUs",
    RERUN: "wall-clock time that mdrun itself reports for its loop over frames (reading the .trr, forces, energies, "
    "writing the .edr; mixed precision), without start-up; processor time: the whole process less that of one frame",
    "OpenMM": "a loop over frames in Python: setPositions (numpy), getState(energy=True, forces=True), the energy "
    "read; the CPU platform computes in single precision, Reference in double",
}


@dataclass(frozen=True)
class Rate:
    """Speed of one way to compute energies.

    Attributes:
        program: who computes.
        precision: ``float64``, ``float32``, or ``mixed`` (GROMACS).
        threads: number of threads.
        gradient: whether gradients (forces) are computed too.
        per_s: frames per second of wall-clock time, fastest repeat.
        per_cpu_s: frames per second of processor time, fastest repeat.
    """

    program: str
    precision: str
    threads: int
    gradient: bool
    per_s: float
    per_cpu_s: float


def bench_energy(frames: int = FRAMES, repeats: int = REPEATS, *, plot: Path | None = None) -> dict[str, Any]:
    """Measure everything on frames of alanine dipeptide in vacuum (amber99sb-ildn).

    Args:
        frames: number of frames.
        repeats: how often each measurement is made.
        plot: measure the cost per frame for molecules of 22 to 492 atoms as well, and draw it in this file.

    Returns:
        rates (see :class:`Rate`), ratios of our float64 kernel with one thread to the others, whether they reach
        :data:`TARGETS`, how each was timed, what was left out and why, agreement of energies with OpenMM in kJ/mol,
        processor and load.

    Raises:
        CcgError: without a usable gmx, or if the picture cannot be written.
    """
    if plot is not None:
        _check_picture(plot)
    gmx = Gmx.find()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="ccg-bench-") as name:
        folder = Path(name)
        topology, positions = _frames_of_a_run(gmx, folder, frames)
        rates = _ours(topology, positions, repeats) + _rerun(gmx, folder, positions, topology, repeats)
    theirs, agreement, skipped = _openmm(topology, positions, max(1, repeats // 2))
    rates += theirs
    result = {
        "frames": frames,
        "atoms": topology.n_atoms,
        "repeats": repeats,
        "rates": [asdict(rate) for rate in rates],
        **compare(rates),
        "openmm_max_abs_diff_kJ_mol": agreement,
        "skipped": skipped,
        "how": HOW,
        "gmx": f"{gmx.version}, {gmx.precision} precision",
        "processor": _processor(),
        "load_average": {"before": load_before, "after": os.getloadavg()[0]},
    }
    if plot is not None:
        from ccg_gmx.bench.scaling import cost_per_frame, plot_scaling

        result["scaling"] = cost_per_frame(gmx)
        plot_scaling(result["scaling"], plot)
    return result


def _check_picture(path: Path) -> None:
    """Refuse before the measurements what would fail after them."""
    if path.suffix not in PICTURES:
        raise SettingsError(f"--plot {path} is no picture", expected=f"a name that ends in {', '.join(PICTURES)}")
    if not os.access(path.absolute().parent, os.W_OK):
        raise SettingsError(f"--plot {path}: its folder cannot be written", remedy="name an existing folder")


def compare(rates: list[Rate]) -> dict[str, Any]:
    """Return ratios of our float64 kernel to the others, energy and gradient, one thread, and whether they suffice.

    Args:
        rates: everything measured.
    """
    one = {
        (rate.program, rate.precision): rate
        for rate in rates
        if rate.threads == 1 and (rate.gradient or rate.program == RERUN)
    }
    ours = one[KERNEL, "float64"]
    ratios = {
        f"{program}, {precision}": {
            "wall": ours.per_s / rate.per_s,
            "processor": ours.per_cpu_s / rate.per_cpu_s,
        }
        for (program, precision), rate in one.items()
        if rate is not ours
    }
    groups = {
        RERUN: [rate for rate in one.values() if rate.program == RERUN],
        "faster OpenMM platform": [rate for rate in one.values() if rate.program.startswith("OpenMM")],
    }
    targets = {
        name: {
            "target": TARGETS[name],
            "found": ours.per_s / max(rate.per_s for rate in group),
            "found_processor_time": ours.per_cpu_s / max(rate.per_cpu_s for rate in group),
        }
        for name, group in groups.items()
        if group
    }
    return {
        "ratios": ratios,
        "targets": targets,
        "reached": all(row["found"] >= row["target"] for row in targets.values()),
    }


def _frames_of_a_run(gmx: Gmx, folder: Path, frames: int) -> tuple[Topology, FloatArray]:
    """Run alanine dipeptide at 300 K and return its frames, centred, as float32 holds them."""
    every = 10
    tpr = polyalanine(gmx, 1, folder, steps=every * frames, output_every=every)
    topology = parse_tpr_dump(gmx.dump(tpr))
    positions = read_frames(gmx.mdrun(tpr, folder).trajectory, topology.n_atoms).positions[:frames]
    # molecules of a run in a box may cross its boundary, these start in its middle and run a few ps
    centred = positions - positions.mean(axis=1, keepdims=True)
    return topology, np.ascontiguousarray(centred.astype(np.float32).astype(np.float64))


def fastest(work: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Return the smallest wall-clock and processor times of several calls, in seconds.

    Args:
        work: what to time; called once before, to compile and to warm caches.
        repeats: number of timed calls at least; short ones are repeated for :data:`MIN_SECONDS`.
    """
    work()
    wall: list[float] = []
    processor: list[float] = []
    while len(wall) < repeats or sum(wall) < MIN_SECONDS:
        begin, begin_cpu = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - begin)
        processor.append(time.process_time() - begin_cpu)
    return min(wall), min(processor)


def _rate(program: str, precision: str, threads: int, gradient: bool, frames: int, times: tuple[float, float]) -> Rate:
    return Rate(program, precision, threads, gradient, frames / times[0], frames / max(times[1], 1e-9))


@contextmanager
def torch_threads(threads: int):  # type: ignore[no-untyped-def]
    """Let torch use so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _ours(topology: Topology, positions: FloatArray, repeats: int) -> list[Rate]:
    rates = []
    for dtype, precision in ((torch.float64, "float64"), (torch.float32, "float32")):
        x = torch.from_numpy(positions).to(dtype)
        for threads in (1, 2):
            for program, compiled in ((KERNEL, True), (TORCH, False)):
                force_field = ForceField(topology, dtype, compiled=compiled, threads=threads)
                with torch.no_grad(), torch_threads(threads):
                    energy = fastest(lambda: force_field(x), repeats)  # noqa: B023
                    both = fastest(lambda: force_field.energy_and_gradient(x), repeats)  # noqa: B023
                rates.append(_rate(program, precision, threads, False, len(x), energy))
                rates.append(_rate(program, precision, threads, True, len(x), both))
    return rates


def _rerun(gmx: Gmx, folder: Path, positions: FloatArray, topology: Topology, repeats: int) -> list[Rate]:
    box = topology.run.box_nm
    middle = 0.5 * box.sum(axis=0)
    write_trr(folder / "all.trr", positions + middle, np.arange(float(len(positions))), box)
    write_trr(folder / "one.trr", positions[:1] + middle, np.zeros(1), box)
    return [rerun_rate(gmx, folder, len(positions), threads, repeats) for threads in (1, 2)]


def rerun_rate(gmx: Gmx, folder: Path, frames: int, threads: int, repeats: int) -> Rate:
    """Time ``mdrun -rerun`` on ``all.trr`` and ``one.trr`` with ``rerun.tpr`` of a folder.

    Args:
        gmx: the GROMACS installation.
        folder: where the files are.
        frames: frames in ``all.trr``.
        threads: OpenMP threads.
        repeats: number of timed runs.

    Raises:
        MdrunError: if a run fails.
    """
    runs = [_timed_rerun(gmx, folder, "all.trr", threads) for _ in range(repeats)]
    start_up = min(_timed_rerun(gmx, folder, "one.trr", threads)[1] for _ in range(repeats))
    wall, processor = (min(column) for column in zip(*runs, strict=True))
    return _rate(RERUN, gmx.precision, threads, True, frames, (wall, processor - start_up))


def _timed_rerun(gmx: Gmx, folder: Path, trajectory: str, threads: int) -> tuple[float, float]:
    """Return the seconds of the loop over frames that mdrun reports, and the processor time of the whole process."""
    command = [str(gmx.path), "mdrun", "-s", "rerun.tpr", "-rerun", trajectory]
    command += ["-e", "rerun.edr", "-g", "rerun.log", "-o", "rerun.trr", "-c", "rerun.gro"]
    command += ["-ntmpi", "1", "-ntomp", str(threads), "-pin", "off", "-nb", "cpu"]
    environment = {**os.environ, "GMX_MAXBACKUP": "-1", "OMP_NUM_THREADS": str(threads)}
    before = _children_seconds()
    code = supervise(command, cwd=folder, output=folder / "rerun.out", env=environment, poll_s=5.0)
    log = (folder / "rerun.log").read_text(errors="replace") if code == 0 else ""
    match = re.search(r"^\s+Time:\s+[\d.]+\s+([\d.]+)", log, re.M)
    if match is None:
        raise MdrunError("gmx mdrun -rerun", f"exit status {code}, no time in its log", log=folder / "rerun.out")
    return max(float(match[1]), 1e-3), _children_seconds() - before


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _openmm(
    topology: Topology, positions: FloatArray, repeats: int
) -> tuple[list[Rate], dict[str, float], dict[str, str]]:
    """Return speeds, largest difference of energies from ours, and why a platform was left out."""
    if find_spec("openmm") is None:
        return [], {}, {"OpenMM": "the package openmm is not installed: pip install openmm"}
    rates, agreement = [], {}
    with torch.no_grad():
        ours = ForceField(topology)(torch.from_numpy(positions)).numpy()
    for platform, precision in (("CPU", "float32"), ("Reference", "float64")):
        for threads in (1, 2) if platform == "CPU" else (1,):
            theirs = OpenMMEnergies(topology, platform, threads)
            agreement[platform] = float(np.abs(theirs(positions, False) - ours).max())
            for gradient in (False, True):
                times = fastest(lambda: theirs(positions, gradient), repeats)  # noqa: B023
                rates.append(_rate(f"OpenMM {platform}", precision, threads, gradient, len(positions), times))
    return rates, agreement, {}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.is_file() else None
    return f"{match[1] if match else 'unknown'}, {os.cpu_count()} cores"


def bench_text(result: dict[str, Any]) -> str:
    """Format the result as a table for people.

    Args:
        result: of :func:`bench_energy`.
    """
    load = result["load_average"]
    lines = [
        f"{result['frames']} frames of {result['atoms']} atoms; GROMACS {result['gmx']}; {result['processor']}; "
        f"load {load['before']:.1f} to {load['after']:.1f}",
        f"{'thousands per second':<20} {'precision':<10} {'threads':>7} {'energy':>9} {'+ gradient':>11} {'cpu s':>9}",
    ]
    rows: dict[tuple[str, str, int], dict[bool, dict[str, Any]]] = {}
    for rate in result["rates"]:
        rows.setdefault((rate["program"], rate["precision"], rate["threads"]), {})[rate["gradient"]] = rate
    for (program, precision, threads), pair in rows.items():
        energy = f"{pair[False]['per_s'] / 1e3:9.1f}" if False in pair else f"{'-':>9}"
        both = f"{pair[True]['per_s'] / 1e3:11.1f} {pair[True]['per_cpu_s'] / 1e3:9.1f}"
        lines.append(f"{program:<20} {precision:<10} {threads:>7} {energy} {both}")
    lines.append("energy + gradient, one thread, our float64 kernel:")
    for name, row in result["targets"].items():
        verdict = "reached" if row["found"] >= row["target"] else "NOT reached"
        lines.append(
            f"  {row['found']:.1f} x {name}, by processor time {row['found_processor_time']:.1f} x; "
            f"target {row['target']:g}: {verdict}"
        )
    for platform, difference in result["openmm_max_abs_diff_kJ_mol"].items():
        lines.append(f"largest difference from OpenMM {platform}: {difference:.1e} kJ/mol")
    lines += [f"left out: {name}: {reason}" for name, reason in result["skipped"].items()]
    lines += [f"timed: {name}: {how}" for name, how in result["how"].items()]
    return "\n".join(lines)
