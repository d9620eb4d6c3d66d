"""The beads of a whole system: types, masses, bonded terms by name and excluded pairs, molecule type by molecule type.

Written by ``ccg map`` beside the mapped trajectory; everything downstream (tables, runs, exports) starts from it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ccg_gmx.errors import TopologyError
from ccg_gmx.records import FloatArray, IntArray

BondedKind = Literal["bond", "angle", "dihedral", "cmap"]
BEADS_OF_KIND: dict[str, int] = {"bond": 2, "angle": 3, "dihedral": 4, "cmap": 5}
FORMAT, VERSION = "ccg coarse topology", 1


@dataclass(frozen=True)
class BondedType:
    """All bonded terms of one name within a molecule type.

    Attributes:
        name: the name that finds the potential; the same name in another molecule type is the same potential.
        kind: ``bond``, ``angle``, ``dihedral`` or ``cmap`` (the two torsions of five beads in a row).
        beads: the beads of each term, 0-based within the molecule.
    """

    name: str
    kind: BondedKind
    beads: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class CoarseMoleculeType:
    """One molecule type.

    Attributes:
        name: name of the molecule type in the atomistic topology.
        bead_names: ``n`` different names.
        bead_types: ``n`` types; pairs of beads of the same two types share one pair potential.
        masses: ``n`` masses in amu.
        residue_names: ``n`` residue names.
        residue_ids: ``n`` residue numbers.
        bonded: bonded terms by name.
        exclusions: pairs i < j, 0-based within the molecule, without pair interaction.
    """

    name: str
    bead_names: tuple[str, ...]
    bead_types: tuple[str, ...]
    masses: tuple[float, ...]
    residue_names: tuple[str, ...]
    residue_ids: tuple[int, ...]
    bonded: tuple[BondedType, ...] = ()
    exclusions: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be a molecule."""
        self._check_beads()
        for term in self.bonded:
            self._check_bonded(term)
        for pair in self.exclusions:
            if len(pair) != 2 or not 0 <= pair[0] < pair[1] < self.n_beads:
                raise TopologyError(
                    f"{self.name}: exclusion {pair}", expected=f"two beads i < j of 0..{self.n_beads - 1}"
                )

    @property
    def n_beads(self) -> int:
        """Number of beads n."""
        return len(self.bead_names)

    def _check_beads(self) -> None:
        columns = (self.bead_types, self.masses, self.residue_names, self.residue_ids)
        if not self.n_beads or any(len(column) != self.n_beads for column in columns):
            raise TopologyError(
                f"{self.name}: {self.n_beads} bead names and {[len(column) for column in columns]} types, masses, "
                "residue names and numbers",
                expected="one of each for every bead",
            )
        if repeated := [name for name, count in Counter(self.bead_names).items() if count > 1]:
            raise TopologyError(f"{self.name}: bead {repeated[0]} twice", expected="each bead name once")
        if not all(0 < mass < np.inf for mass in self.masses):
            raise TopologyError(f"{self.name}: bead masses {self.masses}", expected="positive masses in amu")

    def _check_bonded(self, term: BondedType) -> None:
        size = BEADS_OF_KIND.get(term.kind)
        if size is None:
            raise TopologyError(f"{self.name}: {term.name} is a {term.kind}", expected=", ".join(BEADS_OF_KIND))
        for beads in term.beads:
            if len(beads) != size or len(set(beads)) != size or not all(0 <= bead < self.n_beads for bead in beads):
                raise TopologyError(
                    f"{self.name}: {term.kind} {term.name} between beads {beads}",
                    expected=f"{size} different beads of 0..{self.n_beads - 1}",
                )


