"""Processes whose slow coordinates and time scales are known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ccg_gmx.cv.data import Column, CvData, Weighting

Array = NDArray[np.float64]


def frames(
    values: Array,
    *,
    dt: float = 1.0,
    run: Array | None = None,
    log_w: Array | None = None,
    weighting: Weighting = "none",
    state: Array | None = None,
    states: tuple[str, ...] = (),
) -> CvData:
    """Values ``[T, n]`` as frames of columns x0, x1, ..."""
    total = len(values)
    labels = np.zeros(total, dtype=np.int64) if run is None else run
    time = dt * np.concatenate([np.arange(n) for n in np.unique(labels, return_counts=True)[1]])
    columns = tuple(Column(f"x{k}") for k in range(values.shape[1]))
    nothing = np.zeros(total, dtype=np.int64)
    return CvData(values, columns, labels, time, nothing if state is None else state, states, log_w, weighting)


def ornstein_uhlenbeck(times: Array, total: int, rng: np.random.Generator) -> Array:
    """Exact samples ``[total, n]`` a time 1 apart: independent, variance 1, these relaxation times."""
    from scipy.signal import lfilter

    keep = np.exp(-1.0 / times)
    noise = rng.normal(size=(total, len(times)))
    noise[1:] *= np.sqrt(1 - keep**2)
    return np.stack([lfilter([1.0], [1.0, -k], column) for k, column in zip(keep, noise.T, strict=True)], axis=1)


def double_well(total: int, every: int, rng: np.random.Generator, barrier: float = 3.0, bias: float = 0.0) -> Array:
    """Positions ``[total]`` in barrier (x^2 - 1)^2 (1 - bias) kT, steps of dt 2e-3 and D 1, every so-manyth kept."""
    from numba import njit

    @njit
    def walk(noise: Array, x: float, factor: float, every: int, out: Array) -> None:
        step = 2e-3
        for t in range(len(noise)):
            x += -factor * 4 * x * (x * x - 1) * step + np.sqrt(2 * step) * noise[t]
            if t % every == 0:
                out[t // every] = x

    out = np.empty(total)
    walk(rng.normal(size=total * every), 1.0, barrier * (1 - bias), every, out)
    return out


def double_well_eigenvalue(lag: float, barrier: float, bias: float = 0.0) -> float:
    """Second eigenvalue at the lag of the double well, or of it after the time under a bias has been stretched.

    Diffusion on a grid: rates between neighbours from D(x) pi(x); stretched time has D(x) exp(-V) / <exp(V)>_b.
    """
    x = np.linspace(-1.9, 1.9, 1201)  # beyond, the stretched diffusion is too fast for float64
    h = x[1] - x[0]
    u = barrier * (x**2 - 1) ** 2
    v = -bias * u
    weight = np.exp(-u - v)
    speed = np.exp(-v) * (np.exp(v) * weight).sum() / weight.sum()
    pi = np.exp(-u)
    middle = np.sqrt(pi[1:] * pi[:-1]) * np.sqrt(speed[1:] * speed[:-1]) / h**2
    off = middle / np.sqrt(pi[1:] * pi[:-1])
    diagonal = -(np.append(middle, 0) + np.insert(middle, 0, 0)) / pi
    from scipy.linalg import eigh_tridiagonal

    rates = eigh_tridiagonal(diagonal, off, eigvals_only=True, select="i", select_range=(len(x) - 2, len(x) - 1))
    return float(np.exp(rates[0] * lag))


def xor(total: int, flip: float, noise: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """A hidden sign that flips seldom and shows only in the product of x0 and x1: ``([T, 2], [T])``."""
    hidden = np.where(np.cumsum(rng.random(total) < flip) % 2, 1.0, -1.0)
    fast = rng.choice([-1.0, 1.0], total)
    return np.stack([fast, fast * hidden], axis=1) + noise * rng.normal(size=(total, 2)), hidden
