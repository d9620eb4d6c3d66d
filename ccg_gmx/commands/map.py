"""``ccg map``: from atoms to beads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ccg_gmx.commands.progress import progress_bar


@click.command("map")
@click.argument("mapping", type=str)
@click.argument("tpr", type=click.Path(path_type=Path))
@click.argument("trajectory", metavar="TRAJ", type=click.Path(path_type=Path))
@click.option("--out", "-o", "prefix", required=True, metavar="PREFIX", type=click.Path(path_type=Path))
@click.option("--xtc", is_flag=True, help="Write the positions as PREFIX.xtc too.")
@click.option("--begin", "begin_ps", type=float, default=None, help="First time used, ps.")
@click.option("--end", "end_ps", type=float, default=None, help="Last time used, ps.")
@click.option("--stride", type=click.IntRange(min=1), default=1, show_default=True, help="Use every so-manyth frame.")
@click.option(
    "--forces",
    type=click.Choice(["optimal", "basic"]),
    default="optimal",
    show_default=True,
    help="Least noise, or sums over the atoms of a bead.",
)
@click.option("--no-forces", is_flag=True, help="Positions alone.")
@click.option("--fit-frames", type=click.IntRange(min=1), default=1000, show_default=True, help="For --forces optimal.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def map_command(no_forces: bool, forces: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Map an atomistic trajectory to beads: positions and forces, molecules whole across the box.

    MAPPING is a YAML file (topologies/spce_water/mapping.yaml is one) or VOTCA's XML, several of these joined by `;`.
    Writes PREFIX.trr, PREFIX.gro (the first frame) and PREFIX.topology.json. With forces, only frames that have some
    are used.

    Forces are unbiased for the mean force of the beads, whether constraints are there or not; beads whose distance
    constraints fix are refused.

    Example: ccg map mapping.yaml md.tpr md.trr -o cg/water
    """
    from ccg_gmx.engine.map_trajectory import MapRequest, map_trajectory

    request = MapRequest(**options, forces=None if no_forces else forces)  # type: ignore[arg-type]
    with progress_bar("map", quiet) as bar:
        result = map_trajectory(request, bar)
    click.echo(json.dumps(result, indent=1) if as_json else _text(result))


def _text(result: dict[str, Any]) -> str:
    molecules = ", ".join(f"{entry['count']} {entry['name']}" for entry in result["molecules"])
    span = f"{result['first_ps']:g} to {result['last_ps']:g} ps"
    lines = [
        f"{result['frames']} frames ({span}), {result['atoms']} atoms to {result['beads']} beads ({molecules})",
        f"{result['frames_per_s']:.0f} frames/s",
    ]
    for name, entry in result["forces"].items():
        ratios = ", ".join(f"{bead} {ratio:.2f}" for bead, ratio in entry["noise_ratio"].items())
        lines.append(f"forces of {name}: {entry['map']} map; mean square relative to the sum: {ratios}")
        if entry["why"]:
            lines.append(f"  no optimal map: {entry['why']}")
    lines += [f"wrote {path}" for path in result["files"]]
    return "\n".join(lines)
