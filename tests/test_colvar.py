"""Surfaces of COLVAR columns: readers, known densities under known biases, coverage of intervals, umbrella windows."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, chi2

from ccg_gmx.errors import CcgError, ToolMissingError
from ccg_gmx.free_energy import umbrella
from ccg_gmx.free_energy.axes import Axis, Box, GridSurface, torsion_surface
from ccg_gmx.free_energy.bootstrap import BootstrapSettings
from ccg_gmx.free_energy.colvar import ColvarSurface, colvar_surface
from ccg_gmx.free_energy.grid_files import load_grid_surface, save_grid_surface, write_grid
from ccg_gmx.free_energy.histogram import Histogram
from ccg_gmx.free_energy.surface import histogram_surface, load_surface, read_plumed_grid
from ccg_gmx.free_energy.umbrella import Restraint, Windows, solve_windows
from ccg_gmx.molecule.colvar_runs import read_colvars
from ccg_gmx.molecule.plumed_table import plumed_number, read_table
from ccg_gmx.units import thermal_energy

PI = math.pi
QUICK = BootstrapSettings(resamples=60)
HEAD = "#! FIELDS time phi bias\n#! SET min_phi -pi\n#! SET max_phi pi\n"


def rows(*numbers: tuple[float, ...]) -> str:
    return "".join(" ".join(map(str, row)) + "\n" for row in numbers)


def colvar(path: Path, *parts: str, head: str = HEAD) -> Path:
    path.write_text("".join(head + part for part in parts))
    return path


# Files


def test_columns_periods_and_runs(tmp_path: Path) -> None:
    path = colvar(tmp_path / "C", rows((0, 0.1, 1), (1, 0.2, 2), (2, 0.3, 3)))
    read = read_colvars([path], ["phi", "bias"])
    np.testing.assert_array_equal(read.values, [[0.1, 1], [0.2, 2], [0.3, 3]])
    assert read.domains == ((-PI, PI), None)
    assert set(read.run) == {0}
    assert read.notes == ()


@pytest.mark.parametrize(
    ("text", "value"),
    [("-pi", -PI), ("pi", PI), ("+pi", PI), ("2*pi", 2 * PI), ("pi/2", PI / 2), ("0.5pi", PI / 2), ("-3.5e2", -350.0)],
)
def test_numbers_of_plumed(text: str, value: float) -> None:
    assert plumed_number(text) == pytest.approx(value, abs=0)
    assert math.isnan(plumed_number(f"{text}x"))


def test_restart_takes_the_later_rows_and_a_new_walker_is_a_run(tmp_path: Path) -> None:
    first = rows((0, 0, 0), (1, 0, 1), (2, 0, 99), (3, 0, 99))
    path = colvar(tmp_path / "C", first, rows((2, 0, 2), (3, 0, 3)), rows((0, 0, 7), (1, 0, 8)))
    read = read_colvars([path], ["bias"])
    assert read.values[:, 0].tolist() == [0, 1, 2, 3, 7, 8]
    assert read.run.tolist() == [0, 0, 0, 0, 1, 1]
    assert any("restart at 2; 2 of the rows" in note for note in read.notes)
    assert "2 runs, taken as independent" in read.notes


def test_a_header_glued_to_a_torn_row(tmp_path: Path) -> None:
    path = tmp_path / "C"
    path.write_text(HEAD + "0 0 0\n1 0 1\n2 0" + HEAD + "2 0 2\n3 0 3\n4 0.")
    read = read_colvars([path], ["bias"])
    assert read.values[:, 0].tolist() == [0, 1, 2, 3]
    assert "2 rows left out" in read.notes[0]


def test_files_that_go_on_or_stand_alone(tmp_path: Path) -> None:
    one = colvar(tmp_path / "A", rows((0, 0, 0), (1, 0, 1), (2, 0, 2)))
    two = colvar(tmp_path / "B", rows((2, 0, 2), (3, 0, 3)))
    three = colvar(tmp_path / "D", rows((0, 0, 10), (1, 0, 11)))
    read = read_colvars([one, two, three], ["bias"])
    assert read.values[:, 0].tolist() == [0, 1, 2, 3, 10, 11]
    assert read.run.tolist() == [0, 0, 0, 0, 1, 1]
    assert read.file.tolist() == [0, 0, 0, 1, 2, 2]
    assert set(read_colvars([one, two], ["bias"], join=False).run) == {0, 1}


def test_start_and_stride_count_in_every_run(tmp_path: Path) -> None:
    one = colvar(tmp_path / "A", rows(*((k, 0, k) for k in range(10))))
    two = colvar(tmp_path / "B", rows(*((k, 0, 100 + k) for k in range(7))))
    read = read_colvars([one, two], ["bias"], start=3, stride=3)
    assert read.values[:, 0].tolist() == [3, 6, 9, 103, 106]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("", "is empty"),
        ("0 1 2\n", "no #! FIELDS line"),
        (HEAD, "has no rows"),
        (HEAD + "0 1", "has no rows"),
        (HEAD + "0 0 1\n1 0\n2 0 3\n", "damaged row"),
        (HEAD + "0 0 1 5\n1 0 2 5\n", "has 4 columns; expected 3"),
        (HEAD + "0 0 x\n1 0 2\n", "damaged row"),
        (HEAD + "0 0 1\n1 0 nan\n", "bias is nan in row 2 of 2"),
        (HEAD + "0 0 1\n1 0 inf\n", "bias is inf in row 2 of 2"),
        (HEAD + "0 0 1\n2 0 2\n1 0 3\n", "goes back in time, from 2 to 1, without a new header"),
        (HEAD + "0 0 1\n#! FIELDS time bias phi\n1 0 2\n", "changes its columns"),
        ("#! FIELDS time phi\n0 1\n", "has no column bias; expected one of time, phi"),
        ("#! FIELDS phi bias\n0 1\n", "has no column time"),
        ("#! FIELDS time phi bias\n#! SET min_phi -pi\n0 1 2\n", "says that phi goes from -pi to None"),
    ],
)
def test_damaged_files(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "C").write_text(text)
    with pytest.raises(CcgError, match=message) as caught:
        read_colvars([tmp_path / "C"], ["phi", "bias"])
    assert "\n" not in str(caught.value)


def test_nan_in_a_column_that_nobody_asked_for(tmp_path: Path) -> None:
    path = colvar(tmp_path / "C", rows((0, 0, 1), (1, 0, 2)).replace("1 0 2", "1 0 nan"))
    assert read_colvars([path], ["phi"]).values.shape == (2, 1)
    assert np.isnan(read_table(path).values[1, 2])


def test_start_beyond_the_end_and_periods_that_differ(tmp_path: Path) -> None:
    one = colvar(tmp_path / "A", rows((0, 0, 0), (1, 0, 1)))
    with pytest.raises(CcgError, match="no row from time 5 on"):
        read_colvars([one], ["phi"], start=5)
    two = colvar(tmp_path / "B", rows((0, 0, 0)), head="#! FIELDS time phi bias\n")
    with pytest.raises(CcgError, match="disagree on the period of phi"):
        read_colvars([one, two], ["phi"])


# Axes and histograms


def test_bins_of_whole_turns_windows_and_open_axes() -> None:
    turn = Axis("phi", -PI, PI, 8, True, 2 * PI)
    assert turn.cells(np.array([-PI, PI, PI - 0.01, 0.0, 3 * PI])).tolist() == [0, 0, 0, 4, 0]
    window = Axis("phi", 2.5, 3.5, 11, False, 2 * PI)  # crosses the border at pi
    assert window.cells(np.array([2.5, 3.5 - 2 * PI, -3.0])).tolist() == [0, 10, 8]
    assert window.cells(np.array([2.4, 3.6]))[0] == -1
    line = Axis("d", 0.05, 0.95, 10)
    assert line.cells(np.array([0.001, 0.999, -0.001, 1.001])).tolist() == [0, 9, -1, 10]


def test_boxes_in_degrees_units_and_across_the_border() -> None:
    axes = (Axis("phi", -PI, PI, 8, True, 2 * PI), Axis("d", 0, 1, 11), Axis("z", 0, 3, 30, True, 3.0))
    x = np.array([[np.radians(170), 0.5, 2.9], [np.radians(-170), 0.9, 0.1], [0.0, 5.0, 1.0]])
    assert Box("b", {"phi": (150.0, -150.0)}).mask(x, axes).tolist() == [True, True, False]
    assert Box("b", {"phi": (-180.0, 180.0)}).mask(x, axes).all()
    assert Box("b", {"d": (0.8, math.inf)}).mask(x, axes).tolist() == [False, True, True]
    assert Box("b", {"z": (2.5, 0.5)}).mask(x, axes).tolist() == [True, True, False]


def test_kernel_at_the_end_of_an_open_axis_sees_what_lies_beyond() -> None:
    rng = np.random.default_rng(0)
    s = rng.uniform(0, 10, (200_000, 1))
    p = Histogram.of(s, [Axis("d", 3.05, 4.95, 20)], [0.3]).probability(np.arange(len(s)), np.full(len(s), 1.0))
    np.testing.assert_allclose(p, 1 / 20, rtol=0.05)


def test_files_of_general_and_torsion_grids(tmp_path: Path) -> None:
    general = (Axis("d", 0.1, 0.9, 5), Axis("phi", -PI, PI, 4, True, 2 * PI))
    f = np.arange(20.0).reshape(5, 4)
    f[2, 2] = np.inf
    surface = GridSurface(f, 0.1 * np.ones((5, 4)), general, 310.0)
    save_grid_surface(surface, tmp_path / "g.npz")
    again = load_grid_surface(tmp_path / "g.npz")
    np.testing.assert_array_equal(again.f, f)
    assert again.axes == general
    write_grid(surface, tmp_path / "g.dat")
    text = (tmp_path / "g.dat").read_text()
    assert "#! SET nbins_d 5\n#! SET periodic_d false\n#! SET min_phi -pi" in text
    table = np.loadtxt(tmp_path / "g.dat", comments="#")
    assert table[1, 0] == pytest.approx(0.3), "the first variable is fastest"
    assert table[5, 2] == pytest.approx(thermal_energy(310.0))
    torsions = tuple(Axis(name, -PI, PI, 4, True, 2 * PI) for name in ("phi", "psi"))
    surface = GridSurface(np.arange(16.0).reshape(4, 4), np.ones((4, 4)), torsions, 310.0)
    save_grid_surface(surface, tmp_path / "t.npz")
    write_grid(surface, tmp_path / "t.dat")
    for loaded in (load_surface(tmp_path / "t.npz"), read_plumed_grid(tmp_path / "t.dat", 310.0)):
        np.testing.assert_allclose(loaded.f, surface.f, atol=1e-7)
        assert loaded.names == ("phi", "psi")


# Known densities


def draw(u: object, low: float, high: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Independent draws of exp(-u), through its integral on a fine grid."""
    x = np.linspace(low, high, 20_001)
    density = np.exp(-u(x))  # type: ignore[operator]
    total = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return np.interp(rng.random(n) * total[-1], total, x)


