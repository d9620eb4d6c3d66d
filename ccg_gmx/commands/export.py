"""``ccg export``: a coarse model for GROMACS, LAMMPS, OpenMM and PLUMED, and the check that they agree."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

EXIT_DIFFERS = 3


@click.command()
@click.argument("source", metavar="MODEL.npz TOPOLOGY.json CONF|RUNDIR", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--to",
    "target",
    type=click.Choice(["gromacs", "lammps", "openmm", "plumed", "all"]),
    multiple=True,
    help="Engine to write for; may be given again [all that can have the model].",
)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder to write.")
@click.option("--force", is_flag=True, help="Replace an export that is there.")
@click.option("--check", type=click.Path(path_type=Path), default=None, metavar="DIR", help="Compare engines instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(
    source: tuple[Path, ...], target: tuple[str, ...], out: Path | None, force: bool, check: Path | None, as_json: bool
) -> None:
    """Write a coarse model for other engines, or check that an export means the same in all of them.

    MODEL.npz is of ccg tables, TOPOLOGY.json of ccg map, CONF frames of the beads (.gro, .trr, .xtc): runs start at
    the last, and 20 of them are kept for the check. RUNDIR is a finished ccg run; its coarse molecule is written.

    Exit code 3: --check found two engines more than 1e-3 kJ/mol per molecule apart.

    Example: ccg export model.npz water.topology.json water.trr --to all --out export && ccg export --check export
    """
    if check is not None:
        if source or target or out:
            raise click.UsageError("--check goes with the folder of an export, and with --json alone")
        _check(check, as_json)
        return
    if len(source) not in (1, 3) or out is None:
        raise click.UsageError("give MODEL.npz TOPOLOGY.json CONF --out DIR, RUNDIR --out DIR, or --check DIR")
    written = _write(source, target or ("all",), out, force)
    if as_json:
        click.echo(json.dumps(written, indent=1))
        return
    for engine in written["engines"]:
        click.echo(f"{engine}: {out / engine}")
    for engine, reason in written["skipped"].items():
        click.echo(f"{engine}: left out, {reason}", err=True)
    if written["made_up"]:
        click.echo(f"{written['made_up']} of {written['frames']} frames of the check are copies with noise", err=True)


def _write(source: tuple[Path, ...], targets: tuple[str, ...], out: Path, force: bool) -> dict[str, Any]:
    from dataclasses import asdict
    from functools import partial

    from ccg_gmx.engine.mdp import exported_run
    from ccg_gmx.errors import StoreError
    from ccg_gmx.export.bundle import ENGINES, is_bundle, write_bundle

    if out.exists() and not (force and is_bundle(out)):
        remedy = "--force replaces an export" if is_bundle(out) else "choose another folder: this is no export"
        raise StoreError(f"{out} exists", remedy=remedy)
    model, topology, frames = _read(source)
    mdp_text = partial(exported_run, model.temperature_K)
    every = "all" in targets
    engines = ENGINES if every else targets
    return asdict(write_bundle(out, model, topology, frames, engines, mdp_text, skip_impossible=every))


def _read(source: tuple[Path, ...]) -> tuple[Any, Any, Any]:
    """Model, topology and frames from three files or a run folder."""
    if len(source) == 1:
        from ccg_gmx.cycle.run_model import load_run_model

        return load_run_model(source[0])
    from ccg_gmx.molecule.coarse_topology import CoarseTopology
    from ccg_gmx.molecule.trajectory import read_frames
    from ccg_gmx.potential.model import CoarseModel
    from ccg_gmx.records import BeadFrames

    model_file, topology_file, conf = source
    model, topology = CoarseModel.load(model_file), CoarseTopology.load(topology_file)
    frames = read_frames(conf, topology.n_beads)
    return model, topology, BeadFrames(frames.positions, frames.time, frames.box)


def _check(folder: Path, as_json: bool) -> None:
    from ccg_gmx.engine.export_check import check_export

    result = check_export(folder)
    click.echo(json.dumps(result.as_json(), indent=1) if as_json else _text(result))
    if not result.agrees:
        sys.exit(EXIT_DIFFERS)


def _text(result: Any) -> str:
    lines = [f"{result.frames} frames, {result.molecules} molecules"]
    lines += [f"{engine:<8} {version}" for engine, version in result.engines.items()]
    lines += [f"{engine:<8} not compared: {reason}" for engine, reason in result.not_compared.items()]
    lines.append(f"{'kJ/mol per molecule':<20} {'mean':>12} {'max difference':>15}  engines")
    for kind, term in result.terms.items():
        largest = term.max_abs_diff_kJ_mol_per_molecule
        shown = "-" if largest is None else f"{largest:.2e}"
        lines.append(f"{kind:<20} {term.mean_kJ_mol_per_molecule:>12.4f} {shown:>15}  {', '.join(term.engines)}")
    if result.max_force_diff_kJ_mol_nm is not None:
        lines.append(f"largest difference of a force: {result.max_force_diff_kJ_mol_nm:.2e} kJ/mol/nm")
    lines.append(f"largest difference of energies: {result.max_abs_diff_kJ_mol_per_molecule:.2e} kJ/mol per molecule")
    verdict = "agree" if result.agrees else "do NOT agree"
    lines.append(f"the engines {verdict} to {result.tolerance_kJ_mol_per_molecule:g} kJ/mol per molecule")
    return "\n".join(lines)
