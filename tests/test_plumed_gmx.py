"""TORCH_MODEL inside ``gmx mdrun``: forces, threads, restart, and how a run ends that must not go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from plumed_tools import columns, environment, refused, torsion_model, torsion_signature
from torch import nn

from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import fine_run
from ccg_gmx.engine.plumed_build import Plugin
from ccg_gmx.engine.process import Finished, capture
from ccg_gmx.export.contract import Quantity, Signature, energy
from ccg_gmx.export.feature_perceptron import Feature, FeaturePerceptron, all_distances
from ccg_gmx.export.torch_model import export_model

pytestmark = [pytest.mark.plumed, pytest.mark.gmx]

TORSIONS = "phi: TORSION ATOMS=5,7,9,15\npsi: TORSION ATOMS=7,9,15,17\n"
Run = Callable[..., Finished]


@pytest.fixture(scope="module")
def tpr(gmx: Gmx, alanine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 steps of alanine dipeptide at 300 K."""
    folder = tmp_path_factory.mktemp("tpr")
    mdp = fine_run(300.0, 400, seed=3, output_every=20, forces=True)
    return gmx.grompp(mdp, alanine_dir / "conf.gro", alanine_dir / "topol.top", folder / "run.tpr")


@pytest.fixture
def run(gmx: Gmx, plugin: Plugin, tpr: Path, tmp_path: Path) -> Run:
    """Run mdrun with the lines; one thread-MPI rank, as GROMACS 2025 wants it with PLUMED."""

    def start(lines: str, *options: str, threads: int = 1, folder: Path = tmp_path, **variables: str) -> Finished:
        folder.mkdir(exist_ok=True)
        (folder / "plumed.dat").write_text(f"LOAD FILE={plugin.library}\n{TORSIONS}{lines}\n")
        command = [str(gmx.path), "mdrun", "-s", str(tpr), "-plumed", "plumed.dat", "-reprod", "-nb", "cpu"]
        command += ["-ntmpi", "1", "-ntomp", str(threads), "-pin", "off", "-cpt", "0", *options]
        return capture(command, cwd=folder, env=environment(plugin, OMP_NUM_THREADS=str(threads), **variables))

    return start


def test_a_bias_of_torsions_and_of_atoms_with_one_thread_and_two(run: Run, plugin: Plugin, tmp_path: Path) -> None:
    """The same numbers from every back-end and with every number of GROMACS' threads."""
    suffixes = ["json", "pt", "pt2"] if plugin.torch else ["json"]
    torch.manual_seed(1)
    pair = FeaturePerceptron.build(all_distances(4), 0, [8, 1])
    lines = ""
    for suffix in suffixes:
        first = export_model(torsion_model(), torsion_signature(), tmp_path / f"t.{suffix}", dtype="float64")
        second = export_model(pair, Signature((), (energy(),), atoms=4), tmp_path / f"a.{suffix}", dtype="float64")
        lines += f"t{suffix}: TORCH_MODEL FILE={first} ARG=phi,psi BIAS\na{suffix}: TORCH_MODEL FILE={second} "
        lines += "ATOMS=5,7,9,15 BIAS\n"
    for threads in (1, 2):
        folder = tmp_path / str(threads)
        done = run(lines + "PRINT ARG=* FILE=v FMT=%.10g STRIDE=20", threads=threads, folder=folder)
        assert done.returncode == 0, done.stderr[-2000:]
        found = columns(folder / "v")
        assert len(found["time"]) == 21
        for suffix in suffixes:
            np.testing.assert_allclose(found[f"t{suffix}.bias"], found["tjson.bias"], rtol=1e-8)
            np.testing.assert_allclose(found[f"a{suffix}.bias"], found["ajson.bias"], rtol=1e-8)
        assert np.ptp(found["tjson.bias"]) > 1e-4


def test_a_restarted_run_is_the_run_that_was_not_stopped(run: Run, tmp_path: Path) -> None:
    path = export_model(torsion_model(), torsion_signature(), tmp_path / "m.json")
    lines = f"b: TORCH_MODEL FILE={path} ARG=phi,psi BIAS\nPRINT ARG=phi,psi,b.bias FILE=v FMT=%.8g STRIDE=20"
    assert run(lines, folder=tmp_path / "whole").returncode == 0
    broken = tmp_path / "broken"
    assert run(lines, "-nsteps", "200", folder=broken).returncode == 0
    assert len(columns(broken / "v")["time"]) == 11
    done = run(lines, "-cpi", "state.cpt", "-nsteps", "200", "-noappend", folder=broken)
    assert done.returncode == 0, done.stderr[-2000:]
    whole, both = columns(tmp_path / "whole" / "v"), columns(broken / "v")
    # PLUMED appends to its files on -cpi, and the step of the checkpoint is there twice.
    assert len(both["time"]) >= 21
    for time, bias in zip(both["time"], both["b.bias"], strict=True):
        at = np.argmin(np.abs(whole["time"] - time))
        assert bias == pytest.approx(whole["b.bias"][at], rel=1e-6)


def test_a_nan_ends_the_run_with_step_and_inputs(run: Run, plugin: Plugin, tmp_path: Path) -> None:
    """GROMACS itself would go on with a NaN energy, and die of a segmentation fault with a NaN force."""
    suffix, dtype = ("pt2", "float32") if plugin.torch else ("json", "float64")
    model = FeaturePerceptron.build([Feature("argument", 0)], 1, [1])
    nn.init.constant_(model.layers[0].weight, 1e30)
    signature = Signature((Quantity("d"),), (energy(),))
    path = export_model(model, signature, tmp_path / f"m.{suffix}", dtype=dtype, examples=torch.tensor([[1e-3]]))
    (temporary := tmp_path / "tmp").mkdir()
    lines = f"t: TIME\nd: CUSTOM ARG=t FUNC=step(x-0.0095)*1e{10 if dtype == 'float32' else 300} PERIODIC=NO\n"
    done = run(f"{lines}m: TORCH_MODEL FILE={path} ARG=d BIAS", TMPDIR=str(temporary))
    refused(done, r'TORCH_MODEL m: output "energy" is inf at step 10')
    assert done.returncode > 0  # an error, not a signal
    assert list(temporary.iterdir()) == []


def test_the_temperature_that_mdrun_runs_at_is_compared(run: Run, tmp_path: Path) -> None:
    path = export_model(torsion_model(), torsion_signature(temperature=310.0), tmp_path / "m.json")
    done = run(f"b: TORCH_MODEL FILE={path} ARG=phi,psi BIAS")
    text = " ".join((done.stdout + done.stderr).split())  # GROMACS wraps the line
    assert done.returncode > 0
    assert "temperature: the model has 310 K, the input line or the MD engine 300 K" in text