def double_well(x: np.ndarray) -> np.ndarray:
    return 2.0 * (x**2 - 1) ** 2 + 0.5 * x


def well_bias(x: np.ndarray) -> np.ndarray:
    """Takes the barrier away."""
    return -1.6 * (x**2 - 1) ** 2 + 0.3 * x


def well_difference() -> float:
    x = np.linspace(0, 4, 40_001)
    left, right = np.exp(-double_well(-x)).sum(), np.exp(-double_well(x)).sum()
    return float(-np.log(right / left))


def surface_of(s: np.ndarray, axes: list[Axis], boxes: tuple[Box, ...] = (), **options: object) -> ColvarSurface:
    run = options.pop("run", np.zeros(len(s), dtype=int))
    time = np.arange(len(s), dtype=float)
    return colvar_surface(s, run, time, axes, 300.0, boxes=boxes, **{"settings": QUICK, **options})  # type: ignore[arg-type]


WELLS = (Box("left", {"x": (-math.inf, 0.0)}), Box("right", {"x": (0.0, math.inf)}))


@pytest.mark.parametrize("biased", [False, True])
def test_intervals_of_a_double_well_cover_as_they_say(biased: bool) -> None:
    rng, repeats, axis = np.random.default_rng(2), 200, Axis("x", -1.75, 1.75, 8)
    edges = np.linspace(-2, 2, 9)
    fine = [np.exp(-double_well(np.linspace(a, b, 401))).mean() for a, b in itertools.pairwise(edges)]
    exact_f = -np.log(np.array(fine) / np.sum(fine))
    hits, bins = 0, []
    for _ in range(repeats):
        x = draw((lambda x: double_well(x) + well_bias(x)) if biased else double_well, -3, 3, 2000, rng)
        found = surface_of(x[:, None], [axis], WELLS, u_bias=well_bias(x) if biased else None)
        (d,) = found.differences
        hits += abs(d.f - well_difference()) < 1.96 * d.error
        seen = np.exp(-found.surface.f)
        p, exact = seen / seen.sum(), np.exp(-exact_f)
        near = np.abs(p / exact - 1) < 1.96 * found.surface.error * p / exact
        bins.append(near[exact > 0.025])  # 50 frames; fewer are not normally distributed
    low, high = binom.ppf(1e-3, repeats, 0.93), binom.ppf(1 - 1e-3, repeats, 0.97)
    assert low <= hits <= high, "95 % intervals cover 93 to 97 %, tested at 99.8 %"
    assert 0.91 < np.mean(bins) < 0.98, "bins, which are not independent of each other"


