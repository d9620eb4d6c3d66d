"""Sections on the evidence behind a surface, and pages of three and more torsions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from test_report import MANIFEST, Page, assert_self_contained, draws_of, good_summary

from ccg_gmx.cycle.stages.hidden_modes import HiddenModeReport
from ccg_gmx.free_energy.coverage import Coverage
from ccg_gmx.free_energy.hidden_modes import WalkerSeries
from ccg_gmx.records import FreeEnergySurface
from ccg_gmx.report import checks, evidence, evidence_plots, plots, sections, style, surfaces, words
from ccg_gmx.report.data import HiddenCheck, ReportData, SurfaceView
from ccg_gmx.report.html import render

TORSIONS = ("phi1", "psi1", "phi2", "psi2")


def pair_surface(names: tuple[str, ...], shift: float = 0.0, n: int = 24) -> FreeEnergySurface:
    x = -np.pi + 2 * np.pi / n * np.arange(n)
    k = TORSIONS.index(names[0])
    f = 2.5 * np.cos(x - 1.0 - k)[:, None] + 2.0 * np.cos(2 * x + 0.4 + shift)[None, :]
    return FreeEnergySurface(f - f.min(), np.full((n, n), 0.05), names, 300.0)


def hidden_check() -> HiddenCheck:
    rng = np.random.default_rng(2)
    point = np.repeat([0, 1], 4)
    series = WalkerSeries(
        values=rng.normal(0.0, 0.2, (8, 50, 1)),
        energy=rng.normal(0.0, 0.5, (8, 50)),
        names=("omega",),
        periods=np.array([2 * np.pi]),
        points=np.zeros((2, 4)),
        point=point,
        hot=np.tile([True, True, False, False], 2),
        total_ps=20.0,
    )
    report = HiddenModeReport(
        TORSIONS, ((0.0,) * 4, (60.0, -60.0, 60.0, -60.0)), (4, 4), (), 1.02, 20.0, {}, 0.3, 8.0, 400
    )
    return HiddenCheck(report, series)


def many_torsions(reference: bool = True) -> ReportData:
    rng = np.random.default_rng(6)
    pairs = list(itertools.combinations(TORSIONS, 2))
    summary = good_summary()
    block = {"forward_kl": 3e-3, "noise_floor": 8e-4, "js": 7e-4, "rmsd_kT": 0.06, "reference_halves_rmsd_kT": 0.02}
    summary["reference"] = {**block, "marginals": {",".join(pair): block for pair in pairs}}
    return ReportData(
        summary,
        tuple(
            SurfaceView(pair_surface(p), pair_surface(p, 0.05) if reference else None, pair_surface(p, 0.2))
            for p in pairs
        ),
        draws=(draws_of(rng.normal(size=(300, 16)), 4), draws_of(rng.normal(size=(40, 64)), 4, seed=3)),
        fine_s=rng.normal(0.0, 0.9, (500, 4)),
        coverage=Coverage(1e-3, {"phi1": -100.0, "phi2": 60.0}, None, 0.0, 20.0),
        hidden=hidden_check(),
        coarse_maps={pair: pair_surface(pair).f for pair in (("phi1", "psi1"), ("phi2", "psi2"))},
    )


@pytest.fixture(scope="module")
def page() -> Page:
    text = render(many_torsions(), MANIFEST)
    found = Page(text)
    assert_self_contained(text, found)
    return found


def test_every_pair_is_shown_once_and_every_torsion_has_one_profile(page):
    alts = page.attributes("alt")
    for pair in itertools.combinations(TORSIONS, 2):
        over = ", ".join(pair)
        assert [alts.count(f"{what} over {over}{whose}") for what, whose in (
            ("free energy map", ", reference"), ("free energy map", ", coarse MD"), ("map of the standard error", ""),
            ("fine frames", "")
        )] == [1, 1, 1, 1]  # fmt: skip
        assert alts.count(f"difference over {over}") == 2  # to the reference, and of coarse MD
    for name in TORSIONS:
        assert alts.count(f"free energy along {name}") == alts.count(f"draws along {name}") == 1
    assert alts.count("walkers of the hidden-mode test") == 1
    assert sum(alt.startswith("torsion-pair potential") for alt in alts) == 2


def test_marginals_of_the_reference_are_a_table(page):
    assert "Distance to the reference, pair by pair" in page.text
    assert "phi1, psi2" in page.text


def test_marginals_without_a_reference_stand_side_by_side():
    data = many_torsions(reference=False)
    body = surfaces.free_energy(data).body
    assert "names no reference" in body
    assert body.count("<img") == 6 + 4
    assert body.count('class="figures"') == 1


def test_draws_are_counted_in_cells_around_the_points_of_the_grid():
    width = 2 * np.pi / evidence_plots.CELLS
    s = np.array([[-np.pi, 0.0], [np.pi - 0.4 * width, 0.4 * width], [0.0, 0.0]])  # the first two share a cell
    draws = np.array([10.0, 30.0, 5.0])
    middle = evidence_plots.CELLS // 2
    with style.plot_style():
        found = [
            draw(s, draws, ("phi", "psi")) for draw in (evidence_plots.draws_map, evidence_plots.draws_per_point_map)
        ]
    for figure, first, other in zip(found, (40.0, 20.0), (5.0, 5.0), strict=True):
        mesh = [c for c in figure.axes[0].collections if isinstance(c, QuadMesh)][-1]
        values = mesh.get_array().reshape(evidence_plots.CELLS + 1, -1)
        assert values[middle, 0] == values[middle, -1] == first
        assert values[middle, middle] == other
        assert values.count() == 3  # the shared cell is drawn at both ends; all others are masked


def test_unseen_cells_are_judged_below_the_cap_only():
    n = 36
    x = -np.pi + 2 * np.pi / n * np.arange(n)
    surface = FreeEnergySurface(np.where(x < 0, 1.0, 9.0), np.zeros(n), ("phi",), 300.0)
    missing = evidence_plots.unseen_cells(surface, np.array([[-np.pi / 2]]), 20.0, 8.0)
    degrees = np.round(np.degrees(x))
    np.testing.assert_array_equal(missing, (degrees < 0) & (np.abs(degrees + 90) > 20))


def test_thinning_keeps_no_more_than_asked_and_few_as_they_are():
    s = np.arange(4001.0)[:, None]
    thin = evidence_plots.thinned(s, 2000)
    assert 1000 < len(thin) <= 2000
    np.testing.assert_array_equal(np.diff(thin[:, 0]), np.diff(thin[:, 0])[0])
    assert len(evidence_plots.thinned(s[:7], 2000)) == 7


def test_place_is_marked_only_on_the_pair_it_belongs_to():
    data = many_torsions()
    with style.plot_style():
        body = evidence.fine_coverage(data).body
    assert "phi1 −100°, phi2 60°" in body
    missing = np.zeros((24, 24), dtype=bool)
    surface, s = data.views[0].surface, data.fine_s[:, :2]
    with style.plot_style():
        lines = [
            len(evidence_plots.coverage_map(surface, s, missing, place, 8.0).axes[0].lines)
            for place in (None, (0.0, 0.0))
        ]
    assert lines[1] == lines[0] + 1


def test_one_torsion_has_coverage_and_draws_along_it():
    view = pair_surface(("phi1", "psi1"))
    line = FreeEnergySurface(view.f[0] - view.f[0].min(), view.error[0], ("phi1",), 300.0)
    data = ReportData(
        good_summary(), (SurfaceView(line),), draws=(draws_of(np.zeros((30, 8)), 1),), fine_s=np.zeros((50, 1))
    )
    alts = Page(render(data, {})).attributes("alt")
    assert {"fine frames over phi1", "draws along phi1", "standard error along phi1"} <= set(alts)


def test_draws_of_different_numbers_are_pooled():
    text = sections.weights(many_torsions()).body
    assert "340 coarse points with 16 to 64 draws each" in text


def test_hidden_mode_test_has_its_words_and_picture():
    body = evidence.hidden_modes(many_torsions()).body
    assert "Walkers at 2 coarse points agree" in body
    assert evidence.hidden_modes(ReportData({}, (SurfaceView(pair_surface(("phi1", "psi1"))),))) is None


def test_fewest_held_out_frames_of_a_basin_are_judged():
    summary = good_summary()
    block = {**summary["free_energy"], "held_out_frames": {"A": 300, "B": 3}}
    found = {c.label: c for c in checks.checks({**summary, "free_energy": block})}["Held-out fine frames in a basin"]
    assert (found.value, found.passed) == ("3", False)


def test_evaluations_of_the_hidden_mode_test_are_counted():
    counts = {"fine_md_steps": 100, "flow": 20, "checks": 5, "total": 125}
    sentence = words.evaluations_sentence({"energy_evaluations": counts})
    assert sentence.endswith("weights and 5 for the test for hidden slow motions.")
    assert "hidden-mode test" in sections.cost({"energy_evaluations": counts}).body


def test_numbered_torsions_have_greek_labels():
    assert plots.axis_label("phi1") == r"$\phi_{1}$ / degrees"
    assert plots.axis_label("chi_2") == r"$\chi_{2}$ / degrees"
    assert plots.axis_label("tail3") == "tail3 / degrees"
