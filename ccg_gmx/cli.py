"""The ``ccg`` command. Each command is a thin shell around one function of the package."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from ccg_gmx import __version__
from ccg_gmx.commands.backmap import backmap
from ccg_gmx.commands.bench import bench
from ccg_gmx.commands.check import check
from ccg_gmx.commands.cv import cv
from ccg_gmx.commands.export import export
from ccg_gmx.commands.fes import fes
from ccg_gmx.commands.map import map_command
from ccg_gmx.commands.plumed import plumed
from ccg_gmx.commands.progress import Bar
from ccg_gmx.commands.tables import tables
from ccg_gmx.errors import CcgError

EXIT_NOT_CONVERGED = 3


class _Group(click.Group):
    """Turns every ``CcgError`` into one line on stderr and its exit code; other errors are bugs, with a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CcgError as error:
            click.echo(f"ccg: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ccg")
def main() -> None:
    """Cycle coarse graining for GROMACS: a coarse model, the way back to atoms, and the free energy."""
    # Commands import numpy and torch after this: one process per core, each with one thread of linear algebra.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")


@main.command()
@click.argument("workflow", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Run folder [runs/NAME].")
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Replace one value of the file.")
@click.option("--json", "as_json", is_flag=True, help="Print summary.json at the end.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
def run(workflow: Path, out: Path | None, overrides: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Run a workflow, the whole cycle for instance; run again with the same folder, it resumes.

    Exit code 3: finished, but the diagnostics say that the numbers are not to be trusted yet, or marks are missed.

    Example: ccg run workflows/alanine_dipeptide.yaml --out runs/alanine --set seed=2
    """
    from ccg_gmx.api import run_workflow
    from ccg_gmx.cycle.store import finite

    folder = out or Path("runs") / workflow.stem
    summary = run_workflow(
        workflow,
        folder,
        overrides=overrides,
        bar=None if quiet else Bar,
        log=lambda line: click.echo(line, err=True),
    )
    if as_json:
        click.echo(json.dumps(finite(summary), indent=1))
    else:
        _print_summary(summary, folder)
    if not summary["converged"]:
        sys.exit(EXIT_NOT_CONVERGED)


def _print_summary(summary: dict[str, Any], folder: Path) -> None:
    for reason in summary["verdict"]["reasons"]:
        click.echo(reason)
    if summary.get("kind", "cycle") == "cycle":
        _print_cycle(summary)
    if summary.get("kind") == "backmap":
        click.echo(f"model: {folder / 'model.pt'}")
    click.echo(f"report: {folder / 'report.html'}")


def _print_cycle(summary: dict[str, Any]) -> None:
    reference = summary.get("reference")
    if reference:
        floor = reference["noise_floor"]
        click.echo(f"forward KL to the reference {reference['forward_kl']:.2e} (its own noise floor {floor:.1e})")
    block = summary["free_energy"]
    if "delta_f_kJ_mol" in block:
        compared = f" (reference {reference['reference_delta_f_kJ_mol']:.2f})" if reference else ""
        value = f"{block['delta_f_kJ_mol']:.2f} +- {block['delta_f_error']:.2f} kJ/mol"
        click.echo(f"delta_f, {block['delta_f']}: {value}{compared}")
    coarse = summary["coarse_md"]
    click.echo(f"coarse MD: forward KL {coarse['forward_kl']:.3f} at {coarse['ns_per_day']:.0f} ns/day")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(folder: Path, as_json: bool) -> None:
    """Say where a run stands: stages done, stages under way.

    Example: ccg status runs/alanine_dipeptide
    """
    from ccg_gmx.cycle.status import run_status

    state = run_status(folder)
    click.echo(json.dumps(state, indent=1) if as_json else _status_text(state))


def _status_text(state: dict[str, Any]) -> str:
    lines = [f"{'stage':<14} {'done':>4} {'seconds':>9}"]
    lines += [f"{name:<14} {row['done']:>4} {row['wall_s']:>9.1f}" for name, row in state["stages"].items()]
    lines += [f"under way: {item['stage']}, {item['percent']:.0f} %" for item in state["under_way"]]
    lines.append(state["words"])
    return "\n".join(lines)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Build FOLDER/report.html again from a finished run.

    Example: ccg report runs/alanine_dipeptide
    """
    from ccg_gmx.report.outputs import rebuild_report

    click.echo(rebuild_report(folder.resolve()))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Say what is installed, what each missing part costs, and how to get it.

    Example: ccg doctor --json
    """
    from ccg_gmx.engine.toolchain import format_toolchain, inspect_toolchain

    toolchain = inspect_toolchain()
    click.echo(json.dumps(toolchain.to_dict(), indent=1) if as_json else format_toolchain(toolchain))
    if not toolchain.ready:
        sys.exit(2)


@main.command()
@click.argument("tpr", type=click.Path(path_type=Path))
@click.argument("trajectory", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Compare every term with gmx mdrun -rerun.")
@click.option("--frames", type=click.IntRange(min=1), default=None, help="Use at most so many frames.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def energy(tpr: Path, trajectory: Path, check: bool, frames: int | None, as_json: bool) -> None:
    """Print our energies per term; --check compares them with gmx mdrun -rerun.

    Exit code 3: some term is further from GROMACS than 2e-3 kJ/mol and than 1e-5 of its size.

    Example: ccg energy run.tpr run.trr --check
    """
    from ccg_gmx.engine.energy_report import energy_table

    table = energy_table(tpr, trajectory, check=check, limit=frames)
    click.echo(json.dumps(table, indent=1) if as_json else _energy_text(table))
    if not table.get("agrees", True):
        sys.exit(EXIT_NOT_CONVERGED)


def _energy_text(table: dict[str, Any]) -> str:
    lines = [f"{table['frames']} frames, {table['frames_per_s']:.0f} frames/s"]
    checked = "rerun_frames_per_s" in table
    lines.append(f"{'term / kJ/mol':<18} {'mean':>12}" + (f" {'max difference':>15}" if checked else ""))
    for name, term in table["terms"].items():
        difference = f" {term['max_abs_diff_kJ_mol']:>15.2e}" if checked else ""
        lines.append(f"{name:<18} {term['mean']:>12.4f}{difference}")
    if checked:
        lines.append(f"largest difference of the total: {table['max_abs_diff_kJ_mol']:.2e} kJ/mol")
        verdict = "agrees" if table["agrees"] else "does NOT agree"
        bounds = f"{table['tolerance_kJ_mol']:g} kJ/mol or {table['relative_tolerance']:g}"
        lines.append(f"{verdict} with gmx to {bounds} in every term")
        lines.append(f"gmx mdrun -rerun: {table['rerun_frames_per_s']:.0f} frames/s, start-up and files included")
    return "\n".join(lines)


@main.command()
@click.option("--kind", default="cycle", show_default=True, help="Of workflow: cycle, tables or backmap.")
def schema(kind: str) -> None:
    """Print the JSON schema of the workflow file: every key, its meaning and its default.

    Example: ccg schema > workflow.schema.json
    """
    from ccg_gmx.cycle.kinds import json_schema

    click.echo(json.dumps(json_schema(kind), indent=1))


for _group in (backmap, bench, check, cv, export, fes, map_command, plumed, tables):
    main.add_command(_group)

if __name__ == "__main__":
    main()