def test_kish_is_that_of_the_weights() -> None:
    x = draw(double_well, -3, 3, 5000, np.random.default_rng(3))
    u = 50.0 + well_bias(x)
    found = surface_of(x[:, None], [Axis("x", -1.9, 1.9, 20)], u_bias=u)
    w = np.exp(u - u.max())
    assert found.kish_ess == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert found.largest_weight == pytest.approx(w.max() / w.sum())


def test_huge_biases_stay_finite() -> None:
    x = np.random.default_rng(4).standard_normal((500, 1))
    found = surface_of(x, [Axis("x", -2, 2, 9)], u_bias=1e5 + 700.0 * np.arange(500))
    assert found.kish_ess == pytest.approx(1.0)
    assert any("weights collapse" in word for word in found.warnings)
    assert any("a single frame carries 100%" in word for word in found.warnings)


def test_harmonic_well_in_two_variables_under_a_bias() -> None:
    rng, n = np.random.default_rng(5), 60_000
    u_bias = lambda s: 0.5 * s[:, 0] ** 2 - 0.8 * s[:, 1]  # noqa: E731
    # exp(-u - u_bias) with u = (x^2 + y^2) / 2
    s = np.stack([rng.standard_normal(n) / math.sqrt(2), rng.standard_normal(n) + 0.8], axis=-1)
    axes = [Axis("x", -1.5, 1.5, 7), Axis("y", -1.5, 1.5, 7)]
    found = surface_of(s, axes, u_bias=u_bias(s), settings=BootstrapSettings(resamples=200))
    edges = np.linspace(-1.75, 1.75, 8)
    one = np.diff([0.5 * math.erf(e / math.sqrt(2)) for e in edges])
    exact = np.outer(one, one) / one.sum() ** 2
    seen = np.exp(-found.surface.f)
    z = (seen / seen.sum() / exact - 1) / found.surface.error
    assert np.isfinite(z).all()
    # 48 free bins; the error of each is known to a tenth
    assert chi2.ppf(0.001, 48) / 48 * 0.8 < np.mean(z**2) < chi2.ppf(0.999, 48) / 48 * 1.2
    assert found.warnings == ()


