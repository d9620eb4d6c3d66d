"""``ccg bench backmap``."""

from __future__ import annotations

import json

import click


@click.command("backmap")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="The fastest counts.")
@click.option("--threads", default="1,2", show_default=True, help="Numbers of torch threads, with commas.")
@click.option(
    "--molecules",
    type=click.Choice(["proteins", "helices"]),
    default="proteins",
    show_default=True,
    help="Alanine dipeptide, chignolin, adenylate kinase; or polyalanine of 22, 162 and 3,342 atoms.",
)
def bench_backmap(as_json: bool, repeats: int, threads: str, molecules: str) -> None:
    """Restored frames per second for 22, 138 and 3,341 atoms, with their log-likelihood.

    Takes about two minutes; let nothing else run meanwhile.

    Example: ccg bench backmap --threads 1
    """
    from ccg_gmx.bench.backmap import bench_backmap as measure
    from ccg_gmx.bench.backmap import bench_text
    from ccg_gmx.errors import SettingsError

    if not all(part.strip().isdigit() and int(part) > 0 for part in threads.split(",")):
        raise SettingsError(f"--threads {threads}", expected="numbers with commas")
    result = measure(repeats, tuple(int(part) for part in threads.split(",")), molecules)
    click.echo(json.dumps(result, indent=1) if as_json else bench_text(result))
