"""TORCH_MODEL and libtorch: packages, TorchScript of others, threads, and the end of a process."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plumed_tools import (
    TORSION_LINES,
    chain,
    columns,
    dihedrals,
    driver,
    environment,
    evaluate,
    refused,
)
from torch import nn

from ccg_gmx.engine.plumed import Kernel
from ccg_gmx.engine.plumed_build import Plugin
from ccg_gmx.engine.process import capture

pytestmark = pytest.mark.plumed


def with_metadata(path: Path, to: Path, **changes: Any) -> Path:
    """A .pt2 with entries of its contract changed, its machine code untouched."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename.endswith("_metadata.json"):
                metadata = json.loads(content)
                contract = json.loads(metadata["ccg_contract"])
                contract.update(changes)
                content = json.dumps({**metadata, "ccg_contract": json.dumps(contract)}).encode()
            new.writestr(item, content)
    return to


@pytest.fixture
def package(files: dict[str, Path]) -> Path:
    """The mixed model as .pt2 in float64."""
    if "mixed_float64.pt2" not in files:
        pytest.skip("the plug-in is built without torch")
    return files["mixed_float64.pt2"]


def test_machine_code_for_another_cpu_is_not_run(kernel: Kernel, plugin: Plugin, package: Path, tmp_path: Path) -> None:
    path = with_metadata(package, tmp_path / "m.pt2", cpu=["avx2", "imaginary"])
    lines = f"{TORSION_LINES}m: TORCH_MODEL FILE={path} ARG=phi ATOMS=1-4"
    refused(driver(kernel, plugin, tmp_path, lines, chain(1)), "compiled for a CPU with imaginary, this CPU has none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float32", "trials": []}, r"model .*m\.pt2: .*unmatched dtype"),
        ({"n_in": 16, "atoms": {"count": 5, "unit": "nm"}, "trials": []}, r"m\.pt2: .*expected: 13, but got: 16"),
        ({"n_in": 10, "atoms": {"count": 3, "unit": "nm"}, "trials": []}, r"m\.pt2: .*expected: 13, but got: 10"),
    ],
    ids=["dtype", "wider", "narrower"],
)
def test_compiled_code_checks_its_inputs(
    kernel: Kernel, plugin: Plugin, package: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Fused code reads past a buffer that is too short unless AOTI_RUNTIME_CHECK_INPUTS is set."""
    path = with_metadata(package, tmp_path / "m.pt2", **changes)
    atoms = changes.get("atoms", {"count": 4})["count"]
    lines = f"{TORSION_LINES}m: TORCH_MODEL FILE={path} ARG=phi ATOMS=1-{atoms}\nPRINT ARG=m.* FILE=v"
    refused(driver(kernel, plugin, tmp_path, lines, chain(1)), message)


def test_packages_leave_nothing_in_the_temporary_folder(
    kernel: Kernel, plugin: Plugin, package: Path, tmp_path: Path
) -> None:
    lines = f"{TORSION_LINES}m: TORCH_MODEL FILE={package} ARG=phi ATOMS=1-4 TEMP={{}}\nPRINT ARG=m.* FILE=v"
    (temporary := tmp_path / "tmp").mkdir()
    for temperature, ends_well in ((300, True), (310, False)):
        (tmp_path / "plumed.dat").write_text(f"LOAD FILE={plugin.library}\n{lines.format(temperature)}\n")
        driver(kernel, plugin, tmp_path, lines.format(temperature), chain(1))
        command = [*kernel.command, "driver", "--plumed", "plumed.dat", "--ixyz", "frames.xyz"]
        done = capture(command, cwd=tmp_path, env=environment(plugin, TMPDIR=str(temporary)))
        assert (done.returncode == 0) is ends_well
        assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_damaged_files_are_one_line_without_a_backtrace(
    kernel: Kernel, plugin: Plugin, tmp_path: Path, suffix: str
) -> None:
    if not plugin.torch:
        pytest.skip("the plug-in is built without torch")
    (tmp_path / f"m.{suffix}").write_bytes(b"no archive at all")
    done = driver(kernel, plugin, tmp_path, f"{TORSION_LINES}m: TORCH_MODEL FILE=m.{suffix} ARG=phi,psi", chain(1))
    refused(done, rf"model m\.{suffix}: libtorch: ")


def test_a_package_without_contract_is_refused(kernel: Kernel, plugin: Plugin, package: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(tmp_path / "m.pt2", "w") as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename.endswith("_metadata.json"):
                kept = {key: text for key, text in json.loads(content).items() if key != "ccg_contract"}
                content = json.dumps(kept).encode()
            new.writestr(item, content)
    done = driver(kernel, plugin, tmp_path, f"{TORSION_LINES}m: TORCH_MODEL FILE=m.pt2 ARG=phi,psi", chain(1))
    refused(done, "the package has no contract")


# ---------------------------------------------------------------- TorchScript of others


class Others(nn.Module):
    """What mlcolvar exports: preprocessing and a perceptron, [B, n] -> [B, 2], float32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.register_buffer("mean", torch.tensor(0.1))
        self.net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x - self.mean)


