"""``ccg plumed input --target coarse``: what the maps of a run's force field leave out, as a bias for coarse MD."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ccg_gmx.commands.progress import progress_bar

if TYPE_CHECKING:
    from ccg_gmx.cycle.run_bias import RunCoupling
    from ccg_gmx.export.plumed_input import Plan
    from ccg_gmx.export.plumed_variables import Variable
    from ccg_gmx.potential.coupling import Quality

_LABEL = "coupling"


@dataclass(frozen=True)
class CoarseRequest:
    """What is asked for.

    Attributes:
        run: folder of a finished run.
        out: plumed.dat; None for ``plumed.dat`` in the run's forcefield folder.
        cap_kT: height up to which the surface is followed; None for the default.
        temperature_K: given on the command line, to be compared with the run's; None otherwise.
        stride: steps between rows.
        ntomp: threads in the printed line; None for all cores.
        force: replace files that are there.
        check: ask the kernel for the actions.
    """

    run: Path
    out: Path | None
    cap_kT: float | None
    temperature_K: float | None
    stride: int
    ntomp: int | None
    force: bool
    check: bool


def write_coarse_bias(request: CoarseRequest) -> None:
    """Write the input and its model or grid, and print how far maps and bias are from the surface.

    Raises:
        CcgError: if the run is not finished, PLUMED or the plug-in is missing, or files are there already.
    """
    from ccg_gmx.cycle.run_bias import load_run_coupling
    from ccg_gmx.engine.input_files import refuse_to_replace, write_files
    from ccg_gmx.engine.plumed_parse import require_actions
    from ccg_gmx.export.coupling_model import NEGLIGIBLE_NATS, maps_alone
    from ccg_gmx.export.plumed_input import input_text, required_actions

    run = load_run_coupling(request.run)
    _check_temperature(request, run)
    lost = maps_alone(run.coupling)
    if lost.kl < NEGLIGIBLE_NATS:
        click.echo(
            f"the force field holds the whole surface ({_words(lost)}): there is nothing to correct, no file written"
        )
        return
    target = request.out or run.folder / "plumed.dat"
    beside = target.with_suffix(".json" if run.coupling.fit.dims > 2 else ".grid")
    if not request.force:
        refuse_to_replace((target, beside))
    plan = _plan(request, run, beside.name)
    kernel = require_actions(required_actions(plan)) if request.check else None
    content, quality = _content(request, run)
    write_files({target: input_text(plan), beside: content}, force=request.force)
    click.echo(f"force field alone, over exp(-F): {_words(lost)}")
    click.echo(f"with the bias:                   {_words(quality)}")
    click.echo(f"wrote {target} and {beside.name}")
    _print_commands(request, run, target, None if kernel is None else kernel.library)


def _check_temperature(request: CoarseRequest, run: RunCoupling) -> None:
    from ccg_gmx.errors import SettingsError

    kelvin = run.coupling.potential.temperature_K
    if request.temperature_K is not None and abs(request.temperature_K - kelvin) > 1e-3:
        raise SettingsError(
            f"--temperature {request.temperature_K:g}", expected=f"{kelvin:g} K, as {request.run} has it"
        )


def _plan(request: CoarseRequest, run: RunCoupling, file: str) -> Plan:
    """Torsions of beads, and the bias on them."""
    from ccg_gmx.commands.plumed_input import find_library
    from ccg_gmx.export.plumed_input import Bias, Plan
    from ccg_gmx.export.plumed_variables import torsion_variable

    names = run.coupling.names
    variables = tuple(torsion_variable(name, run.torsions[name]) for name in names)
    note = f"What the maps in {run.folder.resolve()} leave out of F({', '.join(names)}). Atoms are beads."
    kelvin = run.coupling.potential.temperature_K
    if len(names) <= 2:
        return Plan(variables, variables, Bias("static", grid=file, note=note), kelvin, request.stride)
    model = _model(file, names)
    library = find_library(request.check)
    return Plan((*variables, model), (model,), Bias("static", note=note), kelvin, request.stride, library)


def _model(file: str, names: tuple[str, ...]) -> Variable:
    from ccg_gmx.export.plumed_variables import Variable

    line = f"{_LABEL}: TORCH_MODEL FILE={file} ARG={','.join(names)} BIAS"
    return Variable(_LABEL, f"{_LABEL}.bias", (line,), "TORCH_MODEL", "kJ/mol")


def _content(request: CoarseRequest, run: RunCoupling) -> tuple[str, Quality]:
    """Text of the grid or the model, and how near it comes to the surface."""
    from tempfile import TemporaryDirectory

    from ccg_gmx.export.coupling_model import CouplingSettings, coupling_grid, fit_coupling
    from ccg_gmx.export.static_bias import CAP_KT, plumed_grid_text
    from ccg_gmx.export.torch_model import export_model

    cap = CAP_KT if request.cap_kT is None else request.cap_kT
    if run.coupling.fit.dims <= 2:
        bias, quality = coupling_grid(run.coupling, cap)
        return plumed_grid_text(bias, "static"), quality
    with progress_bar(_LABEL) as bar:
        model = fit_coupling(run.coupling, CouplingSettings(cap_kT=cap), progress=bar)
    with TemporaryDirectory() as folder:
        path = export_model(model.network, model.signature, Path(folder) / "model.json", examples=model.examples)
        return path.read_text(encoding="utf-8"), model.quality


def _words(quality: Quality) -> str:
    return f"{quality.kl:.2g} nats, rms {quality.rms_kT:.2g} kT"


def _print_commands(request: CoarseRequest, run: RunCoupling, target: Path, library: Path | None) -> None:
    from ccg_gmx.engine.settings import available_cores
    from ccg_gmx.export.gromacs import TABLES_MDP_NAME

    if library is not None:
        click.echo(f"export PLUMED_KERNEL={library}")
    inside = target.parent.resolve() == run.folder.resolve()
    name = target.name if inside else str(target.resolve())
    threads = request.ntomp or available_cores()
    click.echo(
        f"(in {run.folder}) gmx grompp -f {TABLES_MDP_NAME} && "
        f"gmx mdrun -tableb *.xvg -plumed {name} -ntmpi 1 -ntomp {threads}"
    )
