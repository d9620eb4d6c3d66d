"""The group ``ccg fes``: free energy surfaces of a user's own data, compared and looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ccg_gmx.commands.fes_colvar import colvar
from ccg_gmx.commands.fes_hills import hills
from ccg_gmx.commands.fes_options import BASIN, BASIN_HELP, parse_basin, parse_bias, parse_torsions
from ccg_gmx.commands.progress import progress_bar

if TYPE_CHECKING:
    from ccg_gmx.free_energy.compare import Subject
    from ccg_gmx.free_energy.frames import FrameSurface
    from ccg_gmx.free_energy.surface import Basin


@click.group()
def fes() -> None:
    """Free energy surfaces of your own data: make, compare, look at.

    Example: ccg fes show runs/alanine_dipeptide/fes.npz --plot minima.png
    """


@fes.command("frames")
@click.argument("tpr", type=click.Path(path_type=Path))
@click.argument("trajectories", nargs=-1, required=True, metavar="TRAJ...", type=click.Path(path_type=Path))
@click.option("--torsion", "torsions", multiple=True, required=True, metavar="NAME=I,J,K,L", help="Four atoms, from 1.")
@click.option("--bias", "biases", multiple=True, metavar="FILE[,FILE...]:COLUMN", help="COLVAR column of a bias.")
@click.option("--bias-units", type=click.Choice(["kJ/mol", "kcal/mol", "kT"]), default="kJ/mol", show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), default=None, help="K [from the .tpr].")
@click.option("--bins", type=click.IntRange(4, 360), default=None, help="Bins per torsion [100; 40 for three].")
@click.option("--kde", type=click.FloatRange(0, 60), default=0.0, help="Width of a smoothing kernel in degrees [none].")
@click.option("--basin", "basins", multiple=True, metavar=BASIN, help=BASIN_HELP)
@click.option("--start", type=float, default=0.0, help="Leave out frames before this time in ps.")
@click.option("--stride", type=click.IntRange(min=1), default=1, help="Use every so-manyth frame.")
@click.option("--resamples", type=click.IntRange(min=20), default=200, show_default=True, help="For the errors.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the resamples.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("fes"), show_default=True, help="Prefix of files.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def frames(
    tpr: Path,
    trajectories: tuple[Path, ...],
    torsions: tuple[str, ...],
    biases: tuple[str, ...],
    bias_units: str,
    temperature: float | None,
    bins: int | None,
    kde: float,
    basins: tuple[str, ...],
    start: float,
    stride: int,
    resamples: int,
    seed: int,
    out: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Free energy of one to three torsions from a simulation of yours, with errors.

    Any system and force field, solvated ones too; .xtc and .trr. Frames that were sampled under a bias, PLUMED's
    for instance, are weighted with exp(+bias/kT): the bias must be static, or nearly so (OPES, or the rbias column of
    metadynamics, with --start after its beginning). One COLVAR file serves all trajectories, or one of each.
    Frames and rows are paired by time.

    Writes PREFIX.npz, .dat (PLUMED grid), .png and .json. Errors are from a block bootstrap; what speaks against the
    numbers is said in words.

    Example: ccg fes frames md.tpr md.xtc --torsion phi=5,7,9,15 --torsion psi=7,9,15,17 --bias COLVAR:opes.bias
    """
    from ccg_gmx.commands.fes_text import frames_report, frames_text
    from ccg_gmx.cycle.store import finite
    from ccg_gmx.engine.user_frames import read_user_frames
    from ccg_gmx.free_energy.bootstrap import BootstrapSettings
    from ccg_gmx.free_energy.frames import FrameSettings, frame_surface

    atoms = parse_torsions(torsions)
    boxes = [parse_basin(text, tuple(atoms)) for text in basins]
    columns = [parse_bias(text) for text in biases]
    with progress_bar("frames", quiet) as progress:
        read = read_user_frames(
            tpr,
            trajectories,
            atoms,
            biases=columns,
            bias_units=bias_units,
            temperature_K=temperature,
            start_ps=start,
            stride=stride,
            progress=progress,
        )
    settings = FrameSettings(
        bins=bins or (40 if len(atoms) == 3 else 100),
        kde_degrees=kde,
        bootstrap=BootstrapSettings(resamples=resamples, seed=seed),
    )
    found = frame_surface(
        read.s, read.run, read.names, read.temperature_K, u_bias=read.u_bias, basins=boxes, settings=settings
    )
    report = frames_report(found, read)
    _write(found, boxes, finite(report), out)
    click.echo(json.dumps(finite(report), indent=1) if as_json else frames_text(report, out))


