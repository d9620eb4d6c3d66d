"""Every function type, combination rule and cut-off against GROMACS, on small topologies written here."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ccg_gmx.cli import main
from ccg_gmx.engine.energy_check import EnergyComparison, compare_energies
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.cmap import cell_polynomials, spline_slopes
from ccg_gmx.molecule.energy import ForceField
from ccg_gmx.molecule.interactions import wrap
from ccg_gmx.molecule.tables import read_bonded_tables
from ccg_gmx.molecule.topology import parse_tpr_dump, require_supported
from ccg_gmx.molecule.trajectory import make_whole, read_frames, write_trr

N_ATOMS = 8
BOX = 6.0
# a bent chain 1-7 with a side atom 8 at atom 4, nm
START = np.array([
    [0.00, 0.00, 0.00], [0.12, 0.08, 0.01], [0.25, 0.02, 0.05], [0.36, 0.11, 0.02],
    [0.49, 0.05, 0.08], [0.60, 0.14, 0.03], [0.73, 0.07, 0.09], [0.35, 0.22, 0.10],
])  # fmt: skip
CHAIN = [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (4, 8)]
MDP = {
    "integrator": "md",
    "nsteps": "0",
    "dt": "0.0005",
    "cutoff-scheme": "Verlet",
    "verlet-buffer-tolerance": "-1",
    "nstlist": "1",
    "rlist": "2.5",
    "coulombtype": "cut-off",
    "coulomb-modifier": "none",
    "vdwtype": "cut-off",
    "vdw-modifier": "none",
    "rcoulomb": "2.5",
    "rvdw": "2.5",
}
BONDS = "[ bonds ]\n" + "".join(f"{i} {j} 1 0.145 200000\n" for i, j in CHAIN)
# what a section adds -> the term that must show it
SECTIONS = {
    "G96Bond": "[ bonds ]\n1 3 2 0.27 1e6\n2 4 2 0.26 2e6\n",
    "Morse": "[ bonds ]\n1 3 3 0.26 300 12\n5 7 3 0.27 200 15\n",
    "Cubic Bonds": "[ bonds ]\n1 3 4 0.26 4000 -3\n",
    "Harmonic Pot.": "[ bonds ]\n1 5 6 0.45 3000\n2 7 6 0.6 1000\n",
    "Angle": "[ angles ]\n1 2 3 1 110 400\n4 5 6 1 120 300\n3 4 8 1 100 350\n",
    "G96Angle": "[ angles ]\n1 2 3 2 110 450\n4 5 6 2 120 500\n",
    "Bond-Cross": "[ angles ]\n1 2 3 3 0.14 0.15 9000\n5 4 8 3 0.13 0.16 -5000\n",
    "BA-Cross": "[ angles ]\n1 2 3 4 0.14 0.15 0.26 9000\n5 4 8 4 0.13 0.16 0.22 -5000\n",
    "U-B": "[ angles ]\n1 2 3 5 110 400 0.25 9000\n4 5 6 5 115 300 0 0\n",
    "Quartic Angles": "[ angles ]\n1 2 3 6 115 1 20 300 -50 80\n",
    "Proper Dih.": "[ dihedrals ]\n1 2 3 4 9 30 5 3\n1 2 3 4 9 180 2 1\n2 3 4 5 1 0 4 2\n",
    "Ryckaert-Bell.": "[ dihedrals ]\n1 2 3 4 3 9.3 12.2 -13.1 -3.1 26.2 -31.5\n3 4 5 6 3 1 2 3 4 5 6\n",
    "Fourier Dih.": "[ dihedrals ]\n1 2 3 4 5 3 -2 1.5 0.7\n8 4 5 6 5 1 2 3 4\n",
    "Improper Dih.": "[ dihedrals ]\n4 3 5 8 2 35 200\n1 2 3 4 2 -175 40\n",
    "Per. Imp. Dih.": "[ dihedrals ]\n4 3 5 8 4 180 20 2\n",
    "LJ-14": "[ pairs ]\n1 4 1 0.3 0.5\n2 5 1 0.25 0.8\n",
    "Coulomb-14": "[ pairs ]\n1 4 2 0.6 0.3 -0.2 0.3 0.5\n2 5 2 0.7 0.4 0.5 0.28 0.4\n",
    "LJ (SR)": "[ pairs_nb ]\n1 5 1 0.3 -0.2 0.31 0.5\n",
    "Connect": "[ bonds ]\n1 3 5\n",
}


def topology_text(sections: str, *, rule: int = 2, nrexcl: int = 3) -> str:
    charges = [0.3, -0.2, 0.25, -0.4, 0.35, -0.3, 0.2, 0.3]
    atoms = "".join(f"{i + 1} {'AB'[i % 2]} 1 ZOO X{i + 1} {i + 1} {q} 12.0\n" for i, q in enumerate(charges))
    kinds = (
        "A 6 12.0 0 A 3e-3 4e-6\nB 8 16.0 0 A 1e-3 1e-6\n"
        if rule == 1
        else "A 6 12.0 0 A 0.3 0.4\nB 8 16 0 A 0.25 0.6\n"
    )
    return (
        f"[ defaults ]\n1 {rule} yes 0.5 0.8333\n[ atomtypes ]\n{kinds}[ moleculetype ]\nZOO {nrexcl}\n"
        f"[ atoms ]\n{atoms}{BONDS}{sections}[ system ]\nzoo\n[ molecules ]\nZOO 1\n"
    )


def zoo_frames(count: int = 12, spread: float = 0.012) -> np.ndarray:
    rng = np.random.default_rng(4)
    return START + BOX / 2 - START.mean(0) + spread * rng.standard_normal((count, N_ATOMS, 3))


def write_conf(path: Path, positions: np.ndarray, box: float = BOX) -> Path:
    rows = [f"    1ZOO  {f'X{i + 1}':>5}{i + 1:5d}" + "".join(f"{v:8.3f}" for v in x) for i, x in enumerate(positions)]
    path.write_text("\n".join(["zoo", f"{len(rows):5d}", *rows, f"{box:10.5f}" * 3, ""]))
    return path


def make_tpr(gmx: Gmx, folder: Path, text: str, **settings: str) -> Path:
    (folder / "topol.top").write_text(text)
    conf = write_conf(folder / "conf.gro", zoo_frames(1)[0])
    mdp = MDP | {name.replace("_", "-"): value for name, value in settings.items()}
    return gmx.grompp(mdp, conf, folder / "topol.top", folder / "zoo.tpr", maxwarn=5)


def compare(gmx: Gmx, folder: Path, text: str, **settings: str) -> tuple[EnergyComparison, ForceField]:
    tpr = make_tpr(gmx, folder, text, **settings)
    frames = zoo_frames()
    write_trr(folder / "zoo.trr", frames, np.arange(len(frames), dtype=float), BOX * np.eye(3))
    result = compare_energies(gmx, tpr, folder / "zoo.trr", folder / "rerun")
    return result, ForceField(parse_tpr_dump(gmx.dump(tpr)))


def check_gradient(force_field: ForceField, x: torch.Tensor) -> None:
    """Analytic against finite differences of fourth order, over every coordinate."""
    energy, gradient = force_field.energy_and_gradient(x)
    torch.testing.assert_close(force_field(x), energy, rtol=1e-12, atol=1e-10)
    step = 1e-5
    for atom in range(x.shape[1]):
        for axis in range(3):
            shift = torch.zeros_like(x)
            shift[:, atom, axis] = step
            near = force_field(x + shift) - force_field(x - shift)
            far = force_field(x + 2 * shift) - force_field(x - 2 * shift)
            slope = (8 * near - far) / (12 * step)
            torch.testing.assert_close(gradient[:, atom, axis], slope, rtol=1e-6, atol=2e-4)


@pytest.mark.gmx
@pytest.mark.parametrize("name", SECTIONS)
def test_function_type(name: str, gmx: Gmx, tmp_path: Path):
    result, force_field = compare(gmx, tmp_path, topology_text(SECTIONS[name]))
    assert result.within(2e-3), result
    term = "Bond" if name == "Connect" else name
    assert abs(result.terms[term].mean_kJ_mol) > 0.01, result
    check_gradient(force_field, torch.from_numpy(zoo_frames(3)))


@pytest.mark.gmx
@pytest.mark.parametrize("rule", [1, 2, 3])
@pytest.mark.parametrize("nrexcl", [1, 3, 5])
def test_combination_rules_and_exclusions(rule: int, nrexcl: int, gmx: Gmx, tmp_path: Path):
    pairs = "[ pairs ]\n1 4 1\n2 5 1\n3 6 1\n"
    result, _ = compare(gmx, tmp_path, topology_text(pairs, rule=rule, nrexcl=nrexcl))
    assert result.within(2e-3), result
    assert abs(result.terms["LJ-14"].mean_kJ_mol) > 0.01


CUTOFFS = {
    "plain, some pairs beyond": {"rcoulomb": "0.5", "rvdw": "0.5"},
    "potential shift": {"coulomb_modifier": "potential-shift", "vdw_modifier": "potential-shift"},
    "potential shift, some pairs beyond": {
        "coulomb_modifier": "potential-shift", "vdw_modifier": "potential-shift", "rcoulomb": "0.5", "rvdw": "0.5",
    },
    "reaction field": {"coulombtype": "reaction-field", "epsilon_rf": "78"},
    "reaction field, conducting, short": {
        "coulombtype": "reaction-field", "epsilon_rf": "0", "rcoulomb": "0.5", "rvdw": "0.5",
        "coulomb_modifier": "potential-shift", "vdw_modifier": "potential-shift",
    },
    "reaction field in a dielectric": {
        "coulombtype": "reaction-field", "epsilon_rf": "78", "epsilon_r": "2", "rcoulomb": "0.5", "rvdw": "0.5",
    },
    "dielectric": {"epsilon_r": "4"},
}  # fmt: skip


@pytest.mark.gmx
@pytest.mark.parametrize("case", CUTOFFS)
def test_cutoffs(case: str, gmx: Gmx, tmp_path: Path):
    result, force_field = compare(gmx, tmp_path, topology_text("[ pairs ]\n1 4 1\n"), **CUTOFFS[case])
    assert result.within(2e-3), result
    positions = torch.from_numpy(zoo_frames(6))
    distances = (positions[:, :, None] - positions[:, None]).square().sum(-1).sqrt()
    # finite differences must not step over the cut-off
    safe = ((distances - 0.5).abs() > 1e-4).all(-1).all(-1)
    check_gradient(force_field, positions[safe])
    plain, _ = compare(gmx, tmp_path, topology_text("[ pairs ]\n1 4 1\n"))
    changed = [abs(plain.terms[n].mean_kJ_mol - result.terms[n].mean_kJ_mol) for n in ("LJ (SR)", "Coulomb (SR)")]
    assert max(changed) > 0.1, "a cut-off that changes nothing proves nothing"


@pytest.mark.gmx
@pytest.mark.parametrize(
    ("sections", "name"),
    [
        ("[ bonds ]\n1 3 7 0.4 100\n", "FENEBONDS"),
        ("[ bonds ]\n1 3 10 0.1 0.2 0.3 100\n", "RESTRAINTPOT"),
        ("[ angles ]\n1 2 3 10 110 50\n", "RESTRANGLES"),
        ("[ dihedrals ]\n1 2 3 4 10 120 50\n", "RESTRDIHS"),
        ("[ dihedrals ]\n1 2 3 4 11 1 2 3 0 0 0\n", "CBTDIHS"),
        ("[ position_restraints ]\n1 1 100 100 100\n", "POSRES"),
        ("[ distance_restraints ]\n1 5 1 0 1 0.3 0.4 0.5 1\n", "DISRES"),
        ("[ dihedral_restraints ]\n1 2 3 4 1 60 0 100\n", "DIHRES"),
    ],
)
def test_refused_by_name(sections: str, name: str, gmx: Gmx, tmp_path: Path):
    text = topology_text(sections)
    (tmp_path / "topol.top").write_text(text)
    conf = write_conf(tmp_path / "conf.gro", zoo_frames(1)[0])
    (tmp_path / "ref.gro").write_text(conf.read_text())
    if name == "POSRES":
        text = gmx._capture("grompp", "-f", _mdp(tmp_path), "-c", conf, "-r", conf, "-p", "topol.top", "-o", "zoo.tpr",
                            "-maxwarn", 5, cwd=tmp_path).stderr  # fmt: skip
        tpr = tmp_path / "zoo.tpr"
        assert tpr.is_file(), text
    else:
        mdp = MDP | ({"disre": "simple"} if name == "DISRES" else {})
        tpr = gmx.grompp(mdp, conf, tmp_path / "topol.top", tmp_path / "zoo.tpr", maxwarn=5)
    with pytest.raises(TopologyError, match=rf"not covered: \d+ {name}"):
        require_supported(parse_tpr_dump(gmx.dump(tpr)))


def _mdp(folder: Path) -> Path:
    path = folder / "own.mdp"
    path.write_text("".join(f"{key} = {value}\n" for key, value in MDP.items()))
    return path


def table_file(path: Path, x: np.ndarray, values: np.ndarray, slopes: np.ndarray) -> Path:
    np.savetxt(path, np.stack([x, values, -slopes], axis=1), fmt="%.10e")
    return path


def write_tables(folder: Path) -> list[Path]:
    r, degrees, turns = np.linspace(0, 2, 401), np.linspace(0, 180, 361), np.linspace(-180, 180, 721)
    radian = np.pi / 180
    angles, torsions = 3 * radian * degrees, 2 * radian * turns - 1
    return [
        table_file(folder / "table_b0.xvg", r, np.sin(7 * r) + 2, 7 * np.cos(7 * r)),
        table_file(folder / "table_b3.xvg", r[:301], r[:301] ** 2, 2 * r[:301]),
        table_file(folder / "table_a0.xvg", degrees, np.cos(angles), -3 * radian * np.sin(angles)),
        table_file(folder / "table_d1.xvg", turns, np.cos(torsions), -2 * radian * np.sin(torsions)),
    ]  # fmt: skip


TABULATED = (
    "[ bonds ]\n1 3 8 0 40\n2 4 8 3 300\n1 6 9 0 25\n[ angles ]\n1 2 3 8 0 30\n4 5 6 8 0 20\n"
    "[ dihedrals ]\n1 2 3 4 8 1 12\n8 4 5 6 8 1 9\n"
)


@pytest.mark.gmx
def test_tabulated_interactions(gmx: Gmx, tmp_path: Path):
    """A short run writes energies and positions of the same steps; mdrun -rerun is not needed."""
    tables = write_tables(tmp_path)
    each = {"nsteps": "40", "nstxout": "1", "nstenergy": "1", "nstcalcenergy": "1", "gen_vel": "yes", "gen_seed": "1"}
    tpr = make_tpr(gmx, tmp_path, topology_text(TABULATED), **each)
    run = gmx.mdrun(tpr, tmp_path, name="run", tables=tables)
    theirs = gmx.energies(tmp_path / "run.edr")
    topology = parse_tpr_dump(gmx.dump(tpr))
    read = read_frames(run.trajectory, N_ATOMS)
    x = torch.from_numpy(make_whole(read.positions, read.box, topology.bonds))
    force_field = ForceField(topology, tables=tables)
    for name, values in force_field.terms(x).items():
        np.testing.assert_allclose(values.numpy(), theirs.get(name, 0 * theirs["Time"]), atol=2e-3, err_msg=name)
    for name in ("Tab. Bonds", "Tab. Bonds NC", "Tab. Angles", "Tab. Dih."):
        assert abs(theirs[name]).mean() > 1, name
    check_gradient(force_field, x[::20])
    with pytest.raises(TopologyError, match=r"tables b0, b3, which are not given; .*table_b0\.xvg"):
        ForceField(topology)
    torn = x.clone()
    torn[0, 0] += 5.0  # beyond the table, where mdrun stops
    assert force_field.terms(torn)["Tab. Bonds"][0].isnan()


def test_tables_that_cannot_be_used(tmp_path: Path):
    good = table_file(tmp_path / "t_b2.xvg", np.arange(5.0), np.arange(5.0), np.ones(5))
    assert set(read_bonded_tables([good])) == {"b2"}
    x = np.linspace(0, 90, 10)
    for path, message in [
        (table_file(tmp_path / "t_a0.xvg", x, x, x), "from 0 to 90"),
        (table_file(tmp_path / "t_d0.xvg", x, x, x), "from 0 to 90"),
        (table_file(tmp_path / "t_b1.xvg", x**2, x, x), "even steps"),
        (table_file(tmp_path / "table.xvg", x, x, x), "like table_b0.xvg"),
        (table_file(tmp_path / "t_b4.xvg", x, x * np.nan, x), "three numbers"),
        (tmp_path / "no_b0.xvg", "cannot be read"),
    ]:
        with pytest.raises(TopologyError, match=message):
            read_bonded_tables([path])


def test_cmap_spline():
    """A band-limited surface on 36 points: the spline's slopes are those of the surface to its order of accuracy."""
    x = np.radians(np.arange(36) * 10 - 180)
    values = (np.sin(x)[:, None] * np.cos(2 * x))[None]
    slopes = spline_slopes(values, 1) / np.radians(10)
    np.testing.assert_allclose(slopes[0], np.cos(x)[:, None] * np.cos(2 * x), atol=1e-4)
    first, second = spline_slopes(values, 1), spline_slopes(values, 2)
    grid = np.stack([values, first / 10, second / 10, spline_slopes(first, 2) / 100], axis=-1)
    cells = cell_polynomials(grid)
    middle = np.einsum("gxyij,i,j->gxy", cells, 0.5 ** np.arange(4), 0.5 ** np.arange(4))
    half = np.radians(5)
    np.testing.assert_allclose(middle[0], np.sin(x + half)[:, None] * np.cos(2 * (x + half)), atol=1e-3)
    with pytest.raises(TopologyError, match="derivatives of a CMAP table"):
        cell_polynomials(grid * [1, 1.5, 1, 1])


