"""Free energy surfaces on periodic torsion grids: histograms, and the metrics that compare surfaces.

``p`` always belongs to the reference. Everything is computed from ``f`` in kT; probabilities are ``exp(-f)`` at the
grid points, normalised over the grid. Grids, basins and files are re-exported, so that one import serves.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp, rel_entr

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.surface_files import load_surface, read_plumed_grid, save_surface, write_plumed_grid
from ccg_gmx.free_energy.torsion_grid import Basin, grid, grid_points, shifted
from ccg_gmx.records import FloatArray, FreeEnergySurface

__all__ = [
    "Basin",
    "combine_halves",
    "delta_f",
    "forward_kl",
    "grid",
    "grid_points",
    "histogram_surface",
    "jensen_shannon",
    "load_surface",
    "noise_floor",
    "probability",
    "read_plumed_grid",
    "rmsd_kT",
    "save_surface",
    "shifted",
    "smooth_periodic",
    "write_plumed_grid",
]


def histogram_surface(
    s: FloatArray,
    n: int,
    names: tuple[str, ...],
    temperature_K: float,
    log_weights: FloatArray | None = None,
    kde_degrees: float = 0.0,
) -> FreeEnergySurface:
    """Free energy of a (weighted) histogram, optionally smoothed with a wrapped Gaussian kernel.

    The kernel acts axis by axis as a circulant matrix: as quick as an FFT at these sizes, and it keeps every density
    positive, while the FFT leaves rounding noise of either sign where the density is small.

    Args:
        s: ``[T, n_s]`` radians.
        n: grid points per axis; a bin is the cell centred on its point.
        names: one per axis.
        temperature_K: temperature.
        log_weights: ``[T]``, any offset.
        kde_degrees: standard deviation of the kernel; 0 is the raw histogram, with inf where it is empty.

    Raises:
        CcgError: if there are no frames, shapes do not fit, or s is not finite.
    """
    if not s.size or not np.isfinite(s).all() or s.shape[1] != len(names):
        raise CcgError(f"frames of shape {s.shape}", expected=f"finite torsions [T, {len(names)}] with T > 0")
    cells = np.floor((s + np.pi) * n / (2 * np.pi) + 0.5).astype(np.int64) % n
    flat = np.ravel_multi_index(tuple(cells.T), (n,) * len(names))
    weights = None if log_weights is None else np.exp(log_weights - logsumexp(log_weights))
    counts = np.bincount(flat, weights, minlength=n ** len(names)).reshape((n,) * len(names)).astype(np.float64)
    density = smooth_periodic(counts, kde_degrees)
    with np.errstate(divide="ignore"):
        return shifted(-np.log(density / density.sum()), names, temperature_K)


def smooth_periodic(values: FloatArray, degrees: float) -> FloatArray:
    """Convolve values on a periodic grid (all axes of length n) with a wrapped Gaussian of that standard deviation."""
    if degrees == 0:
        return values
    n = values.shape[0]
    distance = 360.0 / n * ((np.arange(n) + n // 2) % n - n // 2)
    images = distance[:, None] + 360.0 * np.arange(-3, 4)
    kernel = np.exp(-0.5 * (images / degrees) ** 2).sum(axis=1)
    circulant = (kernel / kernel.sum())[(np.arange(n)[:, None] - np.arange(n)) % n]
    for axis in range(values.ndim):
        values = np.moveaxis(np.tensordot(circulant, values, axes=(1, axis)), 0, axis)
    return values


def probability(surface: FreeEnergySurface) -> FloatArray:
    """``exp(-f)`` normalised over the grid points, same shape as ``f``."""
    return np.exp(-surface.f - logsumexp(-surface.f))


def forward_kl(reference: FreeEnergySurface, surface: FreeEnergySurface) -> float:
    """``sum_{p>0} p ln(p / q)`` in nats; inf where the surface forbids what the reference has.

    Raises:
        CcgError: if the surfaces have different grids, axes or temperatures.
    """
    _require_alike(reference, surface)
    return _kl(probability(reference), surface.f + logsumexp(-surface.f))


def jensen_shannon(reference: FreeEnergySurface, surface: FreeEnergySurface) -> float:
    """Jensen-Shannon divergence in nats, between 0 and ln 2; always finite.

    Raises:
        CcgError: if the surfaces have different grids, axes or temperatures.
    """
    _require_alike(reference, surface)
    p, q = probability(reference), probability(surface)
    middle = 0.5 * (p + q)
    return float(0.5 * (rel_entr(p, middle) + rel_entr(q, middle)).sum())


def rmsd_kT(reference: FreeEnergySurface, surface: FreeEnergySurface, cap: float = 8.0) -> float:
    """RMSD in kT over bins whose reference f lies below ``cap``, after the best constant offset.

    Raises:
        CcgError: if the surfaces have different grids, axes or temperatures.
    """
    _require_alike(reference, surface)
    low = reference.f - reference.f.min() < cap
    difference = surface.f[low] - reference.f[low]
    return float(difference.std()) if np.isfinite(difference).all() else float("inf")


def delta_f(surface: FreeEnergySurface, basin_a: Basin, basin_b: Basin) -> float:
    """``f_A - f_B = -ln(Z_A / Z_B)`` in kT: positive when B is the more populated.

    Raises:
        CcgError: if a basin names other torsions.
    """
    points = grid(len(surface.f), surface.f.ndim)
    log_z = [logsumexp(-surface.f.ravel()[basin.mask(points, surface.names)]) for basin in (basin_a, basin_b)]
    return float(log_z[1] - log_z[0])


def noise_floor(half_a: FreeEnergySurface, half_b: FreeEnergySurface) -> float:
    """Forward KL (nats) that a reference's own noise explains, from the two independent halves it is the mean of.

    Let each half have independent relative noise of variance v per bin, so that their mean has v / 2. To second order
    ``KL(p || p (1 + d)) = 1/2 sum p d^2`` (d without its mean), so the exact surface sits at forward KL
    ``1/2 sum p v / 2 = sum p v / 4`` from the mean. The halves differ by noise of variance 2v:
    ``KL(a || b) = sum p v``. Hence the floor is KL(a, b) / 4, symmetrised. The Jensen-Shannon divergence of the halves
    is the same to second order: each lies at half the difference from the middle, ``1/2 sum p 2v / 4``. It is what is
    returned, because it stays finite where a rare bin is empty in one half; where noise is large it is the smaller of
    the two, so a comparison against the floor errs on the strict side.

    Noise that both halves share (a common bias) is invisible to it.
    """
    return jensen_shannon(half_a, half_b)


def combine_halves(
    half_a: FreeEnergySurface, half_b: FreeEnergySurface, smooth_degrees: float = 9.0
) -> FreeEnergySurface:
    """Mean of two independent surfaces, with an error per bin from their difference.

    The halves are aligned by the Boltzmann-weighted mean of their difference. Two values differing by d have a mean
    with variance d^2 / 4; d^2 is averaged over neighbouring bins (wrapped Gaussian), because a single accidental
    agreement does not mean that nothing is uncertain. A bin that one half never visited has the mean of the two
    probabilities and an unknown error (nan); one that neither visited stays inf.

    Args:
        half_a: one surface.
        half_b: the other, on the same grid.
        smooth_degrees: standard deviation of the kernel that averages squared differences.

    Raises:
        CcgError: if the surfaces have different grids, axes or temperatures, or no bin in common.
    """
    _require_alike(half_a, half_b)
    both = np.isfinite(half_a.f) & np.isfinite(half_b.f)
    if not both.any():
        raise CcgError("the two halves have no bin in common", remedy="run them longer")
    mean = np.where(both, 0.5 * (half_a.f + half_b.f), np.inf)
    weights = np.exp(-mean - logsumexp(-mean))
    difference = np.subtract(half_a.f, half_b.f, out=np.zeros_like(mean), where=both)
    offset = (weights * difference).sum()
    aligned = np.stack([half_a.f - offset / 2, half_b.f + offset / 2])
    f = np.where(both, mean, -logsumexp(-aligned, axis=0) + np.log(2))
    squares = np.where(both, (difference - offset) ** 2 / 4, 0.0)
    coverage = smooth_periodic(both.astype(np.float64), smooth_degrees)
    variance = np.divide(smooth_periodic(squares, smooth_degrees), coverage, out=np.full_like(f, np.nan), where=both)
    return shifted(f, half_a.names, half_a.temperature_K, np.sqrt(variance))


def _kl(p: FloatArray, minus_log_q: FloatArray) -> float:
    seen = p > 0
    return float((p[seen] * (np.log(p[seen]) + minus_log_q[seen])).sum())


def _require_alike(reference: FreeEnergySurface, surface: FreeEnergySurface) -> None:
    for what, a, b in (
        ("grid", reference.f.shape, surface.f.shape),
        ("torsions", reference.names, surface.names),
        ("temperature in K", reference.temperature_K, surface.temperature_K),
    ):
        if a != b:
            raise CcgError(f"a surface with {what} {b}", expected=f"that of the reference, {a}")
