"""What a GROMACS run input file (.tpr) says about the system, read from the text of ``gmx dump -s``.

In a .tpr the combination rules, macros and 1-4 scaling of the force field are already resolved, so this is the one
place where parameters are complete for every force field that grompp accepts. ``gmx dump`` prints charges, bond and
angle parameters with six significant digits, Lennard-Jones and dihedral ones with nine, CMAP grids with three decimals;
the energies inherit that.

Reading is separate from refusing: a topology with constraints or PME can still be mapped, but :func:`require_supported`
(called by the force field) names every interaction that the energies of this package would leave out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from MDAnalysis.guesser.tables import Z2SYMB

from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.tpr_dump import TprDump, read_dump
from ccg_gmx.records import FloatArray, IntArray

# dump name -> number of atoms and names of the parameters that are kept, in this order
COVERED: dict[str, tuple[int, tuple[str, ...]]] = {
    "BONDS": (2, ("b0A", "cbA")),
    "G96BONDS": (2, ("b0A", "cbA")),
    "MORSE": (2, ("b0A", "cbA", "betaA")),
    "CUBICBONDS": (2, ("b0", "kb", "kcub")),
    "CONNBONDS": (2, ()),
    "HARMONIC": (2, ("b0A", "cbA")),
    "TABBONDS": (2, ("kA", "tab")),
    "TABBONDSNC": (2, ("kA", "tab")),
    "ANGLES": (3, ("thA", "ctA")),
    "G96ANGLES": (3, ("thA", "ctA")),
    "CROSS_BOND_BOND": (3, ("r1e", "r2e", "krr")),
    "CROSS_BOND_ANGLE": (3, ("r1e", "r2e", "r3e", "krt")),
    "UREY_BRADLEY": (3, ("thetaA", "kthetaA", "r13A", "kUBA")),
    "QANGLES": (3, ("theta", "c0", "c1", "c2", "c3", "c4")),
    "TABANGLES": (3, ("kA", "tab")),
    "PDIHS": (4, ("phiA", "cpA", "mult")),
    "PIDIHS": (4, ("phiA", "cpA", "mult")),
    "RBDIHS": (4, tuple(f"rbcA[{n}]" for n in range(6))),
    "FOURDIHS": (4, tuple(f"FourA[{n}]" for n in range(4))),
    "IDIHS": (4, ("xiA", "cxA")),
    "TABDIHS": (4, ("kA", "tab")),
    "CMAP": (5, ("cmapA",)),
    "LJ14": (2, ("c6A", "c12A")),
    "LJC14_Q": (2, ("fqq", "qi", "qj", "c6", "c12")),
    "LJC_NB": (2, ("qi", "qj", "c6", "c12")),
}
# functions that GROMACS itself takes for chemical bonds (IF_CHEMBOND in ifunc.cpp)
CHEMICAL_BONDS = ("BONDS", "G96BONDS", "MORSE", "CUBICBONDS", "CONNBONDS", "FENEBONDS", "TABBONDS", "CONSTR", "SETTLE")
CONSTRAINTS = ("CONSTR", "CONSTRNC", "SETTLE")

# run settings that change or add to the potential energy: dump name -> (values covered, what to write in the .mdp)
COVERED_SETTINGS: dict[str, tuple[tuple[str, ...], str]] = {
    "coulombtype": (("Cut-off", "Reaction-Field"), "coulombtype = cut-off or reaction-field"),
    "coulomb-modifier": (("None", "Potential-shift"), "coulomb-modifier = none or potential-shift"),
    "vdw-type": (("Cut-off",), "vdwtype = cut-off"),
    "vdw-modifier": (("None", "Potential-shift"), "vdw-modifier = none or potential-shift"),
    "DispCorr": (("No",), "DispCorr = no"),
    "free-energy": (("no",), "free-energy = no"),
    "simulated-tempering": (("false",), "simulated-tempering = no"),
    "pull": (("false",), "pull = no"),
    "awh": (("false",), "awh = no"),
    "rotation": (("false",), "rotation = no"),
    "QMMM": (("false",), "a run without QMMM"),
    "nwall": (("0",), "nwall = 0"),
    "disre": (("No",), "disre = no"),
    "cos-acceleration": (("0",), "cos-acceleration = 0"),
    "swapcoords": (("no",), "swapcoords = no"),
    "applied-forces/electric-field/x/E0": (("0",), "no electric-field-x"),
    "applied-forces/electric-field/y/E0": (("0",), "no electric-field-y"),
    "applied-forces/electric-field/z/E0": (("0",), "no electric-field-z"),
    "applied-forces/density-guided-simulation/active": (("false",), "density-guided-simulation-active = no"),
    "applied-forces/qmmm-cp2k/active": (("false",), "qmmm-cp2k-active = no"),
    "applied-forces/colvars/active": (("false",), "colvars-active = no"),
    "applied-forces/nnpot/active": (("false",), "nnpot-active = no"),
}


@dataclass(frozen=True, eq=False)
class Interactions:
    """All interactions of one function type.

    Attributes:
        atoms: ``[n, k]`` 0-based atom indices.
        parameters: ``[n, p]`` as in :data:`COVERED` and as the .tpr has them: GROMACS units, angles in degrees, b0 of
            G96BONDS squared, theta0 of G96ANGLES as its cosine.
    """

    atoms: IntArray
    parameters: FloatArray

    def __len__(self) -> int:
        """Return the number of interactions."""
        return len(self.atoms)


@dataclass(frozen=True, eq=False)
class RunInput:
    """The run settings that matter for energies and weights.

    Attributes:
        integrator: name as in the .mdp.
        dt_ps: time step in ps.
        temperatures_K: reference temperature of each coupling group, empty without a thermostat.
        coulombtype: treatment of the electrostatics.
        coulomb_modifier: potential modifier of the electrostatics.
        vdw_type: treatment of Lennard-Jones.
        vdw_modifier: potential modifier of Lennard-Jones.
        rcoulomb_nm: cut-off of the electrostatics.
        rvdw_nm: cut-off of Lennard-Jones.
        epsilon_r: relative dielectric constant.
        epsilon_rf: dielectric constant of the reaction field (unused with a plain cut-off).
        pbc: periodic boundary conditions, ``xyz`` or ``no``.
        box_nm: ``[3, 3]`` box of the start structure, rows are the box vectors.
        settings: every line of the run settings, nested names joined by ``/``.
    """

    integrator: str
    dt_ps: float
    temperatures_K: tuple[float, ...]
    coulombtype: str
    coulomb_modifier: str
    vdw_type: str
    vdw_modifier: str
    rcoulomb_nm: float
    rvdw_nm: float
    epsilon_r: float
    epsilon_rf: float
    pbc: str
    box_nm: FloatArray
    settings: Mapping[str, str]

    @property
    def temperature_K(self) -> float:
        """The one thermostat temperature.

        Raises:
            TopologyError: without a thermostat, or with groups at different temperatures.
        """
        if len(set(self.temperatures_K)) != 1 or self.temperatures_K[0] <= 0:
            found = ", ".join(f"{value:g} K" for value in self.temperatures_K) or "no thermostat"
            raise TopologyError(
                f"found {found}", expected="one positive temperature", remedy="set tc-grps = System and one ref-t"
            )
        return self.temperatures_K[0]

    @property
    def cutoff_nm(self) -> float:
        """The shorter of the two cut-offs; 0 stands for none."""
        return min(self.rcoulomb_nm or math.inf, self.rvdw_nm or math.inf)

    @property
    def plain_cutoff(self) -> bool:
        """Whether pairs within the cut-offs have their full energies, neither shifted nor with a reaction field."""
        return (self.coulombtype, self.coulomb_modifier, self.vdw_modifier) == ("Cut-off", "None", "None")


@dataclass(frozen=True, eq=False)
class Topology:
    """Atoms, parameters and run settings of a .tpr, all molecules expanded.

    Attributes:
        names: ``[N]`` atom names.
        residue_names: ``[N]`` residue name of each atom.
        residue_ids: ``[N]`` residue number of each atom, as in the structure file.
        atomic_numbers: ``[N]``, -1 where the force field does not say.
        types: ``[N]`` Lennard-Jones type of each atom.
        masses: ``[N]`` amu.
        charges: ``[N]`` e.
        c6: ``[n_types, n_types]`` kJ/mol nm^6.
        c12: ``[n_types, n_types]`` kJ/mol nm^12.
        interactions: the covered bonded and 1-4 interactions by dump name (all keys of :data:`COVERED` present).
        exclusions: pairs (i < j) without a non-bonded interaction.
        bonds: ``[n, 2]`` the graph of chemical bonds (constraints among them), i < j, sorted.
        fudge_qq: factor on the charges' product of 1-4 pairs.
        uncovered: dump name -> number of interactions that the energies here do not cover (constraints among them).
        run: run settings.
        cmap_grids: ``[g, n, n, 4]`` CMAP tables as in :class:`ccg_gmx.molecule.tpr_dump.TprDump`.
    """

    names: tuple[str, ...]
    residue_names: tuple[str, ...]
    residue_ids: IntArray
    atomic_numbers: IntArray
    types: IntArray
    masses: FloatArray
    charges: FloatArray
    c6: FloatArray
    c12: FloatArray
    interactions: Mapping[str, Interactions]
    exclusions: frozenset[tuple[int, int]]
    bonds: IntArray
    fudge_qq: float
    uncovered: Mapping[str, int]
    run: RunInput
    cmap_grids: FloatArray = field(default_factory=lambda: np.zeros((0, 0, 0, 4)))

    @property
    def n_atoms(self) -> int:
        """Number of atoms N."""
        return len(self.names)

    @property
    def elements(self) -> tuple[str, ...]:
        """Element symbol of each atom, ``X`` where the force field does not say."""
        return tuple(Z2SYMB.get(number, "X") for number in self.atomic_numbers.tolist())

    @property
    def n_constraints(self) -> int:
        """Number of constrained groups (bonds, and rigid waters)."""
        return sum(self.uncovered.get(name, 0) for name in CONSTRAINTS)

    def label(self, atom: int) -> str:
        """Name a 0-based atom for people: ``7 (N of ALA 2)``, the number 1-based."""
        return f"{atom + 1} ({self.names[atom]} of {self.residue_names[atom]} {self.residue_ids[atom]})"


def parse_tpr_dump(text: str) -> Topology:
    """Read the output of ``gmx dump -s topol.tpr``.

    Args:
        text: the whole standard output of ``gmx dump``.

    Raises:
        TopologyError: if the text is not a complete dump.
    """
    dump = read_dump(text)
    n_types = dump.n_types
    pair_types = [dump.parameters(index) for index in range(n_types**2)]
    lennard_jones = all(dump.function_names[index] == "LJ_SR" for index in range(n_types**2)) and dump.reppow == 12
    uncovered = {name: len(atoms) for name, (atoms, _) in dump.interactions.items() if name not in COVERED}
    if not lennard_jones:
        uncovered[f"non-bonded {dump.function_names[0]}, repulsion power {dump.reppow:g}"] = n_types**2
    if dump.intermolecular:
        uncovered["intermolecular_interactions"] = 1
    if dump.perturbed:
        uncovered["perturbed (B state) parameters"] = dump.perturbed
    return Topology(
        names=dump.names,
        residue_names=dump.residue_names,
        residue_ids=dump.residue_ids,
        atomic_numbers=dump.atomic_numbers,
        types=dump.types,
        masses=dump.masses,
        charges=dump.charges,
        c6=np.array([p.get("c6", math.nan) for p in pair_types]).reshape(n_types, n_types),
        c12=np.array([p.get("c12", math.nan) for p in pair_types]).reshape(n_types, n_types),
        interactions={name: _interactions(dump, name) for name in COVERED},
        exclusions=frozenset(map(tuple, dump.exclusions.tolist())),
        bonds=_bond_graph(dump),
        fudge_qq=dump.fudge_qq,
        uncovered=uncovered,
        run=_run_input(dump),
        cmap_grids=dump.cmap_grids,
    )


def _interactions(dump: TprDump, name: str) -> Interactions:
    n_atoms, keys = COVERED[name]
    atoms, functions = dump.interactions.get(
        name, (np.zeros((0, n_atoms), dtype=np.int64), np.zeros(0, dtype=np.int64))
    )
    table = {int(index): dump.parameters(int(index)) for index in np.unique(functions)}
    for parameters in table.values():
        if missing := [key for key in keys if key not in parameters]:
            raise TopologyError(
                f"the dump gives no {missing[0]} for {name}", expected="the output of gmx dump -s of GROMACS 2025"
            )
    values = [[table[int(index)][key] for key in keys] for index in functions]
    return Interactions(atoms, np.array(values, dtype=np.float64).reshape(len(atoms), len(keys)))


def _bond_graph(dump: TprDump) -> IntArray:
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for name in CHEMICAL_BONDS:
        if name in dump.interactions:
            atoms = dump.interactions[name][0]
            # a rigid water is O, H, H with both hydrogens bound to the oxygen
            pairs += [atoms[:, [0, 1]], atoms[:, [0, 2]]] if name == "SETTLE" else [atoms[:, :2]]
    return np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)


def _run_input(dump: TprDump) -> RunInput:
    settings = dump.settings
    try:
        return RunInput(
            integrator=settings["integrator"],
            dt_ps=float(settings["dt"]),
            temperatures_K=dump.temperatures_K,
            coulombtype=settings["coulombtype"],
            coulomb_modifier=settings["coulomb-modifier"],
            vdw_type=settings["vdw-type"],
            vdw_modifier=settings["vdw-modifier"],
            rcoulomb_nm=float(settings["rcoulomb"]),
            rvdw_nm=float(settings["rvdw"]),
            epsilon_r=float(settings["epsilon-r"]),
            epsilon_rf=float(settings["epsilon-rf"]),
            pbc=settings["pbc"],
            box_nm=dump.box_nm,
            settings=settings,
        )
    except KeyError as error:
        raise TopologyError(
            f"the dump has no run setting {error}", expected="the output of gmx dump -s of GROMACS 2025"
        ) from None


def require_unconstrained(topology: Topology) -> None:
    """Refuse constraints: they remove directions of the measure that weights are about.

    Raises:
        TopologyError: if there are constraints or rigid waters.
    """
    if topology.n_constraints:
        raise TopologyError(
            f"found {topology.n_constraints} constraints in the .tpr",
            expected="none, because weights need the full measure of all coordinates",
            remedy="set constraints = none (and define = -DFLEXIBLE for rigid waters) and run grompp again",
        )


def require_supported(topology: Topology) -> None:
    """Refuse, by name, whatever the energies of this package would leave out.

    Raises:
        TopologyError: constraints, an uncovered function type or run setting, or more than one molecule.
    """
    require_unconstrained(topology)
    if topology.uncovered:
        found = ", ".join(f"{count} {name}" for name, count in sorted(topology.uncovered.items()))
        raise TopologyError(
            f"found interactions that are not covered: {found}",
            expected=f"only {', '.join(COVERED)} and Lennard-Jones with charges",
            remedy="take out what is named; nothing is left out silently",
        )
    for name, (values, remedy) in COVERED_SETTINGS.items():
        found = topology.run.settings.get(name, values[0])
        if found not in values:
            raise TopologyError(f"found {name} = {found} in the .tpr", expected=values[0], remedy=f"use {remedy}")
    _require_one_molecule(topology)


def _require_one_molecule(topology: Topology) -> None:
    reached = {0}
    neighbours: dict[int, list[int]] = {atom: [] for atom in range(topology.n_atoms)}
    for first, second in topology.bonds.tolist():
        neighbours[first].append(second)
        neighbours[second].append(first)
    frontier = [0]
    while frontier:
        frontier = [atom for parent in frontier for atom in neighbours[parent] if atom not in reached]
        reached.update(frontier)
    if len(reached) < topology.n_atoms:
        missed = min(set(range(topology.n_atoms)) - reached)
        raise TopologyError(
            f"found atoms that are not bonded to the first molecule, atom {topology.label(missed)} for instance",
            expected="one isolated molecule",
            remedy="make a .tpr of the molecule alone, in vacuum",
        )


def check_cutoff(topology: Topology, positions: FloatArray) -> None:
    """Check that no pair is beyond a plain cut-off and that no periodic image is within it.

    An energy that stops at a plain cut-off jumps there, so a molecule in vacuum should not reach it. Where the .tpr
    asks for a shift or a reaction field, the cut-off is meant, and the energies here apply it (:func:`check_images`).

    Args:
        topology: the system.
        positions: ``[T, N, 3]`` nm, whole molecules.

    Raises:
        TopologyError: if the molecule is wider than a plain cut-off, or the box too small.
    """
    extent = _widest(topology.run, positions)
    if topology.run.plain_cutoff and extent > topology.run.cutoff_nm:
        raise TopologyError(
            f"the molecule is {extent:.3f} nm wide but the cut-off is {topology.run.cutoff_nm:g} nm",
            expected="every pair of atoms within rcoulomb and rvdw",
            remedy=f"set both to {math.ceil(10 * extent + 2) / 10:g} nm or more, and check that molecules are whole",
        )
    check_images(topology, positions)


def check_images(topology: Topology, positions: FloatArray) -> None:
    """Check that no atom is within a cut-off of another's periodic image: the energies are those of one molecule.

    Args:
        topology: the system.
        positions: ``[T, N, 3]`` nm, whole molecules.

    Raises:
        TopologyError: if the box is too small.
    """
    run = topology.run
    if run.pbc == "no":
        return
    extent = _widest(run, positions)
    narrowest = float(np.diag(run.box_nm).min())
    cutoff = max(run.rcoulomb_nm, run.rvdw_nm)
    if extent + cutoff > narrowest:
        raise TopologyError(
            f"the molecule is {extent:.3f} nm wide in a box of {narrowest:g} nm",
            expected="its periodic images beyond the cut-off",
            remedy=f"use a box wider than {extent + cutoff:.2f} nm",
        )


def _widest(run: RunInput, positions: FloatArray) -> float:
    """Return the largest distance between two atoms if it may matter, else 0."""
    # the bounding box' diagonal bounds the widest pair from above; look at all pairs only where it does not decide
    spans = np.linalg.norm(np.ptp(positions, axis=1), axis=-1)
    return max((_extent(frame) for frame in positions[spans > _allowed_extent(run)]), default=0.0)


def _allowed_extent(run: RunInput) -> float:
    room = math.inf if run.pbc == "no" else float(np.diag(run.box_nm).min()) - max(run.rcoulomb_nm, run.rvdw_nm)
    return min(run.cutoff_nm, room)


def _extent(frame: FloatArray) -> float:
    return float(np.linalg.norm(frame[:, None] - frame[None, :], axis=-1).max())


def torsion_atoms(topology: Topology, indices_1based: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the 0-based atoms of a torsion that a user gave 1-based.

    Raises:
        TopologyError: not four atoms, one out of range or repeated, or consecutive atoms not bonded.
    """
    numbers = tuple(int(index) for index in indices_1based)
    given = "-".join(map(str, numbers))
    valid = f"four different, consecutively bonded atoms numbered 1..{topology.n_atoms}"
    if len(numbers) != 4 or len(set(numbers)) != 4:
        raise TopologyError(f"torsion {given} does not name four different atoms", expected=valid)
    outside = [number for number in numbers if not 1 <= number <= topology.n_atoms]
    if outside:
        raise TopologyError(
            f"torsion {given} has no atom {', '.join(map(str, outside))} in the topology",
            expected=valid,
            remedy="count atoms from 1 as in the .gro file",
        )
    first, second, third, fourth = (number - 1 for number in numbers)
    bonded = set(map(tuple, topology.bonds.tolist()))
    for left, right in ((first, second), (second, third), (third, fourth)):
        if (min(left, right), max(left, right)) not in bonded:
            raise TopologyError(
                f"torsion {given}: atoms {topology.label(left)} and {topology.label(right)} are not bonded",
                expected=valid,
                remedy="list the atoms along the chain",
            )
    return first, second, third, fourth
