"""``ccg bench flow``."""

from __future__ import annotations

import json

import click


@click.command("flow")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of torch.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="The fastest counts.")
def bench_flow(as_json: bool, threads: int, device: str, repeats: int) -> None:
    """Draws with energies and training examples per second of the flow of alanine dipeptide.

    Compared with the same flow without compiled kernels, and with zuko where it is installed. Takes about a minute; let
    nothing else run meanwhile. With --device cuda, the GPU is measured beside the processor.

    Example: ccg bench flow --json
    """
    from ccg_gmx.bench.flow import bench_flow as measure
    from ccg_gmx.bench.flow import bench_text

    result = measure(repeats, threads=threads, device=device)
    click.echo(json.dumps(result, indent=1) if as_json else bench_text(result))
