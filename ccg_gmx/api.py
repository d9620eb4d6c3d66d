"""The whole cycle from Python: what ``ccg run`` calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ccg_gmx.cycle import summary as cycle_summary
from ccg_gmx.cycle.backmap import summary as backmap_summary
from ccg_gmx.cycle.backmap.config import BackmapWorkflow
from ccg_gmx.cycle.backmap.run import BackmapRun
from ccg_gmx.cycle.config import Workflow
from ccg_gmx.cycle.kinds import AnyWorkflow, load_any
from ccg_gmx.cycle.run import Cycle
from ccg_gmx.cycle.store import Store, storing, write_json
from ccg_gmx.cycle.tables import summary as tables_summary
from ccg_gmx.cycle.tables.config import TablesWorkflow
from ccg_gmx.cycle.tables.run import TablesRun
from ccg_gmx.engine.driver import find_engine
from ccg_gmx.report.backmap_run_page import write_backmap_outputs
from ccg_gmx.report.outputs import command_line, make_manifest, write_outputs
from ccg_gmx.report.tables_page import write_tables_outputs

Bar = Callable[[str, int], Any]
Log = Callable[[str], None]


def run_workflow(
    workflow: AnyWorkflow | Path | str,
    out: Path | str,
    *,
    overrides: tuple[str, ...] = (),
    bar: Bar | None = None,
    log: Log | None = None,
) -> dict[str, Any]:
    """Run, or resume, a workflow of any kind and write its results.

    Args:
        workflow: a workflow, or the path of its YAML file.
        out: run folder; the same folder resumes.
        overrides: ``a.b=value`` strings replacing single values of the file.
        bar: ``(label, total) -> progress bar``; None for silence.
        log: called with one line per turn.

    Returns:
        The content of ``out/summary.json``.

    Raises:
        CcgError: any mistake in the input or failure of a tool, in one line.
    """
    if isinstance(workflow, Path | str):
        workflow = load_any(Path(workflow), overrides)
    gromacs = find_engine(workflow.engine).version if _needs_gromacs(workflow) else "not used"
    folder = Path(out).resolve()
    store = Store(folder, workflow.engine.runs_at_once)
    with store.lock(), storing(folder):
        manifest = make_manifest(workflow, gromacs, command_line())
        write_json(folder / "manifest.json", manifest)
        quiet: Log = log or (lambda _: None)
        if isinstance(workflow, Workflow):
            summary = _run_cycle(workflow, store, manifest, bar, quiet)
        elif isinstance(workflow, BackmapWorkflow):
            summary = _run_backmap(workflow, store, manifest, bar)
        else:
            summary = _run_tables(workflow, store, manifest, bar, quiet)
        store.sweep()
    return summary


def _needs_gromacs(workflow: AnyWorkflow) -> bool:
    return not isinstance(workflow, BackmapWorkflow) or workflow.needs_gromacs


def _run_cycle(workflow: Workflow, store: Store, manifest: dict[str, Any], bar: Bar | None, log: Log) -> dict[str, Any]:
    results = Cycle(workflow, store, bar, log).run()
    summary = cycle_summary.summarise(results, store.wall_seconds())
    write_outputs(results, summary, manifest, store.root)
    return summary


def _run_tables(
    workflow: TablesWorkflow, store: Store, manifest: dict[str, Any], bar: Bar | None, log: Log
) -> dict[str, Any]:
    results = TablesRun(workflow, store, bar, log).run()
    summary = tables_summary.summarise(results, store.wall_seconds())
    write_tables_outputs(results, summary, manifest, store.root)
    return summary


def _run_backmap(workflow: BackmapWorkflow, store: Store, manifest: dict[str, Any], bar: Bar | None) -> dict[str, Any]:
    results = BackmapRun(workflow, store, bar).run()
    summary = backmap_summary.summarise(results, store.wall_seconds())
    write_backmap_outputs(results, summary, manifest, store.root)
    return summary
