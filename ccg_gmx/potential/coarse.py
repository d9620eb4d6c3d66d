"""The fitted coarse potential: values, forces, tables, exact sampling, and its file.

The potential is one per Cartesian volume of the beads, as GROMACS needs it. Its Boltzmann density flat in (s, b) is
``exp(-U / kT) J_beads(b)``; because U is separable, every coordinate (the torsions of one map jointly) is independent
of the others under it, and both the normalisation and the sampling are one- or two-dimensional quadratures.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logsumexp

from ccg_gmx.errors import CheckpointError, SettingsError
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.potential.basis import PeriodicTerm, SeparableBasis, SplineTerm, Term, TorsionGrid, TorsionMaps
from ccg_gmx.records import FloatArray
from ccg_gmx.units import thermal_energy

FILE_VERSION = 2
_READABLE = (1, 2)  # version 1 knew a single map and neither torsion terms nor surface_kl
_FINE_CELLS = {1: 4096, 2: 360}  # cells per torsion of the rejection sampler's envelope
_QUANTILE_POINTS = 8193  # points of the inverse distribution function of one bond or angle


@dataclass(frozen=True)
class FitResidual:
    """How well the separable form describes the data; force and A entries are Boltzmann-weighted.

    Attributes:
        force_rms: ``[n_s + n_b]`` rms of mean force minus model, kT/radian or kT/nm (noise included).
        force_noise: ``[n_s + n_b]`` the part of ``force_rms`` that the stated errors explain.
        energy_rms: rms of bead free energy minus model, constant removed, kT; nan when no A rows were given.
        surface_rms: rms of each map's marginal of F minus the map, over the bins below the cap, constants removed, kT.
        unknown_bins: bins of the surface without a value, where G is only smooth.
        surface_kl: Kullback-Leibler divergence of ``exp(-G)`` from ``exp(-F)``, both normalised over the surface's
            grid, nats. With several maps it is the correlation between them that the model cannot have (the total
            correlation of the maps' torsions); with one map, what smoothing changed. nan: not known.
    """

    force_rms: FloatArray
    force_noise: FloatArray
    energy_rms: float
    surface_rms: float
    unknown_bins: int
    surface_kl: float = math.nan


@dataclass(frozen=True)
class CoarsePotential:
    """Separable coarse potential ``U(s, b) = kT [sum_m G_m(s_m) + sum_i U_i(b_i)]``.

    Attributes:
        basis: maps over the torsions and terms of the other bead coordinates.
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
        walls = [term.walls(self._of_term(i)) for i, term in enumerate(self.basis.terms)]
        return np.array(walls, dtype=np.float64).reshape(-1, 2)

    def _of_map(self, k: int) -> FloatArray:
        """Coefficients of map k."""
        return self.coefficients[self.basis.blocks[k]]

    def _of_term(self, i: int) -> FloatArray:
        """Coefficients of term i."""
        return self.coefficients[self.basis.blocks[self.basis.n_maps + i]]

    def _map(self, k: int, s: FloatArray, axis: int | None = None) -> FloatArray:
        """Map k or its slope by torsion ``axis`` at ``s [M, n_s]``, ``[M]`` kT (per radian)."""
        return np.asarray(self.basis.maps.map_design(k, s, axis) @ self._of_map(k))

    def _term(self, i: int, x: FloatArray, order: int = 0) -> FloatArray:
        """Term i or its slope, walls included, ``[M]`` kT (per unit)."""
        term = self.basis.terms[i]
        return np.asarray(term.design(x, order) @ self._of_term(i) + term.wall(x, self._walls[i], order))

    def values(self, s: FloatArray, b: FloatArray) -> FloatArray:
        """Potential ``[M]`` kJ/mol at ``s [M, n_s]`` radians and ``b [M, n_b]`` nm and radians."""
        u = np.sum([self._map(k, s) for k in range(self.basis.n_maps)], axis=0)
        return self.kT * (u + np.sum([self._term(i, b[:, i]) for i in range(self.basis.n_b)], axis=0))

    def gradients(self, s: FloatArray, b: FloatArray) -> FloatArray:
        """Derivatives ``[M, n_s + n_b]`` kJ/mol per radian or nm, of :meth:`values` by (s, b)."""
        by_s = [self._map(self.basis.maps.map_of[i], s, axis=i) for i in range(self.basis.n_s)]
        by_b = [self._term(i, b[:, i], 1) for i in range(self.basis.n_b)]
        return self.kT * np.stack(by_s + by_b, axis=1)

    def term_table(self, i: int, r: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Values and slopes of term ``i`` at ``r [R]``: kJ/mol and kJ/mol per nm or radian, ``[R]`` each."""
        r = np.asarray(r, dtype=np.float64)
        return self.kT * self._term(i, r), self.kT * self._term(i, r, 1)

    def map_grid(self, k: int, n: int, orders: tuple[int, ...] | None = None) -> FloatArray:
        """Map ``k`` at ``-pi + i * 2 pi / n`` of its torsions: ``[n]`` or ``[n, n]`` kJ/mol.

        Args:
            k: map.
            n: points per torsion.
            orders: derivative order per torsion of the map (per radian); values by default.
        """
        return self.kT * self.basis.maps.grids[k].on_grid(self._of_map(k), n, orders)

    def map_error(self, k: int, n: int) -> FloatArray:
        """Standard error of :meth:`map_grid` relative to its mean, same shape, kJ/mol."""
        grid, block = self.basis.maps.grids[k], self.basis.blocks[k]
        points = np.linspace(-math.pi, math.pi, n, endpoint=False)
        mesh = np.stack(np.meshgrid(*(points,) * len(grid.names), indexing="ij"), axis=-1)
        design = grid.design(mesh.reshape(-1, len(grid.names)))
        variance = np.asarray((design @ self.covariance[block, block] * design.toarray()).sum(axis=1))
        return self.kT * np.sqrt(variance).reshape(mesh.shape[:-1])

    def grid(self, n: int, orders: tuple[int, ...] | None = None) -> FloatArray:
        """Torsion potential, the sum of all maps, at ``-pi + i * 2 pi / n``: ``[n] * n_s`` (in the order of s) kJ/mol.

        Args:
            n: points per torsion.
            orders: derivative order per torsion (per radian); values by default.
        """
        n_s, maps = self.basis.n_s, self.basis.maps
        orders = orders or (0,) * n_s
        total = np.zeros((n,) * n_s)
        for k, columns in enumerate(maps.columns):
            if any(order for i, order in enumerate(orders) if i not in columns):
                continue  # the map does not depend on that torsion
            values = self.map_grid(k, n, tuple(orders[i] for i in columns))
            inside = values.transpose(np.argsort(columns))
            total += inside.reshape([n if i in columns else 1 for i in range(n_s)])
        return total

    def term_error(self, i: int, r: FloatArray) -> FloatArray:
        """Standard error of term ``i`` at ``r [R]``, relative to the mean of its coefficients, kJ/mol ``[R]``."""
        design, block = self.basis.terms[i].design(r).toarray(), self.basis.blocks[self.basis.n_maps + i]
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
        return np.sum([self._map_log_density(k, s, factor) for k in range(self.basis.n_maps)], axis=0)

    def _map_log_density(self, k: int, s: FloatArray, factor: float) -> FloatArray:
        n_torsions = len(self.basis.maps.columns[k])
        n = _FINE_CELLS[n_torsions]
        # Periodic and smooth: the rectangle rule is as good as any.
        log_z = logsumexp(-self.map_grid(k, n) / (self.kT * factor)) + n_torsions * math.log(2.0 * math.pi / n)
        return np.asarray(-self._map(k, s) / factor - log_z)

    def log_density_b(self, b: FloatArray) -> FloatArray:
        """Log-density of ``b [M, n_b]``, ``[M]``, per nm^bonds radian^others; -inf outside the support."""
        total = np.zeros(len(b))
        for i, term in enumerate(self.basis.terms):
            points, _, log_z = self._profile(i)
            x = term.local(b[:, i])
            inside = ((x > points[0]) & (x < points[-1])) | isinstance(term, PeriodicTerm)  # a circle has no outside
            x = np.where(inside, x, term.lo + 0.5 * term.spacing)
            value = term.log_jacobian(x) - self._term(i, x) - log_z
            total += np.where(inside, value, -np.inf)
        return total

    def log_density(self, s: FloatArray, b: FloatArray) -> FloatArray:
        """Normalised log-density ``[M]`` of ``exp(-U / kT) J_beads``, flat in (s, b)."""
        return self.log_density_s(s) + self.log_density_b(b)

    def sample_s(self, n: int, seed: int, temperature_factor: float = 1.0) -> FloatArray:
        """Independent torsions from :meth:`log_density_s`, map by map.

        Args:
            n: draws.
            seed: of the generator.
            temperature_factor: temperature over ``temperature_K``; raise it to propose beyond the basins.

        Returns:
            ``[n, n_s]`` radians in [-pi, pi).
        """
        factor, rng = _positive(temperature_factor), np.random.default_rng(seed)
        s = np.empty((n, self.basis.n_s))
        for k, columns in enumerate(self.basis.maps.columns):
            s[:, columns] = self._sample_map(k, n, rng, factor)
        return np.where(s < -math.pi, s + 2.0 * math.pi, s)

    def _sample_map(self, k: int, n: int, rng: np.random.Generator, factor: float) -> FloatArray:
        """Torsions of one map ``[n, 1 or 2]``, by rejection from a piecewise constant envelope.

        The envelope is exact, not a guess: within a cell G differs from its centre by at most what the slope there
        and the largest second derivative of the spline (bounded by its coefficients) allow.
        """
        grid = self.basis.maps.grids[k]
        cells, n_s = _FINE_CELLS[len(grid.names)], len(grid.names)
        width = 2.0 * math.pi / cells
        lower = self._cell_lower_bound(k, cells)
        log_mass = -lower.ravel() / factor
        cumulative = np.cumsum(np.exp(log_mass - log_mass.max()))
        drawn, missing = [np.zeros((0, n_s))], n
        while missing > 0:
            uniform = rng.random(2 * missing + 16) * cumulative[-1]
            cell = np.searchsorted(cumulative, uniform, side="right")
            index = np.stack(np.unravel_index(cell, lower.shape), axis=1)
            s = -math.pi + (index + rng.random(index.shape) - 0.5) * width
            g = grid.design(s) @ self._of_map(k)
            keep = np.log(rng.random(len(s))) < -g / factor - log_mass[cell]
            drawn.append(s[keep][:missing])
            missing -= len(drawn[-1])
        return np.concatenate(drawn)

    def _cell_lower_bound(self, k: int, cells: int) -> FloatArray:
        """Lower bound of map k (kT) in each cell of ``cells`` per torsion, cells centred on the grid points."""
        grid = self.basis.maps.grids[k]
        half, n_s, h = math.pi / cells, len(grid.names), grid.spacing
        c = self._of_map(k).reshape((grid.knots,) * n_s)
        curvature = [np.abs(np.roll(c, 1, i) - 2 * c + np.roll(c, -1, i)).max() / h**2 for i in range(n_s)]
        bound = 0.5 * half**2 * sum(curvature)
        if n_s == 2:
            mixed = c - np.roll(c, 1, 0) - np.roll(c, 1, 1) + np.roll(c, 1, (0, 1))
            bound += half**2 * np.abs(mixed).max() / h**2
        slopes = [self.map_grid(k, cells, tuple(int(i == j) for j in range(n_s))) for i in range(n_s)]
        return (self.map_grid(k, cells) - half * np.sum(np.abs(slopes), axis=0)) / self.kT - bound

    def term_density(self, i: int) -> tuple[FloatArray, FloatArray]:
        """Points ``[R]`` (nm or radians) and the normalised log-density of ``b_i`` there, flat in ``b_i``."""
        points, log_p, log_z = self._profile(i)
        return points, log_p - log_z

    def _profile(self, i: int) -> tuple[FloatArray, FloatArray, float]:
        """Points, unnormalised log-density of ``b_i``, log of its integral."""
        term = self.basis.terms[i]
        points = np.linspace(*term.reach, _QUANTILE_POINTS, dtype=np.float64)
        with np.errstate(divide="ignore"):  # ln 0 at the ends of the support is the density 0 that is meant
            log_p = term.log_jacobian(points) - self._term(i, points)
        return points, log_p, float(logsumexp(log_p, b=_trapezoid(points)))

    def sample_b(self, n: int, seed: int) -> FloatArray:
        """Independent other bead coordinates from :meth:`log_density_b`, by inverse distribution; ``[n, n_b]``."""
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
        if header.get("version") not in _READABLE:
            raise CheckpointError(
                f"{path} has version {header.get('version')}", expected=f"{FILE_VERSION}", remedy="fit it again"
            )
        residual = header["residual"]
        return cls(
            basis=SeparableBasis(tuple(map(_read_term, header["terms"])), _read_torsions(header["torsions"])),
            coefficients=coefficients,
            covariance=covariance,
            temperature_K=header["temperature_K"],
            residual=FitResidual(
                force_rms=np.array(residual["force_rms"]),
                force_noise=np.array(residual["force_noise"]),
                energy_rms=residual["energy_rms"],
                surface_rms=residual["surface_rms"],
                unknown_bins=int(residual["unknown_bins"]),
                surface_kl=residual.get("surface_kl", math.nan),
            ),
        )


def _read_term(fields: dict[str, Any]) -> Term:
    coordinate = Coordinate(**fields["coordinate"])
    kind = SplineTerm if "intervals" in fields else PeriodicTerm
    return kind(**{**fields, "coordinate": coordinate})


def _read_torsions(fields: dict[str, Any]) -> TorsionGrid | TorsionMaps:
    if "names" in fields:
        return TorsionGrid(tuple(fields["names"]), fields["knots"])
    grids = tuple(TorsionGrid(tuple(grid["names"]), grid["knots"]) for grid in fields["grids"])
    return TorsionMaps(grids, tuple(map(tuple, fields["columns"])))


def _positive(factor: float) -> float:
    if not (math.isfinite(factor) and factor > 0):
        raise SettingsError(f"temperature factor {factor}", expected="a positive number")
    return factor


def _trapezoid(points: FloatArray) -> FloatArray:
    """Weights of the trapezoid rule on ``points [R]``."""
    steps = np.diff(points)
    return 0.5 * (np.concatenate([steps, [0.0]]) + np.concatenate([[0.0], steps]))
