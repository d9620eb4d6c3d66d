"""``ccg fes`` as a user types it: own trajectories, biases from COLVAR files, comparisons, pictures, mistakes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from MDAnalysis.lib.formats.libmdaxdr import XTCFile
from molecules import ALANINE_TORSIONS, alanine_dipeptide

from ccg_gmx import cli
from ccg_gmx.commands.fes import fes
from ccg_gmx.commands.progress import progress_bar
from ccg_gmx.engine import user_frames
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.user_frames import BiasColumn, read_user_frames
from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.surface import histogram_surface, load_surface, read_plumed_grid
from ccg_gmx.molecule.colvar_file import read_columns, rows_at
from ccg_gmx.molecule.topology import Topology, parse_tpr_dump
from ccg_gmx.molecule.torsion_paths import torsion_paths
from ccg_gmx.molecule.trajectory import make_whole, read_frames, write_trr
from ccg_gmx.units import thermal_energy

MAIN = type(cli.main)("ccg", commands={"fes": fes})
PHI, PSI = (f"{name}={','.join(str(i + 1) for i in ALANINE_TORSIONS[name])}" for name in ("phi", "psi"))
TORSIONS = ("--torsion", PHI, "--torsion", PSI)
BASINS = ("--basin", "upper=psi:0:180", "--basin", "lower=psi:-180:0")
BOX = np.array([[3.0, 0.0, 0.0], [0.9, 2.9, 0.0], [-1.2, 0.8, 2.4]])
PNG = b"\x89PNG"


def ccg(*arguments: object) -> Result:
    return CliRunner().invoke(MAIN, [str(argument) for argument in arguments])


def refused(message: str, *arguments: object) -> None:
    """The mistake ends with 2 and one line that says so."""
    result = ccg("fes", *arguments)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert message in result.stderr


def torsion_angles(positions: np.ndarray, atoms: tuple[int, ...]) -> np.ndarray:
    """Torsions by another formula: the angle between two planes, with the sign of the third bond."""
    a, b, c = (positions[:, atoms[k + 1]] - positions[:, atoms[k]] for k in range(3))
    one, two = np.cross(a, b), np.cross(b, c)
    cosine = (one * two).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(two, axis=-1)
    return np.sign((one * c).sum(-1)) * np.arccos(np.clip(cosine, -1, 1))


def write_xtc(path: Path, positions: np.ndarray, times: np.ndarray, box: np.ndarray) -> Path:
    with XTCFile(str(path), "w") as stream:
        for k, (x, t) in enumerate(zip(positions, times, strict=True)):
            stream.write(x.astype(np.float32), box.astype(np.float32), k, t, 1e6)
    return path


def write_colvar(path: Path, times: np.ndarray, **columns: np.ndarray) -> Path:
    table = np.stack([times, *columns.values()], axis=-1)
    head = f"#! FIELDS time {' '.join(columns)}\n"
    path.write_text(head + "".join(" ".join(f"{x:.6f}" for x in row) + "\n" for row in table))
    return path


# Torsions


@pytest.fixture
def alanine_topology() -> Topology:
    """Names and bonds of alanine dipeptide, as far as torsions need them."""
    molecule = alanine_dipeptide()
    topology = object.__new__(Topology)
    object.__setattr__(topology, "names", tuple(molecule.names))
    object.__setattr__(topology, "bonds", molecule.bonds)
    return topology


def test_torsions_are_those_of_whole_molecules_wherever_the_atoms_are(alanine_topology: Topology) -> None:
    rng, molecule = np.random.default_rng(0), alanine_dipeptide()
    whole = molecule.positions + 0.02 * rng.standard_normal((50, 22, 3))
    wanted = {"phi": (5, 7, 9, 15), "psi": (7, 9, 15, 17), "far": (1, 9, 11, 22), "back": (15, 9, 7, 5)}
    paths = torsion_paths(alanine_topology, wanted)
    wrapped = whole + rng.integers(-2, 3, size=(50, 22, 3)) @ BOX
    found = paths.angles(wrapped[:, paths.atoms], np.broadcast_to(BOX, (50, 3, 3)))
    for k, atoms in enumerate(wanted.values()):
        np.testing.assert_allclose(found[:, k], torsion_angles(whole, tuple(a - 1 for a in atoms)), atol=1e-8)
    np.testing.assert_allclose(found[:, 0], found[:, 3])
    assert 22 - 1 in paths.atoms
    assert not paths.unbonded.any()


def test_atoms_of_two_molecules_are_taken_at_their_nearest_images(alanine_topology: Topology) -> None:
    object.__setattr__(alanine_topology, "bonds", np.array([[0, 1], [2, 3]]))
    paths = torsion_paths(alanine_topology, {"t": (1, 2, 3, 4)})
    assert paths.unbonded.tolist() == [False, True, False]
    rng = np.random.default_rng(1)
    whole = np.array([[0, 0, 0], [0.1, 0, 0], [0.5, 0.7, 0.9], [0.5, 0.8, 1.0]]) + 0.01 * rng.standard_normal((9, 4, 3))
    shifts = rng.integers(-1, 2, size=(9, 4, 3)) @ BOX
    images = np.stack([whole[:, 2] + (np.array(c) - 2) @ BOX for c in np.ndindex(5, 5, 5)])
    nearest = np.argmin(np.linalg.norm(images - whole[:, 1], axis=-1), axis=0)
    moved = images[nearest, np.arange(9)] - whole[:, 2]
    whole[:, 2:] += moved[:, None]
    found = paths.angles(whole + shifts, np.broadcast_to(BOX, (9, 3, 3)))
    np.testing.assert_allclose(found[:, 0], torsion_angles(whole, (0, 1, 2, 3)), atol=1e-8)


def test_torsions_that_are_none(alanine_topology: Topology) -> None:
    for atoms, message in (
        ((5, 7, 9, 23), "no atom 23"),
        ((5, 7, 9, 0), "no atom 0"),
        ((5, 7, 9, 9), "four different"),
    ):
        with pytest.raises(CcgError, match=message):
            torsion_paths(alanine_topology, {"phi": atoms})


# COLVAR files


def test_columns_by_name_and_rows_by_time(tmp_path: Path) -> None:
    times = 0.1 * np.arange(50)
    path = write_colvar(tmp_path / "COLVAR", times, phi=np.sin(times), bias=times**2)
    table = read_columns(path, ("time", "bias"))
    np.testing.assert_allclose(table[:, 1], times**2, atol=1e-6)
    frames = np.float32(times[3::7]).astype(np.float64)
    np.testing.assert_array_equal(rows_at(path, table[:, 0], frames), np.arange(50)[3::7])
    late = 1e6 + 0.3 * np.arange(9)  # a microsecond, where float32 steps are 0.06 ps
    np.testing.assert_array_equal(rows_at(path, late, late.astype(np.float32).astype(np.float64)), np.arange(9))
    with pytest.raises(CcgError, match=r"no row at 0.25 ps, nor at 0 other of the 2 frames; expected a row for every"):
        rows_at(path, times, np.array([0.2, 0.25]))


def test_the_later_row_of_a_restart_counts(tmp_path: Path) -> None:
    path = tmp_path / "COLVAR"
    path.write_text("#! FIELDS time bias\n0 1\n1 2\n2 99\n3 99\n#! FIELDS time bias\n2 3\n3 4\n")
    table = read_columns(path, ("time", "bias"))
    assert table[rows_at(path, table[:, 0], np.arange(4.0)), 1].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#! FIELDS time phi\n0 1\n", "has no column bias; expected one of time, phi"),
        ("0 1 2\n", "no #! FIELDS line"),
        ("#! FIELDS time bias\n", "has no rows"),
        ("#! FIELDS time bias\n0 1\n0.1\n", "damaged row"),
        ("#! FIELDS time bias\n0 1\n0.1 x\n", "damaged row"),
        ("#! FIELDS time bias\n0 nan\n", "bias is nan in row 1"),
        ("#! FIELDS time bias\n0 1\n#! FIELDS time phi bias\n1 1 1\n", "changes its columns"),
        (None, "cannot be read"),
    ],
)
def test_damaged_colvar_files(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "COLVAR").write_text(text)
    with pytest.raises(CcgError, match=message) as caught:
        read_columns(tmp_path / "COLVAR", ("time", "bias"))
    assert "\n" not in str(caught.value)


# Trajectories of GROMACS

Files = dict[str, Path]


@pytest.fixture(scope="module")
def files(alanine_tpr: Path, alanine_trr: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A run of 201 frames, the same in two parts, as .xtc, and with a COLVAR file of a bias on psi (kJ/mol)."""
    folder = tmp_path_factory.mktemp("fes")
    frames = read_frames(alanine_trr, 22)
    assert frames.box is not None
    psi = torsion_angles(frames.positions, ALANINE_TORSIONS["psi"])
    for name, part in (("part1", slice(0, 100)), ("part2", slice(100, None))):
        write_trr(folder / f"{name}.trr", frames.positions[part], frames.time[part], frames.box[part])
    write_xtc(folder / "all.xtc", frames.positions, frames.time, frames.box[0])
    write_colvar(folder / "COLVAR", frames.time, psi=psi, bias=3 * np.cos(psi), other=np.sin(psi), none=0 * psi)
    return {
        "tpr": alanine_tpr, "trr": alanine_trr, "xtc": folder / "all.xtc", "colvar": folder / "COLVAR",
        "part1": folder / "part1.trr", "part2": folder / "part2.trr",
    }  # fmt: skip