@pytest.fixture
def others(tmp_path: Path, plugin: Plugin) -> Path:
    """A TorchScript model without a contract."""
    if not plugin.torch:
        pytest.skip("the plug-in is built without torch")
    path = tmp_path / "others.ptc"
    torch.jit.trace(Others().eval(), torch.zeros(1, 2)).save(str(path))
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_models_of_mlcolvar_load_and_agree_with_pytorch_model(
    kernel: Kernel, plugin: Plugin, others: Path, tmp_path: Path
) -> None:
    has = subprocess.run([*kernel.command, "config", "module", "pytorch"], capture_output=True, check=False)
    theirs = has.returncode == 0
    lines = f"{TORSION_LINES}m: TORCH_MODEL FILE={others} ARG=phi,psi\n"
    lines += f"p: PYTORCH_MODEL FILE={others} ARG=phi,psi\n" if theirs else ""
    lines += "PRINT ARG=* FILE=v FMT=%.12g\nDUMPDERIVATIVES ARG=m.node-0,m.node-1 FILE=d FMT=%.12g\n"
    lines += "DUMPDERIVATIVES ARG=p.node-0,p.node-1 FILE=pd FMT=%.12g" if theirs else ""
    frames = chain(3, seed=12)
    done = driver(kernel, plugin, tmp_path, lines, frames)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "has no contract: its units, names and temperature could not be checked" in done.stdout
    found, slopes = columns(tmp_path / "v"), columns(tmp_path / "d")
    for number, frame in enumerate(frames):
        wanted = evaluate(Others(), dihedrals(frame))
        assert [found["m.node-0"][number], found["m.node-1"][number]] == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    if theirs:
        again = columns(tmp_path / "pd")
        for k in (0, 1):
            np.testing.assert_allclose(found[f"m.node-{k}"], found[f"p.node-{k}"], rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(slopes[f"m.node-{k}"], again[f"p.node-{k}"], rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_frozen_model_and_one_of_the_wrong_width(
    kernel: Kernel, plugin: Plugin, others: Path, tmp_path: Path
) -> None:
    frozen = tmp_path / "frozen.ptc"
    torch.jit.freeze(torch.jit.load(str(others)).eval()).save(str(frozen))
    lines = f"{TORSION_LINES}m: TORCH_MODEL FILE={frozen} ARG=phi,psi\nPRINT ARG=m.* FILE=v"
    done = driver(kernel, plugin, tmp_path, lines, chain(1))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    done = driver(kernel, plugin, tmp_path, lines.replace("phi,psi", "phi"), chain(1))
    refused(done, r"model .*frozen\.ptc: .*(size|shape|must match)")
    done = driver(kernel, plugin, tmp_path, lines.replace("phi,psi", "phi,psi BIAS"), chain(1))
    refused(done, r"has no contract, so that nothing says that its output is an energy")


# ---------------------------------------------------------------- one process with torch

IN_PYTHON = """\
import sys
sys.path[:0] = {paths!r}
{torch_first}
import numpy as np, plumed
p = plumed.Plumed()
p.cmd("setNatoms", 5); p.cmd("setMDEngine", "test"); p.cmd("setTimestep", 1.0); p.cmd("setLogFile", "log")
p.cmd("init")
for line in open("plumed.dat"):
    p.cmd("readInputLine", line.strip())
for step, frame in enumerate(np.load("frames.npy")):
    forces, virial = np.zeros_like(frame), np.zeros((3, 3))
    p.cmd("setStep", step); p.cmd("setPositions", frame); p.cmd("setForces", forces); p.cmd("setVirial", virial)
    p.cmd("setMasses", np.ones(5)); p.cmd("setCharges", np.zeros(5)); p.cmd("setBox", 4.0 * np.eye(3)); p.cmd("calc")
p.finalize()
{torch_last}
"""


@pytest.mark.parametrize("order", ["torch first", "torch last", "no torch"])
@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_a_python_process_keeps_its_threads_and_ends_clean(
    plugin: Plugin, files: dict[str, Path], tmp_path: Path, order: str, suffix: str
) -> None:
    pytest.importorskip("plumed", reason="the Python package plumed is not installed")
    name = f"mixed_float64.{suffix}"
    if name not in files:
        pytest.skip("the plug-in is built without torch")
    lines = f"LOAD FILE={plugin.library}\n{TORSION_LINES}m: TORCH_MODEL FILE={files[name]} ARG=phi ATOMS=1-4\n"
    (tmp_path / "plumed.dat").write_text(lines + "PRINT ARG=m.* FILE=v\n")
    np.save(tmp_path / "frames.npy", chain(5))
    count = "assert torch.get_num_threads() == 3, torch.get_num_threads(); torch.randn(99, 99) @ torch.ones(99)"
    script = IN_PYTHON.format(
        paths=sys.path,
        torch_first="import torch; torch.set_num_threads(3)" if order == "torch first" else "",
        torch_last=count if order == "torch first" else "import torch; torch.ones(3).sum()" if "last" in order else "",
    )
    for _ in range(2):
        done = capture([sys.executable, "-c", script], cwd=tmp_path, env=environment(plugin))
        assert done.returncode == 0
        assert all(line.startswith("+++") for line in done.stderr.splitlines()), done.stderr  # the wrapper's greeting
    assert len(columns(tmp_path / "v")["m.f"]) == 5


@pytest.mark.slow
def test_fifty_processes_of_fifty_end_clean(
    kernel: Kernel, plugin: Plugin, files: dict[str, Path], tmp_path: Path
) -> None:
    """No "free(): invalid pointer" when PLUMED closes the plug-in and libtorch with it."""
    names = [name for name in files if name.startswith("mixed")]
    lines = [f"m{k}: TORCH_MODEL FILE={files[name]} ARG=phi ATOMS=1-4" for k, name in enumerate(names)]
    text = TORSION_LINES + "\n".join(lines) + "\nPRINT ARG=* FILE=v"
    codes = [driver(kernel, plugin, tmp_path, text, chain(1)) for _ in range(50)]
    assert [done.returncode for done in codes] == [0] * 50
    assert not any("free()" in done.stderr for done in codes)


def test_the_plugin_names_the_kernel_as_a_library_it_needs(plugin: Plugin) -> None:
    """GROMACS loads the kernel RTLD_LOCAL; --as-needed and ``plumed mklib`` drop it, and driver does not notice."""
    if not shutil.which("readelf"):
        pytest.skip("no readelf")
    listed = subprocess.run(["readelf", "-d", str(plugin.library)], capture_output=True, text=True, check=True).stdout
    assert re.search(r"NEEDED.*libplumedKernel", listed)
    assert "NODELETE" in listed
    if plugin.torch:  # found beside the torch of this Python, without LD_LIBRARY_PATH
        assert re.search(rf"R(UN)?PATH.*{re.escape(str(Path(torch.__file__).parent / 'lib'))}", listed)
