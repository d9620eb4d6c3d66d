"""Backmapping from files to files: restoration, going on after an interruption, bad input, score card, training."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from backmap_systems import SMALL, fitted, frames, system
from click.testing import CliRunner, Result
from MDAnalysis.lib.formats.libdcd import DCDFile

from ccg_gmx.backmap.checkpoint import BackmapModel, load_model, save_model
from ccg_gmx.backmap.data import HeldOut, Source, read_fine
from ccg_gmx.backmap.equivalent import pooled_names
from ccg_gmx.backmap.jobs import TrainRequest, _save_held_out, held_out_path, train_from_files
from ccg_gmx.backmap.model import BackmapFlow
from ccg_gmx.backmap.restore import RestoreSettings, restore_trajectory
from ccg_gmx.backmap.sampling import Sampler
from ccg_gmx.backmap.score import geometry_classes, jensen_shannon, measure, score_classes, summarise_classes
from ccg_gmx.backmap.system import relabelled
from ccg_gmx.backmap.train import BackmapTraining, train_backmap
from ccg_gmx.cli import main
from ccg_gmx.cycle.restored_scores import restored_scores
from ccg_gmx.engine.settings import EngineSettings
from ccg_gmx.errors import CheckpointError, StoreError, ToolMissingError
from ccg_gmx.molecule.trajectory import read_frames, write_trr

NAME, BEADS = "alanine_tripeptide", ("C", "N", "CA")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with held-out frames, and twelve coarse frames."""
    of = system(NAME, BEADS)
    save_model(BackmapModel(fitted(NAME, BEADS), of, {"steps": 0}), tmp_path / "m.pt")
    x = frames(of, 12, 8)
    _save_held_out(held_out_path(tmp_path / "m.pt"), HeldOut(x.numpy()))
    beads = of.placement.bead_positions(x).numpy()
    write_trr(tmp_path / "cg.trr", beads, np.arange(12.0), np.zeros((3, 3)))
    return tmp_path


def ccg(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["backmap", *map(str, arguments), "--quiet"])


