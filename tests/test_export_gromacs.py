"""The written force field: its text, and what GROMACS makes of it against our own numbers."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import shutil
import subprocess
from pathlib import Path

import MDAnalysis
import numpy as np
import pytest

from ccg_gmx.errors import StoreError, TopologyError
from ccg_gmx.export.gromacs import CoarseMolecule, ForceField, GromacsExportSettings, write_forcefield
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.potential.basis import SeparableBasis, SplineTerm, TorsionGrid
from ccg_gmx.potential.coarse import CoarsePotential, FitResidual
from ccg_gmx.records import FloatArray

CENTRE = np.array([0.134, 0.145, 0.153, 0.134, 2.1, 1.94, 2.05])
SD = np.array([0.0028, 0.0033, 0.0033, 0.0028, 0.05, 0.06, 0.05])
COORDINATES = [Coordinate(f"bond {i}", "bond", "positive") for i in range(4)]
COORDINATES += [Coordinate(f"angle {i}", "angle", "polar") for i in range(3)]
MOLECULE = CoarseMolecule(
    name="ALAD",
    bead_names=("C", "N", "CA", "C", "N"),
    residue_names=("ACE", "ALA", "ALA", "ALA", "NME"),
    residue_ids=(1, 2, 2, 2, 3),
    masses=(43.0, 15.0, 28.0, 28.0, 30.0),
    terms=((0, 1), (1, 2), (2, 3), (3, 4), (0, 1, 2), (1, 2, 3), (2, 3, 4)),
    torsions=((0, 1, 2, 3), (1, 2, 3, 4)),
)
ONE_TORSION = dataclasses.replace(
    MOLECULE,
    bead_names=MOLECULE.bead_names[:4],
    residue_names=MOLECULE.residue_names[:4],
    residue_ids=MOLECULE.residue_ids[:4],
    masses=MOLECULE.masses[:4],
    terms=((0, 1), (1, 2), (2, 3), (0, 1, 2), (1, 2, 3)),
    torsions=((0, 1, 2, 3),),
)
MDP = """integrator = sd
dt = {dt}
nsteps = {steps}
tc-grps = System
tau-t = 0.5
ref-t = 300
ld-seed = {seed}
gen-vel = yes
gen-temp = 300
gen-seed = {seed}
comm-mode = none
cutoff-scheme = Verlet
verlet-buffer-tolerance = -1
nstlist = 100
coulombtype = cut-off
coulomb-modifier = none
vdwtype = cut-off
vdw-modifier = none
rlist = 2.5
rcoulomb = 2.5
rvdw = 2.5
nstxout = {every}
nstfout = {every}
nstenergy = {every}
nstcalcenergy = {every}
"""


def torsion_energy(s: FloatArray) -> FloatArray:
    """A surface without any symmetry that could hide a swapped axis or sign, kT."""
    phi, psi = s[:, 0], s[:, -1]
    return 2.0 * np.cos(phi - 0.5) + np.cos(psi + 1.0) + 0.7 * np.cos(phi + 2.0 * psi) + 0.5 * np.sin(3.0 * psi - phi)


def made_up(two: bool = True) -> CoarsePotential:
    """Slightly anharmonic wells and a smooth surface."""
    use = list(range(7)) if two else [0, 1, 2, 4, 5]
    terms = tuple(
        SplineTerm(COORDINATES[i], CENTRE[i] - 5 * SD[i], CENTRE[i] + 5 * SD[i], 10, 0.3 / SD[i] ** 2) for i in use
    )
    basis = SeparableBasis(terms, TorsionGrid(("phi", "psi")[: 1 + two], 24))
    coefficients = np.zeros(basis.size)
    axes = np.meshgrid(*(np.linspace(-math.pi, math.pi, 72, endpoint=False),) * basis.n_s, indexing="ij")
    s = np.stack(axes, axis=-1).reshape(-1, basis.n_s)
    coefficients[basis.blocks[0]] = np.linalg.lstsq(basis.torsions.design(s).toarray(), torsion_energy(s), rcond=None)[
        0
    ]
    for i, term in enumerate(terms):
        x = np.linspace(term.lo, term.hi, 200)
        z = (x - CENTRE[use[i]]) / SD[use[i]]
        energy = 0.5 * z**2 + 0.01 * z**3 + 0.003 * z**4 + 0.05 * np.cos(1.5 * z)
        coefficients[basis.blocks[i + 1]] = np.linalg.lstsq(term.design(x).toarray(), energy, rcond=None)[0]
    residual = FitResidual(np.zeros(basis.n_s + basis.n_b), np.zeros(basis.n_s + basis.n_b), math.nan, 0.0, 0)
    return CoarsePotential(basis, coefficients, np.zeros((basis.size, basis.size)), 300.0, residual)


def place(s: FloatArray, b: FloatArray) -> FloatArray:
    """Chain of beads from torsions, bonds and angles ``[M, n_beads, 3]`` nm."""
    n = s.shape[1] + 3
    bonds, bends = b[:, : n - 1], b[:, n - 1 :]
    x = np.zeros((len(s), n, 3))
    x[:, 1, 0] = bonds[:, 0]
    x[:, 2] = x[:, 1] + bonds[:, 1, None] * np.stack([-np.cos(bends[:, 0]), np.sin(bends[:, 0]), 0 * b[:, 0]], axis=1)
    for k in range(n - 3):
        ahead = _unit(x[:, k + 2] - x[:, k + 1])
        normal = _unit(np.cross(x[:, k + 1] - x[:, k], ahead))
        side = np.cross(normal, ahead)
        r, theta, torsion = bonds[:, k + 2, None], bends[:, k + 1, None], s[:, k, None]
        turned = np.cos(torsion) * side + np.sin(torsion) * normal
        x[:, k + 3] = x[:, k + 2] + r * (np.sin(theta) * turned - np.cos(theta) * ahead)
    return x


def _unit(v: FloatArray) -> FloatArray:
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def internal(x: FloatArray, molecule: CoarseMolecule) -> tuple[FloatArray, FloatArray]:
    """(s, b) of bead positions in float64 (MDAnalysis works in float32), by arctan2: independent of :func:`place`."""
    b = [_coordinate(*(x[:, i] for i in beads)) for beads in molecule.terms]
    s = [_torsion(*(x[:, i] for i in beads)) for beads in molecule.torsions]
    return np.stack(s, axis=1), np.stack(b, axis=1)


def _coordinate(*beads: FloatArray) -> FloatArray:
    if len(beads) == 2:
        return np.linalg.norm(beads[1] - beads[0], axis=1)
    if len(beads) == 4:
        return _torsion(*beads)
    u, v = beads[0] - beads[1], beads[2] - beads[1]
    return np.arctan2(np.linalg.norm(np.cross(u, v), axis=1), np.sum(u * v, axis=1))


def _torsion(*beads: FloatArray) -> FloatArray:
    u, v, w = (after - before for before, after in itertools.pairwise(beads))
    m, n = np.cross(u, v), np.cross(v, w)
    return np.arctan2(np.sum(u * n, axis=1) * np.linalg.norm(v, axis=1), np.sum(m * n, axis=1))


def frames(potential: CoarsePotential, n: int, seed: int) -> FloatArray:
    """Beads with uniform torsions and Boltzmann bonds and angles, in the middle of the box, rounded to float32."""
    rng = np.random.default_rng(seed)
    s = rng.uniform(-math.pi, math.pi, (n, potential.basis.n_s))
    x = place(s, potential.sample_b(n, seed))
    return (x - x.mean(axis=1, keepdims=True) + 3.0).astype(np.float32).astype(np.float64)


def gmx(*arguments: object, cwd: Path) -> None:
    command = ["gmx", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def written(folder: Path, potential: CoarsePotential, molecule: CoarseMolecule, **mdp: object) -> ForceField:
    text = MDP.format(**{"dt": 0.002, "steps": 100, "seed": 1, "every": 100, **mdp})
    return write_forcefield(folder, potential, molecule, frames(potential, 1, 3)[0], text)


def rerun(field: ForceField, x: FloatArray, tables: bool) -> tuple[dict[str, FloatArray], FloatArray, FloatArray]:
    """Energy terms, forces (kJ/mol/nm) and positions (nm, as GROMACS read them, to the last bit) of given beads."""
    folder = field.folder
    universe = MDAnalysis.Universe.empty(x.shape[1], trajectory=True)
    with MDAnalysis.Writer(str(folder / "in.trr"), x.shape[1]) as writer:
        for frame in x:
            universe.atoms.positions, universe.dimensions = 10 * frame, [60, 60, 60, 90, 90, 90]
            writer.write(universe.atoms)
    mdp = field.tables_mdp if tables else field.mdp
    gmx("grompp", "-f", mdp.name, "-o", "rerun.tpr", cwd=folder)
    options = ["-tableb", *(table.name for table in field.tables)] if tables else []
    gmx("mdrun", "-s", "rerun.tpr", "-rerun", "in.trr", "-o", "out.trr", "-nt", 1, *options, cwd=folder)
    done = subprocess.run(
        ["gmx", "energy", "-f", "ener.edr", "-o", "e.xvg", "-dp"],
        cwd=folder, input=" ".join(map(str, range(1, 30))), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0
    names = re.findall(r'@ s\d+ legend "(.*)"', (folder / "e.xvg").read_text())
    values = np.loadtxt(folder / "e.xvg", comments=["#", "@"])
    raw = MDAnalysis.coordinates.TRR.TRRReader(str(folder / "out.trr"), convert_units=False)
    forces, read = (np.array([getattr(f, k).copy() for f in raw], dtype=np.float64) for k in ("forces", "positions"))
    assert np.abs(read - x).max() < 1e-6
    return {name: values[:, i + 1] for i, name in enumerate(names)}, forces, read


def numeric_forces(potential: CoarsePotential, molecule: CoarseMolecule, x: FloatArray) -> FloatArray:
    """Minus the central difference of our energy by every Cartesian coordinate."""
    step, flat = 1e-6, np.eye(x.shape[1] * 3).reshape(-1, x.shape[1], 3)
    up, down = (
        potential.values(*internal((x[:, None] + k * step * flat).reshape(-1, *x.shape[1:]), molecule)) for k in (1, -1)
    )
    return -((up - down) / (2 * step)).reshape(x.shape)


@pytest.fixture(scope="module")
def potential() -> CoarsePotential:
    return made_up()


def test_folder_holds_what_a_bare_grompp_reads(potential: CoarsePotential, tmp_path: Path) -> None:
    field = written(tmp_path / "forcefield", potential, MOLECULE)
    names = {path.name for path in field.folder.iterdir()}
    tables = {f"table_b{i}.xvg" for i in range(4)} | {f"table_a{i}.xvg" for i in range(3)}
    assert names == tables | {"topol.top", "conf.gro", "grompp.mdp", "tables.mdp", "README.md"}
    assert "define = -DTABLES" in field.tables_mdp.read_text()
    assert "gmx grompp && gmx mdrun\n" in (field.folder / "README.md").read_text()


def test_tables_are_padded_and_their_last_column_is_minus_the_slope(potential: CoarsePotential, tmp_path: Path) -> None:
    field = written(tmp_path / "forcefield", potential, MOLECULE)
    for path in field.tables:
        x, value, force = np.loadtxt(path).T
        assert x[0] == 0.0
        assert x[-1] == (180.0 if "_a" in path.name else pytest.approx(0.5))
        assert np.ptp(np.diff(x)) < 1e-7
        slope = np.gradient(value, x)
        np.testing.assert_allclose(force[1:-1], -slope[1:-1], rtol=1e-3, atol=2e-3 * np.abs(slope).max() / len(x))


def test_a_definition_of_the_users_own_is_kept(potential: CoarsePotential, tmp_path: Path) -> None:
    mdp = MDP.format(dt=0.002, steps=1, seed=1, every=1) + "define = -DPOSRES\n"
    field = write_forcefield(tmp_path / "f", potential, MOLECULE, frames(potential, 1, 3)[0], mdp)
    assert re.findall(r"define *=.*", field.tables_mdp.read_text()) == ["define = -DTABLES -DPOSRES"]


def test_an_old_folder_is_replaced_whole(potential: CoarsePotential, tmp_path: Path) -> None:
    folder = tmp_path / "forcefield"
    folder.mkdir()
    (folder / "table_b9.xvg").write_text("left over")
    written(folder, potential, MOLECULE)
    assert not (folder / "table_b9.xvg").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["forcefield"]


def test_an_unwritable_place_is_one_line(potential: CoarsePotential, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        written(tmp_path / "file" / "forcefield", potential, MOLECULE)


@pytest.mark.parametrize(
    "change",
    [
        {"torsions": ((0, 1, 2, 3), (0, 1, 2, 4))},
        {"torsions": ((0, 1, 2, 3),)},
        {"masses": (1.0,)},
        {"terms": ((0, 7), *MOLECULE.terms[1:])},
        {"bead_names": ("C", "N", "CA", "C", "NITROGEN")},
    ],
)
def test_what_does_not_fit_is_refused(potential: CoarsePotential, tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(TopologyError):
        written(tmp_path / "f", potential, dataclasses.replace(MOLECULE, **change))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gmx
def test_gromacs_agrees_with_the_tables_term_by_term(potential: CoarsePotential, tmp_path: Path) -> None:
    """200 frames, within float32: energies to 2e-4 kJ/mol, forces (up to about 5000) to 0.05 kJ/mol/nm."""
    field, x = written(tmp_path / "forcefield", potential, MOLECULE), frames(potential, 200, 4)
    energies, forces, x = rerun(field, x, tables=True)
    s, b = internal(x, MOLECULE)
    ours = np.array([potential.term_table(i, b[:, i])[0] for i in range(7)])
    grid = potential.values(s, b) - ours.sum(axis=0)
    assert np.abs(energies["Tab. Bonds"] - ours[:4].sum(axis=0)).max() < 2e-4
    assert np.abs(energies["Tab. Angles"] - ours[4:].sum(axis=0)).max() < 2e-4
    assert np.abs(energies["CMAP Dih."] - grid).max() < 5e-5
    assert np.ptp(grid) > 15.0  # kJ/mol: the surface is there to be got wrong
    assert np.abs(forces - numeric_forces(potential, MOLECULE, x)).max() < 0.05


@pytest.mark.gmx
def test_one_torsion_becomes_a_tabulated_dihedral(tmp_path: Path) -> None:
    potential = made_up(two=False)
    field, x = written(tmp_path / "forcefield", potential, ONE_TORSION), frames(potential, 50, 5)
    energies, forces, x = rerun(field, x, tables=True)
    assert np.abs(energies["Potential"] - potential.values(*internal(x, ONE_TORSION))).max() < 2e-4
    assert np.abs(forces - numeric_forces(potential, ONE_TORSION, x)).max() < 0.05


@pytest.mark.gmx
@pytest.mark.parametrize("molecule", [MOLECULE, ONE_TORSION], ids=["cmap", "fourier"])
def test_analytic_forms_agree_within_what_the_readme_says(molecule: CoarseMolecule, tmp_path: Path) -> None:
    potential = made_up(two=molecule is MOLECULE)
    field, x = written(tmp_path / "forcefield", potential, molecule), frames(potential, 200, 6)
    energies, _, x = rerun(field, x, tables=False)
    stated = np.array([float(v) for v in re.findall(r"\| ([0-9.]+e-\d+) \|", (field.folder / "README.md").read_text())])
    assert stated.shape == (len(molecule.terms) + (len(molecule.torsions) == 1),)
    deviation = (energies["Potential"] - potential.values(*internal(x, molecule))) / potential.kT
    assert np.std(deviation) == pytest.approx(math.sqrt(np.sum(stated**2)), rel=0.4)
    assert stated.max() < 0.05  # the ripple that made_up puts on every well is 0.05 kT and no polynomial


@pytest.mark.gmx
def test_a_bare_grompp_and_mdrun_run(potential: CoarsePotential, tmp_path: Path) -> None:
    field = written(tmp_path / "forcefield", potential, MOLECULE)
    gmx("grompp", cwd=field.folder)
    gmx("mdrun", cwd=field.folder)
    assert (field.folder / "traj.trr").exists()


@pytest.mark.gmx
@pytest.mark.slow
def test_coarse_dynamics_samples_the_boltzmann_density(potential: CoarsePotential, tmp_path: Path) -> None:
    """Every mean and mean square of a Langevin run within 4.5 standard errors (by blocks) of exp(-U/kT) J."""
    assert shutil.which("gmx")
    field = written(tmp_path / "f", potential, MOLECULE, dt=0.004, steps=750_000, every=50, seed=11)
    gmx("grompp", "-f", field.tables_mdp.name, cwd=field.folder)
    gmx("mdrun", "-nt", 1, "-tableb", *(table.name for table in field.tables), cwd=field.folder)
    trajectory = MDAnalysis.Universe(str(field.structure), str(field.folder / "traj.trr")).trajectory
    x = np.array([frame.positions.copy() for frame in trajectory], dtype=np.float64)[200:] / 10.0
    steps = np.diff(x, axis=1)
    x = np.concatenate([x[:, :1], x[:, :1] + np.cumsum(steps - 6.0 * np.round(steps / 6.0), axis=1)], axis=1)
    s, b = internal(x, MOLECULE)
    exact_s, exact_b = potential.sample(400_000, seed=12)
    for mine, exact in zip(_observables(s, b), _observables(exact_s, exact_b), strict=True):
        blocks = np.array([block.mean() for block in np.array_split(mine, 30)])
        error = math.hypot(blocks.std(ddof=1) / math.sqrt(30), exact.std() / math.sqrt(len(exact)))
        assert abs(mine.mean() - exact.mean()) < 4.5 * error + 0.01 * exact.std()  # 1 % for the 4 fs step


def _observables(s: FloatArray, b: FloatArray) -> list[FloatArray]:
    z = (b - CENTRE) / SD
    phi, psi = s.T
    surface = [np.cos(phi), np.sin(phi), np.cos(psi), np.sin(psi), np.cos(phi + 2 * psi), np.sin(phi - psi)]
    return [*z.T, *(z**2).T, *surface]


def test_settings_change_the_tables(potential: CoarsePotential, tmp_path: Path) -> None:
    settings = GromacsExportSettings(angle_table_points=360, cmap_refinement=2)
    mdp = MDP.format(dt=0.002, steps=1, seed=1, every=1)
    field = write_forcefield(tmp_path / "f", potential, MOLECULE, frames(potential, 1, 3)[0], mdp, settings)
    assert len(np.loadtxt(field.folder / "table_a0.xvg")) == 361
    assert "B1 B2 B3 B4 B5 1 48 48" in field.topology.read_text()
