"""The mapping file: which atoms of which molecule make a bead, what the beads are called and what joins them.

Two formats are read: YAML (``topologies/*/mapping.yaml``) and VOTCA's XML (:mod:`ccg_gmx.molecule.votca_xml`).
The file knows no topology; :mod:`ccg_gmx.molecule.system_mapping` brings the two together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictInt, StrictStr, ValidationError, model_validator

from ccg_gmx.errors import SettingsError
from ccg_gmx.molecule.coarse_topology import BEADS_OF_KIND, BondedKind
from ccg_gmx.settings import Settings
from ccg_gmx.yaml_file import read_yaml

REMEDY = "topologies/*/mapping.yaml are examples"
Name = Annotated[str, Field(min_length=1, pattern=r"^\S+$")]
Selector = StrictStr | StrictInt
"""``CA`` (an atom name), ``2:CA`` (residue number and atom name), ``2:ALA:CA`` (VOTCA's: place of the residue in the
molecule, its name, atom name), or a number from 1 within the molecule."""
Terms = dict[Name, tuple[tuple[Name, ...], ...]]
BONDED_SECTIONS: dict[str, BondedKind] = {
    "bonds": "bond",
    "angles": "angle",
    "dihedrals": "dihedral",
    "cmaps": "cmap",
}


class BeadSettings(Settings):
    """One bead."""

    name: Name = Field(description="name within the molecule")
    type: Name = Field(description="beads of one type share their pair potentials")
    atoms: tuple[Selector, ...] = Field(description="names, or numbers from 1 within the molecule", min_length=1)
    at: Literal["com", "cog", "atom"] = Field("com", description="centre of mass, centre of geometry or one atom")
    weights: tuple[float, ...] | None = Field(None, description="weights of the atoms instead, in any unit")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.at == "atom" and len(self.atoms) != 1:
            raise ValueError(f"bead {self.name} stands at one atom but lists {len(self.atoms)}")
        if self.weights is not None and len(self.weights) != len(self.atoms):
            raise ValueError(f"bead {self.name} has {len(self.atoms)} atoms but {len(self.weights)} weights")
        if self.weights is not None and not (min(self.weights) >= 0 and 0 < sum(self.weights) < float("inf")):
            raise ValueError(f"bead {self.name} has weights {self.weights}, which must be >= 0 with a positive sum")
        return self


class MoleculeSettings(Settings):
    """One molecule type."""

    beads: tuple[BeadSettings, ...] = Field(min_length=1)
    bonds: Terms = Field({}, description="name of the potential: pairs of beads")
    angles: Terms = Field({}, description="name: triples of beads")
    dihedrals: Terms = Field({}, description="name: quadruples of beads")
    cmaps: Terms = Field({}, description="name: five beads, whose two torsions share one map")
    nrexcl: Annotated[int, Field(ge=0)] | Literal["bonded"] = Field(
        "bonded",
        description="no pair potential between beads that share a bonded term; a number: between beads so many bonds "
        "apart, as in GROMACS",
    )
    exclusions: tuple[tuple[Name, Name], ...] = Field((), description="further pairs without a pair potential")
    unmapped: Literal["error", "allow"] | tuple[Selector, ...] = Field(
        "error", description="atoms that may belong to no bead: none, any or those listed"
    )

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        names = [bead.name for bead in self.beads]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"bead name {repeated[0]} twice")
        used: dict[str, str] = {}
        for section, kind in BONDED_SECTIONS.items():
            for name, rows in getattr(self, section).items():
                if used.setdefault(name, section) != section:
                    raise ValueError(f"{name} stands in {used[name]} and in {section}")
                for row in rows:
                    self._check_row(f"{kind} {name}", row, BEADS_OF_KIND[kind], names)
        for pair in self.exclusions:
            self._check_row("exclusion", pair, 2, names)
        return self

    def _check_row(self, what: str, row: tuple[str, ...], count: int, names: list[str]) -> None:
        if unknown := [bead for bead in row if bead not in names]:
            raise ValueError(f"{what} names bead {unknown[0]}, the beads are {', '.join(names)}")
        if len(row) != count or len(set(row)) != count:
            raise ValueError(f"{what} [{', '.join(row)}] should name {count} different beads")


class MappingFile(Settings):
    """All molecule types of a system."""

    molecules: dict[Name, MoleculeSettings] = Field(description="by the name in the topology", min_length=1)
    leave_out: tuple[Name, ...] = Field((), description="molecule types that get no beads")

    @model_validator(mode="after")
    def _once(self) -> Self:
        if both := sorted(set(self.molecules) & set(self.leave_out)):
            raise ValueError(f"{both[0]} is mapped and left out")
        return self


def read_mapping_yaml(path: Path) -> MappingFile:
    """Read and validate a YAML mapping file.

    Raises:
        SettingsError: naming the key, what was found and what was expected.
    """
    document, _ = read_yaml(path, "mapping", REMEDY)
    return validated(document, path)


def validated(document: dict[str, Any], path: Path) -> MappingFile:
    """Validate the content of a mapping file; errors name ``path``.

    Raises:
        SettingsError: in one line.
    """
    try:
        return MappingFile(**document)
    except (ValidationError, TypeError) as error:
        raise SettingsError(f"{path}: {_complaint(error)}", remedy=REMEDY) from None


def _complaint(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return "keys must be words"
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    plain = first["type"] in ("value_error", "missing", "extra_forbidden") or isinstance(first["input"], dict)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    found = "" if plain else f", found {first['input']!r}"
    hint = "; quote names that YAML takes for something else" if isinstance(first["input"], bool) else ""
    return f"{where}: {message}{found}{more}{hint}" if where else f"{message}{found}{more}"