def refused(result: Result) -> str:
    assert result.exit_code == 2
    assert result.stderr.startswith("ccg: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


# --- restoration --------------------------------------------------------------------------------------------------


def test_restored_frames_stand_on_their_beads_and_carry_their_density(folder: Path) -> None:
    result = ccg(folder / "m.pt", folder / "cg.trr", "-o", folder / "out" / "x.xtc", "--samples", 3)
    assert result.exit_code == 0, result.output
    of = system(NAME, BEADS)
    restored = read_frames(folder / "out" / "x.xtc", len(of.atoms)).positions
    beads = np.repeat(read_frames(folder / "cg.trr", len(of.beads)).positions, 3, axis=0)
    assert np.abs(restored[:, of.beads] - beads).max() < 1e-6
    with np.load(folder / "out" / "x.npz") as table:
        assert table["log_q"].shape == (36,)
        assert np.isfinite(table["log_q"]).all()
        np.testing.assert_array_equal(table["frame"], np.repeat(np.arange(12.0), 3))
        assert table["chirality_errors"].sum() == 0
        again = fitted(NAME, BEADS).log_prob(torch.from_numpy(restored), fitted(NAME, BEADS).view(of))
        np.testing.assert_allclose(again, table["log_q"], atol=0.5)  # the file rounds to 1e-6 nm
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["x.npz", "x.xtc"]


def test_swept_frames_say_that_they_have_no_weights(folder: Path) -> None:
    arguments = ("--candidates", 4, "--sweeps", 2, "--report", "--frames", 3)
    result = ccg(folder / "m.pt", folder / "cg.trr", "-o", folder / "x.trr", *arguments)
    assert result.exit_code == 0, result.output
    with np.load(folder / "x.npz") as table:
        assert np.isnan(table["log_choice"]).all()
        assert np.isfinite(table["log_q"]).all()
        assert table["bead_deviation_nm"].max() == 0.0
    assert json.loads((folder / "x.card.json").read_text())["card"]["sweeps"] == 2


def test_an_interrupted_restoration_goes_on_to_the_same_frames(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(folder / "m.pt")
    monkeypatch.setattr("ccg_gmx.backmap.restore.CHUNK_ATOMS", 3 * 32 * 4)
    sampler = Sampler(model.flow, model.system, candidates=4, rounds=2)

    def run(out: Path, stop: float = math.inf) -> dict[str, np.ndarray]:
        seen = []

        def progress(done: float, total: float) -> None:
            seen.append(done)
            if len(seen) >= stop:
                raise KeyboardInterrupt

        return restore_trajectory(sampler, folder / "cg.trr", out, RestoreSettings(), progress=progress)

    whole = run(folder / "whole.trr")
    with pytest.raises(KeyboardInterrupt):
        run(folder / "parts.trr", stop=2)
    assert not (folder / "parts.trr").exists()
    with (folder / ".parts.part.trr").open("ab") as stream:
        stream.write(b"half a frame")
    parts = run(folder / "parts.trr")
    for name, values in whole.items():
        np.testing.assert_array_equal(parts[name], values)
    assert (folder / "parts.trr").read_bytes() == (folder / "whole.trr").read_bytes()


def test_half_a_restoration_with_other_options_is_not_continued(folder: Path) -> None:
    model = load_model(folder / "m.pt")

    def stop(done: float, total: float) -> None:
        raise KeyboardInterrupt

    arguments = (Sampler(model.flow, model.system), folder / "cg.trr", folder / "x.trr")
    with pytest.raises(KeyboardInterrupt):
        restore_trajectory(*arguments, RestoreSettings(seed=1), progress=stop)
    with pytest.raises(StoreError, match="other options"):
        restore_trajectory(*arguments, RestoreSettings(seed=2))


def test_report_writes_a_card_and_a_page(folder: Path) -> None:
    result = ccg(folder / "m.pt", folder / "cg.trr", "-o", folder / "x.xtc", "--report", "--samples", 2)
    assert result.exit_code == 0, result.output
    card = json.loads((folder / "x.card.json").read_text())
    assert card["card"]["max_bead_deviation_nm"] <= 1e-6
    assert {"js_bonds_max", "js_angles_max", "js_torsions_max", "clash_fraction", "diversity_nm"} <= set(card["card"])
    page = (folder / "x.card.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "Torsions, the least alike first" in page


# --- bad input ----------------------------------------------------------------------------------------------------


def beads_to(folder: Path, change: object) -> Path:
    positions = read_frames(folder / "cg.trr", len(system(NAME, BEADS).beads)).positions
    write_trr(folder / "bad.trr", change(positions), np.arange(12.0), np.zeros((3, 3)))  # type: ignore[operator]
    return folder / "bad.trr"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:, :-1], "7 beads in a frame; expected 8 beads"),
        (lambda x: np.where(np.arange(len(x))[:, None, None] == 4, np.nan, x), "no numbers at 4 ps"),
        (lambda x: x[:, [7, *range(1, 7), 0]], "nm away"),
        (lambda x: 10.0 * x, "nm away"),
    ],
    ids=["missing bead", "nan", "wrong order", "Angstrom"],
)
def test_beads_that_do_not_fit_are_refused(folder: Path, change: object, words: str) -> None:
    message = refused(ccg(folder / "m.pt", beads_to(folder, change), "-o", folder / "x.xtc"))
    assert words in message
    assert not list(folder.glob("*x.*"))


