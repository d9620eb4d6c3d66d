"""``ccg tables``: from mapped frames to a tabulated coarse model, by one of four methods, resumable at any instant.

Everything that takes long is a file that appears whole: the target's distributions, each iteration's model,
distributions and record. Going on is nothing but finding them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import ccg_gmx
from ccg_gmx.cycle.store import finite, write_json
from ccg_gmx.cycle.table_loop import TableLoop
from ccg_gmx.cycle.table_request import Runner, TableFolder, TableRequest
from ccg_gmx.engine.run_files import storing
from ccg_gmx.errors import SettingsError
from ccg_gmx.molecule.coarse_topology import CoarseTopology
from ccg_gmx.potential.distributions import Distributions, DistributionSampler
from ccg_gmx.potential.distributions_file import load_distributions, save_distributions
from ccg_gmx.potential.inversion import blank_model, direct_inversion, finished_model
from ccg_gmx.potential.layout import ModelLayout
from ccg_gmx.potential.matching import ForceMatcher
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.records import BeadFrames
from ccg_gmx.units import DEGREES_PER_RADIAN

Log = Callable[[str], None]
Progress = Callable[[float, float], None]


def fit_tables(
    request: TableRequest,
    folder: Path,
    runner: Runner | None = None,
    *,
    log: Log = lambda line: None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make a tabulated model.

    Args:
        request: the job.
        folder: of the result; the same one goes on where it stopped.
        runner: runs a coarse model, for ibi and re.
        log: gets a line for every iteration.
        progress: called with (frames of the target done, about how many there are).

    Returns:
        The summary, also in ``summary.json``; ``model.npz`` and a table per term lie beside it.

    Raises:
        CcgError: bad input; nothing half-written remains.
    """
    started = time.monotonic()
    topology = request.read_topology()
    store = TableFolder(Path(folder), request)
    target = _target(request, topology, store.root, progress)
    blank = blank_model(target, request.temperature_K, request.cutoff, request.basis)
    more: dict[str, Any] = {}
    if request.method == "bi":
        model, converged = direct_inversion(target, blank, request.basis), True
    elif request.method == "fm":
        model, more = _match(request, topology, target, blank, progress)
        converged = True
    else:
        if runner is None:
            raise SettingsError(f"{request.method} without a way to run a model", expected="a runner")
        loop = TableLoop(request, topology, store, target, blank, runner, log)
        model, converged, more = loop.run()
    summary = {
        "method": request.method,
        "version": ccg_gmx.__version__,
        "seed": request.seed,
        "converged": converged,
        "target": {"frames": target.frames, "volume_nm3": target.volume, "trajectory": str(request.trajectory)},
        **more,
        "wall_s": time.monotonic() - started,
    }
    write_result(store.root, model, summary)
    return summary


def _target(request: TableRequest, topology: CoarseTopology, root: Path, progress: Progress | None) -> Distributions:
    """Distributions of the target, from the folder if they are there."""
    path = root / "target.npz"
    if path.exists():
        return load_distributions(path)
    sampler = DistributionSampler(topology, request.range, request.bin_width)
    for chunk in _watched(request, topology.n_beads, progress):
        sampler.add(chunk)
    target = sampler.result()
    target.require_pairs()
    with storing(root):
        save_distributions(target, path)
    return target


def _watched(request: TableRequest, n_beads: int, progress: Progress | None) -> Iterator[BeadFrames]:
    """Frames of the target, reported as they go; how many there are is guessed from the size of the file."""
    size, done = request.trajectory.stat().st_size, 0
    for chunk in request.frames(n_beads):
        yield chunk
        done += len(chunk.time)
        # float32 positions and forces in a .trr; an .xtc takes about four bytes per bead
        per_bead = 4 if request.trajectory.suffix == ".xtc" else 12 if chunk.forces is None else 24
        if progress is not None:
            progress(done, max(done, size // (per_bead * n_beads + 144)))


def _match(
    request: TableRequest,
    topology: CoarseTopology,
    target: Distributions,
    blank: CoarseModel,
    progress: Progress | None,
) -> tuple[CoarseModel, dict[str, Any]]:
    matcher = ForceMatcher(ModelLayout(blank, topology))
    for chunk in _watched(request, topology.n_beads, progress):
        matcher.add(chunk)
    fit = matcher.solve(request.basis.roughness_kT, request.ridge)
    info = {
        "force_rms_kJ_mol_nm": fit.force_rms,
        "residual_rms_kJ_mol_nm": fit.residual_rms,
        "explained": fit.explained,
        "coefficients": len(fit.coefficients),
    }
    return finished_model(fit.model, target, request.basis), {"force_matching": info}


def write_result(root: Path, model: CoarseModel, summary: dict[str, Any]) -> None:
    """Write the model, a table per term and, last, the summary."""
    with storing(root):
        model.save(root / "model.npz")
        tables = root / "tables"
        tables.mkdir(exist_ok=True)
        for name, curve in model.bonded.items():
            angular = curve.kind != "bond"
            _write_table(tables / f"{name}.xvg", curve, DEGREES_PER_RADIAN if angular else 1.0)
        for key, curve in model.pairs.items():
            _write_table(tables / f"pair_{'-'.join(key)}.xvg", curve, 1.0)
        for name, part in model.maps.items():
            rows = "\n".join(" ".join(f"{value:.6f}" for value in row) for row in part.on_grid(part.knots))
            head = f"# kJ/mol at -180 + i * 360 / {part.knots} degrees, rows: first torsion, columns: second\n"
            _write_text(tables / f"{name}.map.txt", f"{head}{rows}\n")
        write_json(root / "summary.json", finite(summary))


def _write_table(path: Path, curve: Any, scale: float) -> None:
    """Value, force and error along a curve, a little beyond its range; angles in degrees, slopes too."""
    margin = 0.0 if curve.kind in ("dihedral", "pair") else 0.1 * (curve.hi - curve.lo)
    low = 0.0 if curve.kind == "pair" else max(curve.lo - margin, 0.0 if curve.kind != "dihedral" else curve.lo)
    x = np.linspace(low, curve.hi + margin, 501)
    value, slope = curve.value_and_slope(x)
    unit = "nm" if scale == 1.0 else "degree"
    lines = [f"# {curve.kind}: x/{unit}, V/(kJ/mol), -dV/dx per {unit}, standard error of V (nan: not known)"]
    rows = zip(x * scale, value, -slope / scale, curve.error(x), strict=True)
    _write_text(path, "\n".join([*lines, *(" ".join(f"{number:.8e}" for number in row) for row in rows)]) + "\n")


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
