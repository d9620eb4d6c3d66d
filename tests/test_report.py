"""The report: words, thresholds, numerics behind the pictures, and one whole, self-contained page."""

from __future__ import annotations

import base64
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import QuadMesh

from ccg_gmx.free_energy.coverage import Coverage
from ccg_gmx.free_energy.diagnostics import DiagnosticSettings
from ccg_gmx.records import FreeEnergySurface, WeightedDraws
from ccg_gmx.report import checks, markup, plots, surfaces, words
from ccg_gmx.report.data import ReportData, SurfaceView
from ccg_gmx.report.html import build_report, render
from ccg_gmx.report.profiles import aligned, aligned_difference, compare, profiles, weight_statistics

VOID = {"br", "hr", "img", "meta"}


class Page(HTMLParser):
    """Collects tags, ids, links and text, and fails on an unbalanced element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.seen if name in attrs]

    @property
    def text(self):
        return " ".join(self.texts)


def torsion_surface(n: int = 24, seed: int | None = None) -> FreeEnergySurface:
    x = -np.pi + 2 * np.pi / n * np.arange(n)
    f = 6.0 + 2.5 * np.cos(x - 1.0)[:, None] + 2.0 * np.cos(2 * x + 0.4)[None, :] + np.cos(x[:, None] - x[None, :])
    if seed is not None:
        f = f + 0.05 * np.random.default_rng(seed).normal(size=f.shape)
    return FreeEnergySurface(f - f.min(), np.full(f.shape, 0.04), ("phi", "psi"), 300.0)


def good_summary() -> dict[str, object]:
    return {
        "system": "alanine_dipeptide",
        "temperature_K": 300.0,
        "iterations": 2,
        "converged": True,
        "wall_s": {"fine_md": 77.0, "likelihood": 133.0},
        "energy_evaluations": {"fine_md_steps": 5_000_000, "flow": 1_200_000, "total": 6_200_000},
        "free_energy": {
            "kish_fraction_median": 0.45,
            "kish_fraction_low": 0.08,
            "kish_fraction_min": 0.021,
            "forward_ess_fraction": 0.41,
            "forward_ess_trimmed": 0.43,
            "pareto_k_bad_fraction": 0.0,
            "sandwich_gap_kT": 0.8,
            "unseen_probability": 1e-3,
            "unseen_basin_fraction": 0.02,
            "run_disagreement_kT": 0.1,
            "run_ess_fraction": 0.2,
        },
        "reference": {
            "forward_kl": 3e-3,
            "noise_floor": 8e-4,
            "js": 7e-4,
            "rmsd_kT": 0.06,
            "delta_f_kJ_mol": 5.31,
            "delta_f_error": 0.09,
            "reference_delta_f_kJ_mol": 5.22,
        },
        "coarse_md": {"forward_kl": 0.02, "js": 5e-3, "ns_per_day": 18000.0},
        "restored": {
            "frames": 300,
            "max_bead_deviation_nm": 2e-15,
            "clash_fraction": 0.001,
            "chirality_errors": 0,
        },
        "verdict": {"trusted": True, "reasons": ["these numbers can be trusted because both bounds meet"]},
        "assumptions": ["omega kept <trans> as in the starting structure"],
    }


def draws_of(log_w: np.ndarray, dims: int = 2, seed: int = 0) -> WeightedDraws:
    s = np.random.default_rng(seed).uniform(-np.pi, np.pi, (len(log_w), dims))
    return WeightedDraws(s, log_w, np.zeros(len(log_w)), log_w.size)


def full_data() -> ReportData:
    rng = np.random.default_rng(5)
    surface, n = torsion_surface(), 24
    sampled = np.where(surface.f < 7.0, surface.f, np.inf)
    weights = rng.dirichlet(np.ones(200))
    grid = np.linspace(0.11, 0.16, 50)
    log_w = rng.normal(size=(60, 32))
    log_w[3, 4] = -np.inf
    return ReportData(
        summary=good_summary(),
        views=(
            SurfaceView(
                surface,
                reference=torsion_surface(seed=1),
                coarse=FreeEnergySurface(sampled, np.full((n, n), np.nan), ("phi", "psi"), 300.0),
                raw=torsion_surface(seed=2),
            ),
        ),
        losses={
            "likelihood train": rng.normal(size=300) - 170,
            "likelihood held_out": np.array([-169.0, -170.0]),
            "energy turn 0 reverse": rng.normal(size=200),
            "energy turn 0 clash": rng.random(200),
        },
        draws=(draws_of(log_w), draws_of(rng.normal(size=(20, 8)), seed=1)),
        fine_s=rng.normal(0.0, 0.8, size=(300, 2)),
        coverage=Coverage(1e-3, {"phi": -170.0, "psi": 150.0}, "C7ax", 0.02, 20.0),
        distributions={
            "bond/bond C5-O6": (rng.normal(0.12, 0.01, 300), rng.normal(0.12, 0.01, 200), weights),
            "angle/C5-N7-CA9": (rng.normal(2.0, 0.1, 300), rng.normal(2.0, 0.1, 200), weights),
            "torsion/omega": (rng.vonmises(np.pi, 9, 300), rng.vonmises(np.pi, 9, 200), weights),
        },
        turns=[{"turn": 0.0, "moved_kT": math.nan, "forward_kl": 0.03}, {"turn": 1.0, "moved_kT": 0.02}],
        coarse_terms={
            "bond C5-N7": (grid, 1e5 * (grid - 0.134) ** 2),
            "angle C5-N7-CA9": (np.linspace(1.5, 2.5, 50), 300 * (np.linspace(1.5, 2.5, 50) - 2.1) ** 2),
        },
        coarse_maps={("phi", "psi"): 2.5 * surface.f},
    )


MANIFEST = {
    "command": ["ccg", "run", "alanine.yaml"],
    "versions": {"gmx": "2025.2", "torch": "2.13.0"},
    "seed": 7,
    "inputs": {"topol.top": {"sha256": "ab" * 32}},
}


def assert_self_contained(text: str, page: Page) -> None:
    assert not re.search(r"https?://", text)
    assert "url(" not in text
    assert "@import" not in text
    assert not {tag for tag, _ in page.seen} & {"script", "link", "iframe", "object"}
    assert all(source.startswith("data:image/") for source in page.attributes("src"))
    assert all(link.startswith("#") and link[1:] in page.attributes("id") for link in page.attributes("href"))


# --- words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0310, "0.031"), (0, "0"), (2.1e-15, "2.1×10⁻¹⁵"), (1e-6, "1×10⁻⁶"), (-0.5, "−0.5"), (18400.0, "18\u202f400"),
        (0.99996, "1"), (9.999e-5, "0.0001"), (999999.9, "1×10⁶"), (1234567.0, "1.23×10⁶"),
        (None, "not measured"), (math.nan, "not a number"), (math.inf, "∞"), (-math.inf, "−∞"),
    ],
)  # fmt: skip
def test_numbers_are_written_for_reading(value, text):
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3.21, "3.2 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (133.4, "2 min 13 s"),
        (3725, "1 h 2 min"),
        (None, "not measured"),
    ],
)
def test_durations(seconds, text):
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1_234_567, "1.23 million"), (12_500, "12\u202f500"), (7, "7"), (4e9, "4 billion")]
)
def test_counts(value, text):
    assert words.count(value) == text


def test_kish_sentence_says_what_is_kept():
    assert "an average point keeps 45 % of its draws' worth" in words.kish_sentence(0.45).lower()
    assert "could not be judged" in words.kish_sentence(math.nan)


def test_forward_kl_sentence_separates_the_references_noise():
    summary = {"reference": {"noise_floor": 1e-3}}
    assert "0.003 nats are" in words.forward_kl_sentence(summary, 4e-3).replace("remaining ", "")
    assert "sampling noise allows" in words.forward_kl_sentence(summary, 5e-4)


def test_lookup_takes_only_numbers():
    summary = {"a": {"b": 2, "c": "2", "d": None}}
    assert words.lookup(summary, "a.b") == 2.0
    assert [words.lookup(summary, key) for key in ("a.c", "a.d", "a.b.e", "x")] == [None] * 4


# --- thresholds and verdict ---------------------------------------------------------------------------------------


def _passed(summary):
    return {check.label: check.passed for check in checks.checks(summary)}


@pytest.mark.parametrize(
    ("block", "key", "bad", "label"),
    [
        ("free_energy", "kish_fraction_median", 0.01, "Kish fraction, median over points"),
        ("free_energy", "kish_fraction_low", 1e-4, "Kish fraction, 99 % of points"),
        ("free_energy", "forward_ess_trimmed", 0.02, "Forward effective sample size"),
        ("free_energy", "pareto_k_bad_fraction", 0.2, "Points with heavy-tailed weights"),
        ("free_energy", "sandwich_gap_kT", 2.5, "Sandwich gap"),
        ("free_energy", "unseen_probability", 0.02, "Probability that fine MD has never seen"),
        ("free_energy", "unseen_basin_fraction", 0.3, "Unseen part of a basin"),
        ("free_energy", "run_disagreement_kT", 1.2, "Fine runs disagree by"),
        ("free_energy", "run_ess_fraction", 1e-3, "Forward effective sample size, worst run"),
        ("reference", "forward_kl", 8e-4 + 1.01e-2, "Forward KL to the reference"),
        ("reference", "delta_f_kJ_mol", 5.73, "Basin difference, ours − reference"),
        ("coarse_md", "forward_kl", 0.051, "Coarse MD: forward KL"),
        ("restored", "max_bead_deviation_nm", 2e-6, "Restored frames: bead deviation"),
        ("restored", "chirality_errors", 1, "Restored frames: wrong chirality"),
    ],
)
def test_each_threshold_catches_a_bad_number_and_nan(block, key, bad, label):
    assert _passed(good_summary())[label] is True
    for value in (bad, math.nan):
        summary = good_summary()
        summary[block] = {**summary[block], key: value}
        assert _passed(summary)[label] is False


def test_thresholds_are_those_of_the_run():
    summary = good_summary()
    assert (
        _passed({**summary, "thresholds": {"kish_fraction_median": 0.5}})["Kish fraction, median over points"] is False
    )
    shown = {check.label: check.limit for check in checks.checks(summary)}
    assert shown["Sandwich gap"] == f"≤ {DiagnosticSettings().sandwich_gap_kT:g} kT"


def test_numbers_that_were_not_measured_are_left_out():
    assert checks.checks({"system": "x"}) == []
    assert "Forward KL to the reference" not in _passed({**good_summary(), "reference": {}})


def test_the_runs_own_verdict_is_repeated_without_its_opening():
    found = checks.verdict(good_summary())
    assert found.trusted
    assert found.headline == "These numbers can be trusted, because:"
    assert found.reasons == ("Both bounds meet.",)
    bad = {"verdict": {"trusted": False, "reasons": ["not yet, because the tails are heavy"]}}
    assert checks.verdict(bad) == checks.Verdict(False, "Not yet, because:", ("The tails are heavy.",))


def test_without_a_verdict_the_thresholds_decide():
    summary = {name: value for name, value in good_summary().items() if name != "verdict"}
    assert checks.verdict(summary).trusted
    assert not checks.verdict({**summary, "converged": False}).trusted
    assert not checks.verdict({**summary, "coarse_md": {"forward_kl": 0.2}}).trusted
    unmeasured = checks.verdict({"system": "x"})
    assert not unmeasured.trusted
    assert "not measured" in unmeasured.reasons[0]


# --- numerics -----------------------------------------------------------------------------------------------------


def test_profile_of_a_separable_surface_is_its_term():
    n = 36
    x = -np.pi + 2 * np.pi / n * np.arange(n)
    a, b = 3 * np.cos(x), 2 * np.sin(x)
    f = a[:, None] + b[None, :]
    error = np.broadcast_to(0.1 + 0.01 * np.arange(n)[:, None], (n, n))
    along = profiles(FreeEnergySurface(f - f.min(), error, ("phi", "psi"), 300.0))
    np.testing.assert_allclose(along[0].f, a - a.min(), atol=1e-12)
    np.testing.assert_allclose(along[1].f, b - b.min(), atol=1e-12)
    np.testing.assert_allclose(along[0].error, 0.1 + 0.01 * np.arange(n), rtol=1e-12)
    assert along[0].degrees[0] == pytest.approx(-180.0)
    assert along[0].degrees[n // 2] == pytest.approx(0.0, abs=1e-12)


def test_profile_error_bounds_the_spread_of_correlated_noise():
    surface = torsion_surface()
    shift = 0.03 * np.random.default_rng(0).normal(size=(400, 1, 24))  # one shift per psi, shared by all phi
    noisy = [profiles(replace(surface, f=surface.f + s))[0].f for s in shift]
    bound = profiles(replace(surface, error=np.full((24, 24), 0.03)))[0].error
    spread = np.std([f - f.mean() for f in noisy], axis=0)
    assert np.all(spread < bound)


def test_profile_is_unknown_where_nothing_was_sampled():
    f = np.zeros((8, 8))
    f[2] = np.inf
    error = np.full((8, 8), 0.1)
    error[5] = np.nan
    profile = profiles(FreeEnergySurface(f, error, ("phi", "psi"), 300.0))[0]
    assert np.isinf(profile.f[2])
    assert np.isnan(profile.error[[2, 5]]).all()
    np.testing.assert_allclose(np.delete(profile.error, [2, 5]), 0.1)


def test_aligned_difference_is_blind_to_constants_and_unsampled_bins():
    surface = torsion_surface()
    holes = np.where(surface.f > 8, np.inf, surface.f + 1.7)
    difference = aligned_difference(holes, surface.f)
    assert np.array_equal(np.isnan(difference), np.isinf(holes))
    np.testing.assert_allclose(difference[np.isfinite(difference)], 0.0, atol=1e-12)
    assert np.isnan(aligned_difference(np.full(3, np.inf), np.zeros(3))).all()
    with pytest.raises(ValueError, match="cannot be subtracted"):
        aligned_difference(np.zeros(3), np.zeros(4))


def test_aligned_profile_forgets_a_lucky_bin():
    one = profiles(torsion_surface())[0]
    lucky = one.f.copy()
    lucky[np.argmax(one.f)] = -1.0  # a single noisy bin, which minimum 0 would hang the whole curve on
    hung = replace(one, f=lucky + 1.0)
    weight = np.exp(-one.f) / np.exp(-one.f).sum() + np.exp(-lucky) / np.exp(-lucky).sum()
    moved = aligned(hung, one)
    assert np.average(moved.f - one.f, weights=weight) == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(aligned(replace(one, f=one.f + 0.8), one).f, one.f, atol=1e-12)
    assert aligned(replace(one, f=one.f[:5]), one).f.shape == (5,)


def test_weight_statistics_of_known_weights():
    even, uneven = np.zeros((1, 4)), np.array([[0.0, -np.inf]])
    statistics = weight_statistics([uneven, even])
    np.testing.assert_allclose(statistics.kish_fraction, [0.5, 1.0])
    np.testing.assert_allclose(statistics.f, [np.log(2.0), 0.0])
    np.testing.assert_allclose(statistics.relative, [np.log(2.0), -np.inf, 0.0, 0.0, 0.0, 0.0], atol=1e-15)
    assert statistics.zero_fraction == pytest.approx(1 / 6)


def test_weight_statistics_keep_dead_points():
    statistics = weight_statistics([np.array([[-np.inf, -np.inf], [0.0, 0.0]])])
    assert statistics.kish_fraction.tolist() == [0.0, 1.0]
    assert statistics.f.tolist() == [np.inf, 0.0]


def test_comparison_noise_is_what_equal_distributions_show():
    rng = np.random.default_rng(3)
    found = [
        compare(rng.normal(size=4000), rng.normal(size=3000), np.full(3000, 1 / 3000), periodic=False)
        for _ in range(40)
    ]
    scores = np.array([c.js for c in found])
    expected = np.mean([c.js_noise for c in found])
    # Five standard errors of the mean of 40 scores, and 20 % for bins too empty for the second-order expansion.
    assert abs(scores.mean() - expected) < 5 * scores.std() / np.sqrt(40) + 0.2 * expected
    apart = compare(rng.normal(size=4000), rng.normal(0.5, size=3000), np.full(3000, 1 / 3000), periodic=False)
    assert apart.js > 3 * apart.js_noise


def test_comparison_uses_the_weights_and_loses_nothing():
    fine = np.linspace(0.0, 1.0, 1001)
    restored = np.array([0.5, 90.0])
    c = compare(fine, restored, np.array([1.0, 0.0]), periodic=False)
    assert c.weighted.sum() == pytest.approx(1.0)
    assert c.plain[-1] == 0.5  # the odd frame is counted at the edge
    assert c.weighted[-1] == 0.0


def test_comparison_of_torsions_does_not_split_at_180_degrees():
    rng = np.random.default_rng(4)
    values = [(rng.normal(np.pi, 0.1, 500) + np.pi) % (2 * np.pi) - np.pi for _ in range(2)]
    c = compare(values[0], values[1], np.full(500, 1 / 500), periodic=True)
    assert c.edges[-1] - c.edges[0] < 2.0
    assert c.edges[0] < np.pi < c.edges[-1] or c.edges[0] < -np.pi < c.edges[-1]
    free = compare(rng.uniform(-np.pi, np.pi, 500), values[0], np.full(500, 1 / 500), periodic=True)
    assert free.edges[[0, -1]].tolist() == [-np.pi, np.pi]


# --- pictures -----------------------------------------------------------------------------------------------------


def _mesh_cells(figure):
    """The centres in degrees and values of the coloured cells of a map's last mesh."""
    mesh = [c for c in figure.axes[0].collections if isinstance(c, QuadMesh)][-1]
    corners = mesh.get_coordinates()
    centres = (corners[:-1, :-1] + corners[1:, 1:]) / 2
    return centres, mesh.get_array().reshape(centres.shape[:2])


