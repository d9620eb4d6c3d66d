"""``ccg bench plugin``."""

from __future__ import annotations

import json

import click


@click.command("plugin")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--steps", type=click.IntRange(min=2000), default=20_000, show_default=True, help="Steps of a run.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="The fastest counts.")
@click.option("--threads", type=click.IntRange(min=1), multiple=True, default=(1, 2), show_default=True, help="-ntomp.")
def bench_plugin(as_json: bool, steps: int, repeats: int, threads: tuple[int, ...]) -> None:
    """Cost of a learned model in an MD step, beside PLUMED's PYTORCH_MODEL and ANN, on one thread and two.

    Needs PLUMED; takes some minutes; let nothing else run meanwhile, threads that wait for a busy core spin.

    Example: ccg bench plugin --json
    """
    from ccg_gmx.bench.plugin import bench_plugin as measure
    from ccg_gmx.bench.plugin import bench_text

    result = measure(steps, repeats, threads, log=lambda line: click.echo(line, err=True))
    click.echo(json.dumps(result, indent=1) if as_json else bench_text(result))
