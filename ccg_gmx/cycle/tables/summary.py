"""What a tables run says about itself: summary.json and its verdict."""

from __future__ import annotations

from typing import Any

from ccg_gmx.cycle.store import EVALUATIONS, read_json
from ccg_gmx.cycle.tables.run import TablesResults

ITERATIVE = ("ibi", "re")
WORDS = {
    "bi": "direct Boltzmann inversion",
    "ibi": "iterative Boltzmann inversion",
    "fm": "force matching",
    "re": "minimal relative entropy",
}


def summarise(results: TablesResults, wall_s: dict[str, float]) -> dict[str, Any]:
    """Return the content of summary.json.

    Args:
        results: folders of all stages.
        wall_s: stage name -> seconds.
    """
    workflow = results.workflow
    fits = {name: read_json(folder / "result" / "summary.json") for name, folder in results.models.items()}
    runs = {name: read_json(folder / "run.json") for name, folder in results.runs.items()}
    check = read_json(results.export / "check.json")
    trusted, reasons = judge(fits, runs, check)
    main = next((name for name in ITERATIVE if name in fits), workflow.methods[0])
    return {
        "kind": "tables",
        "system": workflow.system,
        "temperature_K": workflow.temperature_K,
        "converged": trusted,
        "wall_s": {name: round(seconds, 2) for name, seconds in wall_s.items()},
        "energy_evaluations": _evaluations(results),
        "beads": _beads(results),
        "tables": {"method": main, **fits[main].get("tables", {"iterations": 0})},
        "methods": {name: _method(fits[name], runs[name]) for name in fits},
        "export": check,
        "verdict": {"trusted": trusted, "reasons": reasons},
        "seed": workflow.seed,
    }


def judge(fits: dict[str, Any], runs: dict[str, Any], check: dict[str, Any]) -> tuple[bool, list[str]]:
    """Say whether the models can be used, and why.

    Args:
        fits: method -> summary of the fit.
        runs: method -> what the run with the model gave.
        check: of the export.
    """
    good: list[str] = []
    bad: list[str] = []
    for name in fits:
        if name in ITERATIVE:
            block = fits[name]["tables"]
            words = f"{WORDS[name]}: RDF error {block['rdf_error_ratio']:.2%} of the start's"
            words += f" after {block['iterations']} iterations" + _peak(block) + _pressure(block)
            (good if fits[name]["converged"] else bad).append(words)
        else:
            good.append(f"{WORDS[name]}: its tables run ({runs[name]['engine']})" + _peak(runs[name]))
    largest, compared = check["max_abs_diff_kJ_mol_per_molecule"], ", ".join(check["engines"])
    words = f"energies differ by at most {largest:.1e} kJ/mol per molecule between {compared}"
    (good if check["agrees"] else bad).append(words)
    if bad:
        return False, [f"not yet, because of {reason}" for reason in bad]
    return True, good


def _peak(block: dict[str, Any]) -> str:
    ratio = block.get("first_peak_ratio")
    return "" if ratio is None else f", first peak {ratio:.3f} of the target's"


def _pressure(block: dict[str, Any]) -> str:
    if block.get("pressure_target_bar") is None:
        return ""
    found = f"{block['pressure_bar']:.0f} +- {block['pressure_error']:.0f}"
    return f", pressure {found} bar, wanted {block['pressure_target_bar']:g}"


def _method(fit: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    more: dict[str, Any] = {name: fit[name] for name in ("tables", "force_matching") if name in fit}
    return {"converged": fit["converged"], "wall_s": round(fit["wall_s"], 2), **more, "run": run}


def _beads(results: TablesResults) -> dict[str, Any]:
    facts = read_json(results.beads / "map.json")
    return {name: facts[name] for name in ("frames", "atoms", "beads", "types", "molecules", "forces", "frames_per_s")}


def _evaluations(results: TablesResults) -> dict[str, int]:
    counts = {"fine_md_steps": 0, "coarse_md_steps": 0}
    for folder in dict.fromkeys(results.used):
        if (folder / EVALUATIONS).is_file():
            for kind, number in read_json(folder / EVALUATIONS).items():
                counts[kind] += number
    return {**counts, "total": sum(counts.values())}