def _write(found: FrameSurface, basins: list[Basin], report: dict[str, Any], prefix: Path) -> None:
    from ccg_gmx.errors import StoreError
    from ccg_gmx.free_energy.compare import save_report
    from ccg_gmx.free_energy.surface import save_surface, write_plumed_grid
    from ccg_gmx.report.fes_plots import plot_frames

    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        save_surface(found.surface, _named(prefix, "npz"))
        save_report(_named(prefix, "npz"), basins, report)
        write_plumed_grid(found.surface, _named(prefix, "dat"))
    except OSError as error:
        raise StoreError(f"{prefix} cannot be written ({error.strerror})", remedy="choose another --out") from None
    plot_frames(found.surface, _named(prefix, "png"))


def _named(prefix: Path, ending: str) -> Path:
    return prefix.with_name(f"{prefix.name}.{ending}")


@fes.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--basin", "basins", multiple=True, metavar=BASIN, help=BASIN_HELP)
@click.option("--cap", type=click.FloatRange(min=0, min_open=True), default=8.0, show_default=True, help="kT.")
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), default=None, help="K, of PLUMED grids.")
@click.option("--plot", type=click.Path(path_type=Path), default=None, help="Draw both and their difference.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(
    a: Path,
    b: Path,
    basins: tuple[str, ...],
    cap: float,
    temperature: float | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """How far surface A is from surface B, the reference.

    Each may be an .npz surface, a reference .npz, a PLUMED grid (.dat) or the folder of a run. The temperature of a
    PLUMED grid is that of the other surface, unless given.

    Example: ccg fes compare fes.npz topologies/alanine_dipeptide/reference/surface.npz --plot difference.png
    """
    from ccg_gmx.commands.fes_text import comparison_report, comparison_text
    from ccg_gmx.cycle.store import finite
    from ccg_gmx.free_energy.compare import compare as compare_surfaces

    first, second = _load_both(a, b, temperature)
    boxes = [parse_basin(text, second.surface.names) for text in basins]
    result = compare_surfaces(first, second, boxes, cap)
    if plot is not None:
        from ccg_gmx.report.fes_plots import plot_comparison

        plot_comparison(result, (first.name, second.name), plot)
    report = comparison_report(result, first.name, second.name)
    click.echo(json.dumps(finite(report), indent=1) if as_json else comparison_text(report))


def _load_both(a: Path, b: Path, temperature: float | None) -> tuple[Subject, Subject]:
    """Both surfaces; a PLUMED grid takes the temperature, and a file of several surfaces the torsions, of the other."""
    from ccg_gmx.free_energy.compare import holds_several, load_subject

    loaded: dict[int, Subject] = {}
    for k in sorted((0, 1), key=lambda k: ((a, b)[k].suffix == ".dat", holds_several((a, b)[k]))):
        other = loaded.get(1 - k)
        known = temperature if temperature or other is None else other.surface.temperature_K
        loaded[k] = load_subject((a, b)[k], known, None if other is None else other.surface.names)
    return loaded[0], loaded[1]


@fes.command("show")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--basin", "basins", multiple=True, metavar=BASIN, help=f"{BASIN_HELP} Passes between them are told.")
@click.option("--depth", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Least depth in kT.")
@click.option("--cap", type=click.FloatRange(min=0), default=15.0, show_default=True, help="Highest minimum told, kT.")
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), default=None, help="K, of a PLUMED grid.")
@click.option("--plot", type=click.Path(path_type=Path), default=None, help="Draw it, its minima numbered.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(
    file: Path,
    basins: tuple[str, ...],
    depth: float,
    cap: float,
    temperature: float | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Minima of a surface, how deep they are, and the lowest passes between basins.

    A minimum is as deep as the climb to where a lower one can be reached. Noise makes shallow ones: raise --depth.

    Example: ccg fes show fes.npz --basin C7eq=phi:-180:0 --basin C7ax=phi:0:180 --plot minima.png
    """
    from ccg_gmx.commands.fes_text import show_report, show_text
    from ccg_gmx.cycle.store import finite
    from ccg_gmx.free_energy.compare import load_subject
    from ccg_gmx.free_energy.minima import barriers, minima

    surface = load_subject(file, temperature).surface
    boxes = [parse_basin(text, surface.names) for text in basins]
    found = minima(surface, depth, cap)
    report = show_report(surface, found, barriers(surface, boxes))
    if plot is not None:
        from ccg_gmx.report.fes_plots import plot_minima

        plot_minima(surface, found, plot)
    click.echo(json.dumps(finite(report), indent=1) if as_json else show_text(report))


for _command in (colvar, hills):
    fes.add_command(_command)
