"""What ``ccg fes`` prints: dictionaries for machines, and the same in words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ccg_gmx.engine.user_frames import UserFrames
from ccg_gmx.free_energy.colvar import ColvarSurface
from ccg_gmx.free_energy.compare import Comparison
from ccg_gmx.free_energy.frames import FrameSurface
from ccg_gmx.free_energy.minima import Barrier, Minimum
from ccg_gmx.records import FreeEnergySurface
from ccg_gmx.units import thermal_energy


def frames_report(found: FrameSurface, read: UserFrames) -> dict[str, Any]:
    """What ``ccg fes frames`` found, as plain numbers."""
    kT = thermal_energy(read.temperature_K)
    return {
        "torsions": list(read.names),
        "temperature_K": read.temperature_K,
        "frames": found.frames,
        "runs": found.runs,
        "biased": read.u_bias is not None,
        **weights_report(found, kT),
        "notes": list(read.notes),
        "warnings": list(found.warnings),
    }


def weights_report(found: FrameSurface | ColvarSurface, kT: float) -> dict[str, Any]:
    """What a surface of weighted frames says of weights, correlation, errors and basins."""
    return {
        "kish_ess": found.kish_ess,
        "kish_fraction": found.kish_ess / found.frames,
        "largest_weight": found.largest_weight,
        "inefficiency": found.plan.inefficiency,
        "independent_frames": found.independent,
        "resampled": {"unit": found.plan.unit, "count": int(found.plan.blocks.sum()), "length": found.plan.length},
        "halves_js": found.halves_js,
        "delta_f": [
            {
                "first": d.first,
                "second": d.second,
                "kJ_mol": d.f * kT,
                "error_kJ_mol": d.error * kT,
                "f_kT": d.f,
                "error_kT": d.error,
                "halves_kJ_mol": [half * kT for half in d.halves],
                "blocks": d.blocks,
            }
            for d in found.differences
        ],
    }


def weights_text(report: dict[str, Any]) -> list[str]:
    """The same in words."""
    unit, lines = report["resampled"], []
    if report["biased"]:
        share = f"{report['kish_fraction']:.1%} of the frames, the heaviest has {report['largest_weight']:.2%}"
        lines.append(f"weights: kish_ess {report['kish_ess']:.0f}, {share}")
    lines.append(
        f"correlated over {report['inefficiency']:.0f} frames: about {report['independent_frames']:.0f} independent; "
        f"errors from {unit['count']} {unit['unit']} of {unit['length']:.0f} frames"
    )
    for d in report["delta_f"]:
        halves = " and ".join(f"{half:.2f}" for half in d["halves_kJ_mol"])
        value = f"{d['kJ_mol']:.2f} +- {d['error_kJ_mol']:.2f} kJ/mol"
        lines.append(f"delta_f, {d['second']} - {d['first']}: {value} (halves {halves})")
    lines.append(f"first against second half: Jensen-Shannon {report['halves_js']:.1e} nats")
    return lines


def frames_text(report: dict[str, Any], out: Path) -> str:
    """The report of ``ccg fes frames`` in words."""
    lines = [f"{report['frames']} frames of {report['runs']} run{'s' * (report['runs'] > 1)}"]
    lines[0] += f" at {report['temperature_K']:g} K"
    lines += report["notes"]
    lines += weights_text(report)
    lines += [f"warning: {word}" for word in report["warnings"]]
    lines.append(f"written: {out}.npz, .dat, .png, .json")
    return "\n".join(lines)


def comparison_report(result: Comparison, name_a: str, name_b: str) -> dict[str, Any]:
    """What ``ccg fes compare`` found, as plain numbers."""
    kT = thermal_energy(result.b.temperature_K)
    return {
        "a": name_a,
        "b": name_b,
        "forward_kl": result.forward_kl,
        "noise_floor": result.noise_floor,
        "jensen_shannon": result.jensen_shannon,
        "rmsd_kT": result.rmsd_kT,
        "rmsd_shared_kT": result.rmsd_shared_kT,
        "cap_kT": result.cap_kT,
        "forbidden_bins": result.forbidden,
        "delta_f": [
            {
                "first": d.first,
                "second": d.second,
                "a_kJ_mol": d.a * kT,
                "a_error_kJ_mol": d.a_error * kT,
                "a_error_is_bound": d.bounds[0],
                "b_kJ_mol": d.b * kT,
                "b_error_kJ_mol": d.b_error * kT,
                "b_error_is_bound": d.bounds[1],
                "difference_kJ_mol": d.difference * kT,
                "difference_error_kJ_mol": d.error * kT,
                "difference_error_is_bound": any(d.bounds),
            }
            for d in result.differences
        ],
        "notes": list(result.notes),
    }


def comparison_text(report: dict[str, Any]) -> str:
    """The report of ``ccg fes compare`` in words."""
    lines = [f"A: {report['a']}   B, the reference: {report['b']}", *report["notes"]]
    floor = report["noise_floor"]
    lines.append(
        f"forward KL     {report['forward_kl']:.2e} nats"
        + ("" if floor is None else f" (noise floor of the reference {floor:.1e})")
    )
    lines.append(f"Jensen-Shannon {report['jensen_shannon']:.2e} nats")
    lines.append(f"RMSD           {report['rmsd_kT']:.3f} kT where B is below {report['cap_kT']:g} kT")
    if report["forbidden_bins"]:
        missing = f"A has no value in {report['forbidden_bins']} of these bins"
        lines.append(f"{missing}; RMSD over the others {report['rmsd_shared_kT']:.3f} kT")
    for d in report["delta_f"]:
        values = [f"{which.upper()} {_with_error(d, which)}" for which in ("a", "b")]
        between = _with_error(d, "difference")
        lines.append(f"delta_f, {d['second']} - {d['first']}: {', '.join(values)}; A - B {between} kJ/mol")
    return "\n".join(lines)


def _with_error(difference: dict[str, Any], which: str) -> str:
    value, error = difference[f"{which}_kJ_mol"], difference[f"{which}_error_kJ_mol"]
    if math.isnan(error):
        return f"{value:.2f} (error unknown)"
    bound = difference[f"{which}_error_is_bound"]
    return f"{value:.2f} (error at most {error:.2f})" if bound else f"{value:.2f} +- {error:.2f}"


def show_report(surface: FreeEnergySurface, minima: list[Minimum], barriers: list[Barrier]) -> dict[str, Any]:
    """What ``ccg fes show`` found, as plain numbers."""
    return {
        "torsions": list(surface.names),
        "temperature_K": surface.temperature_K,
        "minima": [{"degrees": m.degrees, "f_kT": m.f, "error_kT": m.error, "depth_kT": m.depth} for m in minima],
        "barriers": [
            {"first": p.first, "second": p.second, "f_kT": p.f, "forward_kT": p.forward, "backward_kT": p.backward}
            for p in barriers
        ],
    }


def show_text(report: dict[str, Any]) -> str:
    """The report of ``ccg fes show`` as a table."""
    head = " ".join(f"{name:>8}" for name in report["torsions"])
    lines = [f"   {head} {'f / kT':>8} {'error':>7} {'depth':>7}"]
    for number, m in enumerate(report["minima"], start=1):
        place = " ".join(f"{x:>8.1f}" for x in m["degrees"])
        lines.append(f"{number:>2} {place} {m['f_kT']:>8.2f} {m['error_kT']:>7.2f} {m['depth_kT']:>7.2f}")
    for p in report["barriers"]:
        climb = f"{p['forward_kT']:.2f} kT up from {p['first']}, {p['backward_kT']:.2f} kT from {p['second']}"
        lines.append(f"{p['first']} to {p['second']}: pass at {p['f_kT']:.2f} kT, {climb}")
    return "\n".join(lines)
