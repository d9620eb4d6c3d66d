"""What a finished run leaves in its folder, beside the stages."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ccg_gmx.cycle.config import Workflow
from ccg_gmx.cycle.finished import FinishedRun
from ccg_gmx.cycle.kinds import AnyWorkflow
from ccg_gmx.cycle.store import code_version, file_hash, read_json, write_json
from ccg_gmx.cycle.turns import Results, Turn
from ccg_gmx.cycle.views import load_fit, references, shown_surfaces
from ccg_gmx.errors import StoreError
from ccg_gmx.export.folder import copy_folder
from ccg_gmx.free_energy.surface import save_surface, write_plumed_grid
from ccg_gmx.report.backmap_run_page import render_backmap, unpack_backmap
from ccg_gmx.report.gather import gather
from ccg_gmx.report.html import build_report, render, write_page
from ccg_gmx.report.plots import plot_surface
from ccg_gmx.report.tables_page import render_tables, unpack_tables

_PACKAGES = ("numpy", "scipy", "torch", "MDAnalysis", "pydantic", "matplotlib")


def make_manifest(workflow: AnyWorkflow, gmx_version: str, command: list[str]) -> dict[str, Any]:
    """Return versions, seeds, input hashes and the command of a run."""
    return {
        "command": command,
        "code": code_version(),
        "versions": {
            "python": platform.python_version(),
            "gmx": gmx_version,
            **{name: _version(name) for name in _PACKAGES},
        },
        "seed": workflow.seed,
        "inputs": {name: {"file": path.name, "sha256": file_hash(path)} for name, path in workflow.input_files.items()},
        "workflow": workflow.model_dump(mode="json"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def write_outputs(results: Results, summary: dict[str, Any], manifest: dict[str, Any], folder: Path) -> None:
    """Write surface files, force field, restored frames, summary and report; each appears whole.

    Args:
        results: folders of the final stages.
        summary: content of summary.json.
        manifest: content of manifest.json.
        folder: the run folder.
    """
    found = references(results.workflow)
    for axes, surface in shown_surfaces(load_fit(results.surface), results.workflow).items():
        # One surface is fes.npz; marginals carry their torsions in the name.
        stem = "fes" if axes == tuple(results.workflow.coarse.torsions) else "fes_" + "_".join(axes)
        save_surface(surface, folder / f"{stem}.npz")
        write_plumed_grid(surface, folder / f"{stem}.dat")
        plot_surface(surface, folder / f"{stem}.png", found[axes].surface if axes in found else None)
    copy_folder(results.coarse_fit / "forcefield", folder / "forcefield")
    copy_folder(results.restored / "restored", folder / "restored")
    write_json(folder / "results.json", _pack(results, folder))
    write_json(folder / "summary.json", summary)
    build_report(gather(results, summary), manifest, folder / "report.html")


def rebuild_report(folder: Path) -> Path:
    """Build report.html again from a finished run.

    Raises:
        StoreError: if the run is not finished, or parts of it are gone.
    """
    run = FinishedRun.open(folder)
    if missing := [name for name in ("summary.json", "manifest.json") if not (folder / name).is_file()]:
        raise StoreError(f"{folder / missing[0]} is gone", remedy="`ccg run` with the same --out makes it again")
    summary, manifest = (read_json(folder / f"{name}.json") for name in ("summary", "manifest"))
    unpack, show = _PAGES.get(run.content.get("kind", "cycle"), _PAGES["cycle"])
    try:
        # With its own settings: those of manifest.json may be of a later run that is not finished.
        results = unpack(run.content, folder)
    except (KeyError, TypeError, ValidationError):
        raise run.another_version() from None
    if gone := [path for path in results.used if not path.is_dir()]:
        raise StoreError(f"{gone[0]} is gone", remedy="`ccg run` with the same --out makes it again")
    write_page(show(results, summary, manifest), folder / "report.html")
    return folder / "report.html"


_FOLDERS = ("system", "split", "surface", "coarse_fit", "coarse", "restored")
_LISTS = ("flows", "draws", "held_out", "used")


def _pack(results: Results, folder: Path) -> dict[str, Any]:
    """Paths relative to the run folder, so that it can be moved."""
    stages = folder / "stages"
    packed: dict[str, Any] = {name: getattr(results, name).relative_to(stages).as_posix() for name in _FOLDERS}
    packed |= {name: [path.relative_to(stages).as_posix() for path in getattr(results, name)] for name in _LISTS}
    packed["hidden_modes"] = results.hidden_modes and results.hidden_modes.name
    packed["workflow"] = results.workflow.model_dump(mode="json")
    packed["turns"] = [{**vars(turn), "surface": turn.surface.name} for turn in results.turns]
    return packed


def _unpack(packed: dict[str, Any], folder: Path) -> Results:
    stages = folder / "stages"
    single = {name: stages / packed[name] for name in _FOLDERS}
    lists = {name: [stages / path for path in packed[name]] for name in _LISTS}
    turns = [
        Turn(
            **{
                **{key: math.nan if value is None else value for key, value in turn.items()},
                "surface": stages / turn["surface"],
            }
        )
        for turn in packed["turns"]
    ]
    return Results(
        workflow=Workflow.model_validate(packed["workflow"]),
        **single,
        flows=lists["flows"],
        draws=lists["draws"],
        held_out=lists["held_out"],
        hidden_modes=packed["hidden_modes"] and stages / packed["hidden_modes"],
        used=tuple(lists["used"]),
        turns=turns,
    )


def _render(results: Results, summary: dict[str, Any], manifest: dict[str, Any]) -> str:
    return render(gather(results, summary), manifest)


_PAGES: dict[
    str, tuple[Callable[[dict[str, Any], Path], Any], Callable[[Any, dict[str, Any], dict[str, Any]], str]]
] = {
    "cycle": (_unpack, _render),
    "tables": (unpack_tables, render_tables),
    "backmap": (unpack_backmap, render_backmap),
}
"""Kind of a run -> how its results.json is read, and its page made."""


def command_line() -> list[str]:
    """Return the command that started this process."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
