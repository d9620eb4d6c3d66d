"""mdp presets and the checks of a user's own parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import Mdp, check_weighted, coarse_run, fine_run, minimise
from ccg_gmx.errors import SettingsError

KEYS = st.from_regex(r"[a-z][a-z0-9]{0,10}(-[a-z0-9]{1,5})?", fullmatch=True)
VALUES = st.from_regex(r"[A-Za-z0-9.+-]{1,8}( [A-Za-z0-9.+-]{1,8})?", fullmatch=True)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=8))
def test_text_round_trip(options: dict[str, str]) -> None:
    mdp = Mdp(options)
    assert Mdp.parse(mdp.text()) == mdp
    assert hash(Mdp.parse(mdp.text())) == hash(mdp)


@settings(max_examples=40, deadline=None)
@given(st.floats(min_value=1e-3, max_value=1e4))
def test_temperature_keeps_every_digit(temperature: float) -> None:
    assert float(fine_run(temperature, 100, seed=1)["ref-t"]) == temperature


def test_keys_are_found_under_any_spelling() -> None:
    mdp = Mdp.parse("Tau_T = 2.0 ; inverse friction\n\n; a comment = x\nINTEGRATOR=sd")
    assert mdp["tau-t"] == mdp["tau_t"] == "2.0"
    assert "TAU-T" in mdp
    assert mdp.with_options(tau_t=3)["tau-t"] == "3"
    assert mdp["tau-t"] == "2.0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dt = 0.001\nintegrator sd", r"own\.mdp line 2: 'integrator sd'; expected option = value"),
        ("dt = 1\nDT = 2", "line 2: DT is set twice"),
        ("= 3", "line 1"),
    ],
)
def test_parse_names_the_line(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Mdp.parse(text, "own.mdp")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature_K": -300.0}, r"temperature_K = -300\.0; expected a positive number"),
        ({"temperature_K": float("nan")}, "temperature_K = nan"),
        ({"steps": 0}, "steps = 0"),
        ({"steps": 150}, "multiple of output_every = 100"),
        ({"seed": -1}, "seed = -1"),
        ({"dt_ps": 0.002}, r"dt = 0\.002; expected at most 0\.001 ps"),
        ({"tau_t_ps": 0.0}, "tau_t_ps"),
        ({"cutoff_nm": float("inf")}, "cutoff_nm"),
        ({"output_every": True}, "output_every"),
    ],
)
def test_fine_run_refuses(changes: dict[str, object], message: str) -> None:
    arguments = {"temperature_K": 300.0, "steps": 1000, "seed": 1} | changes
    with pytest.raises(SettingsError, match=message):
        fine_run(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"constraints": "h-bonds"}, "constraints = h-bonds; expected none"),
        ({"dt": "0.002"}, "dt = 0.002"),
        ({"dt": "fast"}, "dt = fast; expected a number"),
        ({"integrator": "md"}, "integrator = md; expected sd"),
        ({"pull": "yes"}, "pull = yes"),
        ({"nstxout": "0", "nstxout-compressed": "100"}, "full-precision"),
        ({"define": "-DFLEXIBLE -DPOSRES"}, "define"),
    ],
)
def test_users_own_mdp_must_suit_weights(options: dict[str, str], message: str) -> None:
    good = dict(fine_run(300.0, 1000, seed=1))
    check_weighted(Mdp(good))
    with pytest.raises(SettingsError, match=message):
        check_weighted(Mdp(good | options), "own.mdp")


def test_shipped_fine_mdp_is_the_preset(alanine_dir: Path) -> None:
    shipped = Mdp.read(alanine_dir / "fine.mdp")
    preset = fine_run(300.0, 500_000, seed=1)
    assert set(shipped) == set(preset)
    for key, value in preset.items():
        try:
            assert float(shipped[key]) == float(value), key
        except ValueError:
            assert shipped[key].lower() == value.lower(), key


def test_unreadable_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read as an mdp file"):
        Mdp.read(tmp_path / "no.mdp")


@pytest.mark.gmx
@pytest.mark.parametrize(
    "mdp",
    [fine_run(310.0, 1000, seed=5), coarse_run(310.0, 1000, seed=5, forces=True), minimise()],
    ids=["fine", "coarse", "minimise"],
)
def test_grompp_accepts_presets_without_warnings(gmx: Gmx, alanine_dir: Path, tmp_path: Path, mdp: Mdp) -> None:
    if mdp.get("dt") == "0.002":  # grompp rightly warns that 2 fs is long for atoms; beads have no such bonds
        mdp = mdp.with_options(dt=0.001)
    tpr = gmx.grompp(mdp, alanine_dir / "conf.gro", alanine_dir / "topol.top", tmp_path / "x.tpr")
    text = gmx.dump(tpr)
    if mdp["integrator"] == "sd":
        assert "ref-t:         310" in text
        assert "nrdf:          66" in text
    assert "rlist                          = 2.5" in text
    assert "nstlist                        = 100" in text
