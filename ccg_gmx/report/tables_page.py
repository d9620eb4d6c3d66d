"""The page of a tables run, and everything else that it leaves in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ccg_gmx.cycle.store import read_json, write_json
from ccg_gmx.cycle.tables.config import TablesWorkflow
from ccg_gmx.cycle.tables.run import TablesResults
from ccg_gmx.cycle.tables.summary import WORDS
from ccg_gmx.export.folder import copy_folder
from ccg_gmx.potential.distributions_file import load_distributions
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.report import sections, table_plots
from ccg_gmx.report.html import page, write_page
from ccg_gmx.report.markup import Html, definitions, join, table, tag
from ccg_gmx.report.parts import Section, capitalised, grid_of
from ccg_gmx.report.style import data_uri, plot_style


def write_tables_outputs(
    results: TablesResults, summary: dict[str, Any], manifest: dict[str, Any], folder: Path
) -> None:
    """Write models, tables, exports, summary and report; each appears whole.

    Args:
        results: folders of all stages.
        summary: content of summary.json.
        manifest: content of manifest.json.
        folder: the run folder.
    """
    for name, stage in results.models.items():
        copy_folder(stage / "result" / "tables", folder / "tables" / name)
        CoarseModel.load(stage / "result" / "model.npz").save(folder / "tables" / name / "model.npz")
    copy_folder(results.export / "export", folder / "export")
    write_json(folder / "results.json", _pack(results))
    write_json(folder / "summary.json", summary)
    write_page(render_tables(results, summary, manifest), folder / "report.html")


def _pack(results: TablesResults) -> dict[str, Any]:
    """Stages by name, so that the folder can be moved."""
    return {
        "kind": "tables",
        "workflow": results.workflow.model_dump(mode="json"),
        "fine": results.fine and results.fine.name,
        "beads": results.beads.name,
        "models": {name: stage.name for name, stage in results.models.items()},
        "runs": {name: stage.name for name, stage in results.runs.items()},
        "export": results.export.name,
    }


def unpack_tables(packed: dict[str, Any], folder: Path) -> TablesResults:
    """Undo what results.json was packed by.

    Raises:
        KeyError, TypeError, ValidationError: it is of another version.
    """
    stages = folder / "stages"
    return TablesResults(
        workflow=TablesWorkflow.model_validate(packed["workflow"]),
        fine=packed["fine"] and stages / packed["fine"],
        beads=stages / packed["beads"],
        models={name: stages / stage for name, stage in packed["models"].items()},
        runs={name: stages / stage for name, stage in packed["runs"].items()},
        export=stages / packed["export"],
    )


def render_tables(results: TablesResults, summary: dict[str, Any], manifest: Mapping[str, object]) -> str:
    """Return the report as text.

    Args:
        results: folders of all stages.
        summary: content of summary.json.
        manifest: versions, seeds, input hashes, command; shown as they are.
    """
    workflow = results.workflow
    with plot_style():
        found = [_method_section(results, summary, name) for name in results.models]
    last = [_check_section(summary["export"]), sections.cost(summary), sections.provenance(summary, manifest)]
    subtitle = f"Tabulated coarse potentials, {workflow.temperature_K:g} K"
    shown = [*found, *(section for section in last if section is not None)]
    return page(workflow.system, subtitle, "tabulated coarse potentials", sections.headline(summary), shown)


def _method_section(results: TablesResults, summary: dict[str, Any], name: str) -> Section:
    """Potentials, distributions and convergence of one method, and the run with its model."""
    stage = results.models[name]
    result, records = stage / "result", read_json(stage / "result" / "summary.json").get("iterations", [])
    block, title = summary["methods"][name], capitalised(WORDS[name])
    parts = [definitions(_rows(block))]
    if panels := table_plots.model_panels(CoarseModel.load(result / "model.npz")):
        caption = "Bands are one standard error, from blocks of frames."
        parts.append(_figure(panels, f"{title}: potentials", "Potentials.", caption))
    target = load_distributions(result / "target.npz")
    runs = [
        (str(int(path.parent.name.removeprefix("iteration_"))), load_distributions(path))
        for path in sorted(result.glob("iteration_*/distributions.npz"))
    ]
    runs.append(("final", load_distributions(results.runs[name] / "distributions.npz")))
    if panels := table_plots.distribution_panels(target, runs):
        caption = (
            "Dashed: the mapped fine run. Lines: coarse runs, by iteration; final: the run with the finished model."
        )
        parts.append(_figure(panels, f"{title}: distributions", "Distributions.", caption))
    if records:
        panels = table_plots.convergence_panels(records, results.workflow.iterations.tolerance)
        caption = "Iteration 0 is direct Boltzmann inversion."
        parts.append(_figure(panels, f"{title}: convergence", "Convergence.", caption))
    return Section(title, join(parts))


def _figure(panels: list[table_plots.Panel], alt: str, title: str, caption: str) -> Html:
    """Panels side by side, and one caption for all of them."""
    images = [
        tag("img", src=data_uri(table_plots.drawn([panel])), alt=f"{alt}, {k + 1}") for k, panel in enumerate(panels)
    ]
    figures = grid_of(*(tag("figure", image) for image in images), kind="wide" if len(panels) < 3 else "")
    return join([figures, tag("p", tag("b", title), f" {caption}", class_="soft")])


def _rows(block: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of what a method's block holds; runs last."""
    return [
        (label.replace("_", " ").replace(".", ": "), value)
        for label, value in sections.flatten({name: part for name, part in block.items() if name != "run"})
    ] + [(f"run: {label.replace('_', ' ')}", value) for label, value in sections.flatten(block["run"])]


def _check_section(check: dict[str, Any]) -> Section:
    """Energies of the exported model in every engine that is installed."""
    rows = [
        (
            kind,
            f"{term['mean_kJ_mol_per_molecule']:.4f}",
            "–" if (worst := term["max_abs_diff_kJ_mol_per_molecule"]) is None else f"{worst:.1e}",
            ", ".join(term["engines"]),
        )
        for kind, term in check["terms"].items()
    ]
    missing = [tag("li", f"{engine}: {reason}") for engine, reason in check["not_compared"].items()]
    parts = [
        tag("p", f"{check['frames']} frames in every engine that is installed; kJ/mol per molecule."),
        table(("term", "mean", "largest difference", "engines"), rows, "numbers"),
    ]
    if missing:
        parts += [tag("p", "Not compared:"), tag("ul", *missing, class_="plain-list")]
    return Section("The same model in other engines", join(parts))
