"""``ccg plumed input`` and ``ccg plumed check``: inputs for PLUMED, and what is wrong with one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ccg_gmx.cycle.run_bias import RunSurface
    from ccg_gmx.export.plumed_input import Plan
    from ccg_gmx.export.plumed_variables import Variable

DEFAULT_TEMPERATURE_K = 300.0
_PATH = click.Path(path_type=Path)
_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command("input")
@click.option("--method", type=click.Choice(["opes", "metad", "umbrella", "static"]), default="opes", show_default=True)
@click.option("--torsion", "torsions", multiple=True, metavar="NAME=I,J,K,L", help="Four atoms, from 1.")
@click.option("--distance", "distances", multiple=True, metavar="NAME=I,J", help="Two atoms, from 1.")
@click.option("--model", metavar="NAME=FILE", help="Learned variable; with --method static, a learned energy (kJ/mol).")
@click.option(
    "--model-action", type=click.Choice(["auto", "torch", "pytorch", "ann"]), default="auto", show_default=True
)
@click.option("--model-atoms", default="", metavar="LIST", help="Atoms of a model on positions [the model's own].")
@click.option("--run", "run_folder", type=_PATH, help="Finished run: its torsions; with --method static, bias -f(s).")
@click.option(
    "--target",
    type=click.Choice(["fine", "coarse"]),
    default="fine",
    show_default=True,
    help="coarse: with --method static --run, what the run's forcefield/ leaves out of f, for coarse MD.",
)
@click.option("--pair", default="", metavar="A,B", help="Two torsions of a run with more.")
@click.option("--cap", type=float, default=None, metavar="KT", help="Height up to which f is compensated [15].")
@click.option("--on", "on", default=None, metavar="NAMES", help="Variables to bias [the model, or all].")
@click.option("--sigma", "sigmas", multiple=True, metavar="NAME=WIDTH", help="Width of kernels or hills.")
@click.option("--range", "ranges", multiple=True, metavar="NAME=MIN:MAX", help="Grid of metad without a period.")
@click.option(
    "--pace", type=click.IntRange(min=1), default=500, show_default=True, help="Steps between kernels, hills."
)
@click.option("--barrier", type=_POSITIVE, default=40.0, show_default=True, help="opes: kJ/mol to cross.")
@click.option("--height", type=_POSITIVE, default=1.2, show_default=True, help="metad: kJ/mol.")
@click.option(
    "--biasfactor", type=click.FloatRange(min=1, min_open=True), default=10.0, show_default=True, help="metad."
)
@click.option("--centers", "centers", multiple=True, metavar="NAME=FROM:TO:COUNT", help="umbrella [24 per turn].")
@click.option("--kappa", "kappas", multiple=True, metavar="NAME=K", help="umbrella: kJ/mol/unit^2 [overlapping].")
@click.option("--temperature", type=_POSITIVE, default=None, help="K [of the .tpr, of the run, or 300].")
@click.option("--tpr", type=_PATH, default=None, help="Run input: temperature, and number of atoms to check.")
@click.option("--stride", type=click.IntRange(min=1), default=100, show_default=True, help="Steps between rows.")
@click.option(
    "--ntomp", type=click.IntRange(min=1), default=None, help="Threads in the printed mdrun line [all cores]."
)
@click.option("--through", type=click.Choice(["plumed", "colvars", "awh"]), default="plumed", show_default=True)
@click.option("--out", type=_PATH, default=None, help="plumed.dat; a folder for umbrella and colvars.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@click.option("--no-check", is_flag=True, help="Write what this machine's PLUMED cannot run, too.")
def plumed_input(
    method: str,
    torsions: tuple[str, ...],
    distances: tuple[str, ...],
    model: str | None,
    model_action: str,
    model_atoms: str,
    run_folder: Path | None,
    target: str,
    pair: str,
    cap: float | None,
    on: str | None,
    sigmas: tuple[str, ...],
    ranges: tuple[str, ...],
    pace: int,
    barrier: float,
    height: float,
    biasfactor: float,
    centers: tuple[str, ...],
    kappas: tuple[str, ...],
    temperature: float | None,
    tpr: Path | None,
    stride: int,
    ntomp: int | None,
    through: str,
    out: Path | None,
    force: bool,
    no_check: bool,
) -> None:
    """Write a commented plumed.dat, and print the mdrun line for it.

    Variables: torsions, distances, a learned model (TORCH_MODEL, PYTORCH_MODEL, or a text with an ANN action), the
    torsions of a finished run. Numbers are in radians, nm, kJ/mol; -pi and pi are understood. --method umbrella writes
    one input for each window, and windows.txt for `ccg fes colvar --windows`. --method static --run DIR flattens the
    run's surface with the bias -f(s); `ccg check flat-histogram` then judges f. Without PLUMED, --through colvars
    writes that bias for GROMACS' own Colvars. With --target coarse the bias is for the run's forcefield/: it adds what
    the maps there cannot hold of the surface, the coupling of torsions in different maps, as a small network.

    Example: ccg plumed input --torsion phi=5,7,9,15 --torsion psi=7,9,15,17 --tpr md.tpr
    """
    from ccg_gmx.commands.plumed_coarse import CoarseRequest, write_coarse_bias
    from ccg_gmx.commands.plumed_options import centers as parse_centers
    from ccg_gmx.commands.plumed_options import choose_biased, collect_variables, ends, parse_named, positive
    from ccg_gmx.export.plumed_input import Bias, Plan

    if target == "coarse":
        others = {"--torsion": torsions, "--distance": distances, "--model": model, "--pair": pair, "--tpr": tpr}
        request = CoarseRequest(
            _coarse_run(method, through, run_folder, others), out, cap, temperature, stride, ntomp, force, not no_check
        )
        write_coarse_bias(request)
        return
    wanted = tuple(name.strip() for name in pair.split(",") if name.strip())
    run = _run(run_folder, wanted, method, model)
    atoms, kelvin = _run_facts(tpr, temperature, run)
    if through != "plumed":
        _without_plumed(through, method, run, cap, out or Path("static_bias"), force)
        return
    known = {} if run is None else run.torsions
    variables = collect_variables(
        torsions, distances, model, model_action, model_atoms, known, bias=method == "static" and model is not None
    )
    external = method == "static" and model is None
    biased = _surface_variables(variables, run) if external else choose_biased(variables, on)
    labels = [one.label for one in biased]
    path = out or (Path("umbrella") if method == "umbrella" else Path("plumed.dat"))
    bias = Bias(
        method, pace, barrier, height, biasfactor,
        sigmas=parse_named("--sigma", sigmas, labels, positive, "NAME=WIDTH, a positive number"),
        ranges=parse_named("--range", ranges, labels, ends, "NAME=MIN:MAX"),
        centers=parse_named("--centers", centers, labels, parse_centers, "NAME=FROM:TO:COUNT, both ends included"),
        kappas=parse_named("--kappa", kappas, labels, positive, "NAME=K, a positive number"),
        grid=f"{path.stem}.grid" if external else None,
    )  # fmt: skip
    plan = Plan(variables, biased, bias, kelvin, stride)
    _finish(plan, run, cap, path, atoms, ntomp, force=force, check=not no_check)


def _coarse_run(method: str, through: str, folder: Path | None, others: Mapping[str, object]) -> Path:
    """The run of --target coarse, which has one meaning and few options."""
    from ccg_gmx.errors import SettingsError

    given = [name for name, value in others.items() if value]
    if method != "static" or through != "plumed" or folder is None or given:
        found = " ".join(given) if folder is not None and given else f"--method {method} --through {through}"
        raise SettingsError(
            f"--target coarse with {found}", expected="--method static --run RUNFOLDER, and no other variables"
        )
    return folder


def _run(folder: Path | None, pair: tuple[str, ...], method: str, model: str | None) -> RunSurface | None:
    from ccg_gmx.cycle.run_bias import load_run_surface
    from ccg_gmx.errors import SettingsError

    if folder is not None:
        return load_run_surface(folder, pair)
    if method == "static" and model is None:
        raise SettingsError("a static bias of nothing", remedy="give --run RUNFOLDER or --model NAME=FILE")
    return None


def _run_facts(tpr: Path | None, given: float | None, run: RunSurface | None) -> tuple[int | None, float]:
    """Number of atoms of the .tpr, and the temperature, which all sources must agree on."""
    from ccg_gmx.engine.gromacs import Gmx
    from ccg_gmx.errors import SettingsError
    from ccg_gmx.molecule.topology import parse_tpr_dump

    sources: dict[str, float] = {} if given is None else {"--temperature": given}
    atoms = None
    if tpr is not None:
        topology = parse_tpr_dump(Gmx.find().dump(tpr))
        atoms = topology.n_atoms
        if given is None or len(topology.run.temperatures_K) == 1:
            sources[str(tpr)] = topology.run.temperature_K
    if run is not None:
        sources[str(run.file)] = run.surface.temperature_K
    if not sources:
        click.echo(f"taking {DEFAULT_TEMPERATURE_K:g} K: neither --tpr nor --temperature says", err=True)
    names, kelvins = list(sources), list(sources.values())
    for name, kelvin in sources.items():
        if abs(kelvin - kelvins[0]) > 1e-3:
            raise SettingsError(f"{name} is at {kelvin:g} K", expected=f"{kelvins[0]:g} K, as {names[0]} has it")
    return atoms, kelvins[0] if kelvins else DEFAULT_TEMPERATURE_K


def _surface_variables(variables: tuple[Variable, ...], run: RunSurface | None) -> tuple[Variable, ...]:
    """The variables of the run's surface, in its order."""
    known = {one.label: one for one in variables}
    return tuple(known[name] for name in run.surface.names) if run is not None else ()