def test_a_box_that_is_not_that_of_the_chain_is_refused(folder: Path) -> None:
    """A box shorter than the bonds: no image of a bead is where a bond would have it."""
    beads = read_frames(folder / "cg.trr", len(system(NAME, BEADS).beads)).positions
    write_trr(folder / "box.trr", beads, np.arange(12.0), 0.1 * np.eye(3))
    assert "nm away" in refused(ccg(folder / "m.pt", folder / "box.trr", "-o", folder / "x.xtc"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weights"], "--weights without --tpr"),
        (["--structure", "conf.gro"], "--structure without --tpr"),
        (["--minimise", "no.top"], "no such file"),
        (["--weights", "--sweeps", "1"], "--weights with --sweeps"),
    ],
)
def test_options_that_need_more_are_refused(folder: Path, arguments: list[str], words: str) -> None:
    assert words in refused(ccg(folder / "m.pt", folder / "cg.trr", "-o", folder / "x.xtc", *arguments))


def test_other_files_are_no_models(folder: Path) -> None:
    assert "cannot be read" in refused(ccg(folder / "cg.trr", folder / "cg.trr", "-o", folder / "x.xtc"))
    torch.save({"format": "another"}, folder / "y.pt")
    assert "is a another file" in refused(ccg(folder / "y.pt", folder / "cg.trr", "-o", folder / "x.xtc"))
    assert "ends in .xtc or .trr" in refused(ccg(folder / "m.pt", folder / "cg.trr", "-o", folder / "x.pdb"))
    assert "no trajectory" in refused(ccg(folder / "m.pt", folder / "none.xtc", "-o", folder / "x.xtc"))


def test_training_needs_a_topology(folder: Path) -> None:
    assert "no file" in refused(ccg("train", folder / "no.tpr", folder / "cg.trr"))
    (folder / "empty.psf").write_text("PSF\n")
    assert "gives no atoms" in refused(ccg("train", folder / "empty.psf", folder / "cg.trr"))


def test_training_dumps_a_run_input_with_the_gmx_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "md.tpr").touch()
    engine = EngineSettings(gmx=str(tmp_path / "gmx"))
    request = TrainRequest(tmp_path / "md.tpr", (), "ca", tmp_path / "m.pt", engine=engine)
    with pytest.raises(ToolMissingError, match="no program at gmx: "):
        train_from_files(request)


def test_frames_of_a_dcd_are_all_read(tmp_path: Path) -> None:
    of = system(NAME, BEADS)
    x = frames(of, 3, 1).numpy()
    with DCDFile(str(tmp_path / "x.dcd"), "w") as stream:
        stream.write_header("", len(of.atoms), 0, 1, 1.0, 0)
        for frame in x:
            stream.write(frame * 10.0, np.zeros(6))
    source = Source(of.atoms, np.arange(len(of.atoms)), len(of.atoms), "")
    np.testing.assert_allclose(read_fine(source, [tmp_path / "x.dcd"]).positions, x, atol=1e-6)


# --- score --------------------------------------------------------------------------------------------------------


