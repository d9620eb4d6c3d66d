"""Where a run stands, read from its folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ccg_gmx.cycle.store import PARTIAL, RECORD, read_json
from ccg_gmx.errors import StoreError

_OUTCOMES = {"backmap": ("and all marks kept", ", but marks missed")}
"""Kind of workflow -> words for a verdict, where they are not those of iterations."""


def run_status(folder: Path) -> dict[str, Any]:
    """Return finished stages with their seconds, stages under way with their percentage, and a sentence.

    Raises:
        StoreError: if the folder holds no run.
    """
    stages = folder / "stages"
    if not stages.is_dir():
        raise StoreError(f"{folder} holds no run", expected="the --out folder of `ccg run`")
    done: dict[str, dict[str, float]] = {}
    for record_file in sorted(stages.glob(f"[!.]*/{RECORD}")):
        record = read_json(record_file)
        row = done.setdefault(record["name"], {"done": 0, "wall_s": 0.0})
        row["done"] += 1
        row["wall_s"] += record["wall_s"]
    under_way = [_progress(partial) for partial in sorted(stages.glob(f"{PARTIAL}*"))]
    return {"stages": done, "under_way": under_way, "words": _words(folder)}


def _progress(partial: Path) -> dict[str, Any]:
    name = partial.name.removeprefix(PARTIAL).rsplit("-", 1)[0]
    try:
        state = read_json(partial / "progress.json")
        percent = 100.0 * state["done"] / max(state["total"], 1)
    except (OSError, StoreError, KeyError):
        percent = 0.0
    return {"stage": name, "percent": percent}


def _words(folder: Path) -> str:
    if not (folder / "summary.json").is_file():
        return f"not finished; `ccg run` with --out {folder} goes on"
    if _settings(folder / "results.json") != _settings(folder / "manifest.json"):
        return f"finished with earlier settings, not with the last ones; `ccg run` with --out {folder} goes on"
    summary = read_json(folder / "summary.json")
    kept, missed = _OUTCOMES.get(summary.get("kind", "cycle"), ("and converged", ", not converged"))
    return f"finished {kept}" if summary["converged"] else f"finished{missed}: see report.html"


def _settings(path: Path) -> dict[str, Any]:
    """Return the workflow that a file is about, without what changes no number."""
    if not path.is_file():
        return {}
    return {key: value for key, value in read_json(path).get("workflow", {}).items() if key != "engine"}