def test_torsions_are_as_those_of_a_trajectory() -> None:
    s = np.random.default_rng(6).uniform(-PI, PI, (3000, 2))
    axes = [Axis(name, -PI, PI, 12, True, 2 * PI) for name in ("phi", "psi")]
    for widths, degrees in ((None, 0.0), ([PI / 12] * 2, 15.0)):
        found = surface_of(s, axes, widths=widths)
        expected = histogram_surface(s, 12, ("phi", "psi"), 300.0, kde_degrees=degrees)
        np.testing.assert_allclose(torsion_surface(found.surface).f, expected.f, atol=1e-12)


def test_correlated_frames_have_larger_errors() -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal(2000)
    slow = np.repeat(x, 10)[:, None]
    axis = [Axis("x", -1.5, 1.5, 7)]
    errors = [surface_of(s, axis, settings=BootstrapSettings(resamples=200)).surface.error for s in (x[:, None], slow)]
    np.testing.assert_allclose(np.mean(errors[1] / errors[0]), 1.0, atol=0.15)


def test_frames_beyond_the_range_are_counted_and_left_out() -> None:
    x = np.linspace(-1, 1, 1001)[:, None]
    found = surface_of(x, [Axis("x", -0.45, 0.45, 10)])
    assert found.off_grid == 500
    with pytest.raises(CcgError, match="no frame is within x from 5 to 6"):
        surface_of(x, [Axis("x", 5.0, 6.0, 10)])