@pytest.mark.gmx
def test_frames_of_a_plain_run(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "new" / "fes"
    result = ccg("fes", "frames", files["tpr"], files["trr"], *TORSIONS, *BASINS, "--out", out, "--bins", 36)
    assert result.exit_code == 0, result.output
    assert "201 frames of 1 run at 300 K" in result.stdout
    assert "warning: the data are too short" in result.stdout, "20 ps are"
    assert "delta_f, lower - upper" in result.stdout
    positions = read_frames(files["trr"], 22).positions
    s = np.stack([torsion_angles(positions, ALANINE_TORSIONS[name]) for name in ("phi", "psi")], axis=-1)
    surface = load_surface(out.with_suffix(".npz"))
    np.testing.assert_allclose(surface.f, histogram_surface(s, 36, ("phi", "psi"), 300.0).f)
    np.testing.assert_allclose(read_plumed_grid(out.with_suffix(".dat"), 300.0).f, surface.f, atol=1e-6)
    assert out.with_suffix(".png").read_bytes().startswith(PNG)
    assert sorted(path.name for path in out.parent.iterdir()) == ["fes.dat", "fes.json", "fes.npz", "fes.png"]


@pytest.mark.gmx
def test_formats_parts_start_and_stride(files: Files) -> None:
    torsions = {"phi": (5, 7, 9, 15)}
    plain = read_user_frames(files["tpr"], [files["trr"]], torsions)
    xtc = read_user_frames(files["tpr"], [files["xtc"]], torsions)
    np.testing.assert_allclose(xtc.s, plain.s, atol=1e-3)
    parts = read_user_frames(files["tpr"], [files["part1"], files["part2"]], torsions)
    np.testing.assert_allclose(parts.s, plain.s, atol=1e-6)
    assert set(parts.run) == {0}
    assert parts.notes == ("part2.trr continues part1.trr",)
    for name in ("trr", "xtc"):
        some = read_user_frames(files["tpr"], [files[name]], torsions, start_ps=10.0, stride=7)
        np.testing.assert_allclose(some.time, plain.time[100::7], atol=1e-5)
        np.testing.assert_allclose(some.s, plain.s[100::7], atol=1e-3)
    twice = read_user_frames(files["tpr"], [files["trr"], files["xtc"]], torsions)
    assert set(twice.run) == {0, 1}
    assert twice.notes == ("2 runs, taken as independent",)


@pytest.mark.gmx
def test_chunks_and_progress(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    torsions = {"phi": (5, 7, 9, 15)}
    whole = read_user_frames(files["tpr"], [files["xtc"]], torsions)
    monkeypatch.setattr(user_frames, "CHUNK", 17)
    calls: list[tuple[float, float]] = []
    pieces = read_user_frames(
        files["tpr"], [files["xtc"], files["trr"]], torsions, progress=lambda *done: calls.append(done)
    )
    np.testing.assert_array_equal(pieces.s[:201], whole.s)
    assert calls[-1] == (402, 402)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@pytest.mark.gmx
def test_a_bias_of_nothing_changes_nothing(files: Files, tmp_path: Path) -> None:
    common = ("frames", files["tpr"], files["trr"], *TORSIONS, "--bins", 24)
    assert ccg("fes", *common, "--out", tmp_path / "a").exit_code == 0
    assert ccg("fes", *common, "--bias", f"{files['colvar']}:none", "--out", tmp_path / "b").exit_code == 0
    a, b = (load_surface(tmp_path / f"{name}.npz") for name in "ab")
    np.testing.assert_allclose(a.f, b.f, atol=1e-12)


@pytest.mark.gmx
@pytest.mark.parametrize(("units", "kJ_mol"), [("kJ/mol", 1.0), ("kcal/mol", 4.184), ("kT", thermal_energy(300.0))])
def test_biases_reweight_as_by_hand(files: Files, tmp_path: Path, units: str, kJ_mol: float) -> None:
    out = tmp_path / "fes"
    biases = [word for name in ("bias", "other") for word in ("--bias", f"{files['colvar']}:{name}")]
    arguments = ("frames", files["tpr"], files["trr"], "--torsion", PSI, *biases, "--bias-units", units)
    report = json.loads(ccg("fes", *arguments, "--bins", 24, "--out", out, "--json").stdout)
    psi = torsion_angles(read_frames(files["trr"], 22).positions, ALANINE_TORSIONS["psi"])
    w = np.exp((3 * np.cos(psi) + np.sin(psi)) * kJ_mol / thermal_energy(300.0))
    cells = np.floor((psi + np.pi) * 24 / (2 * np.pi) + 0.5).astype(int) % 24
    with np.errstate(divide="ignore"):
        f = -np.log(np.bincount(cells, w, minlength=24))
    np.testing.assert_allclose(load_surface(tmp_path / "fes.npz").f, f - f.min(), atol=1e-5)
    assert report["kish_ess"] == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-4)
    assert report["biased"] is True


@pytest.mark.gmx
def test_a_colvar_file_for_each_of_several_runs(files: Files, tmp_path: Path) -> None:
    frames = read_frames(files["trr"], 22)
    other = write_colvar(tmp_path / "COLVAR2", frames.time, bias=np.full(201, 2.0))
    bias = BiasColumn((files["colvar"], other), "bias")
    found = read_user_frames(files["tpr"], [files["trr"], files["xtc"]], {"phi": (5, 7, 9, 15)}, biases=[bias])
    assert found.u_bias is not None
    np.testing.assert_allclose(found.u_bias[201:], 2.0 / thermal_energy(300.0))
    one = f"{files['colvar']}:bias"
    refused("one file of each", "frames", files["tpr"], files["trr"], files["xtc"], *TORSIONS, "--bias", one)
    joined = read_user_frames(
        files["tpr"], [files["part1"], files["part2"]], {"phi": (5, 7, 9, 15)}, biases=[BiasColumn((other,), "bias")]
    )
    assert joined.u_bias is not None
    assert len(joined.u_bias) == 201


@pytest.mark.gmx
def test_json_has_every_number(files: Files, tmp_path: Path) -> None:
    result = ccg("fes", "frames", files["tpr"], files["trr"], *TORSIONS, *BASINS, "--json", "--out", tmp_path / "f")
    report = json.loads(result.stdout)
    assert report["frames"] == 201
    assert report["torsions"] == ["phi", "psi"]
    assert {"first", "second", "kJ_mol", "error_kJ_mol"} <= set(report["delta_f"][0])
    assert report["warnings"]
    assert json.loads((tmp_path / "f.json").read_text())["frames"] == 201


@pytest.mark.gmx
def test_a_solvated_run_with_constraints(gmx: Gmx, alanine_dir: Path, tmp_path: Path) -> None:
    """Water, PME and constraints: nothing that weights of ours could use, and all that a surface needs."""
    quiet = {"cwd": tmp_path, "check": True, "capture_output": True}
    top = (alanine_dir / "topol.top").read_text()
    (tmp_path / "t.top").write_text(top.replace("[ system ]", '#include "amber99sb-ildn.ff/tip3p.itp"\n\n[ system ]'))
    editconf = ["editconf", "-f", str(alanine_dir / "conf.gro"), "-o", "b.gro", "-d", "0.7", "-bt", "dodecahedron"]
    subprocess.run([str(gmx.path), *editconf], **quiet)  # type: ignore[call-overload]
    solvate = ["solvate", "-cp", "b.gro", "-cs", "spc216.gro", "-p", "t.top", "-o", "s.gro"]
    subprocess.run([str(gmx.path), *solvate], **quiet)  # type: ignore[call-overload]
    common = "coulombtype = PME\nrcoulomb = 0.8\nrvdw = 0.8\n"
    em = gmx.grompp(
        f"integrator = steep\nnsteps = 50\n{common}", tmp_path / "s.gro", tmp_path / "t.top", tmp_path / "em.tpr"
    )
    start = gmx.mdrun(em, tmp_path, name="em").gro
    mdp = (
        f"integrator = md\ndt = 0.002\nnsteps = 200\n{common}constraints = h-bonds\ntcoupl = v-rescale\n"
        "tc-grps = System\ntau-t = 0.1\nref-t = 298\ngen-vel = yes\ngen-temp = 298\nnstxout-compressed = 10\n"
    )
    tpr = gmx.grompp(mdp, start, tmp_path / "t.top", tmp_path / "md.tpr")
    gmx.mdrun(tpr, tmp_path, name="md")
    found = read_user_frames(tpr, [tmp_path / "md.xtc"], {"phi": (5, 7, 9, 15), "psi": (7, 9, 15, 17)})
    assert found.temperature_K == 298
    assert len(found.s) == 21
    topology = parse_tpr_dump(gmx.dump(tpr))
    frames = read_frames(tmp_path / "md.xtc", topology.n_atoms)
    whole = make_whole(frames.positions, frames.box, topology.bonds)
    np.testing.assert_allclose(found.s[:, 0], torsion_angles(whole, (4, 6, 8, 14)), atol=1e-6)


# compare and show


@pytest.mark.gmx
def test_compare_and_show(files: Files, tmp_path: Path) -> None:
    for name, stride in (("a", 1), ("b", 2)):
        arguments = ("frames", files["tpr"], files["trr"], *TORSIONS, *BASINS, "--bins", 36, "--kde", 10)
        assert ccg("fes", *arguments, "--stride", stride, "--out", tmp_path / name).exit_code == 0
    a, b = tmp_path / "a.npz", tmp_path / "b.npz"
    text = ccg("fes", "compare", a, b, *BASINS, "--plot", tmp_path / "c.png")
    assert text.exit_code == 0, text.output
    assert "forward KL" in text.stdout
    assert "delta_f, lower - upper" in text.stdout
    assert (tmp_path / "c.png").read_bytes().startswith(PNG)
    report = json.loads(ccg("fes", "compare", a, tmp_path / "b.dat", "--json", "--cap", 4).stdout)
    assert report["cap_kT"] == 4
    assert report["noise_floor"] is None
    shown = ccg("fes", "show", a, *BASINS, "--plot", tmp_path / "m.png", "--depth", 0.3)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines()[0].split() == ["phi", "psi", "f", "/", "kT", "error", "depth"]
    assert (tmp_path / "m.png").read_bytes().startswith(PNG)


def test_compare_with_the_shipped_reference_and_another_grid(alanine_dir: Path, tmp_path: Path) -> None:
    reference = alanine_dir / "reference" / "surface.npz"
    box = ("--basin", "C7eq=phi:-180:0", "--basin", "C7ax=phi:0:180")
    report = json.loads(ccg("fes", "compare", reference, reference, *box, "--json").stdout)
    assert abs(report["forward_kl"]) < 1e-12
    assert 0 < report["noise_floor"] < 1e-2
    assert report["delta_f"][0]["difference_kJ_mol"] == 0
    assert 8 < report["delta_f"][0]["b_kJ_mol"] < 10
    shown = json.loads(ccg("fes", "show", reference, *box, "--json").stdout)
    assert shown["minima"][0]["degrees"] == pytest.approx([-79.2, 57.6], abs=8)
    assert shown["barriers"][0]["forward_kT"] > 10


# Mistakes


@pytest.mark.gmx
def test_mistakes_in_files(files: Files, tmp_path: Path) -> None:
    tpr, trr, colvar = files["tpr"], files["trr"], files["colvar"]
    common = ("frames", tpr, trr, *TORSIONS, "--out", tmp_path / "x")
    refused("has no column metad.bias", *common, "--bias", f"{colvar}:metad.bias")
    times = write_colvar(tmp_path / "LATE", 0.05 + 0.1 * np.arange(300), bias=np.zeros(300))
    refused("has no row at 0 ps", *common, "--bias", f"{times}:bias")
    short = write_colvar(tmp_path / "SHORT", 0.1 * np.arange(150), bias=np.zeros(150))
    refused("rows go from 0 to 14.9 ps, every 0.1 ps", *common, "--bias", f"{short}:bias")
    refused("no atom 23 in the .tpr", "frames", tpr, trr, "--torsion", "phi=5,7,9,23")
    refused("--temperature 310 K; expected 300 K", *common, "--temperature", 310)
    refused("no frame from 999 ps on", *common, "--start", 999)
    (tmp_path / "empty.xtc").touch()
    refused("is empty", "frames", tpr, tmp_path / "empty.xtc", *TORSIONS)
    (tmp_path / "cut.xtc").write_bytes(files["xtc"].read_bytes()[:-100])
    refused("cannot be read", "frames", tpr, tmp_path / "cut.xtc", *TORSIONS)
    (tmp_path / "cut.trr").write_bytes(trr.read_bytes()[:-100])
    refused("truncated", "frames", tpr, tmp_path / "cut.trr", *TORSIONS)
    other = write_xtc(tmp_path / "other.xtc", np.zeros((3, 10, 3)), np.arange(3.0), np.eye(3))
    refused("has 10 atoms in a frame; expected the 22", "frames", tpr, other, *TORSIONS)
    back = write_xtc(tmp_path / "back.xtc", np.ones((3, 22, 3)), np.array([0.0, 2.0, 1.0]), np.eye(3))
    refused("goes back in time", "frames", tpr, back, *TORSIONS)
    refused("begins with the last frame", "frames", tpr, files["part1"], _overlap(files, tmp_path), *TORSIONS)
    refused("no file", "frames", tpr, tmp_path / "absent.xtc", *TORSIONS)
    refused(".gro file", "frames", tpr, _named(tmp_path / "a.gro"), *TORSIONS)
    refused("at least 4 frames", *common, "--stride", 150)
    assert not list(tmp_path.glob("x.*")), "nothing is written"


def _named(path: Path) -> Path:
    path.write_text("x")
    return path


def _overlap(files: Files, folder: Path) -> Path:
    frames = read_frames(files["trr"], 22)
    assert frames.box is not None
    write_trr(folder / "over.trr", frames.positions[99:], frames.time[99:], frames.box[99:])
    return folder / "over.trr"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--torsion", "phi=1,2,3"), "a name and four atom numbers"),
        (("--torsion", "phi"), "a name and four atom numbers"),
        (("--torsion", PHI, "--torsion", PHI), "names of their own"),
        (("--torsion", PHI, "--torsion", PSI, "--torsion", "a=1,2,3,4", "--torsion", "b=1,2,3,4"), "one to three"),
        ((*TORSIONS, "--basin", "A=chi:0:10"), "basin A names chi; expected torsions among phi, psi"),
        ((*TORSIONS, "--basin", "A=phi:0"), "expected NAME=TORSION:FROM:TO"),
        ((*TORSIONS, "--basin", "A=phi:0:x"), "expected NAME=TORSION:FROM:TO"),
        ((*TORSIONS, "--basin", "A=phi:0:500"), "within one turn"),
        ((*TORSIONS, "--bias", "COLVAR"), "expected FILE:COLUMN"),
    ],
)
def test_mistakes_in_options(words: tuple[str, ...], message: str) -> None:
    refused(message, "frames", "x.tpr", "x.xtc", *words)


def test_mistakes_in_surfaces(alanine_dir: Path, tmp_path: Path) -> None:
    reference = alanine_dir / "reference" / "surface.npz"
    refused("no file", "compare", tmp_path / "absent.npz", reference)
    refused("basin A names chi", "compare", reference, reference, "--basin", "A=chi:0:10")
    refused("no fes.npz", "show", tmp_path)
    refused("ends with .png", "show", reference, "--plot", tmp_path / "picture.txt")
    refused("cannot be written", "show", reference, "--plot", tmp_path / "no" / "picture.png")


@pytest.mark.parametrize("command", ["frames", "compare", "show"])
def test_help_has_an_example_that_parses(command: str) -> None:
    text = " ".join(ccg("fes", command, "--help").output.split())
    assert text.count("Example: ccg fes ") == 1
    words = text.split("Example: ccg fes ")[1].split(" Options:")[0].split()
    fes.commands[words[0]].make_context(words[0], words[1:])


def test_bars_are_quiet_when_asked() -> None:
    steps: list[Callable[[float, float], None] | None] = []
    with progress_bar("frames", quiet=True) as step:
        steps.append(step)
    assert steps == [None]
    with progress_bar("frames") as step:
        assert step is not None
        step(1, 2)
        step(2, 2)