def test_map_cells_are_centred_on_grid_points_and_wrap():
    surface = torsion_surface(12)
    marked = replace(surface, f=np.arange(144.0).reshape(12, 12) / 100)
    with plots.style.plot_style():
        figure = plots.free_energy_map(marked, 4.0)
    centres, values = _mesh_cells(figure)
    assert values.shape == (13, 13)
    np.testing.assert_allclose(centres[0, :, 0], -180 + 30 * np.arange(13), atol=1e-9)
    # phi runs along x: the value at (phi_i, psi_j) sits in row j, column i; the last row and column repeat the first.
    assert values[2, 5] == marked.f[5, 2]
    np.testing.assert_array_equal(values[-1], values[0])
    np.testing.assert_array_equal(values[:, -1], values[:, 0])
    assert figure.axes[0].get_xlim() == (-180, 180)


def test_shared_cap_covers_both_surfaces_within_limits():
    flat = FreeEnergySurface(np.zeros((4, 4)), np.zeros((4, 4)), ("a", "b"), 300.0)
    assert plots.shared_cap(flat) == 4.0
    assert plots.shared_cap(flat, replace(flat, f=np.full((4, 4), 9.2))) == 10.0
    assert plots.shared_cap(replace(flat, f=np.full((4, 4), 99.0)), None) == plots.CAP_KT


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_plot_surface_writes_a_png_and_nothing_else(tmp_path, dimensions, reference):
    surface = torsion_surface(12)
    if dimensions == 1:
        surface = FreeEnergySurface(surface.f[0], surface.error[0], ("phi",), 300.0)
    path = tmp_path / "fes.png"
    plots.plot_surface(surface, path, surface if reference else None)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


