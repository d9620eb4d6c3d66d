"""Every failure here is produced by a real gmx on broken input; the few that cannot be made on demand are quoted."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccg_gmx.engine.failures import diagnose
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import Mdp, fine_run
from ccg_gmx.errors import GromppError, MdrunError, ToolError

BROKEN_TOPOLOGIES = {
    "missing-include": ('"amber99sb-ildn.ff/', '"nosuch.ff/', 'include file "nosuch.ff/forcefield.itp" not found'),
    "directive-order": ("[ moleculetype ]", "[ bonds ]\n1 2 1\n[ moleculetype ]", "Invalid order for directive bonds"),
    "directive": ("[ angles ]", "[ anglez ]", "Invalid directive anglez"),
    "atom-index": ("   15    20     1\n", "   15    99     1\n", r"Atom index \(99\) in pairs out of bounds \(1-22\)"),
    "missing-parameters": ("     1         CT ", "     1         XQ ", "Atomtype XQ not found"),
    "molecule-type": ("ALAD     1", "WATR     1", "No such moleculetype WATR"),
}
BROKEN_OPTIONS = {
    "temperature": ({"ref-t": "-300"}, "ref-t for group 0 negative"),
    "time-step": ({"dt": "0.01"}, "warning in .*: The bond .* less than 5 times the time step"),
    "mdp-option": ({"constraints": "h-bondz"}, "line .*: Invalid enum 'h-bondz'"),
    "cutoff-box": ({"rlist": "3.5", "rcoulomb": "3.5", "rvdw": "3.5"}, "longer than half the shortest box vector"),
}


def kind_of(error: ToolError) -> str:
    """Check the form of a message; return the class of failure its whole output is sorted into."""
    assert "\n" not in str(error)
    assert error.log is not None
    failure = diagnose(error.log.read_text())
    assert failure is not None
    assert failure.reason == error.reason
    assert failure.remedy == error.remedy
    return failure.kind


@pytest.fixture
def preset() -> Mdp:
    return fine_run(300.0, 20_000, seed=1)


@pytest.mark.gmx
@pytest.mark.parametrize("kind", BROKEN_TOPOLOGIES)
def test_broken_topology(gmx: Gmx, alanine_dir: Path, tmp_path: Path, preset: Mdp, kind: str) -> None:
    old, new, reason = BROKEN_TOPOLOGIES[kind]
    text = (alanine_dir / "topol.top").read_text()
    assert old in text
    (tmp_path / "topol.top").write_text(text.replace(old, new, 1))
    with pytest.raises(GromppError, match=rf"^gmx grompp failed: .*{reason}") as caught:
        gmx.grompp(preset, alanine_dir / "conf.gro", tmp_path / "topol.top", tmp_path / "x.tpr")
    assert kind_of(caught.value) == kind
    assert caught.value.remedy


@pytest.mark.gmx
@pytest.mark.parametrize("kind", BROKEN_OPTIONS)
def test_broken_options(gmx: Gmx, alanine_dir: Path, tmp_path: Path, preset: Mdp, kind: str) -> None:
    options, reason = BROKEN_OPTIONS[kind]
    with pytest.raises(GromppError, match=reason) as caught:
        gmx.grompp(Mdp(dict(preset) | options), alanine_dir / "conf.gro", alanine_dir / "topol.top", tmp_path / "x.tpr")
    assert kind_of(caught.value) == kind


@pytest.mark.gmx
def test_structure_with_an_atom_too_few(gmx: Gmx, alanine_dir: Path, tmp_path: Path, preset: Mdp) -> None:
    lines = (alanine_dir / "conf.gro").read_text().splitlines()
    (tmp_path / "short.gro").write_text("\n".join([lines[0], " 21", *lines[2:23], lines[24]]) + "\n")
    with pytest.raises(GromppError, match=r"short\.gro, 21\).*does not match topology.*22\)") as caught:
        gmx.grompp(preset, tmp_path / "short.gro", alanine_dir / "topol.top", tmp_path / "x.tpr")
    assert kind_of(caught.value) == "atom-count"


@pytest.mark.gmx
def test_overlapping_atoms(gmx: Gmx, alanine_dir: Path, tmp_path: Path, preset: Mdp) -> None:
    lines = (alanine_dir / "conf.gro").read_text().splitlines()
    lines[2] = lines[2][:20] + lines[17][20:]  # the first methyl carbon on top of the last carbonyl oxygen
    (tmp_path / "overlap.gro").write_text("\n".join(lines) + "\n")
    tpr = gmx.grompp(preset, tmp_path / "overlap.gro", alanine_dir / "topol.top", tmp_path / "x.tpr")
    with pytest.raises(MdrunError, match=r"Step 0: The total potential energy is .*extremely high.*minimise") as caught:
        gmx.mdrun(tpr, tmp_path)
    assert kind_of(caught.value) == "blow-up"


@pytest.mark.gmx
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dt": "0.02"}, "Listed nonbonded interaction|total potential energy is|Bond length not finite"),
        ({"dt": "0.05", "constraints": "h-bonds"}, "LINCS|total potential energy is"),
    ],
)
def test_explosion_is_named_even_when_mdrun_only_crashes(
    gmx: Gmx, alanine_dir: Path, tmp_path: Path, preset: Mdp, options: dict[str, str], reason: str
) -> None:
    mdp = Mdp(dict(preset) | options)
    tpr = gmx.grompp(mdp, alanine_dir / "conf.gro", alanine_dir / "topol.top", tmp_path / "x.tpr", maxwarn=3)
    with pytest.raises(MdrunError, match=reason) as caught:
        gmx.mdrun(tpr, tmp_path)
    assert "shorter time step" in str(caught.value)


@pytest.mark.gmx
def test_bonded_tables(gmx: Gmx, alanine_dir: Path, tmp_path: Path, preset: Mdp) -> None:
    top = (alanine_dir / "topol.top").read_text().replace("    5     7     1\n", "    5     7     8   0  1000\n", 1)
    (tmp_path / "tab.top").write_text(top)
    tpr = gmx.grompp(preset, alanine_dir / "conf.gro", tmp_path / "tab.top", tmp_path / "x.tpr")
    table = tmp_path / "tab_b0.xvg"

    def write(points: int) -> None:
        rows = ((0.001 * i, 500 * (0.001 * i - 0.1335) ** 2, -1000 * (0.001 * i - 0.1335)) for i in range(points))
        table.write_text("".join(f"{x:.4f} {v:.8f} {f:.8f}\n" for x, v, f in rows))

    with pytest.raises(MdrunError, match=r"no table file whose name matched '_b0\.xvg'") as caught:
        gmx.mdrun(tpr, tmp_path, name="none")
    assert kind_of(caught.value) == "missing-table"
    write(120)
    with pytest.raises(MdrunError, match=r"table number 0 is out of the table range.*pad the table") as caught:
        gmx.mdrun(tpr, tmp_path, name="short", tables=[table])
    assert kind_of(caught.value) == "table-range"
    write(400)
    assert gmx.mdrun(tpr, tmp_path, name="whole", tables=[table]).steps == 20_000


@pytest.mark.gmx
def test_full_disk(gmx: Gmx, alanine_tpr: Path, tmp_path: Path) -> None:
    (tmp_path / "run.edr").symlink_to("/dev/full")
    with pytest.raises(MdrunError, match="free space on the disk") as caught:
        gmx.mdrun(alanine_tpr, tmp_path)
    assert kind_of(caught.value) == "disk-full"


@pytest.mark.gmx
def test_damaged_checkpoint(gmx: Gmx, alanine_tpr: Path, tmp_path: Path) -> None:
    gmx.mdrun(alanine_tpr, tmp_path)
    record = tmp_path / "run.json"
    record.write_text(record.read_text().replace("true", "false"))
    whole = (tmp_path / "run.cpt").read_bytes()
    (tmp_path / "run.cpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MdrunError, match=r"Checkpoint file corrupted/truncated.*remove this run's files"):
        gmx.mdrun(alanine_tpr, tmp_path)


@pytest.mark.gmx
def test_rerun_of_something_else(gmx: Gmx, alanine_tpr: Path, tmp_path: Path) -> None:
    (tmp_path / "text.trr").write_text("this is no trajectory")
    with pytest.raises(MdrunError, match="not a trr file") as caught:
        gmx.rerun(alanine_tpr, tmp_path / "text.trr", tmp_path)
    assert kind_of(caught.value) == "not-a-trajectory"


def ruler(title: str, body: str) -> str:
    line = "-" * 55
    return (
        f"\n{line}\nProgram:     gmx mdrun, version 2025.2\nSource file: src/gromacs/x.cpp (line 1)\n"
        f"MPI rank:    1 (out of 2)\n\n{title}:\n{body}\n\n"
        f"For more information and tips for troubleshooting, please check the GROMACS\nwebsite\n{line}\n"
    )


@pytest.mark.parametrize(
    ("kind", "reason", "rest"),
    [
        (
            "domain-decomposition",
            "There is no domain decomposition for 6 ranks that is compatible with the\n"
            "given box and a minimum cell size of 2.1 nm",
            "",
        ),
        (
            "blow-up",
            "2 particles communicated to PME rank 1 are more than 2/3 times the cut-off out\n"
            "of the domain decomposition cell of their charge group in dimension x",
            ".\nThis usually means that your system is not well equilibrated.",
        ),
        (
            "blow-up",
            "Step 120: The total potential energy is nan, which is not finite",
            ". The LJ and electrostatic contributions to the energy are 3.1e+12 and -44.2,\nrespectively.",
        ),
        ("constraints", "Too many LINCS warnings (1000)", ""),
        ("gpu", "Cannot run short-ranged nonbonded interactions on a GPU because no GPU is\ndetected", "."),
    ],
)
@pytest.mark.parametrize("title", ["Fatal error", "Internal error (bug)", "Error in user input"])
def test_quoted_failures(kind: str, reason: str, rest: str, title: str) -> None:
    failure = diagnose("Reading file x.tpr\n" + ruler(title, reason + rest) + "\nGROMACS reminds you\n")
    assert failure is not None
    assert (failure.kind, failure.reason) == (kind, reason.replace("\n", " "))
    assert failure.remedy


def test_an_exception_that_ended_the_process() -> None:
    """What gmxapi leaves where gmx prints a block: ``Session::run`` may not throw."""
    failure = diagnose(
        "Using 1 OpenMP thread\n\nterminate called after throwing an instance of 'gmx::InternalError'\n  what():  An "
        'error occurred while initializing the PLUMED force provider:\n\nAction "TORSIONN" is not known.\n'
    )
    assert failure is not None
    assert failure.kind == "plumed"
    assert failure.reason.endswith('the PLUMED force provider: Action "TORSIONN" is not known')


def test_healthy_output_has_no_failure() -> None:
    text = "NOTE 1 [file x.mdp]:\n  You are using a plain Coulomb cut-off\n\nThere were 3 NOTEs\nWriting coordinates.\n"
    assert diagnose(text) is None
    assert diagnose("") is None
