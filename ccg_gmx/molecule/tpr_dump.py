"""The grammar of ``gmx dump -s`` (GROMACS 2025): text to plain arrays, nothing interpreted yet."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ccg_gmx.errors import TopologyError
from ccg_gmx.records import FloatArray, IntArray

# the B state of Ryckaert-Bellemans and Fourier dihedrals stands in a line of its own
_FUNCTION = re.compile(r"^\s*functype\[(\d+)\]=(\w+), ?(.*(?:\n\s*(?:rbc|Four)B\[.*)?)$", re.M)
_PARAMETER = re.compile(r"([\w\[\]]+)=\s*([-+.\deE]+|[-+]?nan|[-+]?inf)")
_MOLBLOCK = re.compile(r"^\s*moltype\s+= (\d+) \"(.*?)\"\n\s*#molecules\s+= (\d+)", re.M)
_MOLTYPE = re.compile(r"^ *moltype \((\d+)\):\n", re.M)
_ATOM = re.compile(
    r"atom\[\s*\d+\]=\{type=\s*(\d+), typeB=\s*(\d+), ptype=\s*([\w ]+?), m=\s*(\S+), q=\s*(\S+), "
    r"mB=\s*(\S+), qB=\s*(\S+), resind=\s*(\d+), atomnumber=\s*(-?\d+)\}"
)
_ATOM_NAME = re.compile(r"\batom\[\d+\]=\{name=\"(.*?)\"\}")
_RESIDUE = re.compile(r"residue\[\d+\]=\{name=\"(.*?)\", nr=(-?\d+),")
# a list longer than one line goes on in the next one, so the closing brace ends it, not the line
_EXCLUSIONS = re.compile(r"excls\[(\d+)\](?:\[num=(\d+)\])?=\{([^}]*)\}")
_INTERACTION = re.compile(r"^\s*\d+ type=(\d+) \((\w+)\)([ \d]*)$", re.M)
# a heading, then a table up to an empty line
_CMAP_GRID = re.compile(r"^grid\[ *\d+\]=\{\n((?:[-+.\d \t]+\n)+)", re.M)
_BOX_ROW = re.compile(r"^\s*box\[\s*\d\]=\{(.*?)\}", re.M)


class DumpedAtom(NamedTuple):
    """One atom of a molecule type."""

    type: int
    mass: float
    charge: float
    residue: int
    number: int
    perturbed: bool


@dataclass
class DumpedMolecule:
    """One molecule type, indices local to it; interactions as in :class:`TprDump`."""

    atoms: list[DumpedAtom]
    names: list[str]
    residues: list[tuple[str, int]]
    exclusions: IntArray
    interactions: dict[str, tuple[IntArray, IntArray]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TprDump:
    """A dump as arrays, molecules expanded; attributes as in :class:`ccg_gmx.molecule.topology.Topology`.

    Attributes:
        function_names: dump name of each function type.
        function_texts: its parameters, unparsed.
        interactions: dump name -> (atoms ``[n, k]``, function type ``[n]``).
        exclusions: ``[n, 2]`` pairs with i < j.
        cmap_grids: ``[g, n, n, 4]`` CMAP tables as printed, three decimals: V in kJ/mol and dV/dphi, dV/dpsi,
            d2V/dphi/dpsi per degree; both axes from -180 degrees on. ``[0, 0, 0, 4]`` without CMAP.
        perturbed: number of atoms and function types whose B state differs from the A state.
    """

    settings: dict[str, str]
    temperatures_K: tuple[float, ...]
    box_nm: FloatArray
    n_types: int
    reppow: float
    fudge_qq: float
    intermolecular: bool
    cmap_grids: FloatArray
    perturbed: int
    function_names: tuple[str, ...]
    function_texts: tuple[str, ...]
    names: tuple[str, ...]
    residue_names: tuple[str, ...]
    residue_ids: IntArray
    atomic_numbers: IntArray
    types: IntArray
    masses: FloatArray
    charges: FloatArray
    exclusions: IntArray
    interactions: dict[str, tuple[IntArray, IntArray]]

    def parameters(self, function: int) -> dict[str, float]:
        """Return the named parameters of one function type."""
        if self.function_names[function] == "CROSS_BOND_ANGLE":
            # GROMACS prints the second length under the name of the first one
            return _parameters(self.function_texts[function].replace(", r1e=", ", r2e="))
        return _parameters(self.function_texts[function])


def read_dump(text: str) -> TprDump:
    """Read the text of ``gmx dump -s``.

    Raises:
        TopologyError: if a part is missing or a list has not the length that the dump announces.
    """
    head, tail = _split(text)
    parts = _molecule_parts(tail)
    blocks = [(molecule, count) for _, molecule, count in _read_blocks(parts)]
    functions = _FUNCTION.findall(parts[0])
    if [int(number) for number, _, _ in functions] != list(range(int(_value(parts[0], "ntypes")))):
        raise TopologyError("the list of function types is incomplete", expected="a whole dump", remedy="dump it again")
    dump = TprDump(
        settings=_read_settings(head),
        temperatures_K=_temperatures(head),
        box_nm=np.array([[float(x) for x in row.split(",")] for row in _BOX_ROW.findall(tail)]).reshape(-1, 3),
        n_types=int(_value(parts[0], "atnr")),
        reppow=float(_value(parts[0], "reppow")),
        fudge_qq=float(_value(parts[0], "fudgeQQ")),
        intermolecular=_value(parts[0], "bIntermolecularInteractions") == "true",
        cmap_grids=_read_cmap(parts[0]),
        perturbed=sum(_is_perturbed(_parameters(texts)) for _, _, texts in functions)
        + sum(atom.perturbed for kind, _ in blocks for atom in kind.atoms),
        function_names=tuple(name for _, name, _ in functions),
        function_texts=tuple(texts for _, _, texts in functions),
        **_expand(blocks),  # type: ignore[arg-type]
    )
    _check_counts(dump, int(_value(parts[0], "#atoms")))
    return dump


def read_molecule_blocks(text: str) -> list[tuple[str, DumpedMolecule, int]]:
    """Read name, molecule type and number of copies of each block of molecules, copies not written out.

    Raises:
        TopologyError: as :func:`read_dump`.
    """
    return _read_blocks(_molecule_parts(_split(text)[1]))


def _split(text: str) -> tuple[str, str]:
    """Give the run settings and the topology."""
    head, mark, tail = text.partition("\ntopology:\n")
    if not mark or "inputrec:" not in head:
        raise TopologyError(
            "the text has no inputrec and topology sections", expected="the output of gmx dump -s of a .tpr file"
        )
    return head, tail


def _molecule_parts(topology: str) -> list[str]:
    """Give what stands before the molecule types, then number and body of each."""
    # gmx dump ends no line after a type without parameters
    return _MOLTYPE.split(re.sub(r"(=CONNBONDS,) *(?=\S)", r"\1\n   ", topology))


def _read_blocks(parts: list[str]) -> list[tuple[str, DumpedMolecule, int]]:
    molecule_types = {
        int(number): _read_molecule_type(body) for number, body in zip(parts[1::2], parts[2::2], strict=True)
    }
    return [(name, molecule_types[int(kind)], int(count)) for kind, name, count in _MOLBLOCK.findall(parts[0])]


def _check_counts(dump: TprDump, n_atoms: int) -> None:
    if len(dump.names) != n_atoms or len(dump.masses) != n_atoms:
        raise TopologyError(f"the dump lists {len(dump.masses)} atoms", expected=f"the {n_atoms} it announces")
    if dump.box_nm.shape != (3, 3):
        raise TopologyError("the dump has no box", expected="three box vectors")


def _value(text: str, name: str) -> str:
    match = re.search(rf"^\s*{re.escape(name)}\s*= ?(.*)$", text, re.M)
    if match is None:
        raise TopologyError(f"the dump has no line {name}", expected="the output of gmx dump -s of GROMACS 2025")
    return match.group(1).strip()


def _read_settings(text: str) -> dict[str, str]:
    """Collect ``name = value`` lines; deeper indentation under ``name:`` nests."""
    settings: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        while stack and stack[-1][0] >= indent:
            stack.pop()
        name, equals, value = line.partition("=")
        if equals and "[" not in name:
            settings["/".join([title for _, title in stack] + [name.strip()])] = value.strip()
        elif line.rstrip().endswith(":") and indent > 0:
            stack.append((indent, line.strip()[:-1]))
    return settings


def _temperatures(text: str) -> tuple[float, ...]:
    match = re.search(r"^\s*ref-t:(.*)$", text, re.M)
    return tuple(float(value) for value in match.group(1).split()) if match else ()


def _parameters(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in _PARAMETER.findall(text)}


def _read_cmap(text: str) -> FloatArray:
    grids = []
    for body in _CMAP_GRID.findall(text):
        numbers = np.array(body.split(), dtype=np.float64)
        # n rows, each an angle followed by 4 n numbers
        n = int((math.sqrt(1 + 16 * len(numbers)) - 1) / 8 + 0.5)
        if n * (4 * n + 1) != len(numbers):
            raise TopologyError(f"a CMAP table has {len(numbers)} numbers", expected="n (4 n + 1) for an n x n grid")
        grids.append(numbers.reshape(n, 4 * n + 1)[:, 1:].reshape(n, n, 4))
    if len({len(grid) for grid in grids}) > 1:
        raise TopologyError("the CMAP tables differ in size", expected="one grid spacing")
    return np.stack(grids) if grids else np.zeros((0, 0, 0, 4))


def _is_perturbed(parameters: dict[str, float]) -> bool:
    """Compare ``cpA`` with ``cpB``, ``rbcA[0]`` with ``rbcB[0]``."""
    states = (
        (value, parameters.get(re.sub(r"A(?=$|\[)", "B", name), value))
        for name, value in parameters.items()
        if re.search(r"A($|\[)", name)
    )
    return any(not math.isclose(a, b) for a, b in states)


def _read_molecule_type(body: str) -> DumpedMolecule:
    atoms = [
        DumpedAtom(
            type=int(kind), mass=float(mass), charge=float(charge), residue=int(residue), number=int(number),
            perturbed=(kind, float(mass), float(charge)) != (kind_b, float(mass_b), float(charge_b)),
        )
        for kind, kind_b, _, mass, charge, mass_b, charge_b, residue, number in _ATOM.findall(body)
    ]  # fmt: skip
    residues = [(name, int(number)) for name, number in _RESIDUE.findall(body)]
    molecule_type = DumpedMolecule(atoms, _ATOM_NAME.findall(body), residues, _read_exclusions(body, len(atoms)))
    grouped: dict[str, list[tuple[int, list[int]]]] = {}
    for function, name, indices in _INTERACTION.findall(body):
        grouped.setdefault(name, []).append((int(function), [int(index) for index in indices.split()]))
    for name, rows in grouped.items():
        functions = np.array([function for function, _ in rows], dtype=np.int64)
        molecule_type.interactions[name] = (np.array([row for _, row in rows], dtype=np.int64), functions)
    return molecule_type


def _read_exclusions(body: str, n_atoms: int) -> IntArray:
    pairs: set[tuple[int, int]] = set()
    lists = 0
    for first, announced, inside in _EXCLUSIONS.findall(body):
        others = [int(second) for second in inside.replace(",", " ").split()]
        lists += 1
        if announced and len(others) != int(announced):
            raise TopologyError(
                f"the exclusions of atom {int(first) + 1} list {len(others)} atoms",
                expected=f"the {announced} that the dump announces",
            )
        pairs.update((min(int(first), second), max(int(first), second)) for second in others if second != int(first))
    if lists != n_atoms:
        raise TopologyError(f"the dump has {lists} exclusion lists", expected=f"one for each of the {n_atoms} atoms")
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _expand(blocks: list[tuple[DumpedMolecule, int]]) -> dict[str, object]:
    """Write out every copy of every molecule type, indices shifted to the whole system."""
    atoms: list[DumpedAtom] = []
    names: list[str] = []
    residues: list[tuple[str, int]] = []
    exclusions: list[IntArray] = [np.zeros((0, 2), dtype=np.int64)]
    pieces: dict[str, list[tuple[IntArray, IntArray]]] = {}
    for kind, count in blocks:
        shifts = len(atoms) + np.arange(count) * len(kind.atoms)
        atoms += kind.atoms * count
        names += kind.names * count
        residues += [kind.residues[atom.residue] for atom in kind.atoms] * count
        exclusions.append((shifts[:, None, None] + kind.exclusions).reshape(-1, 2))
        for name, (indices, functions) in kind.interactions.items():
            copies = (shifts[:, None, None] + indices).reshape(-1, indices.shape[1])
            pieces.setdefault(name, []).append((copies, np.tile(functions, count)))
    return {
        "names": tuple(names),
        "residue_names": tuple(name for name, _ in residues),
        "residue_ids": np.array([number for _, number in residues], dtype=np.int64),
        "atomic_numbers": np.array([atom.number for atom in atoms], dtype=np.int64),
        "types": np.array([atom.type for atom in atoms], dtype=np.int64),
        "masses": np.array([atom.mass for atom in atoms], dtype=np.float64),
        "charges": np.array([atom.charge for atom in atoms], dtype=np.float64),
        "exclusions": np.concatenate(exclusions),
        "interactions": {
            name: (np.concatenate([a for a, _ in parts]), np.concatenate([f for _, f in parts]))
            for name, parts in pieces.items()
        },
    }
