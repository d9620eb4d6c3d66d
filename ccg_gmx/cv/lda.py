"""Linear discriminants: directions along which states are far apart for their width.

Harmonic: Mendels, Piccini, Parrinello 2018, doi:10.1021/acs.jpclett.8b00733; of several states, Piccini, Mendels,
Parrinello 2018, doi:10.1021/acs.jctc.8b00634. Plain: Fisher 1936, doi:10.1111/j.1469-1809.1936.tb02137.x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, eigh

from ccg_gmx.errors import CcgError, SettingsError
from ccg_gmx.records import FloatArray, IntArray


@dataclass(frozen=True)
class Lda:
    """Directions ``(x - mean) @ vectors``, the most telling first; the width within the states is 1 along each.

    Attributes:
        mean: ``[F]`` mean of the states' centres.
        vectors: ``[F, k]``.
        eigenvalues: ``[k]`` variance between the states over that within.
    """

    mean: FloatArray
    vectors: FloatArray
    eigenvalues: FloatArray


def require_states(state: IntArray, names: tuple[str, ...]) -> None:
    """Refuse data that tell no states apart.

    Args:
        state: ``[T]`` state of each frame.
        names: of the states.

    Raises:
        SettingsError: fewer than two states, or one with fewer than two frames.
    """
    if len(names) < 2:
        found = f"one state, {names[0]}" if names else "no states"
        raise SettingsError(found, expected="at least two", remedy="give --state NAME=FILE for each")
    counts = np.bincount(state, minlength=len(names))
    if counts.min() < 2:
        raise SettingsError(f"state {names[counts.argmin()]} has {counts.min()} frames", expected="at least two")


def lda(
    x: FloatArray,
    state: IntArray,
    names: tuple[str, ...],
    weights: FloatArray,
    count: int,
    *,
    harmonic: bool = True,
    ridge: float = 1e-4,
) -> Lda:
    """Find the directions.

    Args:
        x: ``[T, F]`` features, of variance about 1.
        state: ``[T]``.
        names: of the states.
        weights: ``[T]``.
        count: number of directions, at most one fewer than there are states.
        harmonic: harmonic mean of the states' covariances, in which narrow states count more; else their plain mean.
        ridge: added to the variance of every feature in every state.

    Raises:
        SettingsError: too few states, or too many directions.
        CcgError: if the covariances are singular.
    """
    require_states(state, names)
    if not 1 <= count <= min(len(names) - 1, x.shape[1]):
        raise SettingsError(
            f"{count} discriminants of {len(names)} states and {x.shape[1]} features",
            expected=f"at most {min(len(names) - 1, x.shape[1])}",
        )
    centres, spreads = zip(*(_moments(x[state == k], weights[state == k]) for k in range(len(names))), strict=True)
    unit = np.eye(x.shape[1])
    spread = [c + ridge * unit for c in spreads]
    middle = np.mean(centres, axis=0)
    between = np.mean([np.outer(c - middle, c - middle) for c in centres], axis=0)
    try:
        within = np.linalg.inv(np.mean([np.linalg.inv(c) for c in spread], axis=0)) if harmonic else np.mean(spread, 0)
        values, vectors = eigh(between, 0.5 * (within + within.T))
    except (LinAlgError, np.linalg.LinAlgError) as error:
        raise CcgError(
            "the covariance within a state is singular", remedy="use a larger --ridge or fewer columns"
        ) from error
    vectors = vectors[:, ::-1][:, :count]
    # the last state lies at larger values than the first
    sign = np.where((centres[-1] - centres[0]) @ vectors < 0, -1.0, 1.0)
    return Lda(middle, vectors * sign, values[::-1][:count])


def _moments(x: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    p = weights / weights.sum()
    centre = p @ x
    away = x - centre
    return centre, (p[:, None] * away).T @ away
