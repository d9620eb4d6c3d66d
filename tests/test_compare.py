"""Two surfaces beside each other: grids, axes, files, basin differences and where their errors come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.compare import Subject, compare, holds_several, load_subject, regrid, save_report
from ccg_gmx.free_energy.reference import load_reference, save_reference
from ccg_gmx.free_energy.surface import (
    Basin,
    delta_f,
    forward_kl,
    grid,
    jensen_shannon,
    noise_floor,
    rmsd_kT,
    save_surface,
    shifted,
    write_plumed_grid,
)
from ccg_gmx.records import FreeEnergySurface

NAMES = ("phi", "psi")
LOW, HIGH = (Basin(name=n, ranges={"phi": r, "psi": (-180, 180)}) for n, r in (("low", (-180, 0)), ("high", (0, 180))))


def smooth(n: int, tilt: float = 0.0, names: tuple[str, ...] = NAMES) -> FreeEnergySurface:
    phi, psi = grid(n, 2).T
    f = 2 * np.cos(phi) - np.sin(2 * psi) + np.cos(phi + psi) + tilt * np.sin(phi)
    return shifted(f.reshape(n, n), names, 300.0, np.full((n, n), 0.1))


def with_hole(surface: FreeEnergySurface) -> FreeEnergySurface:
    f = surface.f.copy()
    f[0, 0] = np.inf
    return shifted(f, surface.names, surface.temperature_K)


def test_numbers_are_those_of_the_metrics() -> None:
    a, b = smooth(24, 0.3), smooth(24)
    found = compare(Subject("a", a), Subject("b", b), [LOW, HIGH], cap_kT=3.0)
    assert found.forward_kl == forward_kl(b, a)
    assert found.jensen_shannon == pytest.approx(jensen_shannon(a, b))
    assert found.rmsd_kT == rmsd_kT(b, a, 3.0)
    (d,) = found.differences
    assert (d.a, d.b) == (delta_f(a, HIGH, LOW), delta_f(b, HIGH, LOW))
    assert d.difference == pytest.approx(d.a - d.b)
    assert found.noise_floor is None
    assert found.notes == ()


def test_a_surface_against_itself() -> None:
    found = compare(Subject("a", smooth(20)), Subject("a", smooth(20)), [LOW, HIGH])
    assert abs(found.forward_kl) < 1e-12
    assert found.rmsd_kT == 0
    assert found.differences[0].difference == 0


def test_a_hole_is_counted() -> None:
    found = compare(Subject("a", with_hole(smooth(24))), Subject("b", smooth(24)))
    assert found.forward_kl == found.rmsd_kT == np.inf
    assert found.forbidden == 1
    assert found.rmsd_shared_kT == 0


def test_other_grids_are_interpolated() -> None:
    found = compare(Subject("coarse", smooth(40)), Subject("fine", smooth(72)))
    assert found.rmsd_kT < 2e-3
    assert "coarse interpolated to 72 x 72" in found.notes[0]
    turned = compare(Subject("fine", with_hole(smooth(72))), Subject("coarse", smooth(40)))
    assert turned.a.f.shape == (72, 72)
    assert "coarse interpolated" in turned.notes[0]
    with pytest.raises(CcgError, match="never visited; expected one grid"):
        compare(Subject("a", with_hole(smooth(40))), Subject("b", with_hole(smooth(72))))
    with pytest.raises(CcgError, match="never visited"):
        regrid(with_hole(smooth(8)), (9, 9))


def test_splines_converge_and_keep_the_points() -> None:
    np.testing.assert_allclose(regrid(smooth(24), (24, 24)).f, smooth(24).f, atol=1e-12)
    errors = [np.abs(regrid(smooth(n), (96, 96)).f - smooth(96).f).max() for n in (16, 32)]
    assert errors[0] / errors[1] > 8, "fourth order"
    np.testing.assert_allclose(regrid(smooth(24), (30, 30)).error, 0.1)


def test_axes_in_another_order_are_turned() -> None:
    a = smooth(24)
    turned = FreeEnergySurface(a.f.T, a.error.T, ("psi", "phi"), 300.0)
    found = compare(Subject("turned", turned), Subject("b", a))
    assert abs(found.forward_kl) < 1e-12
    assert "turned to phi, psi" in found.notes[0]


def test_torsions_of_one_surface_alone_are_integrated_out() -> None:
    a = smooth(24)
    one = shifted(-np.log(np.exp(-a.f).sum(axis=1)), ("phi",), 300.0)
    found = compare(Subject("two", a), Subject("one", one))
    assert abs(found.forward_kl) < 1e-12
    assert "psi of two integrated out" in found.notes[0]


def test_what_cannot_be_compared() -> None:
    with pytest.raises(CcgError, match="300 K and b at 310 K"):
        compare(Subject("a", smooth(8)), Subject("b", shifted(smooth(8).f, NAMES, 310.0)))
    with pytest.raises(CcgError, match="the same torsions"):
        compare(Subject("a", smooth(8)), Subject("b", smooth(8, names=("phi", "chi"))))
    with pytest.raises(CcgError, match="basin"):
        compare(Subject("a", smooth(8)), Subject("b", smooth(8)), [LOW, Basin(name="x", ranges={"chi": (0, 9)})])


# Errors


def test_errors_of_bins_bound_that_of_a_difference() -> None:
    found = compare(Subject("a", smooth(24)), Subject("b", shifted(smooth(24).f, NAMES, 300.0)), [LOW, HIGH])
    (d,) = found.differences
    assert d.bounds == (True, True)
    assert d.a_error == pytest.approx(0.2), "0.1 kT in every bin of both basins"
    assert np.isnan(d.b_error)
    assert np.isnan(d.error)


def test_halves_of_a_reference_give_error_and_floor(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    exact, errors, away = smooth(20), [], []
    for _ in range(200):
        half = [shifted(exact.f + 0.3 * rng.standard_normal(exact.f.shape), NAMES, 300.0) for _ in range(2)]
        save_reference(tmp_path / "r.npz", half[0], half[1], "two runs")
        reference = load_subject(tmp_path / "r.npz")
        found = compare(Subject("exact", exact), reference, [LOW, HIGH])
        assert found.noise_floor == noise_floor(*half)
        assert found.differences[0].bounds == (True, False)
        errors.append(found.differences[0].b_error)
        away.append(found.differences[0].difference)
    # one degree of freedom each; over 200 the mean squares agree within 3 * sqrt(2 * 2 / 200) = 0.42 of each other
    assert np.mean(np.square(errors)) == pytest.approx(np.var(away), rel=0.42)


def test_a_report_beside_a_surface_gives_its_errors(tmp_path: Path) -> None:
    save_surface(smooth(24), tmp_path / "fes.npz")
    row = {"first": "low", "second": "high", "f_kT": 1.25, "error_kT": 0.05}
    save_report(tmp_path / "fes.npz", [LOW, HIGH], {"delta_f": [row]})
    subject = load_subject(tmp_path / "fes.npz")
    renamed = [Basin(name="A", ranges=HIGH.ranges), Basin(name="B", ranges=LOW.ranges)]
    for basins, f in (([LOW, HIGH], 1.25), (renamed, -1.25)):
        (d,) = compare(subject, subject, basins).differences
        assert (d.a, d.a_error, d.bounds) == (f, 0.05, (False, False))
    other = [LOW, Basin(name="high", ranges={"phi": (0, 170), "psi": (-180, 180)})]
    assert compare(subject, subject, other).differences[0].bounds == (True, True)
    save_surface(smooth(24, 0.1), tmp_path / "fes.npz")
    assert load_subject(tmp_path / "fes.npz").known == {}, "the report is of another surface"


# Files


def test_files_of_every_kind(tmp_path: Path) -> None:
    surface = smooth(20)
    run = tmp_path / "run"
    run.mkdir()
    save_surface(surface, run / "fes.npz")
    write_plumed_grid(surface, tmp_path / "fes.dat")
    save_reference(tmp_path / "reference.npz", surface, surface, "twice the same")
    for path in (run, run / "fes.npz", tmp_path / "fes.dat", tmp_path / "reference.npz"):
        np.testing.assert_allclose(load_subject(path, 300.0).surface.f, surface.f, atol=1e-8)
    assert load_subject(run).name == "run"
    assert (
        load_subject(tmp_path / "reference.npz").reference.origin == load_reference(tmp_path / "reference.npz").origin
    )
    assert not any(holds_several(path) for path in (run, run / "fes.npz", tmp_path / "reference.npz"))


def test_files_that_are_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    (tmp_path / "text.dat").write_text("no grid\n")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
    for name, message in {
        "absent.npz": "no file",
        "other.npz": "cannot read",
        "broken.npz": "cannot read",
        "text.dat": "cannot read",
        ".": "no fes.npz",
    }.items():
        with pytest.raises(CcgError, match=message) as caught:
            load_subject(tmp_path / name, 300.0)
        assert "\n" not in str(caught.value)
    with pytest.raises(CcgError, match="give --temperature"):
        load_subject(tmp_path / "text.dat")
