"""``ccg check flat-histogram``: a free energy judged by a simulation under its own negative."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

EXIT_FOUND = 3


@click.command("flat-histogram")
@click.argument("source", metavar="RUNDIR|FES.npz", type=click.Path(path_type=Path))
@click.argument("colvars", metavar="COLVAR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--pair", default="", metavar="A,B", help="Two torsions of a run with more.")
@click.option("--columns", default="", metavar="A,B", help="Columns of the torsions [their names].")
@click.option("--bias", default=None, metavar="COLUMN", help="Checked against -f [static.bias where it is there].")
@click.option("--level", type=click.FloatRange(min=0, min_open=True), default=8.0, show_default=True, help="kT.")
@click.option("--start", type=float, default=0.0, help="Leave out rows before this time, ps.")
@click.option("--cells", type=click.IntRange(2, 180), default=None, help="Cells per torsion [12; 36 for one].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--plot", type=click.Path(path_type=Path), default=None, help="Draw the deviations (PNG, SVG or PDF).")
def flat_histogram(
    source: Path,
    colvars: tuple[Path, ...],
    pair: str,
    columns: str,
    bias: str | None,
    level: float,
    start: float,
    cells: int | None,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Is the histogram of fine MD under the bias -f(s) flat where f is below 8 kT?

    The bias comes from `ccg plumed input --method static --run RUNDIR`. Under it the density is flat where f is right,
    however f was made. Errors are those of correlated frames (block bootstrap).

    Exit code 3: not flat, or the run is too short to tell.

    Example: ccg check flat-histogram runs/alanine_dipeptide COLVAR --plot flat.png
    """
    from ccg_gmx.cycle.flat_check import check_flatness
    from ccg_gmx.cycle.store import finite

    def names(text: str) -> tuple[str, ...]:
        return tuple(name.strip() for name in text.split(",") if name.strip())

    found, table = check_flatness(
        source, colvars, pair=names(pair), columns=names(columns), bias=bias, level_kT=level, start=start, cells=cells
    )
    if plot is not None:
        from ccg_gmx.report.flatness import save_plot

        save_plot(found, table, plot)
    click.echo(json.dumps(finite(found.as_json()), indent=1) if as_json else "\n".join(found.words()))
    if not found.flat:
        sys.exit(EXIT_FOUND)
