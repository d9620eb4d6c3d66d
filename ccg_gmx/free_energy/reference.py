"""Reference surfaces: reading what GROMACS' own AWH produced, and the file that ships with a system."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.surface import combine_halves, noise_floor
from ccg_gmx.free_energy.surface_files import npz_keys, read_npz, write_npz
from ccg_gmx.free_energy.torsion_grid import grid, shifted
from ccg_gmx.records import FloatArray, FreeEnergySurface
from ccg_gmx.units import DEGREES_PER_RADIAN, thermal_energy

REFERENCE_VERSION = 1
MARGINALS_VERSION = 1
_KEYS = ("version", "f_a", "f_b", "names", "temperature_K", "origin")
_MARGINALS_KEY = "marginals_version"
Halves = tuple[FreeEnergySurface, FreeEnergySurface]


@dataclass(frozen=True)
class Reference:
    """A converged surface to compare with.

    Attributes:
        surface: mean of the halves, with an error per bin.
        half_a: surface of one run.
        half_b: surface of an independent one.
        origin: how both were made.
    """

    surface: FreeEnergySurface
    half_a: FreeEnergySurface
    half_b: FreeEnergySurface
    origin: str

    @property
    def noise_floor(self) -> float:
        """Forward KL in nats that the noise of the reference itself explains."""
        return noise_floor(self.half_a, self.half_b)


def read_awh(path: Path, temperature_K: float, names: tuple[str, ...] = ("phi", "psi")) -> FreeEnergySurface:
    """Read the PMF of one AWH bias over whole torsions, as ``gmx awh -more`` writes it (.xvg, degrees, kJ/mol).

    Without ``-more`` an unvisited point cannot be told from a visited one, so the coordinate distribution is asked
    for; points where it is zero get f = inf. The error of a single AWH run is unknown (nan): see ``combine_halves``.
    Whether the values are taken at the points or averaged over their cells is below notice: on alanine dipeptide's
    100 x 100 grid the two are 2e-5 nats apart.

    Args:
        path: .xvg file of one time.
        temperature_K: temperature of the run.
        names: torsions in the order of the AWH dimensions.

    Returns:
        Surface on the grid of the file, -pi + i 2 pi / n on every axis.

    Raises:
        CcgError: if the file is not such a file, or its grid is another one.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        rows = np.loadtxt(text.splitlines(), comments=("#", "@", "&"), ndmin=2)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CcgError(f"cannot read {path}: {reason}", expected="an .xvg file of gmx awh") from None
    columns = _columns(text, len(names), path)
    if rows.shape[1] <= max(columns.values()):
        raise CcgError(
            f"{path} has {rows.shape[1]} columns", expected=f"{max(columns.values()) + 1}, as its legends say"
        )
    n = _require_torsion_grid(rows[:, : len(names)], path)
    visited = rows[:, columns["Coord distr"]] > 0
    f = np.where(visited, rows[:, columns["PMF"]] / thermal_energy(temperature_K), np.inf)
    return shifted(f.reshape((n,) * len(names)), names, temperature_K)


def save_reference(path: Path, half_a: FreeEnergySurface, half_b: FreeEnergySurface, origin: str) -> None:
    """Write a reference as its two independent halves (.npz), from which mean, error and noise floor follow.

    Args:
        path: .npz file.
        half_a: surface of one run.
        half_b: surface of an independent one, on the same grid.
        origin: a sentence or two saying how both were made.

    Raises:
        CcgError: if the halves do not belong together.
    """
    combine_halves(half_a, half_b)
    write_npz(
        path,
        version=np.array(REFERENCE_VERSION),
        f_a=half_a.f,
        f_b=half_b.f,
        names=np.array(half_a.names),
        temperature_K=np.array(half_a.temperature_K),
        origin=np.array(origin),
    )


def load_reference(path: Path) -> Reference:
    """Read a reference.

    Raises:
        CcgError: if the file is not a reference.
    """
    data = read_npz(path, _KEYS, REFERENCE_VERSION)
    return _from_halves(data["f_a"], data["f_b"], data["names"], float(data["temperature_K"]), str(data["origin"]))


