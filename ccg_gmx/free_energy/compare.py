"""Two free energy surfaces beside each other: distances, differences between basins, and what their errors explain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy.ndimage import map_coordinates

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.marginals import marginal_surface
from ccg_gmx.free_energy.reference import Reference, load_reference_set
from ccg_gmx.free_energy.surface import (
    Basin,
    delta_f,
    forward_kl,
    grid,
    jensen_shannon,
    load_surface,
    probability,
    read_plumed_grid,
    rmsd_kT,
    shifted,
)
from ccg_gmx.free_energy.surface_files import npz_keys
from ccg_gmx.records import FloatArray, FreeEnergySurface

Box = frozenset[tuple[str, float, float]]
"""What a basin is, whatever its name: (torsion, from, to) in degrees of every torsion."""


class NamedRanges(Protocol):
    """A basin, of torsions or of any variables."""

    @property
    def name(self) -> str:
        """Name of the state."""

    @property
    def ranges(self) -> Mapping[str, tuple[float, float]]:
        """Variable -> (from, to)."""


@dataclass(frozen=True)
class Subject:
    """A surface to compare, with what its file knows beside it.

    Attributes:
        name: for people.
        surface: the surface.
        reference: its independent halves, if the file has them.
        known: (first box, second box) -> (f(second) - f(first), its standard error) in kT, found from the frames
            themselves and so free of bins and smoothing.
    """

    name: str
    surface: FreeEnergySurface
    reference: Reference | None = None
    known: Mapping[tuple[Box, Box], tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """``f(basin) - f(first basin)`` of both surfaces.

    Attributes:
        first: name of the basin that counts as zero.
        second: name of the other.
        a: kT, first surface.
        a_error: one standard error in kT, or an upper bound of it; nan where unknown.
        b: kT, second surface.
        b_error: the same for it.
        bounds: whether ``a_error`` and ``b_error`` are upper bounds, from the errors of single bins.
    """

    first: str
    second: str
    a: float
    a_error: float
    b: float
    b_error: float
    bounds: tuple[bool, bool]

    @property
    def difference(self) -> float:
        """``a - b`` in kT."""
        return self.a - self.b

    @property
    def error(self) -> float:
        """Error of ``a - b`` in kT for independent surfaces; a bound if one of its parts is."""
        return float(np.hypot(self.a_error, self.b_error))


@dataclass(frozen=True)
class Comparison:
    """How far surface A is from surface B, which serves as the reference.

    Attributes:
        a: first surface, on the grid of the comparison.
        b: second surface, on the same grid.
        forward_kl: ``sum p ln(p / q)`` in nats, p of B and q of A; inf where A forbids what B has.
        jensen_shannon: nats.
        rmsd_kT: over bins where B is below ``cap_kT``, after the best offset; inf where A has no value.
        rmsd_shared_kT: the same over those of these bins that A has a value for; nan without any.
        cap_kT: see ``rmsd_kT``.
        forbidden: bins of B below the cap that A never visited.
        noise_floor: forward KL that the noise of a reference explains, nats; None without halves.
        differences: basins.
        notes: what was done to the surfaces before comparing.
    """

    a: FreeEnergySurface
    b: FreeEnergySurface
    forward_kl: float
    jensen_shannon: float
    rmsd_kT: float
    rmsd_shared_kT: float
    cap_kT: float
    forbidden: int
    noise_floor: float | None
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]


def load_subject(path: Path, temperature_K: float | None = None, names: Sequence[str] | None = None) -> Subject:
    """Read a surface: .npz of ours, a reference, a PLUMED grid, or the fes.npz of a run folder.

    Args:
        path: file or run folder.
        temperature_K: of a PLUMED grid, which does not say.
        names: torsions wanted of a file with several surfaces.

    Raises:
        CcgError: nothing there that can be read; a PLUMED grid without a temperature.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "fes.npz").is_file():
            raise CcgError(f"{path} has no fes.npz", expected="the folder of a finished ccg run")
        return replace(load_subject(path / "fes.npz"), name=path.name)
    if not path.is_file():
        raise CcgError(f"no file {path}", expected="a surface (.npz), a PLUMED grid (.dat) or a run folder")
    if path.suffix != ".npz":
        if temperature_K is None:
            raise CcgError(f"{path} is a PLUMED grid without a temperature", remedy="give --temperature")
        return Subject(path.name, read_plumed_grid(path, temperature_K))
    keys = npz_keys(path)
    if "grid_version" in keys:
        raise CcgError(
            f"{path} is not over torsions on one grid",
            expected="periodic torsions from -pi to pi, with equally many bins",
            remedy="the file beside it, PREFIX.dat, is for other programs",
        )
    if "f" in keys:
        return Subject(path.stem, load_surface(path), None, _known_differences(path))
    references = load_reference_set(path)
    wanted = tuple(names) if names is not None else next(iter(references))
    chosen = next((r for key, r in references.items() if set(key) == set(wanted)), None)
    if chosen is None and names is not None:
        chosen = next((r for key, r in references.items() if set(key) <= set(wanted)), None)
    if chosen is None:
        held = "; ".join(", ".join(key) for key in references)
        raise CcgError(f"{path} holds surfaces over {held}", expected=f"one over {', '.join(wanted)}")
    return Subject(path.stem, chosen.surface, chosen)


