# mypy: ignore-errors
"""The formulas of ``implicit.py`` compiled, for one block of frames at a time, frame by lane as in ``kernel_terms.py``.

Four passes over atoms and pairs: descreening integrals; Born radii with the energies of single atoms; pair energies,
which complete the derivative by every Born radius; forces. What a later pass needs of a pair is kept in between.

numba takes cached code for current as long as this file is unchanged: after an edit of kernel_math.py touch it too.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ccg_gmx.molecule.kernel_lanes import (
    add3,
    dot,
    inlined,
    lane_count,
    load,
    load3,
    magnitude,
    minus,
    root,
    splat,
    store,
    times,
    where_less,
)
from ccg_gmx.molecule.kernel_math import exponential, hyperbolic_tangent, larger, logarithm


@inlined
def descreen(distance, inverse, own, scaled):
    """Return the integral of :func:`ccg_gmx.molecule.implicit.descreening` and its derivative."""
    inner, radius = scaled - distance, splat(distance, own)
    low, high = larger(magnitude(inner), radius), larger(distance + scaled, radius)
    both = 1.0 / (low * high)  # one division for three quotients
    lower, upper = high * both, low * both
    ln = logarithm(low * upper) * (0.25 * inverse)
    difference, total = lower - upper, lower + upper
    ratio = scaled * inverse
    square = ratio * ratio
    integral = ((square - 1.0) * (0.125 * distance) * total + 0.5) * difference + ln
    swallowed = where_less(radius, inner, 1.0 / own - lower, splat(distance, 0.0))
    return integral + swallowed, (square + 1.0) * (-0.125) * total * difference - ln * inverse


@inlined
def integrals(x, sums, slopes, closest, count, offset, scaled):
    """Pass 1: descreening integrals of all atoms into ``sums``; their derivatives by distance into ``slopes``."""
    sums[:] = 0.0
    pair = 0
    for i in range(len(offset)):
        here, mine = load3(x, 3 * i * count, count), load(sums, i * count)
        for j in range(i + 1, len(offset)):
            delta = minus(here, load3(x, 3 * j * count, count))
            squared = dot(delta, delta)
            distance = root(larger(squared, splat(squared, closest)))
            inverse = 1.0 / distance
            forth, forth_slope = descreen(distance, inverse, offset[i], scaled[j])
            back, back_slope = descreen(distance, inverse, offset[j], scaled[i])
            mine = mine + forth
            store(sums, j * count, load(sums, j * count) + back)
            store(slopes, 2 * pair * count, forth_slope)
            store(slopes, (2 * pair + 1) * count, back_slope)
            pair += 1
        store(sums, i * count, mine)


@inlined
def born_radii(sums, born, by_born, by_integral, energy, count, atoms, rescaling):
    """Pass 2: Born radii, energies of single atoms, and derivatives of both."""
    offset, _, radius, own_energy, surface, _ = atoms
    alpha, beta, gamma = rescaling
    for i in range(len(offset)):
        psi = load(sums, i * count) * offset[i]
        tangent = hyperbolic_tangent(psi * (alpha + psi * (psi * gamma - beta)))
        value = 1.0 / (1.0 / offset[i] - tangent / radius[i])
        slope = alpha + psi * (psi * (3.0 * gamma) - 2.0 * beta)
        inverse = 1.0 / value
        cube = inverse * inverse * inverse
        polarisation, covered = own_energy[i] * inverse, surface[i] * cube * cube
        energy = energy + (polarisation + covered)
        store(born, i * count, value)
        store(by_born, i * count, 0.0 - (polarisation + 6.0 * covered) * inverse)
        store(by_integral, i * count, value * value * (1.0 - tangent * tangent) * slope * (offset[i] / radius[i]))
    return energy


@inlined
def screened_pairs(x, born, by_born, pushes, energy, closest, count, charges, factor):
    """Pass 3: pair energies; derivatives by the Born radii, and twice those by r^2 into ``pushes``."""
    pair = 0
    for i in range(len(charges)):
        here, mine, pull = load3(x, 3 * i * count, count), load(born, i * count), load(by_born, i * count)
        for j in range(i + 1, len(charges)):
            delta, theirs = minus(here, load3(x, 3 * j * count, count)), load(born, j * count)
            squared = dot(delta, delta)
            squared = larger(squared, splat(squared, closest))
            product = mine * theirs
            ratio = 0.25 * squared / product
            decay = exponential(0.0 - ratio)
            inverse = 1.0 / root(squared + product * decay)
            term = (factor * charges[i] * charges[j]) * inverse
            energy = energy + term
            by_f2 = -0.5 * term * inverse * inverse
            by_product = by_f2 * decay * (1.0 + ratio)
            pull = pull + by_product * theirs
            store(by_born, j * count, load(by_born, j * count) + by_product * mine)
            store(pushes, pair * count, by_f2 * (2.0 - 0.5 * decay))
            pair += 1
        store(by_born, i * count, pull)
    return energy


@inlined
def add_forces(x, gradient, slopes, pushes, by_born, by_integral, closest, count):
    """Pass 4: the gradient, from the derivatives by distances and Born radii."""
    n_atoms, pair = len(x) // (3 * count), 0
    for i in range(n_atoms):
        here = load3(x, 3 * i * count, count)
        mine = load(by_born, i * count) * load(by_integral, i * count)
        nothing = splat(mine, 0.0)
        total = (nothing, nothing, nothing)
        for j in range(i + 1, n_atoms):
            delta = minus(here, load3(x, 3 * j * count, count))
            squared = dot(delta, delta)
            inverse = 1.0 / root(larger(squared, splat(squared, closest)))
            theirs = load(by_born, j * count) * load(by_integral, j * count)
            slope = load(slopes, 2 * pair * count) * mine + load(slopes, (2 * pair + 1) * count) * theirs
            push = times(slope * inverse + load(pushes, pair * count), delta)
            total = (total[0] + push[0], total[1] + push[1], total[2] + push[2])
            add3(gradient, 3 * j * count, count, times(-1.0, push))
            pair += 1
        add3(gradient, 3 * i * count, count, total)


@njit(nogil=True, cache=True, error_model="numpy")
def solvation_of_frames(positions, gradient, energies, work, count, atoms, rescaling, constants):
    """Fill ``energies`` and ``gradient`` block by block; the last block repeats its last frame in the lanes left."""
    x, forces, sums, born, by_born, by_integral, slopes, pushes = work
    factor, closest = constants
    n_frames, width = positions.shape[0], positions.shape[1] * 3
    flat = positions.reshape(n_frames, width)
    lanes = np.empty(count, positions.dtype)
    for start in range(0, n_frames, count):
        present = min(count, n_frames - start)
        for lane in range(count):
            frame = start + min(lane, present - 1)
            for column in range(width):
                x[column * count + lane] = flat[frame, column]
        energy = splat(load(x, 0), 0.0)
        integrals(x, sums, slopes, closest, count, atoms[0], atoms[1])
        energy = born_radii(sums, born, by_born, by_integral, energy, count, atoms, rescaling)
        energy = screened_pairs(x, born, by_born, pushes, energy, closest, count, atoms[5], factor)
        store(lanes, 0, energy)
        energies[start : start + present] = lanes[:present]
        if gradient is not None:
            forces[:] = 0.0
            add_forces(x, forces, slopes, pushes, by_born, by_integral, closest, count)
            target = gradient.reshape(n_frames, width)
            for lane in range(present):
                for column in range(width):
                    target[start + lane, column] = forces[column * count + lane]


class SolventKernel:
    """Compiled energy and gradient of one molecule's solvent term.

    Args:
        atoms: six rows ``[N]``: offset radius, screened offset radius, radius (nm), energy times Born radius
            (kJ/mol nm), surface energy times its sixth power (kJ/mol nm^6), charge (e).
        rescaling: alpha, beta, gamma of the Born radii.
        factor: energy of a pair of unit charges times distance, kJ/mol nm.
        closest_nm: nearer pairs count as this far apart.
        dtype: float64 or float32.
    """

    def __init__(
        self,
        atoms: tuple[NDArray[np.float64], ...],
        rescaling: tuple[float, float, float],
        factor: float,
        closest_nm: float,
        dtype: Any,
    ) -> None:
        self.dtype = np.dtype(dtype)
        self._count, self._n_atoms = lane_count(self.dtype), len(atoms[0])
        self._atoms = tuple(np.ascontiguousarray(row, self.dtype) for row in atoms)
        self._rescaling = tuple(map(float, rescaling))
        self._constants = (float(factor), float(closest_nm**2))

    def __call__(self, positions: NDArray[Any], gradient: NDArray[Any] | None, threads: int = 1) -> NDArray[Any]:
        """Return energies ``[B]`` in kJ/mol and write their gradient, if asked for.

        Args:
            positions: ``[B, N, 3]`` nm, contiguous.
            gradient: ``[B, N, 3]`` kJ/mol/nm to be written, or None.
            threads: how many threads share the frames.
        """
        energy = np.empty(len(positions), self.dtype)
        share = -(-len(positions) // threads)
        share = max(share + -share % self._count, 1)
        jobs = []
        for start in range(0, len(positions), share):
            part = slice(start, start + share)
            jobs.append(self.job(positions[part], None if gradient is None else gradient[part], energy[part]))
        others = [threading.Thread(target=solvation_of_frames, args=job) for job in jobs[1:]]
        for thread in others:
            thread.start()
        for job in jobs[:1]:
            solvation_of_frames(*job)
        for thread in others:
            thread.join()
        return energy

    def job(self, positions: NDArray[Any], gradient: NDArray[Any] | None, energy: NDArray[Any]) -> tuple[Any, ...]:
        """Return the arguments of ``solvation_of_frames`` for these arrays, with work space of their own.

        Args:
            positions: ``[B, N, 3]`` nm, contiguous.
            gradient: ``[B, N, 3]`` kJ/mol/nm to be written, or None.
            energy: ``[B]`` kJ/mol to be written.
        """
        constants = (self._atoms, self._rescaling, self._constants)
        return positions, gradient, energy, self._work(), self._count, *constants

    def _work(self) -> tuple[NDArray[Any], ...]:
        """Arrays of one thread: positions, forces; four of atoms; two derivatives and one push of every pair."""
        n, pairs = self._n_atoms, self._n_atoms * (self._n_atoms - 1) // 2
        return tuple(np.empty(size * self._count, self.dtype) for size in (3 * n, 3 * n, n, n, n, n, 2 * pairs, pairs))
