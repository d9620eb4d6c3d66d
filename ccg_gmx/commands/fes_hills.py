"""``ccg fes hills``: the free energy from the hills of a metadynamics run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ccg_gmx.free_energy.axes import Axis
    from ccg_gmx.free_energy.hills import HillSet
    from ccg_gmx.molecule.hills_file import Hills
    from ccg_gmx.records import FloatArray

PARTS = 20
"""Surfaces of so many growing parts of the hills, unless --stride says otherwise."""


@click.command("hills")
@click.argument("files", nargs=-1, required=True, metavar="HILLS...", type=click.Path(path_type=Path))
@click.option("--grid", "grids", multiple=True, metavar="MIN:MAX:BINS", help="One of each variable [as sum_hills].")
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), default=None, help="K, for kT [300].")
@click.option("--energy-unit", type=click.Choice(["kJ/mol", "kcal/mol", "eV", "kT"]), default="kJ/mol")
@click.option("--stride", type=click.IntRange(min=1), default=None, help="Hills between two looks at convergence.")
@click.option("--basin", "basins", multiple=True, metavar="NAME=CV:FROM:TO,...", help="A box; degrees for angles.")
@click.option("--negbias", is_flag=True, help="Minus the bias instead of the free energy (well-tempered runs).")
@click.option("--whole-hills", is_flag=True, help="Sum tilted hills whole; PLUMED cuts them to a box.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("fes"), show_default=True, help="Prefix of files.")
@click.option("--plot", is_flag=True, help="Draw the surface, and how it settles.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def hills(
    files: tuple[Path, ...],
    grids: tuple[str, ...],
    temperature: float | None,
    energy_unit: str,
    stride: int | None,
    basins: tuple[str, ...],
    negbias: bool,
    whole_hills: bool,
    out: Path,
    plot: bool,
    as_json: bool,
) -> None:
    """Free energy from metadynamics, the sum of its hills, as plumed sum_hills makes it. Needs no PLUMED.

    Plain and well-tempered, up to three variables with or without periods, tilted hills too. Several files are walkers
    or parts of one run, merged by time.

    Writes PREFIX.npz, .dat (PLUMED grid) and .json. A sum of hills has no statistical error; the surfaces of the
    first hills, every --stride of them, show how it settles.

    Example: ccg fes hills HILLS --grid -pi:pi:200 --grid -pi:pi:200 --basin A=phi:-180:0 --basin B=phi:0:180 --plot
    """
    from ccg_gmx.commands.fes_grid_options import parse_boxes, parse_grids
    from ccg_gmx.commands.fes_grid_text import (
        DEFAULT_TEMPERATURE_K,
        hills_report,
        hills_text,
        temperature_note,
        write_files,
    )
    from ccg_gmx.cycle.store import finite
    from ccg_gmx.free_energy.hills import automatic_axes, check_size, hills_surface
    from ccg_gmx.molecule.hills_file import read_hills

    kelvin = temperature or DEFAULT_TEMPERATURE_K
    read = read_hills(files)
    chosen = _hill_set(read, energy_unit, kelvin)
    axes = parse_grids(grids, read.names, read.domains) or automatic_axes(chosen, read.names, read.domains)
    check_size(axes)
    boxes = parse_boxes(basins, axes)
    ends = _ends(len(read.heights), stride, math.prod(axis.points for axis in axes))
    found = hills_surface(
        chosen,
        axes,
        kelvin,
        boxes=boxes,
        ends=ends,
        x=_progress(read, ends),
        label="time / ps" if read.ordered else "hills",
        factor=(read.biasfactor - 1) / read.biasfactor if negbias and read.biasfactor > 1 else 1.0,
        whole=whole_hills,
    )
    notes = [*temperature_note(temperature), *_wide_note(chosen, axes)]
    report = finite(hills_report(found, read, notes))
    written = write_files(found.surface, found.settling, boxes, report, out, plot=plot)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        click.echo(hills_text(hills_report(found, read, notes), written))


def _hill_set(read: Hills, energy_unit: str, kelvin: float) -> HillSet:
    """Hills in kJ/mol."""
    from ccg_gmx.engine.user_colvar import ENERGY_UNITS
    from ccg_gmx.free_energy.hills import HillSet
    from ccg_gmx.units import thermal_energy

    scale = ENERGY_UNITS[energy_unit] or thermal_energy(kelvin)
    return HillSet(read.centers, read.lower, read.heights * scale, read.multivariate, read.stretched, read.interval)


def _wide_note(chosen: HillSet, axes: Sequence[Axis]) -> list[str]:
    """Where this sum differs from PLUMED's, whose grid counts the overlapping ends of such hills twice."""
    from ccg_gmx.free_energy.hills import wider_than_half

    return [
        f"hills reach around the whole period of {name}: every point counts once here, in PLUMED's grids partly twice"
        for name in wider_than_half(chosen, axes)
    ]


def _ends(count: int, stride: int | None, points: int) -> list[int]:
    """Numbers of hills after which a surface is wanted.

    Raises:
        SettingsError: more surfaces than fit into memory.
    """
    from ccg_gmx.errors import SettingsError

    step = stride or max(1, -(-count // PARTS))
    ends = [*range(step, count, step), count]
    if len(ends) * points > 2e8:
        raise SettingsError(
            f"{len(ends)} surfaces of {points} points", expected="fewer of them", remedy="use a larger --stride"
        )
    return ends


def _progress(read: Hills, ends: list[int]) -> FloatArray:
    import numpy as np

    last = np.array(ends)
    return read.time[last - 1] if read.ordered else last.astype(np.float64)
