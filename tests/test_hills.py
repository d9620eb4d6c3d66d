"""Sums of hills against the formula, against a metadynamics with a known answer, and against PLUMED where it is."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.axes import Axis, Box, grid_of
from ccg_gmx.free_energy.hills import (
    HillSet,
    automatic_axes,
    hills_surface,
    sum_hills,
    support,
    whole_support,
)
from ccg_gmx.molecule.hills_file import Hills, read_hills
from ccg_gmx.units import thermal_energy

KT = thermal_energy(300.0)
PI = math.pi
A, B = 1.00193418799744762399, -0.00193418799744762399


def torsion(name: str, points: int) -> Axis:
    return Axis(name, -PI, PI, points, True, 2 * PI)


def by_formula(hills: HillSet, axes: tuple[Axis, ...]) -> np.ndarray:
    """The stretched kernel at every point, one hill after the other."""
    points, total = grid_of(axes), 0.0
    periods = np.array([axis.period or np.inf for axis in axes])
    for center, lower, height in zip(hills.centers, hills.lower, hills.heights, strict=True):
        away = points - center
        away -= np.where(np.isfinite(periods), periods, 0) * np.round(away / periods)
        half = 0.5 * np.einsum("pi,ij,pj->p", away, np.linalg.inv(lower @ lower.T), away)
        total = total + np.where(half < 6.25, height * (A * np.exp(-half) + B), 0.0)
    return np.asarray(total).reshape([axis.points for axis in axes])


def some_hills(d: int, n: int, seed: int, width: float = 0.3, tilt: float = 0.0) -> HillSet:
    rng = np.random.default_rng(seed)
    lower = np.zeros((n, d, d))
    lower[:, range(d), range(d)] = rng.uniform(0.7, 1.3, (n, d)) * width
    for i in range(d):
        for j in range(i):
            lower[:, i, j] = tilt * rng.uniform(-1, 1, n) * width
    return HillSet(rng.uniform(-PI, PI, (n, d)), lower, rng.random(n) + 0.1, tilted=tilt > 0)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("tilt", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["periodic", "open", "mixed"])
def test_sum_is_that_of_the_formula(d: int, tilt: float, kind: str) -> None:
    hills = some_hills(d, 60, seed=d, tilt=tilt if d > 1 else 0.0)
    n = {1: 201, 2: 60, 3: 24}[d]
    axes = tuple(
        torsion(f"t{k}", n) if kind == "periodic" or (kind == "mixed" and k == 0) else Axis(f"d{k}", -2.0, 3.5, n + 1)
        for k in range(d)
    )
    np.testing.assert_allclose(sum_hills(hills, axes, whole=True)[0], by_formula(hills, axes), atol=1e-12)


def test_one_hill_is_its_height_at_the_top_and_nothing_beyond_its_reach() -> None:
    hill = HillSet(np.array([[0.0]]), np.array([[[0.2]]]), np.array([1.5]))
    axis = Axis("d", -2.0, 2.0, 4001)
    (v,) = sum_hills(hill, (axis,))
    reach = math.sqrt(12.5) * 0.2
    assert v[2000] == pytest.approx(1.5, abs=1e-15)
    assert (v[np.abs(axis.values) > reach] == 0).all()
    assert (v[np.abs(axis.values) < reach - 1e-3] > 0).all()
    assert v[np.abs(axis.values) < reach].min() < 1e-4, "stretched: it ends at zero"


def test_a_hill_at_the_border_comes_in_on_the_other_side() -> None:
    hills = HillSet(np.array([[PI - 0.05]]), np.array([[[0.3]]]), np.array([1.0]))
    (v,) = sum_hills(hills, (torsion("phi", 360),))
    (moved,) = sum_hills(HillSet(hills.centers - 1.0, hills.lower, hills.heights), (torsion("phi", 360),))
    assert v[0] > 0.9
    assert v.sum() == pytest.approx(moved.sum(), rel=1e-6)


def test_hills_wider_than_the_period_count_every_point_once() -> None:
    hills = HillSet(np.array([[0.3]]), np.array([[[2.0]]]), np.array([1.0]))
    axes = (torsion("phi", 90),)
    np.testing.assert_allclose(sum_hills(hills, axes)[0], by_formula(hills, axes), atol=1e-14)


def test_tilted_hills_end_at_the_box_of_plumed_unless_whole() -> None:
    lower = np.array([[[0.3, 0.0], [0.24, 0.15]]])
    hills = HillSet(np.array([[0.0, 0.0]]), lower, np.array([1.0]), tilted=True)
    axes = (Axis("x", -2, 2, 401), Axis("y", -2, 2, 401))
    cut, whole = sum_hills(hills, axes)[0], sum_hills(hills, axes, whole=True)[0]
    assert (support(hills) < whole_support(hills)).all()
    steps = np.ceil(support(hills)[0] / 0.01)
    x, y = np.meshgrid(axes[0].values, axes[1].values, indexing="ij")
    box = (np.abs(x) < (steps[0] + 0.5) * 0.01) & (np.abs(y) < (steps[1] + 0.5) * 0.01)
    np.testing.assert_allclose(cut, np.where(box, whole, 0.0), atol=1e-14)
    assert whole.sum() > cut.sum()


def test_beyond_an_interval_the_sum_is_constant() -> None:
    hills = some_hills(1, 50, seed=3)
    hills = HillSet(np.clip(hills.centers, -1, 1), hills.lower, hills.heights, interval=(-1.0, 1.0))
    axis = Axis("d", -2.0, 2.0, 401)
    (v,) = sum_hills(hills, (axis,))
    np.testing.assert_allclose(v[axis.values < -1], v[100], atol=1e-14)
    plain = sum_hills(HillSet(hills.centers, hills.lower, hills.heights), (axis,))[0]
    np.testing.assert_allclose(v[100:301], plain[100:301], atol=1e-13)


def test_parts_add_up() -> None:
    hills, axes = some_hills(2, 90, seed=5), (torsion("a", 40), torsion("b", 40))
    parts = sum_hills(hills, axes, [10, 50, 90])
    first = HillSet(hills.centers[:50], hills.lower[:50], hills.heights[:50])
    np.testing.assert_allclose(parts[1], sum_hills(first, axes)[0], atol=1e-13)
    np.testing.assert_allclose(parts[2], by_formula(hills, axes), atol=1e-12)


def test_hills_off_the_grid_and_windows_of_a_period() -> None:
    hills = some_hills(1, 40, seed=6)
    whole = sum_hills(hills, (torsion("phi", 360),))[0]
    window = Axis("phi", -PI, 0.0, 181, False, 2 * PI)
    np.testing.assert_allclose(sum_hills(hills, (window,))[0], whole[:181], atol=1e-13)
    far = HillSet(np.array([[50.0]]), np.array([[[0.1]]]), np.array([1.0]))
    assert not sum_hills(far, (Axis("d", 0.0, 1.0, 11),))[0].any()


# Files

HEAD = "#! FIELDS time phi sigma_phi height biasf\n#! SET multivariate false\n"
PERIOD = "#! SET min_phi -pi\n#! SET max_phi pi\n"


def write_hills(path: Path, rows: np.ndarray, fields: str, settings: str = PERIOD, kind: str = "false") -> Path:
    head = f"#! FIELDS {fields}\n#! SET multivariate {kind}\n#! SET kerneltype stretched-gaussian\n{settings}"
    path.write_text(head + "".join(" ".join(f"{x:.15g}" for x in row) + "\n" for row in rows))
    return path


def hill_set(read: Hills) -> HillSet:
    return HillSet(read.centers, read.lower, read.heights, read.multivariate, read.stretched, read.interval)


def test_walkers_are_merged_by_time_and_restarts_read_whole(tmp_path: Path) -> None:
    rows = np.array([[k, 0.1 * k, 0.2, 1.0, 5.0] for k in range(6)])
    fields = "time phi sigma_phi height biasf"
    one = write_hills(tmp_path / "H0", rows[::2], fields)
    other = write_hills(tmp_path / "H1", rows[1::2], fields)
    read = read_hills([one, other])
    np.testing.assert_array_equal(read.time, np.arange(6.0))
    assert read.biasfactor == 5.0
    assert read.domains == ((-PI, PI),)
    assert read.notes == ("hills of 2 files merged by time",)
    one.write_text(one.read_text() + one.read_text())
    twice = read_hills([one])
    assert len(twice.heights) == 6
    assert not twice.ordered
    assert "all hills count" in twice.notes[0]


def test_a_running_simulation_loses_its_torn_row(tmp_path: Path) -> None:
    path = tmp_path / "HILLS"
    path.write_text(HEAD + PERIOD + "1 0.1 0.2 1 -1\n2 0.1 0.2 1 -1\n3 0.1 0.")
    read = read_hills([path])
    assert len(read.heights) == 2
    assert read.biasfactor == 1.0
    assert "not whole" in read.notes[0]


def test_cholesky_factors_of_a_multivariate_file(tmp_path: Path) -> None:
    fields = "time a b sigma_a_a sigma_b_b sigma_b_a height biasf"
    path = write_hills(tmp_path / "H", np.array([[1, 0.0, 0.5, 0.3, 0.2, 0.1, 1.0, 1.0]]), fields, "", "true")
    read = read_hills([path])
    np.testing.assert_array_equal(read.lower[0], [[0.3, 0.0], [0.1, 0.2]])
    assert read.multivariate


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1 0.1 0 1 5\n", "the hill in row 1 has width 0 in phi; expected positive widths"),
        ("1 0.1 nan 1 5\n", "sigma_phi is nan in row 1"),
        ("1 0.1 0.2 1 5\n2 0.1 0.2 1 6\n", "mixes the bias factors 5, 6"),
        ("1 0.1 0.2 1\n2 0.1 0.2 1 5\n", "damaged row|columns"),
        ("", "has no rows"),
    ],
)
def test_bad_rows(tmp_path: Path, body: str, message: str) -> None:
    path = tmp_path / "HILLS"
    path.write_text(HEAD + PERIOD + body)
    with pytest.raises(CcgError, match=message) as caught:
        read_hills([path])
    assert "\n" not in str(caught.value)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    rows = np.array([[1, 0.1, 0.2, 1.0, 5.0]])
    one = write_hills(tmp_path / "A", rows, "time phi sigma_phi height biasf")
    other = write_hills(tmp_path / "B", rows, "time psi sigma_psi height biasf", "")
    with pytest.raises(CcgError, match="has names psi"):
        read_hills([one, other])
    hotter = write_hills(tmp_path / "C", rows + np.array([0, 0, 0, 0, 1]), "time phi sigma_phi height biasf")
    with pytest.raises(CcgError, match="has biasfactor 6"):
        read_hills([one, hotter])
    colvar = tmp_path / "COLVAR"
    colvar.write_text("#! FIELDS time phi bias\n0 1 2\n")
    with pytest.raises(CcgError, match="use ccg fes colvar"):
        read_hills([colvar])


# Metadynamics with a known answer


def potential(phi: np.ndarray) -> np.ndarray:
    """Two wells, kJ/mol."""
    return 6.0 * np.cos(2 * phi) - 2.0 * np.sin(phi)


def metadynamics(steps: int, seed: int, gamma: float, sigma: float = 0.25) -> np.ndarray:
    """Rows of a HILLS file of a Metropolis walk at 300 K, a hill every 25 steps; ``gamma`` inf is plain."""
    rng, n = np.random.default_rng(seed), 720
    points = -PI + 2 * PI / n * np.arange(n)
    u, v, here, rows = potential(points), np.zeros(n), int(rng.integers(n)), []
    moves, tests = rng.integers(-60, 61, steps), -KT * np.log(rng.random(steps))
    for step in range(steps):
        there = (here + moves[step]) % n
        if u[there] + v[there] - u[here] - v[here] < tests[step]:
            here = there
        if step % 25 == 24:
            height = 0.8 * (math.exp(-v[here] / (KT * (gamma - 1))) if np.isfinite(gamma) else 0.25)
            away = (points - points[here] + PI) % (2 * PI) - PI
            half = 0.5 * (away / sigma) ** 2
            v += np.where(half < 6.25, height * (A * np.exp(-half) + B), 0.0)
            factor = gamma / (gamma - 1) if np.isfinite(gamma) else 1.0
            rows.append([0.1 * (step + 1), points[here], sigma, height * factor, gamma if factor > 1 else -1.0])
    return np.array(rows)


LEFT, RIGHT = Box("left", {"phi": (-180.0, 0.0)}), Box("right", {"phi": (0.0, 180.0)})


def exact_difference() -> float:
    phi = (np.arange(20_000) + 0.5) * PI / 20_000
    return float(-np.log(np.exp(-potential(phi) / KT).sum() / np.exp(-potential(-phi) / KT).sum()))


@pytest.mark.parametrize(("gamma", "steps"), [(8.0, 40_000), (math.inf, 40_000)])
def test_metadynamics_recovers_the_potential(tmp_path: Path, gamma: float, steps: int) -> None:
    """Twelve runs: the mean is right within the 99.8 % interval of their own spread, widened by the hills' width."""
    axes, found, surfaces = (torsion("phi", 180),), [], []
    for seed in range(12):
        path = write_hills(tmp_path / f"H{seed}", metadynamics(steps, seed, gamma), "time phi sigma_phi height biasf")
        read = read_hills([path])
        assert read.biasfactor == (gamma if np.isfinite(gamma) else 1.0)
        n = len(read.heights)
        result = hills_surface(
            hill_set(read), axes, 300.0, boxes=[LEFT, RIGHT], ends=[n // 2, n], x=read.time[[n // 2 - 1, n - 1]],
            label="time / ps",
        )  # fmt: skip
        found.append(result.settling.delta_f["right"][-1])
        surfaces.append(result.surface.f)
    spread = np.std(found, ddof=1) / math.sqrt(12)
    assert abs(np.mean(found) - exact_difference()) < student.ppf(0.999, 11) * spread
    assert spread < 0.3, "kT"
    u = potential(axes[0].values) / KT
    mean = np.mean(surfaces, axis=0)
    error = np.std(surfaces, axis=0, ddof=1) / math.sqrt(12)
    apart = mean - u - np.average(mean - u, weights=np.exp(-u))
    # hills of width 0.25 rad cannot follow the curvature at the tops exactly: 0.1 kT for that
    assert (np.abs(apart) < student.ppf(0.9999, 11) * error + 0.1).all()


def test_well_tempered_bias_is_a_part_of_the_free_energy(tmp_path: Path) -> None:
    path = write_hills(tmp_path / "H", metadynamics(5_000, 0, 8.0), "time phi sigma_phi height biasf")
    read = read_hills([path])
    n, axes = len(read.heights), (torsion("phi", 90),)
    f, bias = (
        hills_surface(hill_set(read), axes, 300.0, ends=[n], x=np.ones(1), label="", factor=factor).surface.f
        for factor in (1.0, 7 / 8)
    )
    np.testing.assert_allclose(bias, 7 / 8 * f, atol=1e-12)


# PLUMED itself


def plumed() -> str:
    """The plumed program, or a skipped test."""
    found = shutil.which("plumed")
    if found is None:
        pytest.skip("no plumed on PATH")
    return found


def plumed_sum(folder: Path, *arguments: str) -> np.ndarray:
    environment = {**os.environ, "PLUMED_NUM_THREADS": "1"}
    command = [plumed(), "--no-mpi", "sum_hills", *arguments, "--outfile", "out.dat", "--fmt", "%18.12f"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return np.loadtxt(folder / "out.dat", comments="#", ndmin=2)


def our_sum(hills: HillSet, axes: tuple[Axis, ...]) -> np.ndarray:
    """Rows in PLUMED's order, the first variable fastest."""
    f = -sum_hills(hills, axes)[0]
    return np.column_stack([grid_of(axes), f.ravel()])[np.arange(f.size).reshape(f.shape).transpose().ravel()]


def rows_of(hills: HillSet, gamma: float) -> np.ndarray:
    d, n = hills.centers.shape[1], len(hills.heights)
    pairs = [(j + i, j) for i in range(d if hills.tilted else 1) for j in range(d - i)]
    widths = np.stack([hills.lower[:, i, j] for i, j in pairs], axis=-1)
    return np.column_stack([np.arange(n), hills.centers, widths, hills.heights, np.full(n, gamma)])


def fields_of(hills: HillSet, names: str) -> str:
    d = len(names)
    if hills.tilted:
        widths = [f"sigma_{names[j + i]}_{names[j]}" for i in range(d) for j in range(d - i)]
    else:
        widths = [f"sigma_{name}" for name in names]
    return " ".join(["time", *names, *widths, "height", "biasf"])


@pytest.mark.plumed
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("tilt", [0.0, 0.8])
@pytest.mark.parametrize("periodic", [True, False])
def test_agreement_with_plumed_sum_hills(tmp_path: Path, d: int, tilt: float, periodic: bool) -> None:
    hills, names, n = some_hills(d, 80, seed=10 + d, tilt=tilt if d > 1 else 0.0), "xyz"[:d], {1: 200, 2: 60, 3: 20}[d]
    ends = "".join(f"#! SET min_{name} -pi\n#! SET max_{name} pi\n" for name in names) if periodic else ""
    kind = "true" if hills.tilted else "false"
    write_hills(tmp_path / "HILLS", rows_of(hills, 6.0), fields_of(hills, names), ends, kind)
    low, high = ("-pi", "pi") if periodic else ("-2", "3")
    arguments = ("--bin", ",".join([str(n)] * d), "--min", ",".join([low] * d), "--max", ",".join([high] * d))
    theirs = plumed_sum(tmp_path, "--hills", "HILLS", *arguments)
    axes = tuple(torsion(name, n) if periodic else Axis(name, -2.0, 3.0, n + 1) for name in names)
    ours = our_sum(hill_set(read_hills([tmp_path / "HILLS"])), axes)
    np.testing.assert_allclose(theirs[:, : d + 1], ours, atol=1e-6)


@pytest.mark.plumed
def test_kernels_that_are_not_stretched(tmp_path: Path) -> None:
    hills = some_hills(2, 30, seed=22)
    path = write_hills(tmp_path / "HILLS", rows_of(hills, 1.0), fields_of(hills, "xy"), "")
    path.write_text(path.read_text().replace("stretched-gaussian", "gaussian"))
    theirs = plumed_sum(tmp_path, "--hills", "HILLS", "--min", "-2,-2", "--max", "3,3", "--bin", "50,50")
    read = read_hills([path])
    assert not read.stretched
    axes = tuple(Axis(name, -2.0, 3.0, 51) for name in "xy")
    np.testing.assert_allclose(theirs[:, :3], our_sum(hill_set(read), axes), atol=1e-6)


@pytest.mark.plumed
def test_interval_of_plumed(tmp_path: Path) -> None:
    hills = some_hills(1, 40, seed=23)
    hills = HillSet(np.clip(hills.centers, -1, 1), hills.lower, hills.heights)
    ends = "#! SET lower_int -1\n#! SET upper_int 1\n"
    path = write_hills(tmp_path / "HILLS", rows_of(hills, 1.0), fields_of(hills, "x"), ends)
    theirs = plumed_sum(tmp_path, "--hills", "HILLS", "--min", "-2", "--max", "2", "--bin", "80")
    read = read_hills([path])
    np.testing.assert_allclose(theirs[:, 1], our_sum(hill_set(read), (Axis("x", -2.0, 2.0, 81),))[:, 1], atol=1e-6)


@pytest.mark.plumed
def test_automatic_grid_of_plumed(tmp_path: Path) -> None:
    hills = some_hills(2, 50, seed=20)
    write_hills(tmp_path / "HILLS", rows_of(hills, 1.0), fields_of(hills, "xy"), "#! SET min_x -pi\n#! SET max_x pi\n")
    theirs = plumed_sum(tmp_path, "--hills", "HILLS")
    read = read_hills([tmp_path / "HILLS"])
    axes = automatic_axes(hill_set(read), read.names, read.domains)
    np.testing.assert_allclose(theirs[:, :3], our_sum(hill_set(read), axes), atol=1e-6)


@pytest.mark.plumed
def test_walkers_and_negative_bias_of_plumed(tmp_path: Path) -> None:
    hills = some_hills(1, 60, seed=21)
    rows = rows_of(hills, 4.0)
    for k in range(2):
        write_hills(tmp_path / f"H{k}", rows[k::2], "time phi sigma_phi height biasf")
    grid = ("--min", "-pi", "--max", "pi", "--bin", "150")
    theirs = plumed_sum(tmp_path, "--hills", "H0,H1", *grid, "--negbias")
    read = read_hills([tmp_path / "H0", tmp_path / "H1"])
    ours = our_sum(hill_set(read), (torsion("phi", 150),))
    np.testing.assert_allclose(theirs[:, 1], 0.75 * ours[:, 1], atol=1e-6)