def test_wrap():
    angles = torch.tensor([-3.5, -np.pi, 0.0, 3.0, np.pi, 9.5], dtype=torch.float64)
    wrapped = wrap(angles)
    assert ((wrapped >= -np.pi) & (wrapped < np.pi)).all()
    torch.testing.assert_close(wrapped.sin(), angles.sin(), rtol=0, atol=1e-12)


@pytest.mark.gmx
def test_overlapping_atoms_give_numbers(gmx: Gmx, tmp_path: Path):
    """All kinds at once with atoms in one place, on one line, and 1e-9 nm apart: huge perhaps, never nan."""
    text = topology_text("".join(SECTIONS[name] for name in SECTIONS if name != "Connect"))
    topology = parse_tpr_dump(gmx.dump(make_tpr(gmx, tmp_path, text)))
    x = torch.from_numpy(zoo_frames(4))
    x[0, 1] = x[0, 0]
    x[1, 6] = x[1, 0] + 1e-9
    x[2] = torch.arange(N_ATOMS)[:, None] * torch.tensor([0.1, 0.0, 0.0])
    x[3] = 1.0
    for compiled in (True, False):
        energy, gradient = ForceField(topology, compiled=compiled).energy_and_gradient(x)
        assert not energy.isnan().any()
        assert not gradient.isnan().any()
    assert energy[1] > 1e6