def save_marginals(path: Path, marginals: Mapping[tuple[str, ...], Halves], origin: str) -> None:
    """Write references of several marginals of one free energy, each as its two independent halves (.npz).

    The references may have different grids and numbers of axes; all are at one temperature.

    Args:
        path: .npz file.
        marginals: names of the torsions shown -> (half_a, half_b), surfaces over those torsions in that order.
        origin: a sentence or two saying how all were made.

    Raises:
        CcgError: if there are none, the halves of one do not belong together, or names or temperatures disagree.
    """
    halves = [half for pair in marginals.values() for half in pair]
    temperatures = sorted({half.temperature_K for half in halves})
    if len(temperatures) != 1:
        raise CcgError(
            f"{len(marginals)} marginals at {temperatures} K", expected="one or more, all at one temperature"
        )
    arrays: dict[str, np.ndarray] = {}
    for index, (names, (half_a, half_b)) in enumerate(marginals.items()):
        if half_a.names != tuple(names):
            raise CcgError(
                f"the marginal {tuple(names)} has surfaces over {half_a.names}", expected="the same torsions"
            )
        combine_halves(half_a, half_b)
        arrays |= dict(zip(_marginal_keys(index), (half_a.f, half_b.f, np.array(half_a.names)), strict=True))
    write_npz(
        path,
        marginals_version=np.array(MARGINALS_VERSION),
        count=np.array(len(marginals)),
        temperature_K=np.array(temperatures[0]),
        origin=np.array(origin),
        **arrays,
    )


def load_marginals(path: Path) -> dict[tuple[str, ...], Reference]:
    """Read what ``save_marginals`` wrote: names of the torsions shown -> reference, in the order they were given.

    Raises:
        CcgError: if the file is not one of marginals.
    """
    head = (_MARGINALS_KEY, "count", "temperature_K", "origin")
    count = int(read_npz(path, head, MARGINALS_VERSION, _MARGINALS_KEY)["count"])
    keys = [_marginal_keys(index) for index in range(count)]
    data = read_npz(path, head + tuple(key for group in keys for key in group), MARGINALS_VERSION, _MARGINALS_KEY)
    temperature, origin = float(data["temperature_K"]), str(data["origin"])
    return {
        reference.surface.names: reference
        for reference in (
            _from_halves(data[f_a], data[f_b], data[names], temperature, origin) for f_a, f_b, names in keys
        )
    }


def load_reference_set(path: Path) -> dict[tuple[str, ...], Reference]:
    """Read either kind of reference file: names of the torsions -> reference; one entry for an ordinary reference.

    Raises:
        CcgError: if the file is neither.
    """
    if _MARGINALS_KEY in npz_keys(path):
        return load_marginals(path)
    reference = load_reference(path)
    return {reference.surface.names: reference}


def _marginal_keys(index: int) -> tuple[str, str, str]:
    return f"f_a_{index}", f"f_b_{index}", f"names_{index}"


def _from_halves(f_a: FloatArray, f_b: FloatArray, names: np.ndarray, temperature_K: float, origin: str) -> Reference:
    half_a, half_b = (shifted(f, tuple(str(name) for name in names), temperature_K) for f in (f_a, f_b))
    return Reference(combine_halves(half_a, half_b), half_a, half_b, origin)


def _columns(text: str, dims: int, path: Path) -> dict[str, int]:
    """Column of each legend that is needed. The first column of an xvg file is x, and has no legend."""
    legends = re.findall(r'^@ s(\d+) legend "([^"]+)"', text, re.MULTILINE)
    columns = {name: int(index) + 1 for index, name in legends}
    found_dims = 1 + sum(name.startswith("awh-dim") for name in columns)
    if "PMF" not in columns or "Coord distr" not in columns or found_dims != dims:
        raise CcgError(
            f"{path} has {found_dims} dimensions and the columns {sorted(columns)}",
            expected=f"{dims} dimensions, PMF and Coord distr",
            remedy="write it with `gmx awh -more`",
        )
    if "(kJ/mol)" not in text:
        raise CcgError(f"{path} is not in kJ/mol", expected="kJ/mol", remedy="run gmx awh without -kt")
    return columns


def _require_torsion_grid(degrees: FloatArray, path: Path) -> int:
    dims = degrees.shape[1]
    n = round(len(degrees) ** (1 / dims))
    if n**dims != len(degrees) or np.abs(degrees - grid(n, dims) * DEGREES_PER_RADIAN).max() > 1e-3:
        raise CcgError(
            f"{path} has {len(degrees)} points from {degrees.min(axis=0)} to {degrees.max(axis=0)} degrees",
            expected=f"the same number of points on each of {dims} whole turns, beginning at -180",
            remedy="set awh1-dimN-start = -180 and awh1-dimN-end = 180",
        )
    return n
