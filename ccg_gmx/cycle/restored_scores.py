"""How much the geometry of restored frames differs from fine MD, as three numbers of summary.json."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ccg_gmx.backmap.score import LEAST_BINS, MOST_BINS, PER_BIN, jensen_shannon
from ccg_gmx.records import FloatArray

Distribution = tuple[FloatArray, FloatArray, FloatArray]
"""Fine values ``[T]``, restored values ``[R]``, normalised weights ``[R]`` of the restored."""


def restored_scores(distributions: Mapping[str, Distribution]) -> dict[str, float]:
    """Largest Jensen-Shannon divergence (nats) of bonds, angles and torsions.

    Restored frames count with their weights. The number of bins follows the effective number of frames, so that chance
    alone stays below about 1 / (4 * 50) nats.

    Args:
        distributions: ``bond/name``, ``angle/name`` or ``torsion/name`` -> its values.
    """
    largest: dict[str, float] = {}
    for name, (fine, restored, weights) in distributions.items():
        kind = name.split("/", 1)[0]
        value = _divergence(fine, restored, weights, kind == "torsion")
        key = f"js_{kind}s_max"
        largest[key] = max(largest.get(key, 0.0), value)
    return largest


def _divergence(fine: FloatArray, restored: FloatArray, weights: FloatArray, periodic: bool) -> float:
    effective = min(len(fine), weights.sum() ** 2 / max(float((weights**2).sum()), 1e-300))
    bins = int(np.clip(effective // PER_BIN, LEAST_BINS, MOST_BINS))
    if periodic:
        centre = float(np.angle(np.exp(1j * fine).mean()))
        fine, restored = ((values - centre + np.pi) % (2 * np.pi) - np.pi for values in (fine, restored))
        edges = np.linspace(-np.pi, np.pi, bins + 1)
    else:
        margin = 0.05 * max(float(np.ptp(fine)), 1e-6)
        edges = np.linspace(fine.min() - margin, fine.max() + margin, bins + 1)
        restored = np.clip(restored, edges[0], edges[-1])
    p = np.histogram(fine, edges)[0] / len(fine)
    q = np.histogram(restored, edges, weights=weights)[0]
    return jensen_shannon(p, q / q.sum())
