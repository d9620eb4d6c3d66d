"""The group ``ccg bench`` and its first member, ``ccg bench energy``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ccg_gmx.commands.bench_backmap import bench_backmap
from ccg_gmx.commands.bench_flow import bench_flow
from ccg_gmx.commands.bench_free_energy import bench_free_energy
from ccg_gmx.commands.bench_map import bench_map
from ccg_gmx.commands.bench_pairs import bench_pairs
from ccg_gmx.commands.bench_plugin import bench_plugin


@click.group()
def bench() -> None:
    """Measure speed against other programs on this machine.

    Example: ccg bench energy --frames 1024
    """


@bench.command("energy")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--plot", type=click.Path(path_type=Path), default=None, help="Draw cost per frame against atoms.")
@click.option("--frames", type=click.IntRange(min=1), default=4096, show_default=True, help="Number of frames.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="The fastest counts.")
def bench_energy(as_json: bool, plot: Path | None, frames: int, repeats: int) -> None:
    """Energies and gradients per second: our kernel, torch, gmx mdrun -rerun, OpenMM, on the same frames.

    Takes about half a minute; let nothing else run meanwhile.

    Example: ccg bench energy --plot cost.png
    """
    from ccg_gmx.bench.energy import bench_energy as measure
    from ccg_gmx.bench.energy import bench_text

    result = measure(frames, repeats, plot=plot)
    click.echo(json.dumps(result, indent=1) if as_json else bench_text(result))


for _command in (bench_backmap, bench_flow, bench_free_energy, bench_map, bench_pairs, bench_plugin):
    bench.add_command(_command)