def _without_plumed(
    through: str, method: str, run: RunSurface | None, cap: float | None, folder: Path, force: bool
) -> None:
    """The static bias for GROMACS' own Colvars."""
    from ccg_gmx.engine.input_files import write_files
    from ccg_gmx.errors import SettingsError
    from ccg_gmx.export.colvars import MDP_LINES, colvars_files
    from ccg_gmx.export.static_bias import CAP_KT, static_bias

    if through == "awh":
        raise SettingsError(
            "AWH cannot hold a static bias: it changes its estimate all through a run, whatever awh1-user-data holds",
            remedy="use --through colvars, or PLUMED",
        )
    if method != "static" or run is None:
        raise SettingsError(
            "Colvars inside GROMACS can hold the static bias of a run's torsions alone, no learned model (it has no "
            "Lepton and no torch)",
            expected="--method static --run RUNFOLDER",
            remedy="install PLUMED for the others",
        )
    bias = static_bias(run.surface, CAP_KT if cap is None else cap)
    write_files({folder / name: text for name, text in colvars_files(bias, run.torsions).items()}, force=force)
    click.echo(f"wrote {folder}/colvars.dat, static_bias.grad and static_bias.count")
    click.echo("add to the .mdp, and run grompp and mdrun in that folder:")
    click.echo(MDP_LINES.format(name="colvars.dat").rstrip())
    click.echo("gmx mdrun -s run.tpr -ntmpi 1   (not with -cpi: Colvars refuses to read its grids again)")


