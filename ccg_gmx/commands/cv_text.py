"""What ``ccg cv train`` prints and leaves: a dictionary for machines, words for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ccg_gmx import __version__
from ccg_gmx.cv.data import CvData
from ccg_gmx.cv.train import CvSettings, Learned


def cv_report(found: Learned, data: CvData, settings: CvSettings, notes: Sequence[str]) -> dict[str, Any]:
    """What was learned, as plain numbers."""
    return {
        "version": __version__,
        "method": settings.method,
        "settings": settings.model_dump(mode="json"),
        "columns": [{"name": c.name, "unit": c.unit, "periodic": bool(c.domain)} for c in data.columns],
        "frames": len(data.time),
        "runs": len(np.unique(data.run)),
        "weights": {"kind": data.weighting, "kish_ess": data.kish_ess, "kish_fraction": data.kish_ess / len(data.time)},
        "held_out_fraction": float(found.held.mean()),
        "scores": found.scores,
        "timescales": [
            {
                "lag_ps": item.lag_ps,
                "eigenvalues": item.eigenvalues.tolist(),
                "eigenvalue_errors": item.eigenvalue_errors.tolist(),
                "ps": item.ps.tolist(),
                "errors_ps": item.errors_ps.tolist(),
            }
            for item in found.timescales
        ],
        "states": _states(found, data),
        "coefficients": _coefficients(found),
        "training": _training(found),
        "notes": list(notes),
        "warnings": list(found.warnings),
    }


def _states(found: Learned, data: CvData) -> list[dict[str, Any]]:
    """Place and width of each state in the variables, and of its held-out frames."""
    out = []
    for k, name in enumerate(data.states):
        own = data.state == k
        place = {}
        for label, rows in (("all", own), ("held_out", own & found.held)):
            if rows.any():
                w = data.weights[rows]
                mean = np.average(found.cv[rows], axis=0, weights=w)
                spread = np.sqrt(np.average((found.cv[rows] - mean) ** 2, axis=0, weights=w))
                place[label] = {"mean": mean.tolist(), "std": spread.tolist()}
        out.append({"name": name, "frames": int(own.sum()), **place})
    return out


def _coefficients(found: Learned) -> list[dict[str, float]]:
    """Of the standardised features, for linear variables."""
    if len(found.model.weights) > 1:
        return []
    names = [name for column in found.model.columns for name in column.features]
    return [dict(zip(names, row.tolist(), strict=True)) for row in found.model.weights[0]]


def _training(found: Learned) -> dict[str, Any] | None:
    if found.history is None:
        return None
    return {
        "steps": len(found.history.loss),
        "best_step": found.history.best_step,
        "stopped_early": found.history.stopped_early,
        "held_out_loss": [list(pair) for pair in found.history.held_out],
    }


def cv_text(report: dict[str, Any], written: Sequence[str]) -> str:
    """The report in words."""
    runs = f"{report['runs']} run{'s' * (report['runs'] != 1)}"
    lines = [f"{report['method']} of {report['frames']} frames, {runs}", *report["notes"]]
    if report["weights"]["kind"] != "none":
        lines.append(f"weights: kish_ess {report['weights']['kish_ess']:.0f} of {report['frames']} frames")
    if report["timescales"]:
        lines += _slow_lines(report["timescales"][0])
    for number, row in enumerate(report["coefficients"]):
        largest = sorted(row.items(), key=lambda item: -abs(item[1]))[:6]
        lines.append(f"cv{number + 1} = " + " ".join(f"{value:+.3g} {name}" for name, value in largest) + " ...")
    for state in report["states"]:
        where = ", ".join(f"{m:.2f} +- {s:.2f}" for m, s in zip(state["all"]["mean"], state["all"]["std"], strict=True))
        lines.append(f"state {state['name']}: {state['frames']} frames at {where}")
    if report["training"]:
        t = report["training"]
        ended = "stopped early" if t["stopped_early"] else "ran to the end"
        lines.append(f"training: {t['steps']} steps, {ended}; weights of step {t['best_step']} kept")
    if report["scores"]:
        words = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in report["scores"].items())
        lines.append(f"{_score_name(report)}: {words}")
    lines += [f"warning: {word}" for word in report["warnings"]]
    return "\n".join([*lines, f"written: {', '.join(written)}"])


def _score_name(report: dict[str, Any]) -> str:
    if report["timescales"]:
        return "sum of squared eigenvalues"
    return "distance from the targets" if report["training"] else "variance between the states over that within"


def _slow_lines(found: dict[str, Any]) -> list[str]:
    lines = []
    for k, (value, error) in enumerate(zip(found["eigenvalues"], found["eigenvalue_errors"], strict=True)):
        ps, spread = found["ps"][k], found["errors_ps"][k]
        scale = f"time scale {ps:.4g} +- {spread:.2g} ps" if np.isfinite(ps) else "no time scale"
        lines.append(f"cv{k + 1}: eigenvalue {value:.4f} +- {error:.4f} at {found['lag_ps']:g} ps, {scale}")
    return lines