def holds_several(path: Path) -> bool:
    """Whether a file holds surfaces over different torsions, of which :func:`load_subject` must choose one."""
    if not path.is_file() or path.suffix != ".npz" or {"f", "grid_version"} & npz_keys(path):
        return False
    return len(load_reference_set(path)) > 1


def save_report(path: Path, basins: Sequence[NamedRanges], report: dict[str, Any]) -> Path:
    """Write a report beside a surface, from which ``load_subject`` takes differences between basins.

    Args:
        path: the .npz file of the surface, already written; the report becomes ``.json``, tied to it by its hash.
        basins: those of ``report["delta_f"]``, the first of them being zero.
        report: plain numbers and strings; rows of ``delta_f`` have first, second, f_kT and error_kT.

    Returns:
        Path of the report.
    """
    target = path.with_suffix(".json")
    ranges = {basin.name: dict(basin.ranges) for basin in basins}
    text = json.dumps({**report, "basins": ranges, "npz_sha256": _sha256(path)}, indent=1)
    partial = target.with_name(f".{target.name}.tmp")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(target)
    return target


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _box(ranges: Mapping[str, Sequence[float]]) -> Box:
    return frozenset((axis, float(low), float(high)) for axis, (low, high) in ranges.items())


def _known_differences(path: Path) -> dict[tuple[Box, Box], tuple[float, float]]:
    """Differences between basins from the report beside a surface, if there is one that belongs to it."""
    try:
        report = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if report["npz_sha256"] != _sha256(path):
            return {}
        boxes = {name: _box(ranges) for name, ranges in report["basins"].items()}
        known = {}
        for row in report["delta_f"]:
            if row["f_kT"] is not None and row["error_kT"] is not None:
                first, second = boxes[row["first"]], boxes[row["second"]]
                known[first, second] = (float(row["f_kT"]), float(row["error_kT"]))
                known[second, first] = (-float(row["f_kT"]), float(row["error_kT"]))
        return known
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # no report, or one of something else


def compare(a: Subject, b: Subject, basins: Sequence[Basin] = (), cap_kT: float = 8.0) -> Comparison:
    """Compare surface A with surface B, the reference.

    Axes of the same names in another order are turned; torsions that only one surface has are integrated out; on
    another grid, a surface that is finite everywhere is interpolated by periodic cubic splines.

    Args:
        a: surface to judge.
        b: surface to judge it by.
        basins: boxes whose f is compared with that of the first.
        cap_kT: bins of B below it count for the RMSD.

    Raises:
        CcgError: other torsions or temperatures, or grids that cannot be brought together.
    """
    notes: list[str] = []
    if a.surface.temperature_K != b.surface.temperature_K:
        raise CcgError(
            f"{a.name} is at {a.surface.temperature_K:g} K and {b.name} at {b.surface.temperature_K:g} K",
            expected="one temperature",
        )
    first, second = _same_axes(a, b, notes)
    first, second = _same_grid(a.name, first, b.name, second, notes)
    low, known = second.f < cap_kT, np.isfinite(first.f)
    shared = low & known
    reference = b.reference or a.reference
    whole = reference is not None and set(reference.half_a.names) == set(second.names)
    return Comparison(
        a=first,
        b=second,
        forward_kl=forward_kl(second, first),
        jensen_shannon=jensen_shannon(second, first),
        rmsd_kT=rmsd_kT(second, first, cap_kT),
        rmsd_shared_kT=float((first.f[shared] - second.f[shared]).std()) if shared.any() else float("nan"),
        cap_kT=cap_kT,
        forbidden=int((low & ~known).sum()),
        noise_floor=reference.noise_floor if reference is not None and whole else None,
        differences=tuple(_difference(a, first, b, second, basins[0], basin) for basin in basins[1:]),
        notes=tuple(notes),
    )


