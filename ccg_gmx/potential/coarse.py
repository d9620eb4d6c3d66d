"""The fitted coarse potential: values, forces, tables, exact sampling, and its file.

The potential is one per Cartesian volume of the beads, as GROMACS needs it. Its Boltzmann density flat in (s, b) is
``exp(-U / kT) J_beads(b)``; because U is separable, every coordinate (the torsions jointly) is independent of the
others under it, and both the normalisation and the sampling are one- or two-dimensional quadratures.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.special import logsumexp

from ccg_gmx.errors import CheckpointError, SettingsError
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.potential.basis import SeparableBasis, SplineTerm, TorsionGrid
from ccg_gmx.records import FloatArray
from ccg_gmx.units import thermal_energy

FILE_VERSION = 1
_FINE_CELLS = {1: 4096, 2: 360}  # cells per torsion of the rejection sampler's envelope
_QUANTILE_POINTS = 8193  # points of the inverse distribution function of one bond or angle


@dataclass(frozen=True)
class FitResidual:
    """How well the separable form describes the data; force and A entries are Boltzmann-weighted.

    Attributes:
        force_rms: ``[n_s + n_b]`` rms of mean force minus model, kT/radian or kT/nm (noise included).
        force_noise: ``[n_s + n_b]`` the part of ``force_rms`` that the stated errors explain.
        energy_rms: rms of bead free energy minus model, constant removed, kT; nan when no A rows were given.
        surface_rms: rms of F minus G over the bins below the cap, constant removed, kT.
        unknown_bins: bins of the surface without a value, where G is only smooth.
    """

    force_rms: FloatArray
    force_noise: FloatArray
    energy_rms: float
    surface_rms: float
    unknown_bins: int


@dataclass(frozen=True)
class CoarsePotential:
    """Separable coarse potential ``U(s, b) = kT [G(s) + sum_i U_i(b_i)]``.

    Attributes:
        basis: torsion grid and spline terms.
        coefficients: ``[P]`` kT; each block is shifted to a minimum of zero.
        covariance: ``[P, P]`` kT^2, of the coefficients relative to the mean of their block (a potential has no zero).
        temperature_K: temperature it was fitted at.
        residual: quality of the fit.
    """

    basis: SeparableBasis
    coefficients: FloatArray
    covariance: FloatArray
    temperature_K: float
    residual: FitResidual

    @property
    def kT(self) -> float:
        """Thermal energy in kJ/mol."""
        return thermal_energy(self.temperature_K)

    @cached_property
    def _walls(self) -> FloatArray:
        """Curvature to add below and above each term's range, ``[n_b, 2]`` kT/unit^2, so that it is steep enough."""
        walls = np.zeros((self.basis.n_b, 2))
        for i, term in enumerate(self.basis.terms):
            curvature = term.design(np.array([term.lo, term.hi]), 2) @ self._block(i + 1)
            walls[i] = np.maximum(term.min_curvature - curvature, 0.0)
        return walls

    def _block(self, i: int) -> FloatArray:
        return self.coefficients[self.basis.blocks[i]]

    def _term(self, i: int, x: FloatArray, order: int = 0) -> FloatArray:
        """Term i or its slope, walls included, ``[M]`` kT (per unit)."""
        term, walls = self.basis.terms[i], self._walls[i]
        below, above = np.minimum(x - term.lo, 0.0), np.maximum(x - term.hi, 0.0)
        wall = walls[0] * below + walls[1] * above
        if order == 0:
            wall = 0.5 * wall * (below + above)
        return np.asarray(term.design(x, order) @ self._block(i + 1) + wall)

    def values(self, s: FloatArray, b: FloatArray) -> FloatArray:
        """Potential ``[M]`` kJ/mol at ``s [M, n_s]`` radians and ``b [M, n_b]`` nm and radians."""
        u = self.basis.torsions.design(s) @ self._block(0)
        return self.kT * (u + np.sum([self._term(i, b[:, i]) for i in range(self.basis.n_b)], axis=0))

    def gradients(self, s: FloatArray, b: FloatArray) -> FloatArray:
        """Derivatives ``[M, n_s + n_b]`` kJ/mol per radian or nm, of :meth:`values` by (s, b)."""
        by_s = [self.basis.torsions.design(s, axis=i) @ self._block(0) for i in range(self.basis.n_s)]
        by_b = [self._term(i, b[:, i], 1) for i in range(self.basis.n_b)]
        return self.kT * np.stack(by_s + by_b, axis=1)

    def term_table(self, i: int, r: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Values and slopes of term ``i`` at ``r [R]``: kJ/mol and kJ/mol per nm or radian, ``[R]`` each."""
        r = np.asarray(r, dtype=np.float64)
        return self.kT * self._term(i, r), self.kT * self._term(i, r, 1)

    def grid(self, n: int, orders: tuple[int, ...] | None = None) -> FloatArray:
        """Torsion potential at ``-pi + i * 2 pi / n``: ``[n]`` or ``[n, n]`` (first torsion first) kJ/mol.

        Args:
            n: points per torsion.
            orders: derivative order per torsion (per radian); values by default.
        """
        return self.kT * self.basis.torsions.on_grid(self._block(0), n, orders)

    def grid_error(self, n: int) -> FloatArray:
        """Standard error of :meth:`grid` relative to its mean, same shape, kJ/mol."""
        points = np.linspace(-math.pi, math.pi, n, endpoint=False)
        mesh = np.stack(np.meshgrid(*(points,) * self.basis.n_s, indexing="ij"), axis=-1)
        design = self.basis.torsions.design(mesh.reshape(-1, self.basis.n_s))
        block = self.basis.blocks[0]
        variance = np.asarray((design @ self.covariance[block, block] * design.toarray()).sum(axis=1))
        return self.kT * np.sqrt(variance).reshape(mesh.shape[:-1])

    def term_error(self, i: int, r: FloatArray) -> FloatArray:
        """Standard error of term ``i`` at ``r [R]``, relative to the mean of its coefficients, kJ/mol ``[R]``."""
        design, block = self.basis.terms[i].design(r).toarray(), self.basis.blocks[i + 1]
        return self.kT * np.sqrt(np.einsum("rp,pq,rq->r", design, self.covariance[block, block], design))

    # ---- the Boltzmann density flat in (s, b)

    def log_density_s(self, s: FloatArray, temperature_factor: float = 1.0) -> FloatArray:
        """Log-density of the torsions at a raised temperature, per radian^n_s.

        Args:
            s: ``[M, n_s]`` radians.
            temperature_factor: temperature over ``temperature_K``.

        Returns:
            ``[M]``, normalised: ``-G(s) / factor - ln int exp(-G / factor) ds``.
        """
        factor = _positive(temperature_factor)
        n, n_s = _FINE_CELLS[self.basis.n_s], self.basis.n_s
        # Periodic and smooth: the rectangle rule is as good as any.
        log_z = logsumexp(-self.grid(n) / (self.kT * factor)) + n_s * math.log(2.0 * math.pi / n)
        return np.asarray(-(self.basis.torsions.design(s) @ self._block(0)) / factor - log_z)

    def log_density_b(self, b: FloatArray) -> FloatArray:
        """Log-density of the bead bonds and angles, ``[M]``, per nm^bonds radian^angles; -inf outside their support."""
        total = np.zeros(len(b))
        for i in range(self.basis.n_b):
            points, _, log_z = self._profile(i)
            inside = (b[:, i] > points[0]) & (b[:, i] < points[-1])
            x = np.where(inside, b[:, i], self.basis.terms[i].lo + 0.5 * self.basis.terms[i].spacing)
            value = self.basis.terms[i].log_jacobian(x) - self._term(i, x) - log_z
            total += np.where(inside, value, -np.inf)
        return total

    def log_density(self, s: FloatArray, b: FloatArray) -> FloatArray:
        """Normalised log-density ``[M]`` of ``exp(-U / kT) J_beads``, flat in (s, b)."""
        return self.log_density_s(s) + self.log_density_b(b)

    def sample_s(self, n: int, seed: int, temperature_factor: float = 1.0) -> FloatArray:
        """Independent torsions from :meth:`log_density_s`, by rejection from a piecewise constant envelope.

        The envelope is exact, not a guess: within a cell G differs from its centre by at most what the slope there
        and the largest second derivative of the spline (bounded by its coefficients) allow.

        Args:
            n: draws.
            seed: of the generator.
            temperature_factor: temperature over ``temperature_K``; raise it to propose beyond the basins.

        Returns:
            ``[n, n_s]`` radians in [-pi, pi).
        """
        factor, rng = _positive(temperature_factor), np.random.default_rng(seed)
        cells, n_s = _FINE_CELLS[self.basis.n_s], self.basis.n_s
        width = 2.0 * math.pi / cells
        lower = self._cell_lower_bound(cells)
        log_mass = -lower.ravel() / factor
        cumulative = np.cumsum(np.exp(log_mass - log_mass.max()))
        drawn, missing = [np.zeros((0, n_s))], n
        while missing > 0:
            uniform = rng.random(2 * missing + 16) * cumulative[-1]
            cell = np.searchsorted(cumulative, uniform, side="right")
            index = np.stack(np.unravel_index(cell, lower.shape), axis=1)
            s = -math.pi + (index + rng.random(index.shape) - 0.5) * width
            g = self.basis.torsions.design(s) @ self._block(0)
            keep = np.log(rng.random(len(s))) < -g / factor - log_mass[cell]
            drawn.append(s[keep][:missing])
            missing -= len(drawn[-1])
        s = np.concatenate(drawn)
        return np.where(s < -math.pi, s + 2.0 * math.pi, s)

    def _cell_lower_bound(self, cells: int) -> FloatArray:
        """Lower bound of G (kT) in each cell of ``cells`` per torsion, cells centred on the grid points."""
        half, n_s, h = math.pi / cells, self.basis.n_s, self.basis.torsions.spacing
        c = self._block(0).reshape((self.basis.torsions.knots,) * n_s)
        curvature = [np.abs(np.roll(c, 1, i) - 2 * c + np.roll(c, -1, i)).max() / h**2 for i in range(n_s)]
        bound = 0.5 * half**2 * sum(curvature)
        if n_s == 2:
            mixed = c - np.roll(c, 1, 0) - np.roll(c, 1, 1) + np.roll(c, 1, (0, 1))
            bound += half**2 * np.abs(mixed).max() / h**2
        slopes = [self.grid(cells, tuple(int(i == j) for j in range(n_s))) for i in range(n_s)]
        return (self.grid(cells) - half * np.sum(np.abs(slopes), axis=0)) / self.kT - bound

    def term_density(self, i: int) -> tuple[FloatArray, FloatArray]:
        """Points ``[R]`` (nm or radians) and the normalised log-density of ``b_i`` there, flat in ``b_i``."""
        points, log_p, log_z = self._profile(i)
        return points, log_p - log_z

    def _profile(self, i: int) -> tuple[FloatArray, FloatArray, float]:
        """Points, unnormalised log-density of ``b_i``, log of its integral.

        The wall is at least ``min_curvature`` stiff, so the range leaves out about exp(-100) of the mass.
        """
        term = self.basis.terms[i]
        reach = max(math.sqrt(200.0 / term.min_curvature) if term.min_curvature > 0 else 0.0, term.hi - term.lo)
        top = math.inf if term.coordinate.kind == "bond" else math.pi
        points = np.linspace(max(term.lo - reach, 0.0), min(term.hi + reach, top), _QUANTILE_POINTS, dtype=np.float64)
        with np.errstate(divide="ignore"):  # ln 0 at the ends of the support is the density 0 that is meant
            log_p = term.log_jacobian(points) - self._term(i, points)
        return points, log_p, float(logsumexp(log_p, b=_trapezoid(points)))

    def sample_b(self, n: int, seed: int) -> FloatArray:
        """Independent bead bonds and angles from :meth:`log_density_b`, by inverse distribution; ``[n, n_b]``."""
        rng = np.random.default_rng(seed)
        b = np.empty((n, self.basis.n_b))
        for i in range(self.basis.n_b):
            points, log_p = self.term_density(i)
            density = np.exp(log_p)
            mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(points))])
            b[:, i] = np.interp(rng.random(n) * mass[-1], mass, points)
        return b

    def sample(self, n: int, seed: int) -> tuple[FloatArray, FloatArray]:
        """Independent ``(s [n, n_s], b [n, n_b])`` from the coarse Boltzmann density flat in (s, b)."""
        of_s, of_b = np.random.SeedSequence(seed).generate_state(2)
        return self.sample_s(n, int(of_s)), self.sample_b(n, int(of_b))

    # ---- file

    def save(self, path: Path) -> None:
        """Write everything to one npz file, under a temporary name first."""
        header = {
            "version": FILE_VERSION,
            "temperature_K": self.temperature_K,
            "torsions": asdict(self.basis.torsions),
            "terms": [asdict(term) for term in self.basis.terms],
            "residual": {
                name: np.asarray(value, dtype=np.float64).tolist() for name, value in vars(self.residual).items()
            },
        }
        temporary = path.with_name(f".{path.name}.part")
        with temporary.open("wb") as file:
            np.savez(file, header=json.dumps(header), coefficients=self.coefficients, covariance=self.covariance)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> CoarsePotential:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: if the file is no coarse potential, or of another version.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                header = json.loads(str(data["header"]))
                coefficients, covariance = data["coefficients"], data["covariance"]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{path} is no coarse potential ({error})", remedy="fit it again") from error
        if header.get("version") != FILE_VERSION:
            raise CheckpointError(
                f"{path} has version {header.get('version')}", expected=str(FILE_VERSION), remedy="fit it again"
            )
        terms = tuple(SplineTerm(**{**t, "coordinate": Coordinate(**t["coordinate"])}) for t in header["terms"])
        torsions = TorsionGrid(tuple(header["torsions"]["names"]), header["torsions"]["knots"])
        residual = header["residual"]
        return cls(
            basis=SeparableBasis(terms, torsions),
            coefficients=coefficients,
            covariance=covariance,
            temperature_K=header["temperature_K"],
            residual=FitResidual(
                force_rms=np.array(residual["force_rms"]),
                force_noise=np.array(residual["force_noise"]),
                energy_rms=residual["energy_rms"],
                surface_rms=residual["surface_rms"],
                unknown_bins=int(residual["unknown_bins"]),
            ),
        )


def _positive(factor: float) -> float:
    if not (math.isfinite(factor) and factor > 0):
        raise SettingsError(f"temperature factor {factor}", expected="a positive number")
    return factor


def _trapezoid(points: FloatArray) -> FloatArray:
    """Weights of the trapezoid rule on ``points [R]``."""
    steps = np.diff(points)
    return 0.5 * (np.concatenate([steps, [0.0]]) + np.concatenate([[0.0], steps]))
