"""What a tables run says about itself: summary.json and its verdict."""

from __future__ import annotations

from typing import Any

from ccg_gmx.cycle.store import EVALUATIONS, read_json
from ccg_gmx.cycle.tables.config import IterationSettings
from ccg_gmx.cycle.tables.run import TablesResults

ITERATIVE = ("ibi", "re")
PRESSURE = ("pressure_bar", "pressure_error")
BONDED_NOISE_FACTOR = 1.5
"""How far above its expectation noise may be: few slow transitions decide the populations of a torsion."""
CERTAINTY = 2.0
"""Standard errors within which a pressure is at its target."""

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
    blocks = {name: _final(fits[name], runs[name]) for name in fits if name in ITERATIVE}
    trusted, reasons = judge(blocks, runs, check, workflow.iterations)
    main = next((name for name in ITERATIVE if name in fits), workflow.methods[0])
    return {
        "kind": "tables",
        "system": workflow.system,
        "temperature_K": workflow.temperature_K,
        "converged": trusted,
        "wall_s": {name: round(seconds, 2) for name, seconds in wall_s.items()},
        "energy_evaluations": _evaluations(results),
        "beads": _beads(results),
        "tables": {"method": main, **blocks.get(main, {"iterations": 0, **_measured(runs[main])})},
        "methods": {name: _method(fits[name], runs[name]) for name in fits},
        "export": check,
        "verdict": {"trusted": trusted, "reasons": reasons},
        "seed": workflow.seed,
    }


def _final(fit: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Outcome of iterations as the run with the finished model sees it.

    Iterations end at the first run that is good enough, a lucky one perhaps. The last run has another seed.
    """
    name = "bonded_error" if run["rdf_squared_error"] is None else "rdf_squared_error"
    start = fit["iterations"][0][name]
    ratio = run[name] / start if start else 0.0
    more = {name: fit["tables"][name] for name in ("iterations", "best_iteration", "pressure_target_bar")}
    return {**more, "stopped_by_itself": fit["converged"], "rdf_error_ratio": ratio, **_measured(run)}


def _measured(run: dict[str, Any]) -> dict[str, Any]:
    errors = ("rdf_squared_error", "rdf_noise", "rdf_noise_limit", "bonded_error", "bonded_noise")
    return {name: run[name] for name in (*errors, "first_peak_ratio", *PRESSURE)}


def judge(
    blocks: dict[str, Any], runs: dict[str, Any], check: dict[str, Any], wanted: IterationSettings
) -> tuple[bool, list[str]]:
    """Say whether the models can be used, and why.

    Args:
        blocks: iterative method -> its outcome.
        runs: method -> what the run with its model gave.
        check: of the export.
        wanted: tolerances.
    """
    good: list[str] = []
    bad: list[str] = []
    for name, run in runs.items():
        if name in blocks:
            block = blocks[name]
            words = f"{WORDS[name]}: {_structure(block)} after {block['iterations']} iterations"
            words += _peak(block) + _pressure(block)
            (good if _reached(block, wanted) else bad).append(words)
        else:
            good.append(f"{WORDS[name]}: its tables run ({run['engine']})" + _peak(run))
    largest, compared = check["max_abs_diff_kJ_mol_per_molecule"], ", ".join(check["engines"])
    words = f"energies differ by at most {largest:.1e} kJ/mol per molecule between {compared}"
    (good if check["agrees"] else bad).append(words)
    if bad:
        return False, [f"not yet, because of {reason}" for reason in bad]
    return True, good


def _reached(block: dict[str, Any], wanted: IterationSettings) -> bool:
    """Whether the run with the finished model keeps all tolerances, its noise taken into account.

    That run alone decides, whether the iterations stopped by themselves or the best one was taken at their end: it
    has a seed of its own, so that choosing among iterations cannot flatter it.
    """
    peak, level = block["first_peak_ratio"], block["pressure_target_bar"]
    return (
        (block["rdf_error_ratio"] <= wanted.tolerance or _is_noise(block))
        and (peak is None or abs(peak - 1.0) <= wanted.peak_tolerance)
        and (level is None or abs(block["pressure_bar"] - level) <= CERTAINTY * block["pressure_error"])
    )


def _is_noise(block: dict[str, Any]) -> bool:
    """Whether sampling errors explain how far the structure is off."""
    if block["rdf_squared_error"] is not None:
        return bool(block["rdf_squared_error"] <= block["rdf_noise_limit"])
    return bool(block["bonded_error"] <= BONDED_NOISE_FACTOR * block["bonded_noise"])


def _structure(block: dict[str, Any]) -> str:
    if block["rdf_squared_error"] is not None:
        words = f"RDF error {block['rdf_error_ratio']:.2%} of the start's"
        noise = block["rdf_error_ratio"] * block["rdf_noise"] / max(block["rdf_squared_error"], 1e-300)
        return words + (f", of which sampling noise explains {noise:.2%}" if _is_noise(block) else "")
    return (
        f"bonded distributions differ by {block['bonded_error']:.3f}, their errors explain {block['bonded_noise']:.3f}"
    )


def _peak(block: dict[str, Any]) -> str:
    ratio = block.get("first_peak_ratio")
    return "" if ratio is None else f", first peak {ratio:.3f} of the target's"


def _pressure(block: dict[str, Any]) -> str:
    if block.get("pressure_target_bar") is None:
        return ""
    found = f"{round(block['pressure_bar'])} +- {block['pressure_error']:.0f}"
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