@pytest.fixture(scope="module")
def zoo(gmx: Gmx, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run input file and a trajectory that belong together."""
    folder = tmp_path_factory.mktemp("zoo")
    tpr = make_tpr(gmx, folder, topology_text(SECTIONS["Angle"]))
    write_trr(folder / "zoo.trr", zoo_frames(3), np.arange(3.0), BOX * np.eye(3))
    return tpr, folder / "zoo.trr"


def refused(*arguments: object) -> str:
    """Run ccg energy; return its one line of complaint."""
    result = CliRunner().invoke(main, ["energy", *map(str, arguments)], prog_name="ccg")
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = result.output.strip().splitlines()
    assert len(lines) == 1, result.output
    return lines[0]


@pytest.mark.gmx
@pytest.mark.parametrize("check", [(), ("--check",)])
def test_trajectories_that_do_not_fit(zoo: tuple[Path, Path], check: tuple[str, ...], tmp_path: Path):
    tpr, trr = zoo
    whole = trr.read_bytes()
    frames, moments, box = zoo_frames(3), np.arange(3.0), BOX * np.eye(3)
    frames[1, 4, 2] = np.nan
    write_trr(tmp_path / "nan.trr", frames, moments, box)
    write_trr(tmp_path / "few.trr", zoo_frames(3)[:, :5], moments, box)
    (tmp_path / "cut.trr").write_bytes(whole[:-7])
    (tmp_path / "noise.trr").write_bytes(b"no trajectory at all" * 40)
    (tmp_path / "noise.xtc").write_bytes(b"no trajectory at all" * 40)
    (tmp_path / "empty.trr").write_bytes(b"")
    for name, message in {
        "nan.trr": "not a number in frame 2, atom 5",
        "few.trr": "5 atoms in a frame",
        "cut.trr": "truncated or damaged after 2 whole frames",
        "noise.trr": "truncated or damaged",
        "noise.xtc": "cannot be read",
        "empty.trr": "empty",
        "missing.trr": "no file",
    }.items():
        assert message in refused(tpr, tmp_path / name, *check)


def _later_format(whole: bytes) -> bytes:
    """Claim a later version and generation of the file format; they stand before the length of the tag "release"."""
    place = whole.index(b"release") - 16
    version, generation = (int.from_bytes(whole[at : at + 4]) for at in (place, place + 4))
    assert 100 < version < 1000
    assert 20 < generation < 100
    return whole[:place] + (version + 9).to_bytes(4) + (generation + 1).to_bytes(4) + whole[place + 8 :]


@pytest.mark.gmx
def test_run_inputs_that_do_not_fit(zoo: tuple[Path, Path], tmp_path: Path):
    tpr, trr = zoo
    whole = tpr.read_bytes()
    for name, content in {
        "cut": whole[: len(whole) // 2],
        "header": whole[:40],
        "noise": b"no run input at all" * 40,
        "empty": b"",
        "future": _later_format(whole),
    }.items():
        path = tmp_path / f"{name}.tpr"
        path.write_bytes(content)
        line = refused(path, trr)
        assert "gmx dump failed" in line, (name, line)
    assert "missing.tpr" in refused(tmp_path / "missing.tpr", trr)
