"""GROMACS and Python end clean after TORCH_MODEL: libtorch is unloaded, or not, without "free(): invalid pointer".

``CCG_CLEAN_EXITS=50 pytest tests/test_clean_exit.py`` is the long form.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from plumed_tools import columns, environment

from ccg_gmx.engine import gmxapi_worker
from ccg_gmx.engine.gmxapi import find_bindings
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import fine_run
from ccg_gmx.engine.plumed_build import Plugin
from ccg_gmx.engine.process import Finished, capture

pytestmark = [pytest.mark.plumed, pytest.mark.gmx, pytest.mark.slow]

REPEATS = int(os.environ.get("CCG_CLEAN_EXITS", "5"))
STEPS = 40
MODELS = {"json": "mixed_float64.json", "TorchScript": "mixed_float32.pt", "pt2": "mixed_float32.pt2"}

IN_PYTHON = """\
import importlib.util, json, sys
{before}
spec = importlib.util.spec_from_file_location("worker", {worker!r})
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
code = worker.main({tpr!r}, json.dumps({options!r}))
{after}
print("reached the end")
sys.exit(code)
"""
USE_TORCH = "import torch; assert torch.linalg.det(torch.eye(9)) == 1"


@pytest.fixture(scope="module")
def tpr(gmx: Gmx, alanine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    mdp = fine_run(300.0, STEPS, seed=5, output_every=20)
    return gmx.grompp(
        mdp, alanine_dir / "conf.gro", alanine_dir / "topol.top", tmp_path_factory.mktemp("tpr") / "a.tpr"
    )


def write_input(folder: Path, plugin: Plugin, models: list[Path]) -> None:
    """One action for each model; the last one's values are printed."""
    lines = [f"m{k}: TORCH_MODEL FILE={path} ARG=phi ATOMS=5,7,9,15" for k, path in enumerate(models)]
    text = "\n".join([f"LOAD FILE={plugin.library}", "phi: TORSION ATOMS=5,7,9,15", *lines])
    (folder / "plumed.dat").write_text(f"{text}\nPRINT ARG=* FILE=v STRIDE=20\n")


def ended_clean(done: Finished, folder: Path) -> None:
    assert done.returncode == 0, done.stderr[-2000:]
    assert "free()" not in done.stdout + done.stderr
    assert len(columns(folder / "v")["m0.f"]) == STEPS // 20 + 1


@pytest.mark.parametrize("kind", MODELS)
def test_mdrun(gmx: Gmx, plugin: Plugin, files: dict[str, Path], tpr: Path, tmp_path: Path, kind: str) -> None:
    if MODELS[kind] not in files:
        pytest.skip("the plug-in is built without torch")
    write_input(tmp_path, plugin, [files[MODELS[kind]]])
    command = [str(gmx.path), "mdrun", "-s", str(tpr), "-plumed", "plumed.dat", "-ntmpi", "1", "-ntomp", "1"]
    for _ in range(REPEATS):
        ended_clean(capture(command, cwd=tmp_path, env=environment(plugin)), tmp_path)


@pytest.mark.gmxapi
@pytest.mark.parametrize(
    ("before", "after"), [(USE_TORCH, ""), ("", USE_TORCH), ("", "")], ids=["before", "after", "no"]
)
def test_a_python_process_that_runs_gromacs_and_imports_torch(
    plugin: Plugin, files: dict[str, Path], tpr: Path, tmp_path: Path, before: str, after: str
) -> None:
    """libgromacs, PLUMED, all back-ends and perhaps torch itself in one process."""
    if not find_bindings().usable:
        pytest.skip(f"gmxapi is {find_bindings().trouble}")
    write_input(tmp_path, plugin, [files[name] for name in MODELS.values() if name in files])
    options = {"-plumed": "plumed.dat", "-ntmpi": "1", "-ntomp": "1", "-cpi": "none.cpt"}
    script = IN_PYTHON.format(before=before, after=after, worker=gmxapi_worker.__file__, tpr=str(tpr), options=options)
    for _ in range(REPEATS):
        done = capture([sys.executable, "-P", "-c", script], cwd=tmp_path, env=environment(plugin))
        ended_clean(done, tmp_path)
        assert done.stdout.endswith("reached the end\n")
