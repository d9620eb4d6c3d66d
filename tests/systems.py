"""Analytic systems shared by the tests: a target with known f(s), a proposal with known density, and fine frames of p.

Each system is a small class with

* ``target(s, b, y) -> u [B]``: reduced potential, torch, differentiable;
* ``flow``: a proposal q(b, y | s) of known density, deliberately not the exact one;
* ``f(s [M, n_s]) -> [M]``: the exact -ln Z(s), with its absolute value;
* ``frames(count, rng) -> CoarseSplit``: independent fine frames of p, where they can be drawn exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.special import i0e
from torch import Tensor

from ccg_gmx.free_energy.weights import draw_ladder
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.records import CoarseSplit, FloatArray, WeightedDraws

LOG_2PI = math.log(2 * math.pi)
Function = Callable[..., Tensor]


class GaussianLadder:
    """Proposal q(b | s) q(y | s, b): Gaussians of given conditional mean and width (each ``[B, n]`` and ``[B, n]``)."""

    def __init__(self, n_b: int, n_y: int, beads: Function, rest: Function) -> None:
        self.n_b, self.n_y, self.beads, self.rest = n_b, n_y, beads, rest

    def base_noise(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return tuple(torch.randn(count, n, generator=generator, dtype=torch.float64) for n in (self.n_b, self.n_y))  # type: ignore[return-value]

    def push_rest(self, s: Tensor, b: Tensor, z_y: Tensor) -> tuple[Tensor, Tensor]:
        mean, width = self.rest(s, b)
        return mean + width * z_y, _log_normal(z_y, width)

    def push(self, s: Tensor, z_b: Tensor, z_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, width = self.beads(s)
        b = mean + width * z_b
        y, log_q = self.push_rest(s, b, z_y)
        return b, y, log_q + _log_normal(z_b, width)

    def draw(self, s: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        return self.push(s, *self.base_noise(len(s), generator))

    def log_prob(self, b: Tensor, y: Tensor, s: Tensor) -> Tensor:
        (mean_b, width_b), (mean_y, width_y) = self.beads(s), self.rest(s, b)
        return _log_normal((b - mean_b) / width_b, width_b) + _log_normal((y - mean_y) / width_y, width_y)


def _log_normal(z: Tensor, width: Tensor) -> Tensor:
    return (-0.5 * z**2 - 0.5 * LOG_2PI - torch.log(width)).sum(dim=-1)


def constant(mean: float, width: float, n: int = 1) -> Function:
    """Conditional that does not look at its condition."""
    return lambda s, *_: (torch.full((len(s), n), mean).double(), torch.full((len(s), n), width).double())


class GaussianSystem:
    """(i) Joint Gaussian of (s, b, y), one variable each: u = 1/2 x^T A x. f, its gradient and chi^2 are known."""

    precision = np.array([[2.0, 0.6, -0.4], [0.6, 1.5, 0.5], [-0.4, 0.5, 3.0]])

    def __init__(self, widen: float = 1.3) -> None:
        A = self.precision
        rest, self.covariance = A[1:, 1:], np.linalg.inv(A)
        self.log_volume = LOG_2PI - 0.5 * np.linalg.slogdet(rest)[1]
        self.curvature = A[0, 0] - A[0, 1:] @ np.linalg.solve(rest, A[1:, 0])
        # q has the exact conditional means and too wide conditional Gaussians.
        var_b = np.linalg.inv(rest)[0, 0]
        slope_b = -np.linalg.solve(rest, A[1:, 0])[0]
        self.widen, self.var_b, self.var_y = widen, var_b, 1 / A[2, 2]
        self.flow = GaussianLadder(
            1,
            1,
            lambda s: (slope_b * s, torch.full_like(s, widen * math.sqrt(var_b))),
            lambda s, b: (-(A[2, 0] * s + A[2, 1] * b) / A[2, 2], torch.full_like(b, widen * math.sqrt(self.var_y))),
        )

    def target(self, s: Tensor, b: Tensor, y: Tensor) -> Tensor:
        x = torch.cat([s, b, y], dim=1)
        return 0.5 * ((x @ torch.from_numpy(self.precision)) * x).sum(dim=1)

    def f(self, s: FloatArray) -> FloatArray:
        return 0.5 * self.curvature * s[:, 0] ** 2 - self.log_volume

    def bead_gradient(self, s: FloatArray, b: FloatArray) -> FloatArray:
        """``[M, 2]`` derivative of -ln int exp(-u) dy by (s, b)."""
        A = self.precision
        reduced = A[:2, :2] - np.outer(A[:2, 2], A[2, :2]) / A[2, 2]
        return np.concatenate([s, b], axis=1) @ reduced

    @property
    def kish_fraction(self) -> float:
        """Exact limit: per dimension, 1 / E_q[(w/Z)^2] = sqrt(2 c^2 - 1) / c^2 with c = width of q over that of p."""
        return (2 * self.widen**2 - 1) / self.widen**4

    def frames(self, count: int, rng: np.random.Generator) -> CoarseSplit:
        x = rng.multivariate_normal(np.zeros(3), self.covariance, size=count)
        u = 0.5 * np.einsum("ti,ij,tj->t", x, self.precision, x)
        return CoarseSplit(x[:, :1], x[:, 1:2], x[:, 2:], u, np.zeros(count, dtype=np.int64))


class RadiusSystem:
    """(ii) s = the radius in a plane, y = the polar angle: u = U(x, y) - ln r, f(r) by a Bessel function."""

    stiffness = (1.0, 4.0)

    def __init__(self, jacobian_power: float = 1.0) -> None:
        self.power = jacobian_power
        self.flow = UniformAngle()

    def target(self, s: Tensor, b: Tensor, y: Tensor) -> Tensor:
        a, c = self.stiffness
        energy = 0.5 * s[:, 0] ** 2 * (a * torch.cos(y[:, 0]) ** 2 + c * torch.sin(y[:, 0]) ** 2)
        return energy - self.power * torch.log(s[:, 0])

    def f(self, s: FloatArray) -> FloatArray:
        a, c = self.stiffness
        r2 = s[:, 0] ** 2
        x = r2 * abs(a - c) / 4
        return -(np.log(2 * np.pi * s[:, 0]) - r2 * (a + c) / 4 + np.log(i0e(x)) + x)

    def frames(self, count: int, rng: np.random.Generator) -> CoarseSplit:
        x = rng.standard_normal((count, 2)) / np.sqrt(self.stiffness)
        s, y = np.hypot(x[:, 0], x[:, 1])[:, None], np.arctan2(x[:, 1], x[:, 0])[:, None]
        b = np.empty((count, 0))
        u = self.target(*(torch.from_numpy(q) for q in (s, b, y))).numpy()
        return CoarseSplit(s, b, y, u, np.zeros(count, dtype=np.int64))


class UniformAngle:
    """Proposal without beads: one angle, uniform on the circle."""

    def draw(self, s: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        y = 2 * math.pi * torch.rand(len(s), 1, generator=generator, dtype=torch.float64) - math.pi
        return s[:, :0], y, torch.full((len(s),), -LOG_2PI, dtype=torch.float64)

    def log_prob(self, b: Tensor, y: Tensor, s: Tensor) -> Tensor:
        return torch.full((len(s),), -LOG_2PI, dtype=torch.float64)


class PolarAngleSystem:
    """(ii) s = the polar angle theta in space; b = ln r; y = azimuth.

    r = exp(b), so |dr/dq| = r^3 sin(theta). U = (x^2 + y^2) / 2 s1^2 + z^2 / 2 s2^2 makes the radial integral of
    r^2 exp(-a r^2 / 2) equal sqrt(pi / 2) a^(-3/2) with a = sin^2 / s1^2 + cos^2 / s2^2.
    """

    widths = (1.0, 0.6)

    def __init__(self) -> None:
        self.beads = GaussianLadder(1, 0, constant(0.3, 0.6), lambda s, b: (s[:, :0], s[:, :0]))
        self.angle = UniformAngle()
        self.flow = self

    def draw(self, s: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        b, _, log_b = self.beads.draw(s, generator)
        _, y, log_y = self.angle.draw(s, generator)
        return b, y, log_b + log_y

    def target(self, s: Tensor, b: Tensor, y: Tensor) -> Tensor:
        r2, theta = torch.exp(2 * b[:, 0]), s[:, 0]
        energy = 0.5 * r2 * self._stiffness(torch.sin(theta), torch.cos(theta))
        return energy - 3 * b[:, 0] - torch.log(torch.sin(theta))

    def f(self, s: FloatArray) -> FloatArray:
        a = self._stiffness(np.sin(s[:, 0]), np.cos(s[:, 0]))
        return -np.log(2 * np.pi * np.sin(s[:, 0]) * math.sqrt(math.pi / 2) * a**-1.5)

    def _stiffness(self, sine, cosine):
        return sine**2 / self.widths[0] ** 2 + cosine**2 / self.widths[1] ** 2


class MuellerBrown:
    """(iii) Mueller-Brown potential (doi:10.1007/BF00547608) times beta, s = x, y = y, f by quadrature."""

    A = np.array([-200.0, -100.0, -170.0, 15.0])
    a = np.array([-1.0, -1.0, -6.5, 0.7])
    b = np.array([0.0, 0.0, 11.0, 0.6])
    c = np.array([-10.0, -10.0, -6.5, 0.7])
    x0 = np.array([1.0, 0.0, -0.5, -1.0])
    y0 = np.array([0.0, 0.5, 1.5, 1.0])

    def __init__(self, beta: float = 0.05) -> None:
        self.beta = beta
        # A broad Gaussian whose mean follows the valley roughly.
        self.flow = GaussianLadder(
            0,
            1,
            lambda s: (s[:, :0], s[:, :0]),
            lambda s, b: (0.6 - 0.7 * s, torch.full_like(s, 0.6)),
        )

    def target(self, s: Tensor, b: Tensor, y: Tensor) -> Tensor:
        dx, dy = s - torch.from_numpy(self.x0), y - torch.from_numpy(self.y0)
        a, b_, c, A = (torch.from_numpy(v) for v in (self.a, self.b, self.c, self.A))
        return self.beta * (A * torch.exp(a * dx**2 + b_ * dx * dy + c * dy**2)).sum(dim=1)

    def f(self, s: FloatArray) -> FloatArray:
        y = np.linspace(-4.0, 6.0, 8001)
        out = []
        for x in s[:, 0]:
            at = torch.from_numpy(np.full((len(y), 1), x))
            u = self.target(at, at[:, :0], torch.from_numpy(y[:, None])).numpy()
            out.append(-np.log(np.trapezoid(np.exp(-(u - u.min())), y)) + u.min())
        return np.array(out)


class TwoModes:
    """At every s, y has two narrow modes of equal weight at +-6; q may know one of them only. f = 0."""

    def __init__(self, both: bool) -> None:
        self.both = both

    def target(self, s: Tensor, b: Tensor, y: Tensor) -> Tensor:
        modes = torch.stack([-0.5 * (y[:, 0] - centre) ** 2 for centre in (-6.0, 6.0)])
        return 0.5 * LOG_2PI + math.log(2) - torch.logsumexp(modes, dim=0)

    def f(self, s: FloatArray) -> FloatArray:
        return np.zeros(len(s))

    @property
    def flow(self) -> TwoModes:
        return self

    def draw(self, s: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        side = torch.randint(2, (len(s), 1), generator=generator).double() * 12 - 6 if self.both else 6.0
        y = side + 1.1 * torch.randn(len(s), 1, generator=generator, dtype=torch.float64)
        return s[:, :0], y, self.log_prob(s[:, :0], y, s)

    def log_prob(self, b: Tensor, y: Tensor, s: Tensor) -> Tensor:
        centres = (-6.0, 6.0) if self.both else (6.0,)
        modes = torch.stack([-0.5 * ((y[:, 0] - centre) / 1.1) ** 2 for centre in centres])
        return torch.logsumexp(modes, dim=0) - math.log(len(centres)) - 0.5 * LOG_2PI - math.log(1.1)

    def frames(self, count: int, rng: np.random.Generator) -> CoarseSplit:
        y = rng.choice([-6.0, 6.0], (count, 1)) + rng.standard_normal((count, 1))
        s, b = rng.uniform(-np.pi, np.pi, (count, 1)), np.empty((count, 0))
        u = self.target(*(torch.from_numpy(q) for q in (s, b, y))).numpy()
        return CoarseSplit(s, b, y, u, np.zeros(count, dtype=np.int64))


class TorusSurface:
    """A known two-torsion surface, and draws whose weights are gamma distributed around exp(-f)."""

    names, temperature_K = ("phi", "psi"), 300.0

    def f(self, s: FloatArray) -> FloatArray:
        phi, psi = s[:, 0], s[:, 1]
        return 2.5 * np.cos(phi) - 1.5 * np.sin(2 * psi) + 1.2 * np.cos(phi - psi) + 0.8 * np.sin(2 * phi + psi) - 4.0

    def gradient(self, s: FloatArray) -> FloatArray:
        phi, psi = s[:, 0], s[:, 1]
        d_phi = -2.5 * np.sin(phi) - 1.2 * np.sin(phi - psi) + 1.6 * np.cos(2 * phi + psi)
        d_psi = -3.0 * np.cos(2 * psi) + 1.2 * np.sin(phi - psi) + 0.8 * np.cos(2 * phi + psi)
        return np.stack([d_phi, d_psi], axis=-1)

    def chi2(self, s: FloatArray) -> FloatArray:
        """Relative variance of one draw; it varies with s, as that of a real flow does."""
        return 1.5 + np.cos(s[:, 0])

    def draws(self, points: int, K: int, rng: np.random.Generator) -> WeightedDraws:
        s = rng.uniform(-np.pi, np.pi, (points, 2))
        shape = 1 / self.chi2(s)[:, None]
        log_w = np.log(rng.gamma(shape, 1 / shape, (points, K))) - self.f(s)[:, None]
        return WeightedDraws(s, log_w, np.full(points, -2 * LOG_2PI), points * K)


class TorusLadder:
    """The same surface from the weights of a Gaussian ladder: b and y Gaussian at fixed s, with moments that follow s.

    The proposal has the widths of p times ``widen exp(vary cos phi)`` and means that are ``shift`` widths off. A wide
    proposal has bounded weights. One with ``widen < 1`` has weights with the tail index ``1 - widen^2`` (infinite
    variance below sqrt(1/2)): the flow that is too narrow. ``member`` adds a random smooth error of size ``rough`` to
    the logarithm of the widths and to the means, another one for every member: the flow that training left unfinished.
    """

    surface = TorusSurface()

    def __init__(
        self,
        widen: float = 1.0,
        vary: float = 0.0,
        shift: float = 0.0,
        member: int | None = None,
        rough: float = 0.0,
    ) -> None:
        self.widen, self.vary, self.shift = widen, vary, shift
        rng = np.random.default_rng(None if member is None else [member, 17])
        size = 0.0 if member is None else rough
        self.errors = torch.from_numpy(size * rng.standard_normal((2, 7, 2)) / math.sqrt(3.5))
        self.flow = GaussianLadder(1, 1, lambda s: self._proposal(s, 0), lambda s, b: self._proposal(s, 1, b))

    def moments(self, s: Tensor, level: int, b: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Exact conditional mean and width of b (level 0) or of y (level 1)."""
        phi, psi = s[:, :1], s[:, 1:]
        if level == 0:
            return 0.5 * torch.sin(phi) + 0.3 * torch.cos(phi - psi), torch.exp(0.3 * torch.cos(psi))
        assert b is not None
        return 0.4 * b + 0.5 * torch.sin(psi), torch.exp(0.2 * torch.sin(phi + psi))

    def _proposal(self, s: Tensor, level: int, b: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, width = self.moments(s, level, b)
        phi, psi = s[:, :1], s[:, 1:]
        waves = [torch.ones_like(phi)] + [wave(a) for a in (phi, psi, phi + psi) for wave in (torch.cos, torch.sin)]
        log_ratio, shift = (torch.cat(waves, dim=1) @ self.errors[level]).split(1, dim=1)
        ratio = self.widen * torch.exp(self.vary * torch.cos(phi) + log_ratio)
        return mean + width * (self.shift + shift), width * ratio

    def target(self, s: Tensor, b: Tensor, y: Tensor) -> Tensor:
        phi, psi = s[:, 0], s[:, 1]
        f = 2.5 * torch.cos(phi) - 1.5 * torch.sin(2 * psi) + 1.2 * torch.cos(phi - psi)
        f = f + 0.8 * torch.sin(2 * phi + psi) - 4.0
        (mean_b, width_b), (mean_y, width_y) = self.moments(s, 0), self.moments(s, 1, b)
        return f - _log_normal((b - mean_b) / width_b, width_b) - _log_normal((y - mean_y) / width_y, width_y)

    def f(self, s: FloatArray) -> FloatArray:
        return self.surface.f(s)

    def gradient(self, s: FloatArray) -> FloatArray:
        return self.surface.gradient(s)

    def chi2(self, s: FloatArray) -> FloatArray:
        """Relative variance of one draw at s, exact; without a member's own error only."""
        c2 = (self.widen * np.exp(self.vary * np.cos(s[:, 0]))) ** 2
        with np.errstate(invalid="ignore"):
            moment = (c2 / np.sqrt(2 * c2 - 1) * np.exp(self.shift**2 / (2 * c2 - 1))) ** 2
        return np.where(2 * c2 > 1, moment, np.inf) - 1

    def draws(self, points: int, K: int, seed: int) -> WeightedDraws:
        """(b, y) at uniform coarse points."""
        s = np.random.default_rng([seed, 1]).uniform(-np.pi, np.pi, (points, 2))
        log_w, _ = draw_ladder(self.flow, self.target, s, K, seed)
        return WeightedDraws(s, log_w, np.full(points, -2 * LOG_2PI), points * K)

    def frames(self, count: int, rng: np.random.Generator) -> CoarseSplit:
        s, lowest = np.empty((0, 2)), -8.57  # just below the lowest f
        while len(s) < count:
            trial = rng.uniform(-np.pi, np.pi, (20_000, 2))
            s = np.concatenate([s, trial[rng.random(len(trial)) < np.exp(lowest - self.f(trial))]])
        at = torch.from_numpy(s[:count])
        noise = torch.from_numpy(rng.standard_normal((2, count, 1)))
        mean, width = self.moments(at, 0)
        b = mean + width * noise[0]
        mean, width = self.moments(at, 1, b)
        y = mean + width * noise[1]
        u = self.target(at, b, y).numpy()
        return CoarseSplit(s[:count], b.numpy(), y.numpy(), u, np.zeros(count, dtype=np.int64))


class NarrowMode:
    """A wide and a narrow mode of equal weight at every s; at a raised temperature the narrow one is light. f = 0.

    y = (torsion, bond lengths r); p is the sum of two products of a von Mises density in the torsion, centred on
    -+pi/2, and normal densities in ln r; b is empty. The energy is -ln of the density in (torsion, ln r), so that the
    volume element is the product of 1 / r.
    """

    concentration, bonds = 30.0, 4
    means, widths = (-1.6, -2.0), (0.08, 0.05)  # of ln r: wide mode, narrow mode

    @property
    def coordinates(self) -> tuple[Coordinate, ...]:
        """The torsion and the bonds."""
        return (Coordinate("torsion", "torsion", "circle"), *[Coordinate("bond", "bond", "positive")] * self.bonds)

    def _log_modes(self, y: Tensor) -> Tensor:
        """``[2, B]`` ln of each mode's density in (torsion, ln r)."""
        log_r = torch.log(y[:, 1:])
        modes = []
        for side, mean, width in zip((-1.0, 1.0), self.means, self.widths, strict=True):
            torsion = self.concentration * (torch.cos(y[:, 0] - side * math.pi / 2) - 1.0)
            normal = -0.5 * ((log_r - mean) / width) ** 2 - 0.5 * LOG_2PI - math.log(width)
            modes.append(torsion + normal.sum(1))
        log_norm = LOG_2PI + math.log(i0e(self.concentration)) + math.log(2)
        return torch.stack(modes) - log_norm

    def parts(self, s: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Reduced energy and ln of the volume element, ``[B]`` each."""
        return -torch.logsumexp(self._log_modes(y), 0), -torch.log(y[:, 1:]).sum(1)

    def __call__(self, s: Tensor, b: Tensor, y: Tensor) -> Tensor:
        energy, log_jacobian = self.parts(s, b, y)
        return energy - log_jacobian

    def narrow(self, y: Tensor) -> Tensor:
        """``[B]`` probability that a frame belongs to the narrow mode."""
        return torch.softmax(self._log_modes(y), 0)[1]

    def frames(self, count: int, beta: float, rng: np.random.Generator) -> CoarseSplit:
        """Frames of both modes with beta times their energy, weighed as the modes are then."""
        masses = np.array(self.widths) ** (self.bonds * (1 - beta))
        mode = rng.choice(2, size=count, p=masses / masses.sum())
        torsion = rng.vonmises(np.pi * (mode - 0.5), beta * self.concentration)
        mean, width = np.array(self.means)[mode, None], np.array(self.widths)[mode, None]
        log_r = mean + width / math.sqrt(beta) * rng.standard_normal((count, self.bonds))
        y = np.concatenate([torsion[:, None], np.exp(log_r)], axis=1)
        s, b = rng.uniform(-np.pi, np.pi, (count, 1)), np.empty((count, 0))
        u = self(*(torch.from_numpy(q) for q in (s, b, y))).numpy()
        return CoarseSplit(s, b, y, u, np.zeros(count, dtype=np.int64))
