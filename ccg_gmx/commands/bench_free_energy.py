"""``ccg bench free-energy``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ccg_gmx.commands.progress import Bar

PARTS = ("cycle", "enhanced", "md")


@click.command("free-energy")
@click.option("--system", default="alanine-dipeptide", show_default=True, help="Or alanine-dipeptide-obc1.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Cycles and biased runs.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder [runs/bench_SYSTEM].")
@click.option("--md-steps", type=click.IntRange(min=1), default=2_000_000_000, show_default=True, help="Of plain MD.")
@click.option(
    "--enhanced-steps",
    type=click.IntRange(min=1000),
    default=10_000_000,
    show_default=True,
    help="Of each AWH or metadynamics run.",
)
@click.option("--workflow", type=click.Path(path_type=Path), default=None, help="Another workflow file.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Replace one value of the workflow.")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Only this part, without a result.")
@click.option("--walkers", type=click.IntRange(min=2), default=32, show_default=True, help="Of plain MD.")
@click.option("--segment-steps", type=click.IntRange(min=50), default=125_000, show_default=True, hidden=True)
@click.option("--plot", type=click.Path(path_type=Path), default=None, help="Draw forward KL against cost.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
def bench_free_energy(
    system: str,
    seeds: int,
    out: Path | None,
    md_steps: int,
    enhanced_steps: int,
    workflow: Path | None,
    overrides: tuple[str, ...],
    parts: tuple[str, ...],
    walkers: int,
    segment_steps: int,
    plot: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """What a free energy surface costs: the cycle, plain MD, and AWH or metadynamics, against one reference.

    Takes an hour and more; stop it at any time, run it again with the same --out, and it goes on. With --part, parts
    can be made one by one.

    Example: ccg bench free-energy --system alanine-dipeptide --seeds 3 --plot cost.png
    """
    from ccg_gmx.bench.free_energy import Bench, Options
    from ccg_gmx.bench.free_energy_plot import check_picture, plot_free_energy
    from ccg_gmx.bench.free_energy_result import result_text
    from ccg_gmx.cycle.store import finite

    if plot is not None:
        check_picture(plot)
    options = Options(
        system=system,
        out=out or Path("runs") / f"bench_{system}",
        seeds=seeds,
        md_steps=md_steps,
        enhanced_steps=enhanced_steps,
        workflow=workflow,
        overrides=overrides,
        walkers=walkers,
        segment_steps=segment_steps,
    )
    bench = Bench(options, lambda line: click.echo(line, err=True), None if quiet else Bar)
    result = bench.run(tuple(parts) or PARTS)
    if result is None:
        click.echo(f"done: {', '.join(parts)}; without --part the rest is made and compared", err=True)
        return
    if plot is not None:
        plot_free_energy(result, plot)
    click.echo(json.dumps(finite(result), indent=1) if as_json else result_text(result))
