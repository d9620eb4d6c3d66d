"""``ccg fes colvar``: the surface of columns of COLVAR files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ccg_gmx.engine.user_colvar import ColvarRequest


@click.command("colvar")
@click.argument("files", nargs=-1, metavar="COLVAR...", type=click.Path(path_type=Path))
@click.option("--cv", "cvs", multiple=True, required=True, metavar="NAME[:MIN:MAX:BINS]", help="Column; up to three.")
@click.option("--bias", "biases", multiple=True, metavar="[FILE[,FILE...]:]COLUMN", help="Column of a bias; repeat it.")
@click.option("--windows", type=click.Path(path_type=Path), default=None, help="List of umbrella windows, see below.")
@click.option("--umbrella", "umbrellas", multiple=True, metavar="CV:AT:KAPPA[,...]", help="One of each COLVAR file.")
@click.option("--energy-unit", type=click.Choice(["kJ/mol", "kcal/mol", "eV", "kT"]), default="kJ/mol")
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), default=None, help="K [300].")
@click.option("--kernel", "kernels", multiple=True, metavar="[NAME=]WIDTH", help="Smoothing; degrees for angles.")
@click.option("--basin", "basins", multiple=True, metavar="NAME=CV:FROM:TO,...", help="A box; degrees for angles.")
@click.option("--start", type=float, default=0.0, help="Leave out rows before this time.")
@click.option("--stride", type=click.IntRange(min=1), default=1, help="Use every so-manyth row.")
@click.option("--blocks", type=click.IntRange(min=2), default=None, help="Blocks in a run [from its correlation].")
@click.option("--resamples", type=click.IntRange(min=20), default=200, show_default=True, help="For the errors.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the resamples.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("fes"), show_default=True, help="Prefix of files.")
@click.option("--plot", is_flag=True, help="Draw the surface, and how it settles.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def colvar(
    files: tuple[Path, ...],
    cvs: tuple[str, ...],
    biases: tuple[str, ...],
    windows: Path | None,
    umbrellas: tuple[str, ...],
    energy_unit: str,
    temperature: float | None,
    kernels: tuple[str, ...],
    basins: tuple[str, ...],
    start: float,
    stride: int,
    blocks: int | None,
    resamples: int,
    seed: int,
    out: Path,
    plot: bool,
    as_json: bool,
) -> None:
    """Free energy of one to three columns of PLUMED's COLVAR files, with errors. Needs no PLUMED.

    Any variables, in the units of the file; periods are read from its header. Rows sampled under a bias are weighted
    with exp(+bias/kT): the bias must be static, or nearly so (OPES, or the rbias column of metadynamics, with --start
    after its beginning). Several files are independent runs, or parts of one where their times follow each other.

    Umbrella windows are combined by MBAR (needs pymbar): give --umbrella once for each file, with AT and KAPPA of
    PLUMED's RESTRAINT or the name of a column that all files have; or a --windows FILE with a line
    "COLVAR CV:AT:KAPPA" for each.

    Writes PREFIX.npz, .dat (PLUMED grid) and .json. Errors are from a block bootstrap; what speaks against the
    numbers is said in words.

    Example: ccg fes colvar COLVAR --cv phi:-pi:pi:100 --cv psi --bias opes.bias --temperature 300 --plot
    """
    from ccg_gmx.commands.fes_grid_options import parse_boxes, parse_widths
    from ccg_gmx.commands.fes_grid_text import (
        DEFAULT_TEMPERATURE_K,
        colvar_report,
        colvar_text,
        temperature_note,
        write_files,
    )
    from ccg_gmx.cycle.store import finite
    from ccg_gmx.engine.user_colvar import read_user_colvar
    from ccg_gmx.free_energy.bootstrap import BootstrapSettings
    from ccg_gmx.free_energy.colvar import colvar_surface

    kelvin = temperature or DEFAULT_TEMPERATURE_K
    read = read_user_colvar(_request(files, cvs, biases, windows, umbrellas, kelvin, energy_unit, start, stride))
    boxes = parse_boxes(basins, read.axes)
    found = colvar_surface(
        read.s,
        read.run,
        read.time,
        read.axes,
        kelvin,
        u_bias=None if read.windows is not None else read.u_bias,
        windows=read.windows,
        boxes=boxes,
        widths=parse_widths(kernels, read.axes),
        settings=BootstrapSettings(resamples=resamples, seed=seed, blocks_per_run=blocks),
    )
    report = finite(colvar_report(found, read, temperature_note(temperature)))
    written = write_files(found.surface, found.settling, boxes, report, out, plot=plot)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        click.echo(colvar_text(colvar_report(found, read, temperature_note(temperature)), written))


def _request(
    files: tuple[Path, ...],
    cvs: tuple[str, ...],
    biases: tuple[str, ...],
    windows: Path | None,
    umbrellas: tuple[str, ...],
    kelvin: float,
    energy_unit: str,
    start: float,
    stride: int,
) -> ColvarRequest:
    """Options as a request; the files come from the command line or from the list of windows."""
    from ccg_gmx.commands.fes_grid_options import parse_bias_column, parse_cv, parse_umbrella, read_windows
    from ccg_gmx.engine.user_colvar import ColvarRequest
    from ccg_gmx.errors import SettingsError

    restraints = tuple(parse_umbrella(text) for text in umbrellas)
    if windows is not None:
        if files or umbrellas:
            raise SettingsError("--windows with COLVAR files or --umbrella", expected="one or the other")
        files, restraints = read_windows(windows)
    if not files:
        raise SettingsError("no COLVAR file", expected="at least one, or --windows FILE")
    return ColvarRequest(
        files=files,
        ranges=tuple(parse_cv(text) for text in cvs),
        biases=tuple(parse_bias_column(text) for text in biases),
        umbrellas=restraints,
        temperature_K=kelvin,
        energy_unit=energy_unit,
        start=start,
        stride=stride,
    )
