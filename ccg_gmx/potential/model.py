"""A whole coarse potential: bonded curves by name, torsion maps by name, pair curves by bead types; and its file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccg_gmx.errors import CheckpointError, SettingsError
from ccg_gmx.molecule.coarse_topology import CoarseTopology
from ccg_gmx.potential.curves import Curve, TorsionMap
from ccg_gmx.potential.npz_file import load_arrays, save_arrays
from ccg_gmx.records import FloatArray
from ccg_gmx.units import thermal_energy

FORMAT, VERSION = "ccg coarse model", 1


def pair_key(first: str, second: str) -> tuple[str, str]:
    """Key of a pair of bead types: sorted."""
    return (first, second) if first <= second else (second, first)


@dataclass(frozen=True, eq=False)
class CoarseModel:
    """All terms of a coarse potential; kJ/mol, nm, radians.

    Attributes:
        temperature_K: temperature it was made at; coarse potentials are free energies and hold at no other.
        bonded: curve of each bond, angle and dihedral, by the name of the term in the coarse topology.
        maps: map of each ``cmap`` term, by name.
        pairs: curve of each pair of bead types, keys sorted.
        info: what else is worth keeping (method, settings, seeds, versions); plain types.
    """

    temperature_K: float
    bonded: Mapping[str, Curve] = field(default_factory=dict)
    maps: Mapping[str, TorsionMap] = field(default_factory=dict)
    pairs: Mapping[tuple[str, str], Curve] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse terms in the wrong place."""
        if not (math.isfinite(self.temperature_K) and self.temperature_K > 0):
            raise SettingsError(f"temperature {self.temperature_K} K", expected="a positive number")
        for name, curve in self.bonded.items():
            if curve.kind == "pair":
                raise SettingsError(f"bonded term {name} is a pair curve", expected="a bond, angle or dihedral")
        for key, curve in self.pairs.items():
            if key != pair_key(*key):
                raise SettingsError(f"pair {'-'.join(key)}", expected=f"types sorted, {'-'.join(pair_key(*key))}")
            if curve.kind != "pair":
                raise SettingsError(f"pair {'-'.join(key)} is a {curve.kind} curve", expected="a pair curve")
        if both := set(self.bonded) & set(self.maps):
            raise SettingsError(f"{min(both)} is a curve and a map", expected="each name once")

    @property
    def kT(self) -> float:
        """Thermal energy, kJ/mol."""
        return thermal_energy(self.temperature_K)

    @property
    def cutoff(self) -> float:
        """Largest cut-off of all pairs in nm; 0.0 without pairs."""
        return max((curve.hi for curve in self.pairs.values()), default=0.0)

    def pair(self, first: str, second: str) -> Curve | None:
        """Curve between two bead types in any order; None where they do not interact."""
        return self.pairs.get(pair_key(first, second))

    def check(self, topology: CoarseTopology) -> None:
        """Refuse a model that does not belong to a topology.

        A bonded term of the topology needs its curve; a pair of types that has none does not interact.

        Raises:
            SettingsError: a term is missing, of another kind, or unknown to the topology.
        """
        for name in topology.bonded_names:
            kind = topology.kind(name)
            found = "cmap" if name in self.maps else self.bonded[name].kind if name in self.bonded else None
            if found != kind:
                raise SettingsError(
                    f"the model has {f'a {found}' if found else 'no potential'} for {name}",
                    expected=f"a {kind}, as in the coarse topology",
                    remedy="fit the model with this topology",
                )
        if unknown := sorted((set(self.bonded) | set(self.maps)) - set(topology.bonded_names)):
            raise SettingsError(
                f"the model's term {unknown[0]} is not in the coarse topology",
                expected=", ".join(topology.bonded_names) or "no bonded terms",
            )
        if strange := sorted({name for key in self.pairs for name in key} - set(topology.types)):
            raise SettingsError(
                f"bead type {strange[0]} of the model is not in the coarse topology",
                expected=", ".join(topology.types),
            )

    def save(self, path: Path) -> None:
        """Write the model as one .npz: a JSON header and arrays, no pickle; the file is replaced in one step."""
        arrays: dict[str, FloatArray] = {}
        header = {
            "format": FORMAT,
            "version": VERSION,
            "temperature_K": self.temperature_K,
            "info": dict(self.info),
            "bonded": [[name, _stored(curve, f"b{k}", arrays)] for k, (name, curve) in enumerate(self.bonded.items())],
            "maps": [[name, _stored(part, f"m{k}", arrays)] for k, (name, part) in enumerate(self.maps.items())],
            "pairs": [[*key, _stored(curve, f"p{k}", arrays)] for k, (key, curve) in enumerate(self.pairs.items())],
        }
        save_arrays(path, header, arrays)

    @classmethod
    def load(cls, path: Path) -> CoarseModel:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: the file is missing, no coarse model, of another version or damaged.
        """
        remedy = "write it again with ccg tables"
        header, arrays = load_arrays(path, FORMAT, VERSION, remedy)
        try:
            return cls(
                float(header["temperature_K"]),
                {name: _curve(entry, arrays) for name, entry in header["bonded"]},
                {name: TorsionMap(*_pair_of_arrays(entry, arrays)) for name, entry in header["maps"]},
                {(a, b): _curve(entry, arrays) for a, b, entry in header["pairs"]},
                header["info"],
            )
        except (KeyError, TypeError, ValueError, SettingsError) as error:
            raise CheckpointError(f"{path} is damaged ({error})", expected="a coarse model", remedy=remedy) from None


def _stored(part: Curve | TorsionMap, prefix: str, arrays: dict[str, FloatArray]) -> dict[str, Any]:
    """Put the arrays of a term under their prefix and give the rest of it."""
    arrays[f"{prefix}_coefficients"] = part.coefficients
    if part.covariance is not None:
        arrays[f"{prefix}_covariance"] = part.covariance
    entry: dict[str, Any] = {"arrays": prefix}
    if isinstance(part, Curve):
        entry |= {"kind": part.kind, "lo": part.lo, "hi": part.hi, "min_curvature": part.min_curvature}
    return entry


def _pair_of_arrays(entry: dict[str, Any], arrays: dict[str, FloatArray]) -> tuple[FloatArray, FloatArray | None]:
    return arrays[f"{entry['arrays']}_coefficients"], arrays.get(f"{entry['arrays']}_covariance")


def _curve(entry: dict[str, Any], arrays: dict[str, FloatArray]) -> Curve:
    coefficients, covariance = _pair_of_arrays(entry, arrays)
    lo, hi, least = (float(entry[name]) for name in ("lo", "hi", "min_curvature"))
    return Curve(entry["kind"], lo, hi, coefficients, covariance, least)
