"""``ccg bench map``."""

from __future__ import annotations

import json

import click


@click.command("map")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--frames", type=click.IntRange(min=1), default=200, show_default=True, help="Frames compared.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="The fastest counts.")
@click.option("--stream", type=click.IntRange(min=10), default=20_000, show_default=True, help="Frames for memory.")
def bench_map(as_json: bool, frames: int, repeats: int, stream: int) -> None:
    """Frames per second of `ccg map` beside a loop of MDAnalysis over molecules, and its memory on a long trajectory.

    Trajectories are random and written on the spot: 0.7 kB of disk for each frame of --stream. Takes about half a
    minute, and needs no gmx.

    Example: ccg bench map --stream 1000000 --json
    """
    from ccg_gmx.bench.map import bench_map as measure
    from ccg_gmx.bench.map import bench_text

    result = measure(frames, repeats, stream)
    click.echo(json.dumps(result, indent=1) if as_json else bench_text(result))
