"""Backmapping from the beads of a mapping file: liquid hexane, three centres of mass for each molecule."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from test_map_command import TOPOLOGIES, short_run

from ccg_gmx.backmap.checkpoint import load_model
from ccg_gmx.backmap.contacts import clash_counts
from ccg_gmx.backmap.jobs import read_held_out
from ccg_gmx.backmap.sampling import Sampler
from ccg_gmx.cli import main
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.molecule.trajectory import read_frames, write_trr

MAPPING = TOPOLOGIES / "hexane" / "mapping.yaml"
MOLECULES, ATOMS = 100, 2000


@pytest.fixture(scope="module")
def hexane(gmx: Gmx, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Run input, fine frames and beads of hexane."""
    folder = tmp_path_factory.mktemp("hexane")
    tpr, fine = short_run(gmx, "hexane", folder)
    assert ccg("map", MAPPING, tpr, fine, "--out", folder / "cg").exit_code == 0
    return tpr, fine, folder / "cg.trr"


def ccg(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments), "--quiet"])


def trained(hexane: tuple[Path, Path, Path], model: Path, beads: object = MAPPING) -> Result:
    return ccg("backmap", "train", *hexane[:2], "--beads", beads, "--steps", 2, "--batch", 4, "--out", model)


def test_beads_of_ccg_map_are_hit(hexane: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model = tmp_path / "m.pt"
    result = trained(hexane, model)
    assert result.exit_code == 0, result.output
    of = load_model(model).system
    assert of.centres
    assert len(of.beads) == 3 * MOLECULES
    assert {len(table.blocks) for table in of.blocks.kinds} == {MOLECULES}  # two ends and a middle
    result = ccg("backmap", model, hexane[2], "-o", tmp_path / "x.trr", "--report", "--json", "--frames", 2)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["max_bead_deviation_nm"] < 1e-12
    assert facts["chirality_errors"] == 0
    assert {"js_bonds_max", "js_angles_max", "js_torsions_max"} <= set(facts["card"])
    beads = read_frames(hexane[2], len(of.beads)).positions[:2]
    assert np.abs(of.bead_positions(read_frames(tmp_path / "x.trr", ATOMS).positions) - beads).max() < 1e-6


def test_all_atoms_serve_as_coarse_frames(hexane: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Their beads are taken, so that a fine trajectory can be restored from its own beads."""
    model = tmp_path / "m.pt"
    assert trained(hexane, model).exit_code == 0
    outs = [tmp_path / name for name in ("a.trr", "b.trr")]
    for coarse, out in zip((hexane[1], hexane[2]), outs, strict=True):
        result = ccg("backmap", model, coarse, "-o", out, "--frames", 1, "--candidates", 1, "--rounds", 1)
        assert result.exit_code == 0, result.output
    first, second = (read_frames(out, ATOMS).positions for out in outs)
    np.testing.assert_allclose(first, second, atol=1e-4)  # beads of a file have float32


def test_another_number_of_molecules(hexane: tuple[Path, Path, Path], gmx: Gmx, tmp_path: Path) -> None:
    """One model restores any number of molecules: the mapping file is part of it."""
    model = tmp_path / "m.pt"
    assert trained(hexane, model).exit_code == 0
    few = 7
    source = TOPOLOGIES / "hexane"
    top = (source / "topol.top").read_text().rstrip().rsplit(maxsplit=1)[0] + f" {few}\n"
    (tmp_path / "few.top").write_text(
        top.replace('#include "', f'#include "{source}/') if 'include "./' in top else top
    )
    lines = (source / "conf.gro").read_text().splitlines()
    (tmp_path / "few.gro").write_text("\n".join([lines[0], str(20 * few), *lines[2 : 2 + 20 * few], lines[-1]]) + "\n")
    tpr = gmx.grompp((source / "md.mdp").read_text(), tmp_path / "few.gro", tmp_path / "few.top", tmp_path / "few.tpr")
    beads = read_frames(hexane[2], 3 * MOLECULES)
    write_trr(tmp_path / "few.trr", beads.positions[:2, : 3 * few], beads.time[:2], beads.box[:2])
    result = ccg(
        *("backmap", model, tmp_path / "few.trr", "-o", tmp_path / "x.trr"),
        *("--tpr", tpr, "--structure", tmp_path / "few.gro", "--json"),
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["max_bead_deviation_nm"] < 1e-12


def test_mappings_that_do_not_fit_are_refused(hexane: tuple[Path, Path, Path], tmp_path: Path) -> None:
    psf = tmp_path / "x.psf"
    psf.write_text("PSF\n")
    for topology, beads, words in (
        (hexane[0], tmp_path / "none.yaml", "cannot read mapping"),
        (hexane[0], TOPOLOGIES / "spce_water" / "mapping.yaml", "the topology has no molecule type SOL"),
        (psf, MAPPING, "expected a .tpr"),
    ):
        result = ccg("backmap", "train", topology, hexane[1], "--beads", beads, "--out", tmp_path / "m.pt")
        assert result.exit_code == 2
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("m.*"))


def test_a_workflow_with_a_mapping_file(hexane: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Its content belongs to the training: another mapping, another model."""
    (tmp_path / "map.yaml").write_text(MAPPING.read_text())
    (tmp_path / "w.yaml").write_text(
        f"""
version: 1
kind: backmap
system: hexane
topology: {hexane[0]}
trajectories: [{hexane[1]}]
beads: map.yaml
model: {{width: 8, context: 8, couplings: 0, bins: 4, flow_width: 8, lower_width: 4}}
training: {{steps: 2, batch: 4, held_out_fraction: 0.3}}
restore: {{samples: 1, candidates: 1, rounds: 1}}
"""
    )
    result = ccg("run", tmp_path / "w.yaml", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 3, result.output  # two steps teach nothing
    restored = json.loads(result.stdout)["restored"]
    assert restored["max_bead_deviation_nm"] < 1e-6
    stages = {path.name for path in (tmp_path / "out" / "stages").iterdir()}
    (tmp_path / "map.yaml").write_text(MAPPING.read_text().replace("name: B1, type: B", "name: B1, type: B, at: cog"))
    assert ccg("run", tmp_path / "w.yaml", "--out", tmp_path / "out").exit_code == 3
    more = {path.name for path in (tmp_path / "out" / "stages").iterdir()} - stages
    assert {name.split("-")[0] for name in more} == {"train", "restore", "card"}


def test_molecules_may_lie_in_any_image_of_the_box(hexane: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Whole molecules moved by box vectors see, weigh and clash as before, and are restored to the same places."""
    model = tmp_path / "m.pt"
    assert trained(hexane, model).exit_code == 0
    found, fine = load_model(model), read_held_out(model)
    of, x = found.system, torch.from_numpy(fine.positions[:2])
    assert fine.box is not None
    box = torch.from_numpy(fine.box[:2])
    molecules = torch.from_numpy(of.placement.plan.system.molecules)
    turns = torch.randint(-2, 3, (MOLECULES, 3), generator=torch.Generator().manual_seed(0)).to(torch.float64)
    shift = torch.einsum("mi,tij->tmj", turns, box)
    moved = x + shift[:, molecules]

    sampler = Sampler(found.flow, of, candidates=3)
    log_q, before = sampler.log_prob(moved, box), sampler.log_prob(x, box)
    torch.testing.assert_close(log_q, before, rtol=0, atol=1e-6)
    assert float((sampler.log_prob(moved) - before).abs().min()) > 1.0  # neighbours are lost without the box

    beads, others = (torch.from_numpy(of.bead_positions(frames.numpy())) for frames in (x, moved))
    first, second = (sampler.draw(b, torch.Generator().manual_seed(1), box) for b in (beads, others))
    torch.testing.assert_close(second.positions - shift[:, molecules], first.positions, rtol=0, atol=1e-6)
    torch.testing.assert_close(second.log_choice, first.log_choice, rtol=0, atol=1e-6)

    # Molecules thrown together anyhow overlap, some of them across the box.
    thrown = x + torch.rand(2, MOLECULES, 3, generator=torch.Generator().manual_seed(2), dtype=x.dtype)[:, molecules]
    counts = [
        clash_counts(sampler.rules, positions.numpy(), cells)
        for positions, cells in (
            (thrown, box.numpy()),
            (thrown + shift[:, molecules], box.numpy()),
            (thrown, None),
        )
    ]
    np.testing.assert_array_equal(counts[0], counts[1])
    assert counts[0].sum() > 1.1 * counts[2].sum() > 0
