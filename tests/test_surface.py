"""Grids, basins, metrics by hand, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.reference import (
    load_marginals,
    load_reference,
    load_reference_set,
    read_awh,
    save_marginals,
    save_reference,
)
from ccg_gmx.free_energy.surface import (
    Basin,
    combine_halves,
    delta_f,
    forward_kl,
    grid,
    grid_points,
    histogram_surface,
    jensen_shannon,
    load_surface,
    noise_floor,
    probability,
    read_plumed_grid,
    rmsd_kT,
    save_surface,
    shifted,
    write_plumed_grid,
)
from ccg_gmx.records import FreeEnergySurface
from ccg_gmx.units import thermal_energy

NAMES = ("phi", "psi")


def one_d(*p: float) -> FreeEnergySurface:
    with np.errstate(divide="ignore"):
        return shifted(-np.log(np.array(p)), ("phi",), 300.0)


def smooth(n: int = 24) -> FreeEnergySurface:
    phi, psi = grid(n, 2).T
    return shifted((2 * np.cos(phi) - np.sin(2 * psi) + np.cos(phi + psi)).reshape(n, n), NAMES, 300.0)


def test_grid_is_plumeds() -> None:
    np.testing.assert_allclose(np.rad2deg(grid_points(4)), [-180, -90, 0, 90])
    np.testing.assert_allclose(
        np.rad2deg(grid(4, 2))[:5], [[-180, -180], [-180, -90], [-180, 0], [-180, 90], [-90, -180]]
    )


def test_metrics_by_hand() -> None:
    p, q = one_d(0.5, 0.5, 0.0), one_d(0.25, 0.5, 0.25)
    assert forward_kl(p, q) == pytest.approx(0.5 * np.log(2))
    assert forward_kl(q, p) == np.inf
    js = 0.5 * (0.5 * np.log(0.5 / 0.375) + 0.25 * np.log(0.25 / 0.375) + 0.25 * np.log(0.25 / 0.125))
    assert jensen_shannon(p, q) == jensen_shannon(q, p) == pytest.approx(js)
    assert jensen_shannon(one_d(1, 0), one_d(0, 1)) == pytest.approx(np.log(2))
    assert probability(q).tolist() == pytest.approx([0.25, 0.5, 0.25])


def test_rmsd_sees_neither_offset_nor_heights() -> None:
    reference = shifted(np.array([0.0, 1.0, 2.0, 9.0]), ("phi",), 300.0)
    other = shifted(np.array([0.0, 1.0, 2.3, 99.0]), ("phi",), 300.0)
    assert rmsd_kT(reference, other) == pytest.approx(np.std([0, 0, 0.3]))
    assert rmsd_kT(reference, other, cap=10) > 30
    hole = shifted(np.array([0.0, np.inf, 2.0, 9.0]), ("phi",), 300.0)
    assert rmsd_kT(reference, hole) == np.inf
    assert rmsd_kT(hole, reference) == 0


def test_different_surfaces_are_not_compared() -> None:
    with pytest.raises(CcgError, match="grid"):
        forward_kl(smooth(24), smooth(25))
    with pytest.raises(CcgError, match="temperature"):
        forward_kl(smooth(), FreeEnergySurface(smooth().f, smooth().error, NAMES, 310.0))
    with pytest.raises(CcgError, match="torsions"):
        forward_kl(smooth(), FreeEnergySurface(smooth().f, smooth().error, ("psi", "phi"), 300.0))


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((-90.0, 90.0), [False, True, True, False]),
        ((90.0, -90.0), [True, False, False, True]),
        ((90.0, 270.0), [True, False, False, True]),
        ((-180.0, 180.0), [True] * 4),
        ((80.0, 100.0), [False, False, False, True]),
    ],
)
def test_basin_wraps_around(bounds: tuple[float, float], expected: list[bool]) -> None:
    assert Basin(name="b", ranges={"phi": bounds}).mask(grid(4, 1), ("phi",)).tolist() == expected


def test_basin_refuses_nonsense() -> None:
    for bounds in ((0.0, 0.0), (0.0, 400.0), (0.0, float("nan"))):
        with pytest.raises(ValidationError, match="within one turn"):
            Basin(name="b", ranges={"phi": bounds})
    with pytest.raises(CcgError, match="omega"):
        Basin(name="b", ranges={"phi": (0, 1), "omega": (0, 1)}).mask(grid(4, 2), NAMES)


def test_torsion_that_a_basin_leaves_out_is_free() -> None:
    some = Basin(name="b", ranges={"psi": (-10, 80), "phi2": (140, -160)})
    names, s = ("phi", "psi", "phi2"), grid(12, 3)
    whole = Basin(name="b", ranges={"phi": (-180, 180), **some.ranges})
    np.testing.assert_array_equal(some.mask(s, names), whole.mask(s, names))
    assert some.mask(s, names).sum() == 12 * 3 * 2


def test_delta_f_by_hand() -> None:
    surface = one_d(0.1, 0.2, 0.3, 0.4)
    low, high = Basin(name="a", ranges={"phi": (-180, 0)}), Basin(name="b", ranges={"phi": (0, 180)})
    assert delta_f(surface, low, high) == pytest.approx(np.log(0.7 / 0.3))
    assert delta_f(surface, high, low) == pytest.approx(-np.log(0.7 / 0.3))


def test_histogram_bins_are_centred_on_their_points() -> None:
    s = np.deg2rad([[-180.0], [179.0], [-136.0], [-134.0], [0.0]])
    surface = histogram_surface(s, 4, ("phi",), 300.0)
    np.testing.assert_allclose(probability(surface), [0.6, 0.2, 0.2, 0.0])
    assert surface.f[3] == np.inf
    weighted = histogram_surface(s, 4, ("phi",), 300.0, log_weights=np.log([1, 1, 1, 1, 4]) + 900)
    np.testing.assert_allclose(probability(weighted), [3 / 8, 1 / 8, 4 / 8, 0.0])


def test_smoothing_keeps_mass_positive_and_mean_direction() -> None:
    s = np.deg2rad([[170.0, 10.0]])
    surface = histogram_surface(s, 72, NAMES, 300.0, kde_degrees=15.0)
    p, points = probability(surface), grid(72, 2)
    mean = np.angle((p.ravel()[:, None] * np.exp(1j * points)).sum(axis=0))
    length = np.abs((p.ravel()[:, None] * np.exp(1j * points)).sum(axis=0))
    np.testing.assert_allclose(np.rad2deg(mean), [170.0, 10.0], atol=1e-6)
    np.testing.assert_allclose(length, np.exp(-0.5 * np.deg2rad(15.0) ** 2), rtol=1e-6)
    assert surface.f[0, 38] == pytest.approx(surface.f[68, 38]), "equally far across the border"


def test_empty_histogram_is_refused() -> None:
    with pytest.raises(CcgError, match="frames"):
        histogram_surface(np.empty((0, 2)), 10, NAMES, 300.0)


def test_noise_floor_is_what_a_perfect_surface_scores() -> None:
    exact, rng = smooth(), np.random.default_rng(0)
    floors, scores, symmetric = [], [], []
    for _ in range(100):
        half = [shifted(exact.f + 0.1 * rng.standard_normal(exact.f.shape), NAMES, 300.0) for _ in range(2)]
        floors.append(noise_floor(*half))
        scores.append(forward_kl(combine_halves(*half), exact))
        symmetric.append((forward_kl(half[0], half[1]) + forward_kl(half[1], half[0])) / 8)
    ratio = np.array(scores) / np.array(floors)
    assert np.mean(floors) == pytest.approx(np.mean(scores), rel=4 * ratio.std() / 10)
    assert np.mean(floors) == pytest.approx(np.mean(symmetric), rel=0.02)


def test_noise_floor_of_counted_frames_with_empty_bins() -> None:
    exact, rng = smooth(), np.random.default_rng(1)
    p = probability(exact).ravel()
    floors, scores = [], []
    for _ in range(30):
        counts = rng.multinomial(20_000, p, size=2).reshape(2, 24, 24)
        with np.errstate(divide="ignore"):
            half = [shifted(-np.log(c / c.sum()), NAMES, 300.0) for c in counts]
        floors.append(noise_floor(*half))
        scores.append(forward_kl(combine_halves(*half), exact))
    assert np.isfinite(floors).all()
    assert np.mean(floors) == pytest.approx(np.mean(scores), rel=0.2)


def test_combined_halves_have_honest_errors() -> None:
    exact, rng = smooth(), np.random.default_rng(2)
    z = []
    for _ in range(40):
        half = [
            shifted(exact.f + rng.normal() + 0.2 * rng.standard_normal(exact.f.shape), NAMES, 300.0) for _ in range(2)
        ]
        mean = combine_halves(*half, smooth_degrees=20.0)
        p = probability(exact)
        offset = (p * (mean.f - exact.f)).sum()
        z.append((mean.f - exact.f - offset) / mean.error)
        assert mean.error.min() > 0.05, "an accidental agreement must not pass for certainty"
    assert np.mean(np.square(z)) == pytest.approx(1, abs=0.15)


def test_bin_of_one_half_only() -> None:
    a, b = one_d(0.5, 0.5, 0.0, 0.0), one_d(0.4, 0.4, 0.2, 0.0)
    mean = combine_halves(a, b)
    p = probability(mean)
    assert p[2] / p[0] == pytest.approx(0.25)
    assert np.isnan(mean.error[2])
    assert mean.f[3] == np.inf
    assert np.isfinite(mean.error[:2]).all()


@given(n=st.integers(4, 13), dims=st.integers(1, 2), seed=st.integers(0, 1000))
def test_plumed_grid_round_trip(tmp_path_factory: pytest.TempPathFactory, n: int, dims: int, seed: int) -> None:
    path = tmp_path_factory.mktemp("grid") / "fes.dat"
    surface = shifted(np.random.default_rng(seed).normal(size=(n,) * dims), NAMES[:dims], 310.0)
    write_plumed_grid(surface, path)
    back = read_plumed_grid(path, 310.0)
    assert back.names == surface.names
    np.testing.assert_allclose(back.f, surface.f, atol=1e-9)


def test_plumed_grid_is_in_its_format(tmp_path: Path) -> None:
    n = 16
    write_plumed_grid(smooth(n), tmp_path / "fes.dat", field="external.bias")
    lines = (tmp_path / "fes.dat").read_text().splitlines()
    assert lines[0] == "#! FIELDS phi psi external.bias der_phi der_psi"
    assert lines[1:5] == [
        "#! SET min_phi -pi",
        "#! SET max_phi pi",
        f"#! SET nbins_phi {n}",
        "#! SET periodic_phi true",
    ]
    rows = np.array([[float(x) for x in line.split()] for line in lines if line and not line.startswith("#")])
    assert rows[1, 0] > rows[0, 0], "the first torsion runs fastest"
    assert rows[1, 1] == rows[0, 1]
    phi, psi = rows[:, 0], rows[:, 1]
    kT = thermal_energy(300.0)
    np.testing.assert_allclose(rows[:, 3], kT * (-2 * np.sin(phi) - np.sin(phi + psi)), atol=1e-7)
    np.testing.assert_allclose(rows[:, 4], kT * (-2 * np.cos(2 * psi) - np.sin(phi + psi)), atol=1e-7)
    assert lines[9 + n] == ""


def test_plumed_grid_with_empty_bins_has_no_derivatives(tmp_path: Path) -> None:
    write_plumed_grid(one_d(0.5, 0.5, 0.0), tmp_path / "fes.dat")
    assert "der_" not in (tmp_path / "fes.dat").read_text()
    assert read_plumed_grid(tmp_path / "fes.dat", 300.0).f.tolist() == [0, 0, np.inf]


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("nbins_phi 8", "nbins_phi 9", "bins"),
        ("periodic_psi true", "periodic_psi false", "grid axes"),
        ("-3.141592654 -3.141592654", "-3.2 -3.141592654", "other grid points"),
        ("-3.141592654 -3.141592654", "oops -3.141592654", "cannot read"),
    ],
)
def test_broken_plumed_grid(tmp_path: Path, old: str, new: str, found: str) -> None:
    path = tmp_path / "fes.dat"
    write_plumed_grid(smooth(8), path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(CcgError, match=found):
        read_plumed_grid(path, 300.0)


def test_npz_round_trip_and_refusal(tmp_path: Path) -> None:
    surface = shifted(smooth().f, NAMES, 300.0, error=0.1 + 0 * smooth().f)
    save_surface(surface, tmp_path / "fes.npz")
    back = load_surface(tmp_path / "fes.npz")
    np.testing.assert_array_equal(back.f, surface.f)
    np.testing.assert_array_equal(back.error, surface.error)
    assert (back.names, back.temperature_K) == (NAMES, 300.0)
    assert [p.name for p in tmp_path.iterdir()] == ["fes.npz"]
    np.savez(tmp_path / "other.npz", f=surface.f)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "fes.npz").read_bytes()[:500])
    for name in ("other.npz", "cut.npz", "absent.npz"):
        with pytest.raises(CcgError, match="cannot read"):
            load_surface(tmp_path / name)


def awh_text(n: int, unit: str = "kJ/mol", more: bool = True) -> str:
    legends = ["awh-dim2", "PMF"] + ["Coord bias", "Coord distr"] * more
    head = [f'@    yaxis  label "({unit})"'] + [f'@ s{i} legend "{name}"' for i, name in enumerate(legends)]
    rows = [
        f"{-180 + i * 360 / n:.4f} {-180 + j * 360 / n:.4f} {10 * i + j:.4f} 0.0 {0 if i == j == 1 else 1}"
        for i in range(n)
        for j in range(n)
    ]
    return "\n".join(["# gmx awh", *head, *rows]) + "\n"


def test_awh_output(tmp_path: Path) -> None:
    path = tmp_path / "awh.xvg"
    path.write_text(awh_text(6))
    surface = read_awh(path, 300.0)
    assert surface.f[2, 3] == pytest.approx(23 / thermal_energy(300.0))
    assert surface.f[1, 1] == np.inf
    assert np.isnan(surface.error).all()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (awh_text(6, more=False), "gmx awh -more"),
        (awh_text(6, unit="k\\sB\\NT"), "not in kJ/mol"),
        (awh_text(6).replace("-180.0000 -180.0000", "-170.0000 -180.0000"), "whole turns"),
        ("".join(awh_text(6).splitlines(keepends=True)[:-1]), "35 points"),
        ("not an xvg", "cannot read"),
    ],
)
def test_wrong_awh_output(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "awh.xvg").write_text(text)
    with pytest.raises(CcgError, match=found):
        read_awh(tmp_path / "awh.xvg", 300.0)


def test_reference_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    half = [shifted(smooth().f + 0.1 * rng.standard_normal((24, 24)), NAMES, 300.0) for _ in range(2)]
    save_reference(tmp_path / "reference.npz", *half, origin="two runs")
    back = load_reference(tmp_path / "reference.npz")
    np.testing.assert_array_equal(back.half_a.f, half[0].f)
    np.testing.assert_array_equal(back.half_b.f, half[1].f)
    np.testing.assert_array_equal(back.surface.f, combine_halves(*half).f)
    assert back.noise_floor == noise_floor(*half)
    assert back.origin == "two runs"


def noisy_halves(names: tuple[str, ...], n: int, seed: int) -> tuple[FreeEnergySurface, FreeEnergySurface]:
    rng = np.random.default_rng(seed)
    f = rng.normal(size=(n,) * len(names))
    a, b = (shifted(f + 0.1 * rng.standard_normal(f.shape), names, 310.0) for _ in range(2))
    return a, b


def test_marginals_round_trip(tmp_path: Path) -> None:
    halves = {("psi2", "phi1"): noisy_halves(("psi2", "phi1"), 12, 0), ("phi1",): noisy_halves(("phi1",), 20, 1)}
    save_marginals(tmp_path / "marginals.npz", halves, origin="REMD")
    for read in (load_marginals, load_reference_set):
        back = read(tmp_path / "marginals.npz")
        assert list(back) == list(halves)
        for names, (half_a, half_b) in halves.items():
            np.testing.assert_array_equal(back[names].half_a.f, half_a.f)
            np.testing.assert_array_equal(back[names].half_b.f, half_b.f)
            np.testing.assert_array_equal(back[names].surface.f, combine_halves(half_a, half_b).f)
            assert (back[names].surface.names, back[names].surface.temperature_K) == (names, 310.0)
            assert back[names].origin == "REMD"


def test_either_kind_of_reference_file(tmp_path: Path) -> None:
    halves = noisy_halves(NAMES, 12, 2)
    save_reference(tmp_path / "one.npz", *halves, origin="x")
    save_marginals(tmp_path / "several.npz", {NAMES: halves}, origin="x")
    for name in ("one", "several"):
        (key, reference), *rest = load_reference_set(tmp_path / f"{name}.npz").items()
        assert (key, rest) == (NAMES, [])
        np.testing.assert_array_equal(reference.half_a.f, halves[0].f)
    with pytest.raises(CcgError, match="cannot read"):
        load_reference(tmp_path / "several.npz")
    with pytest.raises(CcgError, match="cannot read"):
        load_marginals(tmp_path / "one.npz")
    np.save(tmp_path / "lone.npy", np.zeros(3))
    for name in ("absent.npz", "lone.npy"):
        with pytest.raises(CcgError, match="cannot read"):
            load_reference_set(tmp_path / name)


def test_marginals_that_do_not_belong_together(tmp_path: Path) -> None:
    halves, path = noisy_halves(NAMES, 12, 3), tmp_path / "marginals.npz"
    with pytest.raises(CcgError, match="same torsions"):
        save_marginals(path, {("psi", "phi"): halves}, origin="")
    with pytest.raises(CcgError, match="one temperature"):
        save_marginals(path, {}, origin="")
    other = shifted(halves[0].f, NAMES, 300.0)
    with pytest.raises(CcgError, match="one temperature"):
        save_marginals(path, {NAMES: (halves[0], other)}, origin="")
    with pytest.raises(CcgError, match="grid"):
        save_marginals(path, {NAMES: (halves[0], noisy_halves(NAMES, 13, 3)[1])}, origin="")
    assert not path.exists()
