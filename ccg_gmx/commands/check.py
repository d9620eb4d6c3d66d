"""The group ``ccg check``: statistical tests of a user's own system; its first member is ``ccg check hidden-modes``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from ccg_gmx.commands.check_flat import flat_histogram

EXIT_FOUND = 3


@click.group()
def check() -> None:
    """Test the assumptions behind the numbers on an own system.

    Example: ccg check hidden-modes runs/alanine_dipeptide
    """


@check.command("hidden-modes")
@click.argument("source", metavar="WORKFLOW.yaml|RUNDIR", type=click.Path(path_type=Path))
@click.option("--points", type=click.IntRange(min=1), default=None, help="Coarse points [from the workflow, or 8].")
@click.option("--walkers", type=click.IntRange(min=2), default=None, help="Hot-seeded walkers per point [6].")
@click.option("--ps", type=click.FloatRange(min=0, min_open=True), default=None, help="Time compared [15 ps].")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Seed of everything random.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--plot", type=click.Path(path_type=Path), default=None, help="Draw the walkers (PNG, SVG or PDF).")
def hidden_modes(
    source: Path,
    points: int | None,
    walkers: int | None,
    ps: float | None,
    seed: int,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Is there a slow motion that the coarse torsions do not show?

    Walkers held at one choice of the coarse torsions, started in different states of everything else, must come to
    agree. From a run folder, points are lows of its surface and draws from it, and its flows are tried on the walkers;
    from a workflow, points are its starts and the test needs nothing but the molecule. Seconds for a dipeptide.

    Exit code 3: a hidden slow motion was found, or too few walkers were left to tell.

    Example: ccg check hidden-modes workflows/alanine_dipeptide.yaml --plot walkers.png
    """
    from ccg_gmx.cycle.hidden_check import check_source
    from ccg_gmx.cycle.store import finite

    given = {"points": points, "walkers": walkers, "ps": ps}
    changes = {key: value for key, value in given.items() if value is not None}
    report, series = check_source(source, changes, seed)
    if plot is not None:
        from ccg_gmx.report.hidden_modes import save_plot

        save_plot(report, series, plot)
    click.echo(json.dumps(finite(report.as_json()), indent=1) if as_json else "\n".join(report.words()))
    if not report.passed:
        sys.exit(EXIT_FOUND)


check.add_command(flat_histogram)