def _finish(
    plan: Plan,
    run: RunSurface | None,
    cap: float | None,
    target: Path,
    atoms: int | None,
    ntomp: int | None,
    *,
    force: bool,
    check: bool,
) -> None:
    """Check, write, and print the mdrun line."""
    from dataclasses import replace

    from ccg_gmx.engine.input_files import write_files
    from ccg_gmx.engine.plumed_parse import require_actions
    from ccg_gmx.engine.settings import available_cores
    from ccg_gmx.errors import SettingsError
    from ccg_gmx.export.plumed_input import required_actions

    if atoms is not None and (beyond := [one for one in plan.variables if one.atoms > atoms]):
        raise SettingsError(
            f"{beyond[0].label} names atom {beyond[0].atoms}", expected=f"at most {atoms}, as in the .tpr"
        )
    actions = required_actions(plan)
    kernel = require_actions(actions) if check else None
    if "TORCH_MODEL" in actions:
        plan = replace(plan, load=find_library(check))
    files, table = _texts(plan, run, cap, target)
    write_files(files, force=force)
    threads = ntomp or available_cores()
    for path in [*files][:1] if table else files:
        click.echo(f"wrote {path}" + (f" and {len(files) - 1} more; {table}" if table else ""))
    if kernel is not None:
        click.echo(f"export PLUMED_KERNEL={kernel.library}")
    folder, name = (target, "plumed_000.dat") if table else (target.parent, target.name)
    where = "" if folder in (Path(), Path(".")) else f"(in {folder}) "
    click.echo(f"{where}gmx mdrun -s run.tpr -plumed {name} -ntmpi 1 -ntomp {threads}")
    if table:
        click.echo(f"the same for each window; then: ccg fes colvar --windows {table} --cv {plan.biased[0].value} ...")