def test_plot_surface_leaves_the_old_picture_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "fes.png"
    path.write_text("old")
    monkeypatch.setattr(plots.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        plots.plot_surface(torsion_surface(6), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_plot_surface_refuses_what_it_cannot_draw(tmp_path):
    with pytest.raises(ValueError, match="reference has"):
        plots.plot_surface(torsion_surface(6), tmp_path / "a.png", torsion_surface(8))
    cube = FreeEnergySurface(np.zeros((3, 3, 3)), np.zeros((3, 3, 3)), ("a", "b", "c"), 300.0)
    with pytest.raises(ValueError, match="at most 2"):
        plots.plot_surface(cube, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_settings_are_left_alone(tmp_path):
    with matplotlib.rc_context({"font.size": 31.0}):
        plots.plot_surface(torsion_surface(6), tmp_path / "a.png")
        assert matplotlib.rcParams["font.size"] == 31.0


# --- the page -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_text() -> str:
    return render(full_data(), MANIFEST)


def test_full_page_is_valid_self_contained_and_complete(full_text):
    page = Page(full_text)
    assert_self_contained(full_text, page)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {"verdict", "key-numbers", "free-energy", "where-fine-md-has-been", "where-the-draws-went", "weights",
            "coarse-model", "restored-structures", "training", "turns-of-the-cycle", "cost",
            "assumptions-versions-seeds"} <= set(ids)  # fmt: skip
    for phrase in (
        "These numbers can be trusted, because:",
        "Both bounds meet.",
        "45 %",
        "6.2 million",
        "2025.2",
        "2 min 13 s",
    ):
        assert phrase in page.text
    assert all(attrs.get("alt") for tag, attrs in page.seen if tag == "img")


def test_every_picture_is_a_drawing(full_text):
    sources = Page(full_text).attributes("src")
    # 3 + 2 + 2 surfaces and profiles, fine frames, 2 + 1 draws and error, 2 weights, 3 coarse + map + 2 terms, 3 losses
    assert len(sources) == 7 + 1 + 3 + 2 + 6 + 3
    for source in sources:
        kind, _, content = source.partition(";base64,")
        assert kind == "data:image/svg+xml"
        assert b"<svg" in base64.b64decode(content)[:800]


def test_same_data_give_the_same_page():
    data = ReportData(good_summary(), (SurfaceView(torsion_surface(8)),))
    assert render(data, MANIFEST) == render(data, MANIFEST)


def test_minimal_page_leaves_sections_out():
    text = render(ReportData({"system": "tiny"}, (SurfaceView(torsion_surface(8)),)), {})
    page = Page(text)
    assert_self_contained(text, page)
    assert "Not yet, because:" in page.text
    assert "names no reference" in page.text
    assert not {"weights", "training", "coarse-model", "restored-structures", "cost"} & set(page.attributes("id"))


def test_one_torsion_page():
    flat = torsion_surface(24)
    line = FreeEnergySurface(flat.f[0] - flat.f[0].min(), flat.error[0], ("chi1",), 310.0)
    data = ReportData(good_summary(), (SurfaceView(line, reference=line, coarse=line, raw=line),))
    page = Page(render(data, {}))
    assert len(page.attributes("src")) == 2  # the profile and its error
    assert "Along chi1." in page.text


def test_numbers_beyond_reason_do_not_stop_the_page():
    n = 10
    nowhere = FreeEnergySurface(np.full((n, n), np.inf), np.full((n, n), np.nan), ("phi", "psi"), 300.0)
    one_bin = np.full((n, n), np.inf)
    one_bin[3, 3] = 0.0
    data = ReportData(
        {"system": "odd", "free_energy": {"kish_fraction_median": math.nan}, "wall_s": {"a": math.nan}, "verdict": "?"},
        (
            SurfaceView(
                FreeEnergySurface(one_bin, np.full((n, n), np.nan), ("phi", "psi"), 300.0),
                reference=nowhere,
                coarse=torsion_surface(8),
            ),
        ),
        losses={"energy reverse": np.array([np.inf, np.nan, 1.0]), "empty": np.array([])},
        draws=(draws_of(np.full((3, 4), -np.inf)),),
        fine_s=np.zeros((1, 2)),
        distributions={"bond/a": (np.empty(0), np.empty(0), np.empty(0))},
    )
    page = Page(render(data, {}))
    assert "not a number" in page.text
    assert "Not yet" in page.text


def test_text_is_escaped():
    summary = {
        **good_summary(),
        "system": "<script>alert(1)</script>",
        "verdict": {"trusted": True, "reasons": ['a "<b>" & c']},
    }
    text = render(ReportData(summary, (SurfaceView(torsion_surface(8)),)), {"note": "</dd><script>"})
    assert "<script" not in text
    assert "&lt;b&gt;" in text
    Page(text)


def test_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    data = ReportData({"system": "tiny"}, (SurfaceView(torsion_surface(8)),))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            build_report(data, {}, path)
    assert path.read_text() == "old"
    build_report(data, {}, path)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert list(tmp_path.iterdir()) == [path]


def test_markup_escapes_strings_but_not_markup():
    inner = markup.tag("b", "1 < 2")
    assert (
        markup.tag("p", inner, "&", class_="x", data_y='"') == '<p class="x" data-y="&quot;"><b>1 &lt; 2</b>&amp;</p>'
    )
    assert markup.tag("img", alt="a") == '<img alt="a">'


@pytest.mark.parametrize(
    ("name", "kind", "bare"),
    [("bond/bond C5-O6", "bond", "C5-O6"), ("angle C5-N7-CA9", "angle", "C5-N7-CA9"),
     ("dihedral/omega", "torsion", "omega"), ("C5-O6", "bond", "C5-O6"),
     ("torsions/phi", "torsion", "phi"), ("bond", "bond", "bond")],
)  # fmt: skip
def test_kinds_are_read_from_names(name, kind, bare):
    assert (surfaces.kind_of(name), surfaces.bare_name(name)) == (kind, bare)