def _same_axes(a: Subject, b: Subject, notes: list[str]) -> tuple[FreeEnergySurface, FreeEnergySurface]:
    shared = [name for name in b.surface.names if name in a.surface.names]
    if not shared or not (set(a.surface.names) <= set(shared) or set(b.surface.names) <= set(shared)):
        raise CcgError(
            f"{a.name} is over {', '.join(a.surface.names)} and {b.name} over {', '.join(b.surface.names)}",
            expected="the same torsions",
        )
    return _over(a, shared, notes), _over(b, shared, notes)


def _over(subject: Subject, names: list[str], notes: list[str]) -> FreeEnergySurface:
    """The surface over those torsions, in that order."""
    surface = subject.surface
    if list(surface.names) == names:
        return surface
    order = [surface.names.index(name) for name in names]
    if dropped := [name for name in surface.names if name not in names]:
        notes.append(f"{', '.join(dropped)} of {subject.name} integrated out")
        return marginal_surface(surface, order)
    notes.append(f"axes of {subject.name} turned to {', '.join(names)}")
    return replace(surface, f=surface.f.transpose(order), error=surface.error.transpose(order), names=tuple(names))


def _same_grid(
    name_a: str, a: FreeEnergySurface, name_b: str, b: FreeEnergySurface, notes: list[str]
) -> tuple[FreeEnergySurface, FreeEnergySurface]:
    if a.f.shape == b.f.shape:
        return a, b
    sizes = [" x ".join(map(str, x.f.shape)) for x in (a, b)]
    for name, one, other, size in ((name_a, a, b, sizes[1]), (name_b, b, a, sizes[0])):
        if np.isfinite(one.f).all():
            notes.append(f"{name} interpolated to {size} points (periodic cubic splines)")
            moved = regrid(one, other.f.shape)
            return (moved, other) if one is a else (other, moved)
    raise CcgError(
        f"{name_a} has {sizes[0]} points and {name_b} {sizes[1]}, both with bins never visited",
        expected="one grid, or a surface without holes to interpolate",
        remedy="make one again with the --bins of the other, or with --kde",
    )


def regrid(surface: FreeEnergySurface, shape: tuple[int, ...]) -> FreeEnergySurface:
    """Interpolate a surface to another grid: periodic cubic splines of f, linear in the squared error.

    Args:
        surface: finite everywhere.
        shape: points per axis.

    Raises:
        CcgError: if a bin has no value.
    """
    if not np.isfinite(surface.f).all():
        raise CcgError("a surface with bins never visited", expected="finite values to interpolate")
    axes = [np.arange(n, dtype=np.float64) * old / n for n, old in zip(shape, surface.f.shape, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"))
    f = map_coordinates(surface.f, points, order=3, mode="grid-wrap")
    variance = map_coordinates(surface.error**2, points, order=1, mode="grid-wrap")
    return shifted(np.asarray(f), surface.names, surface.temperature_K, np.sqrt(np.asarray(variance)))


def _difference(
    a: Subject, surface_a: FreeEnergySurface, b: Subject, surface_b: FreeEnergySurface, zero: Basin, basin: Basin
) -> Difference:
    ours, theirs = _value_and_error(a, surface_a, zero, basin), _value_and_error(b, surface_b, zero, basin)
    return Difference(zero.name, basin.name, *ours[:2], *theirs[:2], (ours[2], theirs[2]))


def _value_and_error(
    subject: Subject, surface: FreeEnergySurface, zero: Basin, basin: Basin
) -> tuple[float, float, bool]:
    """Difference and its standard error in kT, and whether the error is only an upper bound."""
    known = subject.known.get((_box(zero.ranges), _box(basin.ranges)))
    if known is not None:
        return *known, False
    value = delta_f(surface, basin, zero)
    if subject.reference is not None and set(subject.reference.half_a.names) == set(surface.names):
        # two independent halves: their mean has half the spread of their difference
        halves = [delta_f(half, basin, zero) for half in (subject.reference.half_a, subject.reference.half_b)]
        return value, abs(halves[0] - halves[1]) / 2, False
    return value, sum(_bound(surface, box) for box in (zero, basin)), True


def _bound(surface: FreeEnergySurface, basin: Basin) -> float:
    """Upper bound of the error of ln Z of a basin: that of a sum is at most the sum of errors; nan where unknown.

    Bins without an error count as unknown when they hold more than 1 % of the basin.
    """
    inside = basin.mask(grid(len(surface.f), surface.f.ndim), surface.names)
    p: FloatArray = probability(surface).ravel()[inside]
    error = surface.error.ravel()[inside]
    unknown = ~np.isfinite(error)
    if not p.sum() or p[unknown].sum() > 0.01 * p.sum():
        return float("nan")
    return float((p[~unknown] @ error[~unknown]) / p[~unknown].sum())
