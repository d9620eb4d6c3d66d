"""``ccg tables``: tabulated coarse potentials from mapped frames."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ccg_gmx.commands.progress import progress_bar

if TYPE_CHECKING:
    from ccg_gmx.cycle.table_request import TableRequest

METHODS = ("bi", "ibi", "fm", "re")
ENGINES = ("auto", "gromacs", "gromacs+plumed", "openmm")
EXIT_NOT_CONVERGED = 3
_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command()
@click.argument("method", type=click.Choice(METHODS))
@click.argument("prefix", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder of the result [PREFIX.METHOD].")
@click.option("--temperature", type=_POSITIVE, required=True, help="K, of the trajectory.")
@click.option("--cutoff", type=_POSITIVE, default=None, help="Of pairs, nm; needed where beads interact in pairs.")
@click.option("--bonded-only", is_flag=True, help="No pair potentials.")
@click.option("--r-max", type=_POSITIVE, default=None, help="Range of the RDFs, nm [the cut-off].")
@click.option("--bin", "bin_width", type=_POSITIVE, default=0.002, show_default=True, help="Of the RDFs, nm.")
@click.option("--start", "start_ps", type=float, default=0.0, help="Leave out frames before this time, ps.")
@click.option("--pair-spacing", type=_POSITIVE, default=0.01, show_default=True, help="Knots of pairs, nm.")
@click.option("--intervals", type=click.IntRange(min=2), default=16, show_default=True, help="Of bonds and angles.")
@click.option("--knots", type=click.IntRange(min=4), default=24, show_default=True, help="Of torsions.")
@click.option("--roughness", type=_POSITIVE, default=1.0, show_default=True, help="Prior of third differences, kT.")
@click.option("--ridge", type=click.FloatRange(min=0), default=0.0, help="fm: more precision, (kJ/mol)^-2.")
@click.option("--iterations", type=click.IntRange(min=0), default=30, show_default=True, help="ibi, re: at most.")
@click.option("--tolerance", type=_POSITIVE, default=0.01, show_default=True, help="RDF error over the start's.")
@click.option("--peak-tolerance", type=_POSITIVE, default=0.03, show_default=True, help="Of the first peak's height.")
@click.option("--damping", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--pressure", "pressure_bar", type=float, default=None, help="ibi, re: wanted mean pressure, bar.")
@click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True, help="Of coarse runs.")
@click.option("--steps", type=click.IntRange(min=1), default=100_000, show_default=True, help="Of a coarse run.")
@click.option("--dt", "dt_ps", type=_POSITIVE, default=0.002, show_default=True, help="Its time step, ps.")
@click.option("--stride", type=click.IntRange(min=1), default=100, show_default=True, help="Steps between frames.")
@click.option("--friction", type=_POSITIVE, default=1.0, show_default=True, help="Of Langevin dynamics, 1/ps.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--discard", type=click.FloatRange(0, 1, max_open=True), default=0.1, show_default=True, help="Settling.")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--no-plots", is_flag=True, help="No pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print summary.json at the end.")
@click.option("--quiet", is_flag=True, help="No progress bar, no line per iteration.")
def tables(out: Path | None, no_plots: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Make tabulated potentials from what `ccg map` wrote: PREFIX.trr (or .xtc) and PREFIX.topology.json.

    bi: direct Boltzmann inversion. ibi: iterative, with a coarse run per iteration. fm: force matching, needs forces.
    re: minimal relative entropy, with runs. Given again with the same settings, the command goes on where it stopped.

    Writes model.npz (for `ccg export`), a table of every term with its standard error in tables/, pictures and
    summary.json. Exit code 3: the iterations ended before the tolerances were met; the best model is written.

    Example: ccg tables ibi cg/water --temperature 300 --cutoff 0.9 --pressure 1 --out tables/water
    """
    from ccg_gmx.cycle.store import finite
    from ccg_gmx.cycle.table_fit import fit_tables
    from ccg_gmx.report.table_plots import draw_result

    request = table_request(options)
    folder = out or options["prefix"].with_name(f"{options['prefix'].name}.{request.method}")
    runner = _runner(request, options) if request.method in ("ibi", "re") else None

    def log(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    with progress_bar("frames", quiet) as bar:
        summary = fit_tables(request, folder, runner, log=log, progress=bar)
    if not no_plots:
        draw_result(folder, request.tolerance)
    click.echo(json.dumps(finite(summary), indent=1) if as_json else _text(summary, folder))
    if not summary["converged"]:
        sys.exit(EXIT_NOT_CONVERGED)


def table_request(options: dict[str, Any]) -> TableRequest:
    """The job that the options ask for.

    Raises:
        SettingsError: files are missing or options contradict each other.
    """
    from ccg_gmx.cycle.table_request import TableRequest
    from ccg_gmx.errors import SettingsError
    from ccg_gmx.potential.inversion import BasisSettings

    prefix = options["prefix"]
    found = [path for path in (_named(prefix, ".trr"), _named(prefix, ".xtc")) if path.exists()]
    topology = _named(prefix, ".topology.json")
    if not found or not topology.exists():
        missing = _named(prefix, ".trr") if not found else topology
        raise SettingsError(f"no {missing}", expected="the files of ccg map", remedy="give the prefix of its --out")
    if options["bonded_only"] and options["cutoff"] is not None:
        raise SettingsError("--bonded-only with --cutoff", expected="one of them")
    same = [*["method", "r_max", "bin_width", "start_ps", "iterations", "tolerance", "peak_tolerance"]]
    same += [*["damping", "pressure_bar", "ridge", "seed"]]
    return TableRequest(
        trajectory=found[0],
        topology=topology,
        temperature_K=options["temperature"],
        cutoff=_cutoff(topology, options),
        basis=BasisSettings(
            pair_spacing=options["pair_spacing"],
            intervals=options["intervals"],
            knots=options["knots"],
            roughness_kT=options["roughness"],
        ),
        run=_run_settings(options),
        **{name: options[name] for name in same},
    )


def _run_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Fields of ``CoarseRunSettings``: settling is a share of the steps, in whole frames."""
    every = options["stride"]
    return {
        "engine": options["engine"],
        "steps": options["steps"],
        "settle_steps": int(options["discard"] * options["steps"]) // every * every,
        "dt_ps": options["dt_ps"],
        "output_every": every,
        "pressure_every": next(k for k in range(min(50, every), 0, -1) if every % k == 0),
        "friction_per_ps": options["friction"],
    }


def _cutoff(topology: Path, options: dict[str, Any]) -> float:
    """Cut-off in nm, 0 without pairs; asked for where there are pairs."""
    from ccg_gmx.errors import SettingsError
    from ccg_gmx.molecule.coarse_topology import CoarseTopology
    from ccg_gmx.potential.distributions import pair_numbers

    if options["cutoff"] is not None or options["bonded_only"]:
        return options["cutoff"] or 0.0
    if pairs := pair_numbers(CoarseTopology.load(topology)):
        raise SettingsError(
            f"no --cutoff for the pairs {', '.join('-'.join(key) for key in pairs)}",
            expected="--cutoff in nm, or --bonded-only",
        )
    return 0.0


def _runner(request: TableRequest, options: dict[str, Any]) -> Any:
    from ccg_gmx.cycle.table_runner import coarse_runner

    return coarse_runner(request, threads=options["threads"])


def _named(prefix: Path, ending: str) -> Path:
    return prefix.with_name(f"{prefix.name}{ending}")


def _text(summary: dict[str, Any], folder: Path) -> str:
    lines = [f"{summary['method']}: {summary['target']['frames']} frames of the target"]
    if matching := summary.get("force_matching"):
        lines.append(
            f"{matching['coefficients']} coefficients explain {100 * matching['explained']:.2f} % of the forces"
        )
    if block := summary.get("tables"):
        verdict = "within the tolerances" if summary["converged"] else "NOT within the tolerances"
        lines.append(f"{block['iterations']} iterations, {verdict}; model of iteration {block['best_iteration']}")
        lines.append(f"error / start {block['rdf_error_ratio']:.4f}")
        if block["first_peak_ratio"] is not None:
            lines.append(f"first peak / target {block['first_peak_ratio']:.3f}")
        if block["pressure_bar"] is not None:
            lines.append(f"pressure {block['pressure_bar']:.0f} +- {block['pressure_error'] or 0.0:.0f} bar")
    lines.append(f"model: {folder / 'model.npz'}")
    return "\n".join(lines)
