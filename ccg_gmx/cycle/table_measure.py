"""What a run of a tabulated model gives, beside the target: one measurement for iterations and for finished models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ccg_gmx.cycle.table_request import ModelRun, TableRequest
from ccg_gmx.engine.run_files import storing
from ccg_gmx.molecule.coarse_topology import CoarseTopology
from ccg_gmx.potential.distributions import Distributions, DistributionSampler, Histogram
from ccg_gmx.potential.distributions_file import save_distributions
from ccg_gmx.potential.inversion import rdf_error
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.potential.pressure import PressureSampler
from ccg_gmx.potential.relative_entropy import FeatureSampler
from ccg_gmx.records import FloatArray


def measure_run(
    request: TableRequest,
    topology: CoarseTopology,
    target: Distributions,
    model: CoarseModel,
    run: ModelRun,
    folder: Path,
    features: FeatureSampler | None = None,
) -> dict[str, Any]:
    """Stream the frames of a run once; write ``distributions.npz`` into a folder.

    Args:
        request: range and bins of the distributions.
        topology: the beads.
        target: distributions wanted.
        model: what was run; its virial gives the pressure where the engine did not.
        run: the run.
        folder: of the file.
        features: gets every frame too.

    Returns:
        frames, pressure with its error, errors of the distributions with what their noise explains, the first peak.
    """
    sampler = DistributionSampler(topology, request.range, request.bin_width)
    ours = run.pressure_bar is None and bool(model.pairs)
    pressure = PressureSampler(model, topology) if ours else None
    for chunk in run.frames():
        for part in (sampler, features, pressure if chunk.box is not None else None):
            if part is not None:
                part.add(chunk)
    found = sampler.result()
    with storing(folder):
        save_distributions(found, folder / "distributions.npz")
    mean = pressure.result() if pressure is not None and found.volume is not None else None
    error = rdf_error(found, target)
    return {
        "frames": found.frames,
        "pressure_bar": run.pressure_bar if mean is None else mean.bar,
        "pressure_error": run.pressure_error if mean is None else mean.error,
        "rdf_squared_error": None if error is None else error.squared,
        "rdf_noise": None if error is None else error.noise,
        "rdf_noise_limit": None if error is None else error.noise_limit,
        "first_peak_ratio": None if error is None else error.first_peak_ratio,
        "bonded_error": bonded_error(found, target),
        "bonded_noise": bonded_noise(found, target),
    }


def bonded_error(found: Distributions, target: Distributions) -> float:
    """Sum over bonded terms of half the absolute difference of their normalised histograms."""
    return sum(
        0.5 * float(np.abs(_share(part) - _share(target.bonded[name])).sum()) for name, part in found.bonded.items()
    )


def bonded_noise(found: Distributions, target: Distributions) -> float:
    """What ``bonded_error`` is on average where both sample the same density: the errors of the counts alone.

    The mean of the absolute value of a normal number is ``sqrt(2 / pi)`` standard deviations.
    """
    total = 0.0
    for name, part in found.bonded.items():
        variances = [h.dispersion * h.counts / h.counts.sum() ** 2 for h in (part, target.bonded[name])]
        total += 0.5 * math.sqrt(2.0 / math.pi) * float(np.sqrt(np.sum(variances, axis=0)).sum())
    return total


def _share(part: Histogram) -> FloatArray:
    return part.counts / part.counts.sum()
