"""``ccg bench pairs``: steps per second of a fluid with tabulated pairs, in GROMACS with PAIR_TABLE and in OpenMM.

The fluid is one bead type at the density of water beads (33 per nm^3) with a soft core and a cut-off of 0.9 nm, about
50 pairs per bead. Both engines run the same model from the same start, taking turns; speeds are those the engines
report for their steps alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ccg_gmx.engine.coarse_engine import CoarseRunSettings, run_coarse
from ccg_gmx.molecule.coarse_topology import CoarseMoleculeType, CoarseTopology
from ccg_gmx.potential.curves import Curve
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.records import BeadFrames

DENSITY_PER_NM3 = 33.4
CUTOFF_NM = 0.9
_DT_PS = 0.002
_OPENMM_SHARE = 20  # it runs so many times fewer steps


def bench_pairs(
    beads: Sequence[int],
    steps: int,
    repeats: int,
    threads: int,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure.

    Args:
        beads: sizes of the fluid.
        steps: steps of a GROMACS run of 500 beads; larger fluids and OpenMM run fewer.
        repeats: turns; the fastest counts.
        threads: of each engine.
        log: called with a line about each run.

    Returns:
        ``threads`` and ``fluids [{beads, gromacs_plumed_steps_per_s, openmm_steps_per_s, ratio}]``.
    """
    fluids = []
    for count in beads:
        best = {"gromacs+plumed": 0.0, "openmm": 0.0}
        own = max(200, steps * 500 // count // 100 * 100)
        lengths = {"gromacs+plumed": own, "openmm": max(100, own // _OPENMM_SHARE // 100 * 100)}
        for _ in range(repeats):
            for engine in best:
                speed = _steps_per_second(count, engine, lengths[engine], threads)
                log(f"{count} beads, {engine}: {speed:.0f} steps/s")
                best[engine] = max(best[engine], speed)
        fluids.append(
            {
                "beads": count,
                "gromacs_plumed_steps_per_s": best["gromacs+plumed"],
                "openmm_steps_per_s": best["openmm"],
                "ratio": best["gromacs+plumed"] / best["openmm"],
            }
        )
    return {"threads": threads, "fluids": fluids}


def bench_text(result: dict[str, Any]) -> str:
    """The result as a table.

    Args:
        result: of :func:`bench_pairs`.
    """
    lines = [f"steps/s on {result['threads']} thread(s)", "", "   beads   GROMACS + PAIR_TABLE   OpenMM CPU   ratio"]
    for row in result["fluids"]:
        ours, theirs = row["gromacs_plumed_steps_per_s"], row["openmm_steps_per_s"]
        lines.append(f"{row['beads']:8d}   {ours:20.0f}   {theirs:10.1f}   {row['ratio']:5.1f}")
    return "\n".join(lines)


def fluid(count: int) -> tuple[CoarseModel, CoarseTopology, BeadFrames]:
    """The model, its beads and a start on a lattice.

    Args:
        count: number of beads.
    """
    knots = 0.25 + (np.arange(68) - 1) * (CUTOFF_NM - 0.25) / 65  # where the coefficients act
    values = 40.0 * np.exp(-(knots - 0.25) / 0.03) - 1.0 * np.exp(-(((knots - 0.45) / 0.08) ** 2))
    values[-3:] = 0.0
    model = CoarseModel(300.0, pairs={("W", "W"): Curve("pair", 0.25, CUTOFF_NM, values, None, 1e4)})
    bead = CoarseMoleculeType("W", ("W",), ("W",), (18.0,), ("W",), (1,))
    edge = (count / DENSITY_PER_NM3) ** (1 / 3)
    side = int(np.ceil(count ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3), axis=-1).reshape(-1, 3)[:count] * (edge / side)
    return model, CoarseTopology(((bead, count),)), BeadFrames(grid[None], np.zeros(1), edge * np.eye(3)[None])


def _steps_per_second(count: int, engine: str, steps: int, threads: int) -> float:
    settings = CoarseRunSettings.model_validate(
        {"engine": engine, "steps": steps, "output_every": 100, "pressure_every": 100, "dt_ps": _DT_PS}
        | {"threads": threads}
    )
    with TemporaryDirectory(prefix="ccg_pairs_") as folder:
        run = run_coarse(*fluid(count), settings, Path(folder))
    return run.ns_per_day * 1000.0 / _DT_PS / 86400.0
