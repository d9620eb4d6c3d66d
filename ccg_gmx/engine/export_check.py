"""Does an export mean the same in every engine? Energies of its frames, engine against engine, term by term."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccg_gmx.engine.single_points import (
    SinglePoints,
    gromacs_points,
    lammps_points,
    openmm_points,
    plumed_points,
    reference_points,
)
from ccg_gmx.errors import SettingsError, ToolMissingError, ToolVersionError
from ccg_gmx.export.bundle import Bundle, read_bundle
from ccg_gmx.records import FloatArray

TOLERANCE_KJ_MOL = 1e-3
"""Largest difference of the energy per molecule that a check passes."""

KINDS = ("bond", "angle", "dihedral", "cmap", "pair")
_RUNNERS: Mapping[str, Callable[[Bundle, Path], SinglePoints]] = {
    "gromacs": gromacs_points,
    "lammps": lammps_points,
    "openmm": openmm_points,
    "plumed": plumed_points,
}


@dataclass(frozen=True)
class TermComparison:
    """One kind of term over all frames.

    Attributes:
        engines: that compute it.
        mean_kJ_mol_per_molecule: this package's mean.
        max_abs_diff_kJ_mol_per_molecule: largest difference between any two engines; None where this package alone
            computes it.
    """

    engines: tuple[str, ...]
    mean_kJ_mol_per_molecule: float
    max_abs_diff_kJ_mol_per_molecule: float | None


@dataclass(frozen=True)
class ExportComparison:
    """Result of :func:`check_export`.

    Attributes:
        frames: compared.
        molecules: of the system.
        engines: engine -> version, for those compared; ``ccg`` is this package.
        not_compared: engine -> why.
        terms: kind of term -> comparison.
        max_abs_diff_kJ_mol_per_molecule: largest difference of the potential energy between any two engines, and of
            any term.
        max_force_diff_kJ_mol_nm: largest difference of a force component from this package's, where an engine gave
            forces; None where none did.
        tolerance_kJ_mol_per_molecule: what is allowed.
    """

    frames: int
    molecules: int
    engines: dict[str, str]
    not_compared: dict[str, str]
    terms: dict[str, TermComparison]
    max_abs_diff_kJ_mol_per_molecule: float
    max_force_diff_kJ_mol_nm: float | None
    tolerance_kJ_mol_per_molecule: float

    @property
    def agrees(self) -> bool:
        """Whether all engines agree; a number that is none agrees with nothing."""
        return self.max_abs_diff_kJ_mol_per_molecule <= self.tolerance_kJ_mol_per_molecule

    def as_json(self) -> dict[str, Any]:
        """Plain types, ``agrees`` among them."""
        return asdict(self) | {"agrees": self.agrees}


def check_export(folder: Path, tolerance_kJ_mol: float = TOLERANCE_KJ_MOL) -> ExportComparison:
    """Compute the energies of an export's frames in every engine that is installed, and compare them.

    Args:
        folder: an export.
        tolerance_kJ_mol: largest difference per molecule that agrees.

    Raises:
        StoreError: if the folder is no export.
        SettingsError: if none of its engines is installed.
        ToolError: if an engine cannot read its files.
    """
    bundle = read_bundle(Path(folder).resolve())
    points, missing = [reference_points(bundle)], dict(bundle.manifest.skipped)
    for engine in _engines(bundle):
        try:
            with tempfile.TemporaryDirectory(prefix=f"ccg-{engine}-") as work:
                points.append(_RUNNERS[engine](bundle, Path(work)))
        except (ToolMissingError, ToolVersionError) as error:
            missing[engine] = str(error)
    if len(points) == 1:
        raise SettingsError(
            "nothing to compare with: " + "; ".join(missing.values()), expected="an engine of the export installed"
        )
    return compare_points(points, bundle.system.n_molecules, missing, tolerance_kJ_mol)


def _engines(bundle: Bundle) -> list[str]:
    """Engines to ask; GROMACS' pairs in bulk are PLUMED's, whether or not a PLUMED folder was asked for."""
    engines = list(bundle.manifest.engines)
    through_plumed = bool(bundle.system.model.pairs) and not bundle.manifest.molecule_pairs
    return [*engines, *(["plumed"] if "gromacs" in engines and "plumed" not in engines and through_plumed else [])]


def compare_points(
    points: list[SinglePoints], molecules: int, missing: dict[str, str], tolerance_kJ_mol: float = TOLERANCE_KJ_MOL
) -> ExportComparison:
    """Compare energies; the first ones are this package's.

    Args:
        points: of each engine.
        molecules: of the system, which differences are divided by.
        missing: engine -> why it was not asked.
        tolerance_kJ_mol: largest difference per molecule that agrees.
    """
    kinds = dict.fromkeys([*KINDS, *(kind for one in points for kind in one.terms)])
    terms = {kind: _compare_term(kind, points, molecules) for kind in kinds if _present(kind, points)}
    differences = [term.max_abs_diff_kJ_mol_per_molecule or 0.0 for term in terms.values()]
    totals = [np.sum(list(of.values()), axis=0) for of in _complete(points)]
    return ExportComparison(
        frames=len(totals[0]),
        molecules=molecules,
        engines={one.engine: one.version for one in points},
        not_compared=missing,
        terms=terms,
        max_abs_diff_kJ_mol_per_molecule=float(np.max([*differences, _spread(totals) / molecules])),
        max_force_diff_kJ_mol_nm=_force_difference(points),
        tolerance_kJ_mol_per_molecule=tolerance_kJ_mol,
    )


def _present(kind: str, points: list[SinglePoints]) -> bool:
    """Whether the model has terms of a kind: LAMMPS and OpenMM report zeros of those it has not."""
    return any(np.any(one.terms[kind]) for one in points if kind in one.terms)


def _compare_term(kind: str, points: list[SinglePoints], molecules: int) -> TermComparison:
    given = {one.engine: one.terms[kind] for one in points if kind in one.terms}
    # what this package does not know is a difference from zero
    ours = points[0].terms.get(kind, np.zeros_like(next(iter(given.values()))))
    values = [ours, *(value for engine, value in given.items() if engine != points[0].engine)]
    difference = _spread(values) / molecules if len(values) > 1 else None
    return TermComparison(tuple(given), float(np.mean(ours)) / molecules, difference)


def _complete(points: list[SinglePoints]) -> list[dict[str, FloatArray]]:
    """Terms of every engine that has all of them; GROMACS and PLUMED are one where pairs are in bulk."""
    by_name = {one.engine: one.terms for one in points}
    if {"gromacs", "plumed"} <= set(by_name) and "pair" not in by_name["gromacs"]:
        by_name["gromacs"] = by_name["gromacs"] | by_name.pop("plumed")
    needed = {kind for kind in points[0].terms if _present(kind, points)}
    return [terms for terms in by_name.values() if needed <= set(terms)]


def _spread(values: list[FloatArray]) -> float:
    """Largest difference between any two; nan if any number is none."""
    return float(np.max([np.abs(a - b).max() for a, b in itertools.combinations(values, 2)], initial=0.0))


def _force_difference(points: list[SinglePoints]) -> float | None:
    ours = points[0].forces
    others = [one.forces for one in points[1:] if one.forces is not None]
    return float(max(np.abs(forces - ours).max() for forces in others)) if others and ours is not None else None
