"""Do the fine runs agree about the flow? The forward log-weights run by run, with errors that know of correlation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from ccg_gmx.records import FloatArray, IntArray

BLOCKS = 10
CERTAINTY = 3.0
"""Standard errors that a distance must exceed before it counts."""


@dataclass(frozen=True)
class RunAgreement:
    """How far single fine runs are from the others.

    Attributes:
        runs: number of fine runs with held-out frames.
        disagreement_kT: largest distance of a run's mean ``ln w + f`` from the mean of the others, less three standard
            errors (at least 0): what is certain of it. The mean is KL(p || q) where the run has been.
        furthest_run: index of that run.
        least_ess_fraction: smallest forward effective fraction of a single run, of the frames that ``kept_frames``
            keeps.
        least_run: index of that run.
        ess_fraction: forward effective fraction of the frames that ``kept_frames`` keeps, all runs together.
    """

    runs: int
    disagreement_kT: float
    furthest_run: int
    least_ess_fraction: float
    least_run: int
    ess_fraction: float


def forward_ess_fraction(forward_log_w: FloatArray) -> float:
    """Effective sample fraction of q as fine frames of p see it.

    The Kish fraction tends to ``Z^2 / E_q[w^2]``. Since p = w q / Z, ``E_p[w] = E_q[w^2] / Z`` and
    ``E_p[1/w] = 1 / Z`` (where q has weight only inside p's support), so the same number is
    ``1 / (E_p[w] E_p[1/w])``: free of K, of Z, and of draws of q. A mode that q misses has large w at the frames
    inside it, which the draws never see. It lies in (0, 1] by the Cauchy-Schwarz inequality.

    Over many coarse points w must be normalised per point: give ``ln w + f(s)``. It is then the harmonic mean of the
    fractions over the frames' s.

    Where q is more than sqrt(2) times wider than p, E_p[1/w] converges slowly and from below, and the fraction is a
    little too high; the reverse fraction shows that case well.

    Args:
        forward_log_w: ``[T]`` log-weights at held-out fine frames; ``+inf`` (outside q's support) gives 0.
    """
    forward_log_w = np.asarray(forward_log_w)
    if np.isposinf(forward_log_w).any():
        return 0.0
    return float(np.exp(2 * np.log(forward_log_w.size) - logsumexp(forward_log_w) - logsumexp(-forward_log_w)))


def kept_frames(forward: FloatArray, trim: float) -> FloatArray:
    """Leave out the largest log-weights of one run, as long as they stand for a small part of its probability.

    One frame in a far tail of q decides the effective fraction of a thousand, and is no sign of a lost state. Frames
    stand for probability: if the draws saw nothing of a part t of it, f would be too high by -ln(1 - t), about t kT.
    Frames outside the support of q (``+inf``) are never left out.

    Args:
        forward: ``[members, T]`` values of ``ln w + f(s)`` of one run.
        trim: largest part of the frames of each member to leave out.

    Returns:
        ``[members, T - floor(trim T)]``, in ascending order.
    """
    ordered = np.sort(forward, axis=-1)
    if np.isposinf(ordered[..., -1:]).any():
        return ordered
    return ordered[..., : ordered.shape[-1] - int(trim * ordered.shape[-1])]


def compare_runs(forward: FloatArray, run: IntArray, trim: float = 0.0) -> RunAgreement | None:
    """Compare the runs; None when there is only one.

    Runs in different basins differ a little, because the flow is not equally good everywhere; a run in a state that the
    flow misses, or with a broken set-up, differs by many kT.

    Args:
        forward: ``[members, T]`` or ``[T]`` values of ``ln w + f(s)`` at held-out frames, one row per flow.
        run: ``[T]`` run of each frame, the frames of a run in the order of time.
        trim: part of each run's frames that effective fractions leave out (see :func:`kept_frames`).
    """
    members = np.atleast_2d(forward)
    labels = np.unique(run)
    if len(labels) < 2:
        return None
    kept = [kept_frames(members[:, run == label], trim).ravel() for label in labels]
    fractions, together = np.array([forward_ess_fraction(part) for part in kept]), np.concatenate(kept)
    least, fraction = int(fractions.argmin()), forward_ess_fraction(together)
    parts = [members[:, run == label].mean(axis=0) for label in labels]
    means = np.array([part.mean() for part in parts])
    if not np.isfinite(means).all():  # frames outside the support of a flow
        worst = int(np.flatnonzero(~np.isfinite(means))[0])
        certain_kT = float("inf")
        return RunAgreement(
            len(labels), certain_kT, int(labels[worst]), float(fractions[least]), int(labels[least]), fraction
        )
    errors = np.array([block_error(part) for part in parts])
    others = (means.sum() - means) / (len(means) - 1)
    others_error = np.sqrt((errors**2).sum() - errors**2) / (len(means) - 1)
    certain = np.maximum(np.abs(means - others) - CERTAINTY * np.hypot(errors, others_error), 0.0)
    worst = int(certain.argmax())
    return RunAgreement(
        len(labels), float(certain[worst]), int(labels[worst]), float(fractions[least]), int(labels[least]), fraction
    )


def block_error(values: FloatArray, blocks: int = BLOCKS) -> float:
    """Standard error of the mean of a time series ``[T]`` from the means of contiguous blocks.

    Right when a block is longer than the correlation time (H. Flyvbjerg, H. G. Petersen, doi:10.1063/1.457480); inf
    with fewer than 2 frames.
    """
    if len(values) < 2:
        return float("inf")
    means = np.array([block.mean() for block in np.array_split(values, min(blocks, len(values)))])
    return float(means.std(ddof=1) / np.sqrt(len(means)))