def test_jensen_shannon_of_known_distributions() -> None:
    half = np.array([0.5, 0.5])
    assert jensen_shannon(half, half) == 0.0
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(math.log(2))
    assert jensen_shannon(np.array([1.0, 0.0]), half) == pytest.approx(
        0.5 * math.log(4 / 3) + 0.5 * (0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    )


def test_classes_name_every_bond_angle_and_torsion_once() -> None:
    of = system("alanine_dipeptide", ("CA", "N", "C"))
    found = geometry_classes(of)
    counts = {kind: sum(len(c.atoms) for c in found if c.kind == kind) for kind in ("bonds", "angles", "torsions")}
    assert counts == {"bonds": 21 - 4, "angles": 36 - 3, "torsions": 41 - 2}
    names = {c.name for c in found}
    assert "ALA CA-CB" in names
    x = frames(of, 3, 1).numpy()
    y, _ = of.placement.split(torch.from_numpy(x))
    row = next(k for k, r in enumerate(of.placement.plan.rows) if of.atoms.names[r.atom] == "CB")
    bond = next(c for c in found if c.name == "ALA CA-CB")
    np.testing.assert_allclose(measure("bonds", bond.atoms, x), y[:, row], atol=1e-12)


def test_labels_of_equivalent_atoms_do_not_count() -> None:
    """Half a turn of a phenyl ring or a carboxylate renames its halves; hydrogens of a CH2 keep their names."""
    of = system("chignolin", ("N", "CA", "C"))
    plain = of.placement.plan.system
    pooled = {(plain.residue_names[a], plain.graph.names[a]): name for a, name in pooled_names(plain).items()}
    assert pooled["TYR", "CD1"] == pooled["TYR", "CD2"] == "CD*"
    assert pooled["ASP", "OD1"] == "OD*"
    assert {name for _, name in pooled} & {"HB1", "HB2", "CA", "N", "CZ", "HA1", "HG1"} == set()
    order = np.arange(len(of.atoms))
    for one, other in (("CD1", "CD2"), ("HD1", "HD2"), ("CE1", "CE2"), ("HE1", "HE2")):
        i, j = (
            next(k for k, n in enumerate(of.atoms.names) if n == name and of.atoms.residue_names[k] == "TYR")
            for name in (one, other)
        )
        order[[i, j]] = j, i
    x = frames(of, 60, 1).numpy()
    assert max(score.js for score in score_classes(of, x, x[:, order])) == 0.0


def test_equal_frames_score_zero_and_others_do_not() -> None:
    of = system("alanine_dipeptide", ("CA", "N", "C"))
    x = frames(of, 400, 1).numpy()
    assert max(score.js for score in score_classes(of, x, x)) == 0.0
    y, _ = of.placement.split(torch.from_numpy(x))
    y[:, : of.placement.n_rows] += 0.01
    moved = of.placement.join(torch.from_numpy(x[:, of.beads]), y)[0].numpy()
    summary = summarise_classes(score_classes(of, x, moved))
    assert summary["js_bonds_max"] > 0.3


# --- training -----------------------------------------------------------------------------------------------------


def train(count: int, steps: int, checkpoint: Path | None = None, stop: int = -1) -> tuple[BackmapFlow, list[float]]:
    of = system(NAME, BEADS)
    flow = BackmapFlow.of_system(of, SMALL)
    x = frames(of, count, 2)
    settings = BackmapTraining(steps=steps, batch=16, warm_up=5, held_out_every=10, checkpoint_every=10)

    def progress(step: int, total: int, message: str) -> None:
        if step == stop:
            raise KeyboardInterrupt

    found = train_backmap(
        flow, of, x, np.repeat([0, 1], count // 2), settings, 3, checkpoint=checkpoint, progress=progress
    )
    return flow, found.losses["held_out"].tolist()


def test_training_learns_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, losses = train(200, 40)
    assert min(losses) < losses[0] - 0.01
    with pytest.raises(KeyboardInterrupt):
        train(200, 40, tmp_path / "state.pt", stop=25)
    resumed, again = train(200, 40, tmp_path / "state.pt")
    assert again == losses
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_models_survive_their_file(folder: Path) -> None:
    model = load_model(folder / "m.pt")
    x = frames(system(NAME, BEADS), 4, 5)
    expected = fitted(NAME, BEADS).log_prob(x, fitted(NAME, BEADS).view(system(NAME, BEADS)))
    assert torch.equal(model.flow.log_prob(x, model.flow.view(model.system)), expected)
    content = torch.load(folder / "m.pt", weights_only=True)
    del content["kinds"][0]["label"]
    torch.save(content, folder / "m.pt")
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(folder / "m.pt")


# --- with GROMACS -------------------------------------------------------------------------------------------------


def train_command(tpr: Path, trr: Path, out: Path) -> list[str]:
    return [
        "backmap",
        "train",
        str(tpr),
        str(trr),
        "--beads",
        "C,N,CA",
        "-o",
        str(out),
        "--steps",
        "120",
        "--quiet",
        "--held-out",
        "0",
    ]


@pytest.mark.gmx
def test_two_processes_train_the_same_model_as_one(alanine_tpr: Path, alanine_trr: Path, tmp_path: Path) -> None:
    """Gradients are averages over the same frames; float32 sums differ in their order."""
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    assert CliRunner().invoke(main, train_command(alanine_tpr, alanine_trr, one)).exit_code == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "ccg_gmx.cli", *train_command(alanine_tpr, alanine_trr, two)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    first, second = load_model(one), load_model(two)
    positions = read_frames(alanine_trr, len(first.system.atoms), stride=5).positions
    x = relabelled(first.system, positions)
    start = BackmapFlow.of_system(first.system, first.flow.settings)
    start.fit(x, start.view(first.system))
    with torch.no_grad():
        begin, alone, both = (
            float(f.log_prob(x, f.view(first.system)).mean()) for f in (start, first.flow, second.flow)
        )
    assert alone > begin + 0.5
    assert both == pytest.approx(alone, abs=0.1 * (alone - begin))


@pytest.mark.gmx
def test_weights_and_minimisation_of_a_molecule_in_vacuum(
    alanine_tpr: Path, alanine_trr: Path, alanine_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.pt"
    assert CliRunner().invoke(main, train_command(alanine_tpr, alanine_trr, out)).exit_code == 0
    top = alanine_dir / "topol.top"
    result = ccg(
        out, alanine_trr, "-o", tmp_path / "x.xtc", "--samples", 8, "--frames", 2, "--tpr", alanine_tpr,
        "--weights", "--minimise", top, "--minimise-steps", 30, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert 1 / 8 <= facts["kish_fraction_median"] <= 1.0
    assert facts["minimised"]["max_bead_deviation_nm"] < 1e-6
    assert facts["minimised"]["energy_after_kJ_mol"]["median"] < facts["minimised"]["energy_before_kJ_mol"]["median"]
    with np.load(tmp_path / "x.npz") as table:
        np.testing.assert_allclose(table["log_w"], -table["u"] - table["log_q"] - table["log_choice"])


def test_scores_of_the_cycle_are_zero_for_equal_ensembles_and_count_weights() -> None:
    rng = np.random.default_rng(4)
    values, ones = rng.normal(size=4000), np.full(4000, 1 / 4000)
    equal = restored_scores({"bond/a": (values, values, ones), "torsion/b": (values, values, ones)})
    assert equal == pytest.approx({"js_bonds_max": 0.0, "js_torsions_max": 0.0}, abs=1e-12)
    proposal = 1.5 * rng.normal(size=40_000)
    weights = np.exp(-0.5 * proposal**2 * (1 - 1 / 1.5**2))
    scored = restored_scores({"angle/c": (values, proposal, weights / weights.sum())})
    plain = restored_scores({"angle/c": (values, proposal, np.full(40_000, 1 / 40_000))})
    assert scored["js_angles_max"] < 0.01 < 0.03 < plain["js_angles_max"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version: 1", "x.yaml, line 1: a workflow of kind 'cycle'; expected kind: backmap"),
        ("version: 1\nkind: backmap\nsystem: x\ntopology: a.top", "give either trajectories or fine_md"),
        ("version: 1\nkind: backmap\nsystem: x\ntopology: a.psf\nfine_md: {}", "fine_md needs a .top"),
        ("version: 1\nkind: backmap\nsystem: x\ntopology: a.psf\ntrajectories: [b.dcd]\nbaeds: ca", "line 6: baeds"),
        ("version: 1\nkind: backmap\nsystem: x\ntopology: a.psf\ntrajectories: [b.dcd]", "topology: no file"),
        ("version: [", "is not valid YAML"),
    ],
)
def test_files_of_settings_that_say_the_wrong_thing_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert words in refused(ccg("train", tmp_path / "x.yaml"))