# Umbrella windows: a harmonic well, harmonic restraints, all Gaussian

K0, KAPPA = 1.0, 4.0
CENTERS = np.linspace(-3, 3, 9)


def windows_of(n: int, rng: np.random.Generator, g: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, windows, reduced biases ``[K, T]``; every position g times."""
    means, width = KAPPA * CENTERS / (K0 + KAPPA), (K0 + KAPPA) ** -0.5
    x = np.concatenate([np.repeat(m + width * rng.standard_normal(n // g), g) for m in means])
    return x, np.repeat(np.arange(len(CENTERS)), n), 0.5 * KAPPA * (x - CENTERS[:, None]) ** 2


EXACT_F = 0.5 * K0 * KAPPA / (K0 + KAPPA) * (CENTERS**2 - CENTERS[0] ** 2)
TAILS = (Box("middle", {"x": (-1.0, 1.0)}), Box("tail", {"x": (1.0, 3.0)}))
TAIL_F = -math.log((math.erf(3 / 2**0.5) - math.erf(1 / 2**0.5)) / 2 / math.erf(1 / 2**0.5))


def test_free_energies_of_windows_and_moments_of_the_well() -> None:
    x, window, u = windows_of(4000, np.random.default_rng(8))
    solved = solve_windows(u, window)
    np.testing.assert_allclose(solved.f, EXACT_F, atol=0.12)
    w = np.exp(solved.log_w)
    assert w.sum() == pytest.approx(1.0)
    assert w @ x == pytest.approx(0.0, abs=0.05)
    assert w @ x**2 == pytest.approx(1.0, abs=0.06)
    np.testing.assert_allclose(solved.overlap.sum(axis=1), 1.0, atol=1e-6)
    assert solved.warnings == ()


def test_reweighting_all_frames_gives_pymbar_back() -> None:
    pymbar = pytest.importorskip("pymbar")
    _, window, u = windows_of(300, np.random.default_rng(9))
    solved = solve_windows(u, window)
    again = solved.reweight(np.arange(len(window)))
    np.testing.assert_allclose(again / again.sum(), np.exp(solved.log_w), rtol=1e-6)
    theirs = pymbar.MBAR(u, np.bincount(window))
    np.testing.assert_allclose(solved.f, theirs.f_k - theirs.f_k[0], atol=1e-5)
    # a resample: pymbar on the repeated frames
    rows = np.sort(np.random.default_rng(0).integers(len(window), size=len(window)))
    counts = np.bincount(window[rows], minlength=len(CENTERS))
    direct = pymbar.MBAR(u[:, rows], counts)
    log_w = -np.log(counts @ np.exp(direct.f_k[:, None] - u[:, rows]))
    ours = solved.reweight(rows)
    np.testing.assert_allclose(ours / ours.sum(), np.exp(log_w) / np.exp(log_w).sum(), rtol=1e-4)


@pytest.mark.parametrize("g", [1, 5])
def test_intervals_of_windows_cover_as_they_say(g: int) -> None:
    rng, repeats, hits = np.random.default_rng(10 + g), 60, 0
    for _ in range(repeats):
        x, window, u = windows_of(100 * g, rng, g)
        found = surface_of(
            x[:, None], [Axis("x", -2.75, 2.75, 12)], TAILS, run=window, windows=solve_windows(u, window)
        )
        (d,) = found.differences
        hits += abs(d.f - TAIL_F) < 1.96 * d.error
    assert binom.ppf(1e-3, repeats, 0.93) <= hits, "95 % intervals cover 93 % or more, tested at 99.9 %"
    assert hits < repeats or d.error < 0.3, "and they are not simply wide"


def test_surface_of_windows_is_the_well() -> None:
    x, window, u = windows_of(3000, np.random.default_rng(12))
    axis = Axis("x", -2.4, 2.4, 25)
    found = surface_of(x[:, None], [axis], run=window, windows=solve_windows(u, window))
    exact = 0.5 * axis.values**2
    z = (found.surface.f - exact - np.average(found.surface.f - exact, weights=np.exp(-exact))) / found.surface.error
    assert np.abs(z).max() < 5
    assert np.mean(z**2) < 2.5, "bins of one surface are strongly correlated: 25 of them are worth a few"


def test_windows_without_overlap() -> None:
    rng, centers = np.random.default_rng(13), np.array([-4.0, -3.5, 3.0])
    x = np.concatenate([c + 0.3 * rng.standard_normal(300) for c in centers])
    u = 0.5 / 0.09 * (x - centers[:, None]) ** 2
    window = np.repeat(np.arange(3), 300)
    try:
        words = solve_windows(u, window).warnings
        assert len(words) == 1
        assert "2 groups that hardly overlap (1 2; 3)" in words[0]
    except CcgError as error:
        assert "overlap" in str(error)  # noqa: PT017
    with pytest.raises(CcgError, match="windows with 300, 300, 300, 0 frames"):
        solve_windows(np.vstack([u, u[:1]]), window)


def test_restraints_count_the_shorter_way_round() -> None:
    axes = (Axis("phi", -PI, PI, 10, True, 2 * PI), Axis("d", 0, 1, 10))
    restraint = Restraint({"phi": 3.0, "d": 0.5}, {"phi": 10.0, "d": 100.0})
    s = np.array([[-3.0, 0.5], [3.0, 0.7]])
    np.testing.assert_allclose(restraint.energy(s, axes), [5.0 * (2 * PI - 6) ** 2, 50 * 0.04])


def test_without_pymbar_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _, window, u = windows_of(10, np.random.default_rng(14))
    with pytest.raises(ToolMissingError, match=r"pymbar is not installed; .*pip install 'pymbar>=4'"):
        solve_windows(u, window)


def test_no_advice_about_jax(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        umbrella._import_pymbar()
        _, window, u = windows_of(50, np.random.default_rng(15))
        assert isinstance(solve_windows(u, window), Windows)
    assert "JAX" not in caplog.text + "".join(capfd.readouterr())
    assert logging.root.manager.disable == logging.NOTSET
