"""Files of free energy surfaces: PLUMED grids (radians, kJ/mol) for other programs, .npz (kT, with errors) for ours."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.torsion_grid import grid, shifted
from ccg_gmx.records import FloatArray, FreeEnergySurface
from ccg_gmx.units import thermal_energy

NPZ_VERSION = 1
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def save_surface(surface: FreeEnergySurface, path: Path) -> None:
    """Write f and its error in kT as float64 .npz (no pickled objects)."""
    write_npz(
        path,
        version=np.array(NPZ_VERSION),
        f=surface.f,
        error=surface.error,
        names=np.array(surface.names),
        temperature_K=np.array(surface.temperature_K),
    )


def load_surface(path: Path) -> FreeEnergySurface:
    """Read what ``save_surface`` wrote.

    Raises:
        CcgError: if the file is not one of ours.
    """
    data = read_npz(path, ("version", "f", "error", "names", "temperature_K"), NPZ_VERSION)
    names = tuple(str(name) for name in data["names"])
    return FreeEnergySurface(data["f"], data["error"], names, float(data["temperature_K"]))


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write an .npz under a temporary name, then rename it: readers never see half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with partial.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    os.replace(partial, path)


def read_npz(path: Path, keys: tuple[str, ...], version: int, version_key: str = "version") -> dict[str, np.ndarray]:
    """Read the named arrays of an .npz file.

    Args:
        path: file.
        keys: arrays wanted, ``version_key`` among them.
        version: the only version that is understood.
        version_key: array that holds the version; each kind of file that could be mistaken for another has its own.

    Raises:
        CcgError: if the file cannot be read, lacks a key, or has another version.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {key: data[key] for key in keys}
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise CcgError(f"cannot read {path}: {reason}", expected=f"an .npz file with {', '.join(keys)}") from None
    if int(arrays[version_key]) != version:
        raise CcgError(f"{path} has {version_key} {int(arrays[version_key])}", expected=f"{version_key} {version}")
    return arrays


def npz_keys(path: Path) -> frozenset[str]:
    """Names of the arrays in an .npz file, which tell one kind of file from another.

    Raises:
        CcgError: if the file cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            return frozenset(data.files)
    except (*_UNREADABLE, TypeError) as error:  # a lone .npy array is no context
        reason = " ".join(str(error).split())
        raise CcgError(f"cannot read {path}: {reason}", expected="an .npz file") from None


def write_plumed_grid(surface: FreeEnergySurface, path: Path, field: str = "file.free") -> None:
    """Write a PLUMED grid file: radians, kJ/mol, first torsion fastest, with derivatives when f is finite everywhere.

    Derivatives are those of the trigonometric polynomial through the grid points, exact for a Fourier surface.
    Empty bins are written as ``inf``, and then without derivatives.

    Args:
        surface: what to write.
        path: file.
        field: name of the value; PLUMED's ``sum_hills`` writes ``file.free``, ``EXTERNAL`` reads ``LABEL.bias``.
    """
    dims, n = surface.f.ndim, len(surface.f)
    energy = surface.f * thermal_energy(surface.temperature_K)
    columns, fields = [*grid(n, dims).T, energy.ravel()], [*surface.names, field]
    if np.isfinite(energy).all():
        columns += [_periodic_derivative(energy, axis).ravel() for axis in range(dims)]
        fields += [f"der_{name}" for name in surface.names]
    header = [line for name in surface.names for line in plumed_axis(name, "-pi", "pi", n, True)]
    write_text(path, plumed_rows(fields, header, columns, surface.f.shape))


def plumed_axis(name: str, low: str, high: str, points: int, periodic: bool) -> list[str]:
    """Header lines of one variable of a PLUMED grid."""
    lines = [f"#! SET min_{name} {low}", f"#! SET max_{name} {high}", f"#! SET nbins_{name} {points}"]
    return [*lines, f"#! SET periodic_{name} {str(periodic).lower()}"]


def plumed_rows(
    fields: Sequence[str], header: Sequence[str], columns: Sequence[FloatArray], shape: tuple[int, ...], digits: int = 9
) -> str:
    """The text of a PLUMED grid, the first variable fastest.

    Args:
        fields: name of each column.
        header: of ``plumed_axis``, of all variables.
        columns: ``[product of shape]`` each, the last variable fastest.
        shape: points of each variable.
        digits: decimals.
    """
    order = np.arange(np.prod(shape)).reshape(shape).transpose().ravel()
    rows = np.stack(columns, axis=-1)[order]
    # A blank line after each run of the first variable, as PLUMED and gnuplot have it.
    blocks = [
        "\n".join(" ".join(f"{x:.{digits}f}" for x in row) for row in block)
        for block in np.split(rows, len(rows) // shape[0])
    ]
    return "\n".join([f"#! FIELDS {' '.join(fields)}", *header]) + "\n" + "\n\n".join(blocks) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a file that is replaced in one step."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def read_plumed_grid(path: Path, temperature_K: float) -> FreeEnergySurface:
    """Read a periodic PLUMED grid (from ``sum_hills``, ``DUMPGRID``, or ``write_plumed_grid``); errors are unknown.

    Args:
        path: file with periodic torsions in radians and a free energy in kJ/mol as the next field.
        temperature_K: temperature; the file does not say.

    Raises:
        CcgError: if the file cannot be read, is not such a grid, or its rows do not fit its header.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = np.loadtxt(text.splitlines(), comments="#", ndmin=2)
    except (OSError, ValueError) as error:
        raise CcgError(f"cannot read {path}: {error}", expected="a PLUMED grid file") from None
    names, n = _plumed_header(text, path)
    dims = len(names)
    if rows.shape[0] != n**dims or rows.shape[1] <= dims:
        raise CcgError(f"{path} has {rows.shape[0]} rows", expected=f"{n**dims} rows, as its header says")
    by_last_axis = rows.reshape(*(n,) * dims, -1).transpose(*range(dims)[::-1], dims)
    if np.abs(by_last_axis[..., :dims] - grid(n, dims).reshape(*(n,) * dims, dims)).max() > 1e-5:
        raise CcgError(
            f"{path} has other grid points", expected="-pi + i 2 pi / n on every axis, the first axis fastest"
        )
    return shifted(by_last_axis[..., dims] / thermal_energy(temperature_K), names, temperature_K)


def _plumed_header(text: str, path: Path) -> tuple[tuple[str, ...], int]:
    fields = re.search(r"^#! FIELDS (.+)$", text, re.MULTILINE)
    settings = dict(re.findall(r"^#! SET (\S+)\s+(\S+)", text, re.MULTILINE))
    names = tuple(name for name in (fields.group(1).split() if fields else []) if f"nbins_{name}" in settings)
    bins = {int(settings[f"nbins_{name}"]) for name in names}
    periodic = all(settings.get(f"periodic_{name}") == "true" for name in names)
    if not names or len(bins) != 1 or not periodic:
        raise CcgError(
            f"{path} has the grid axes {names} with {sorted(bins)} bins",
            expected="periodic axes with the same number of bins",
        )
    return names, bins.pop()


def _periodic_derivative(values: FloatArray, axis: int) -> FloatArray:
    n = values.shape[axis]
    wave = np.arange(n // 2 + 1, dtype=np.float64)
    if n % 2 == 0:
        wave[-1] = 0.0  # the highest wave of an even grid has no sine partner: its derivative vanishes at the points
    shape = [-1 if a == axis else 1 for a in range(values.ndim)]
    return np.fft.irfft(1j * wave.reshape(shape) * np.fft.rfft(values, axis=axis), n, axis=axis)
