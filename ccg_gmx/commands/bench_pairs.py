"""``ccg bench pairs``."""

from __future__ import annotations

import json

import click


@click.command("pairs")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--beads", type=click.IntRange(min=200), multiple=True, default=(500, 4000), show_default=True)
@click.option("--steps", type=click.IntRange(min=200), default=10_000, show_default=True, help="For 500 beads.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="The fastest counts.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of each engine.")
def bench_pairs(as_json: bool, beads: tuple[int, ...], steps: int, repeats: int, threads: int) -> None:
    """Speed of tabulated non-bonded pairs: GROMACS with PLUMED's PAIR_TABLE beside OpenMM, taking turns.

    Needs PLUMED and OpenMM; takes some minutes.

    Example: ccg bench pairs --beads 500 --threads 2
    """
    from ccg_gmx.bench.pairs import bench_pairs as measure
    from ccg_gmx.bench.pairs import bench_text

    result = measure(beads, steps, repeats, threads, log=lambda line: click.echo(line, err=True))
    click.echo(json.dumps(result, indent=1) if as_json else bench_text(result))