@dataclass(frozen=True)
class CoarseTopology:
    """All beads, in the order of the trajectory.

    Attributes:
        molecules: molecule types with the number of copies that follow one another.
    """

    molecules: tuple[tuple[CoarseMoleculeType, int], ...]

    def __post_init__(self) -> None:
        """Refuse a name with two meanings, and a system without beads."""
        if not self.molecules or any(count < 1 for _, count in self.molecules):
            raise TopologyError("a coarse topology without molecules", expected="at least one of each type")
        kinds: dict[str, str] = {}
        for molecule, _ in self.molecules:
            for term in molecule.bonded:
                if kinds.setdefault(term.name, term.kind) != term.kind:
                    raise TopologyError(
                        f"{term.name} is the name of {kinds[term.name]}s and of {term.kind}s",
                        expected="one kind of term per name",
                        remedy="rename one of them",
                    )

    @cached_property
    def n_beads(self) -> int:
        """Number of beads n in the system."""
        return sum(molecule.n_beads * count for molecule, count in self.molecules)

    @cached_property
    def bead_names(self) -> tuple[str, ...]:
        """Name of each bead."""
        return tuple(name for molecule, count in self.molecules for name in molecule.bead_names * count)

    @cached_property
    def bead_types(self) -> tuple[str, ...]:
        """Type of each bead."""
        return tuple(name for molecule, count in self.molecules for name in molecule.bead_types * count)

    @cached_property
    def types(self) -> tuple[str, ...]:
        """The different bead types, sorted."""
        return tuple(sorted(set(self.bead_types)))

    @cached_property
    def type_index(self) -> IntArray:
        """``[n]`` index of each bead's type in :attr:`types`."""
        place = {name: index for index, name in enumerate(self.types)}
        return np.array([place[name] for name in self.bead_types], dtype=np.int64)

    @cached_property
    def masses(self) -> FloatArray:
        """``[n]`` amu."""
        return np.concatenate([np.tile(np.array(molecule.masses), count) for molecule, count in self.molecules])

    @cached_property
    def molecule_of(self) -> IntArray:
        """``[n]`` index of the molecule each bead belongs to, counted through the system."""
        sizes = [molecule.n_beads for molecule, count in self.molecules for _ in range(count)]
        return np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)

    @cached_property
    def residue_names(self) -> tuple[str, ...]:
        """Residue name of each bead."""
        return tuple(name for molecule, count in self.molecules for name in molecule.residue_names * count)

    @cached_property
    def residue_ids(self) -> IntArray:
        """``[n]`` residue numbers; they go on from molecule to molecule where a molecule is one residue, as in .gro."""
        numbers: list[IntArray] = []
        last = 0
        for molecule, count in self.molecules:
            own = np.array(molecule.residue_ids, dtype=np.int64)
            if len(set(molecule.residue_ids)) == 1:
                numbers.append(np.repeat(last + 1 + np.arange(count, dtype=np.int64), len(own)))
            else:
                numbers.append(np.tile(own, count))
            last = int(numbers[-1][-1])
        return np.concatenate(numbers)

    @cached_property
    def bonded_names(self) -> tuple[str, ...]:
        """Names of the bonded terms, in order of first appearance."""
        return tuple(dict.fromkeys(term.name for molecule, _ in self.molecules for term in molecule.bonded))

    def kind(self, name: str) -> BondedKind:
        """Return the kind of a bonded term.

        Raises:
            TopologyError: there is no such name.
        """
        for molecule, _ in self.molecules:
            for term in molecule.bonded:
                if term.name == name:
                    return term.kind
        raise TopologyError(
            f"no bonded term {name} in the coarse topology", expected=", ".join(self.bonded_names) or "none at all"
        )

    def bonded_beads(self, name: str) -> IntArray:
        """Return the beads ``[m, k]`` of all terms of a name, 0-based in the system.

        Raises:
            TopologyError: there is no such name.
        """
        size = BEADS_OF_KIND[self.kind(name)]
        pieces = [np.zeros((0, size), dtype=np.int64)]
        for molecule, starts in self._blocks():
            rows = [beads for term in molecule.bonded if term.name == name for beads in term.beads]
            local = np.array(rows, dtype=np.int64).reshape(-1, size)
            pieces.append((starts[:, None, None] + local).reshape(-1, size))
        return np.concatenate(pieces)

    @cached_property
    def excluded_pairs(self) -> IntArray:
        """``[m, 2]`` pairs i < j without pair interaction, 0-based in the system, sorted."""
        pieces = [np.zeros((0, 2), dtype=np.int64)]
        for molecule, starts in self._blocks():
            local = np.array(sorted(set(molecule.exclusions)), dtype=np.int64).reshape(-1, 2)
            pieces.append((starts[:, None, None] + local).reshape(-1, 2))
        return np.concatenate(pieces)

    def _blocks(self) -> Iterator[tuple[CoarseMoleculeType, IntArray]]:
        """Give each molecule type with the first bead of each of its copies."""
        start = 0
        for molecule, count in self.molecules:
            yield molecule, start + molecule.n_beads * np.arange(count, dtype=np.int64)
            start += molecule.n_beads * count

    def save(self, path: Path) -> None:
        """Write the topology as JSON; the file is replaced in one step."""
        path = Path(path)
        molecules = [{"count": count, **asdict(molecule)} for molecule, count in self.molecules]
        text = json.dumps({"format": FORMAT, "version": VERSION, "molecules": molecules}, indent=1)
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            partial.write_text(text + "\n", encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> CoarseTopology:
        """Read what :meth:`save` wrote.

        Raises:
            TopologyError: the file is missing, no coarse topology, of another version or inconsistent.
        """
        remedy = "write it again with ccg map"
        expected = "a .topology.json of ccg map"
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TopologyError(f"{path} cannot be read: {error}", expected=expected, remedy=remedy) from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise TopologyError(f"{path} is no coarse topology", expected=expected, remedy=remedy)
        if content.get("version") != VERSION:
            raise TopologyError(
                f"{path} has format version {content.get('version')}", expected=f"version {VERSION}", remedy=remedy
            )
        try:
            return cls(tuple((_molecule(entry), int(entry["count"])) for entry in content["molecules"]))
        except (KeyError, TypeError, ValueError) as error:
            raise TopologyError(f"{path} is incomplete: {error!r}", expected=expected, remedy=remedy) from None


def _molecule(entry: dict[str, Any]) -> CoarseMoleculeType:
    return CoarseMoleculeType(
        name=str(entry["name"]),
        bead_names=tuple(map(str, entry["bead_names"])),
        bead_types=tuple(map(str, entry["bead_types"])),
        masses=tuple(map(float, entry["masses"])),
        residue_names=tuple(map(str, entry["residue_names"])),
        residue_ids=tuple(map(int, entry["residue_ids"])),
        bonded=tuple(
            BondedType(str(term["name"]), term["kind"], tuple(tuple(map(int, beads)) for beads in term["beads"]))
            for term in entry["bonded"]
        ),
        exclusions=tuple((int(first), int(second)) for first, second in entry["exclusions"]),
    )