def _texts(plan: Plan, run: RunSurface | None, cap: float | None, target: Path) -> tuple[dict[Path, str], str]:
    """Files to write, and the table of windows (empty without)."""
    from dataclasses import replace

    from ccg_gmx.export.plumed_input import colvar_path, input_path, input_text, window_table, windows
    from ccg_gmx.export.static_bias import CAP_KT, plumed_grid_text, static_bias

    if plan.bias.method == "umbrella":
        chosen = windows(plan)
        names = [colvar_path(index) for index in range(len(chosen))]
        files = {
            input_path(target, index): input_text(plan, window, name)
            for index, (window, name) in enumerate(zip(chosen, names, strict=True))
        }
        table = target / "windows.txt"
        return {**files, table: window_table(plan, names, chosen)}, str(table)
    if plan.bias.grid is None or run is None:
        return {target: input_text(plan)}, ""
    bias = static_bias(run.surface, CAP_KT if cap is None else cap)
    note = f"-f({', '.join(bias.names)}) of {run.file.resolve()}, constant above {bias.cap_kT:g} kT"
    text = input_text(replace(plan, bias=replace(plan.bias, note=note)))
    return {target: text, target.with_name(plan.bias.grid): plumed_grid_text(bias, "static")}, ""


def find_library(check: bool) -> str:
    """Library with TORCH_MODEL; without ``check`` a placeholder where there is none.

    Raises:
        CcgError: with ``check``, if there is none.
    """
    from ccg_gmx.engine.plumed_build import find_plugin
    from ccg_gmx.errors import CcgError

    try:
        return str(find_plugin().library)
    except CcgError:
        if check:
            raise
        return "libccg_torch_model.so"


@click.command("check")
@click.argument("file", metavar="PLUMED.DAT", type=_PATH)
@click.option("--tpr", type=_PATH, default=None, help="Run input: number of atoms, temperature.")
def plumed_check(file: Path, tpr: Path | None) -> None:
    """Look for what would stop or spoil a run: unknown actions, ENERGY, missing modules, atoms, arguments.

    Uses own rules, and PLUMED's parser where there is one; it says which. ENERGY is refused because GROMACS 2024 and
    2025 give PLUMED no energy: it is 0 without a word. Nothing is run, and no file of yours is touched.

    Exit code 2: something is wrong.

    Example: ccg plumed check plumed.dat --tpr run.tpr
    """
    from ccg_gmx.engine.plumed_parse import check_input

    atoms, kelvin = _run_facts(tpr, None, None) if tpr is not None else (None, DEFAULT_TEMPERATURE_K)
    found = check_input(file, atoms, kelvin)
    for line in found.problems:
        click.echo(f"{file}: {line}", err=True)
    click.echo(f"{'not usable' if found.problems else 'nothing wrong found'}; checked by {found.means}")
    if found.problems:
        sys.exit(2)
