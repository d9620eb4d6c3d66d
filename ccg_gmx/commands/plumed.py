"""The group ``ccg plumed`` and its first member, ``ccg plumed build``."""

from __future__ import annotations

import json

import click

from ccg_gmx.commands.plumed_input import plumed_check, plumed_input


@click.group()
def plumed() -> None:
    """Inputs for PLUMED, and learned models inside it.

    Example: ccg plumed build
    """


@plumed.command("build")
@click.option("--force", is_flag=True, help="Build again what is built already.")
@click.option("--no-torch", is_flag=True, help="Without libtorch: only .json perceptrons, float64.")
@click.option("--no-test", is_flag=True, help="Do not test the result.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plumed_build(force: bool, no_torch: bool, no_test: bool, as_json: bool) -> None:
    """Build the PLUMED action TORCH_MODEL and test it in plumed driver and gmx mdrun.

    Needs a PLUMED kernel >= 2.10 with its headers and a C++ compiler; takes about a minute, once for each PLUMED,
    torch and compiler.

    Example: ccg plumed build
    """
    from ccg_gmx.engine.plumed_setup import make_plugin

    built = make_plugin(
        force=force, with_torch=not no_torch, test=not no_test, log=lambda line: click.echo(line, err=True)
    )
    if as_json:
        click.echo(json.dumps(built.to_dict(), indent=1))
        return
    click.echo(f"PLUMED {built.plumed or 'of unknown version'}; {built.words}")
    click.echo(f"in plumed.dat:   LOAD FILE={built.library}")
    click.echo(f"before mdrun:    export PLUMED_KERNEL={built.kernel}")
    click.echo("mdrun needs:     -plumed plumed.dat -ntmpi 1 -ntomp N")


plumed.add_command(plumed_input)
plumed.add_command(plumed_check)
