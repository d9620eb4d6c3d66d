"""The whole cycle from Python: what ``ccg run`` calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ccg_gmx.cycle.config import Workflow, load_workflow
from ccg_gmx.cycle.run import Cycle
from ccg_gmx.cycle.store import Store, storing, write_json
from ccg_gmx.cycle.summary import summarise
from ccg_gmx.engine.driver import find_engine
from ccg_gmx.report.outputs import command_line, make_manifest, write_outputs


def run_workflow(
    workflow: Workflow | Path | str,
    out: Path | str,
    *,
    overrides: tuple[str, ...] = (),
    bar: Callable[[str, int], Any] | None = None,
    log: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run, or resume, a cycle and write its results.

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
    if not isinstance(workflow, Workflow):
        workflow = load_workflow(Path(workflow), overrides)
    engine = find_engine(workflow.engine)
    folder = Path(out).resolve()
    store = Store(folder, workflow.engine.runs_at_once)
    with store.lock(), storing(folder):
        manifest = make_manifest(workflow, engine.version, command_line())
        write_json(folder / "manifest.json", manifest)
        results = Cycle(workflow, store, bar, log or (lambda _: None)).run()
        summary = summarise(results, store.wall_seconds())
        write_outputs(results, summary, manifest, folder)
        store.sweep()
    return summary
