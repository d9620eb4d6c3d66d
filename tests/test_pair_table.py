"""PAIR_TABLE in ``plumed driver``: energies, forces and virial against a plain sum, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from plumed_tools import columns, environment, refused

from ccg_gmx.engine.plumed import Kernel
from ccg_gmx.engine.plumed_build import Plugin
from ccg_gmx.engine.process import Finished, capture
from ccg_gmx.errors import SettingsError
from ccg_gmx.export.plumed_pairs import INPUT, TABLES, TYPES, pair_files, pair_nodes
from ccg_gmx.molecule.coarse_topology import CoarseMoleculeType, CoarseTopology
from ccg_gmx.potential.curves import Curve
from ccg_gmx.potential.evaluate import energies_and_forces
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.records import BeadFrames, FloatArray

BOXES = {
    "rectangular": np.diag([2.3, 2.7, 3.1]),
    # widths 2.2 to 2.6 nm for a cut-off of 1.1 nm: as narrow as it may be
    "triclinic": np.array([[2.9, 0.0, 0.0], [0.6, 2.7, 0.0], [-0.7, 0.5, 2.5]]),
    "many cells": np.diag([3.6, 3.7, 5.1]),
}


def curve(lo: float, hi: float, intervals: int, seed: int) -> Curve:
    """A rough pair with a core."""
    coefficients = np.random.default_rng(seed).normal(size=intervals + 3) * 3.0
    coefficients[:3] += [60.0, 25.0, 8.0]
    coefficients[-3:] = 0.0
    return Curve("pair", lo, hi, coefficients, None, 1000.0)


MODEL = CoarseModel(
    300.0,
    pairs={
        ("A", "A"): curve(0.25, 0.9, 17, 1),
        ("A", "B"): curve(0.3, 1.1, 20, 2),
        ("A", "W"): curve(0.21, 0.8, 21, 3),
        ("W", "W"): curve(0.25, 0.9, 30, 4),
    },
)
CHAIN = CoarseMoleculeType(
    "M", ("A1", "B1", "A2"), ("A", "B", "A"), (20.0, 30.0, 20.0), ("MOL",) * 3, (1,) * 3, (), ((0, 1), (1, 2))
)
WATER = CoarseMoleculeType("S", ("W",), ("W",), (18.0,), ("SOL",), (1,))
TOPOLOGY = CoarseTopology(((CHAIN, 40), (WATER, 90)))


def plain_sum(positions: FloatArray, box: FloatArray) -> tuple[float, FloatArray, FloatArray]:
    """Energy, gradient ``[n, 3]`` and virial over all pairs, images in the boxes around included."""
    n = len(positions)
    excluded = np.zeros((n, n), dtype=bool)
    excluded[tuple(TOPOLOGY.excluded_pairs.T)] = True
    i, j = np.nonzero(np.triu(~excluded, 1))
    types = np.array(TOPOLOGY.bead_types)
    fractions = positions @ np.linalg.inv(box)
    inside = (fractions - np.floor(fractions)) @ box
    energy, gradient, virial = 0.0, np.zeros((n, 3)), np.zeros((3, 3))
    for shift in product((-1, 0, 1), repeat=3):
        d = inside[j] + np.array(shift) @ box - inside[i]
        r = np.linalg.norm(d, axis=1)
        for (a, b), pair in MODEL.pairs.items():
            which = (r < pair.hi) & (((types[i] == a) & (types[j] == b)) | ((types[i] == b) & (types[j] == a)))
            value, slope = pair.value_and_slope(r[which])
            pull = (slope / r[which])[:, None] * d[which]
            np.add.at(gradient, j[which], pull)
            np.add.at(gradient, i[which], -pull)
            energy += float(value.sum())
            virial -= d[which].T @ pull
    return energy, gradient, virial


def frames_of(box: FloatArray, seed: int = 0) -> FloatArray:
    """Frames ``[6, n, 3]``, two all new, the others moved little, so that lists are kept; beads beyond the box."""
    rng = np.random.default_rng(seed)
    starts = rng.uniform(-1, 2, size=(2, TOPOLOGY.n_beads, 3)) @ box
    small = rng.uniform(-0.02, 0.02, size=(6, TOPOLOGY.n_beads, 3))
    return np.repeat(starts, 3, axis=0) + small


Run = Callable[..., Finished]


@pytest.fixture
def run(kernel: Kernel, plugin: Plugin, tmp_path: Path) -> Run:
    """Run PAIR_TABLE over frames; ``edit`` changes the text of a file, ``options`` go onto the input line."""

    def start(
        positions: FloatArray,
        box: FloatArray,
        options: str = "",
        edit: dict[str, Callable[[str], str]] | None = None,
        before: str = "",
    ) -> Finished:
        files = pair_files(MODEL, TOPOLOGY)
        for name, change in (edit or {}).items():
            files[name] = change(files[name])
        line = files.pop(INPUT).splitlines()[1]
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        lines = f"{before}{line} {options}\nPRINT ARG=pairs.bias FILE=values FMT=%.15g\n"
        lines += "DUMPDERIVATIVES ARG=pairs.bias FILE=slopes FMT=%.15g"
        (tmp_path / "plumed.dat").write_text(f"LOAD FILE={plugin.library}\n{lines}\n")
        write_frames(tmp_path / "frames.xyz", positions, np.broadcast_to(box, (len(positions), 3, 3)))
        command = [*kernel.command, "driver", "--plumed", "plumed.dat", "--ixyz", "frames.xyz", "--length-units", "nm"]
        return capture(command, cwd=tmp_path, env=environment(plugin))

    return start


def write_frames(path: Path, positions: FloatArray, boxes: FloatArray) -> None:
    """Frames for ``--ixyz``, the nine numbers of a box on each second line."""
    with path.open("w") as out:
        for frame, box in zip(positions, boxes, strict=True):
            out.write(f"{len(frame)}\n{' '.join(f'{x:.16g}' for x in box.ravel())}\n")
            out.writelines(f"X {x:.16g} {y:.16g} {z:.16g}\n" for x, y, z in frame)


def results(folder: Path, frames: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Energies ``[T]``, gradients ``[T, n, 3]`` and virials ``[T, 3, 3]`` that the driver wrote."""
    slopes = columns(folder / "slopes")["pairs.bias"].reshape(frames, -1)
    return (
        columns(folder / "values")["pairs.bias"],
        slopes[:, :-9].reshape(frames, -1, 3),
        slopes[:, -9:].reshape(-1, 3, 3),
    )


@pytest.mark.plumed
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", BOXES)
def test_energies_forces_and_virial_are_the_plain_sum(run: Run, tmp_path: Path, shape: str, threads: int) -> None:
    """To 1e-8 relative, whether the neighbour list is new or kept, with any number of threads."""
    box = BOXES[shape]
    positions = frames_of(box)
    options = {INPUT: lambda text: text.replace("THREADS=1", f"THREADS={threads}")}
    done = run(positions, box, edit=options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-500:]
    for found, frame in zip(zip(*results(tmp_path, len(positions)), strict=True), positions, strict=True):
        for mine, plain in zip(found, plain_sum(frame, box), strict=True):
            assert np.abs(mine - plain).max() < 1e-8 * np.abs(plain).max()


@pytest.mark.plumed
def test_our_own_evaluation_gives_the_same(run: Run, tmp_path: Path) -> None:
    box = BOXES["triclinic"]
    positions = frames_of(box)
    assert run(positions, box).returncode == 0
    cells = np.tile(box, (len(positions), 1, 1))
    own = energies_and_forces(MODEL, TOPOLOGY, BeadFrames(positions, np.arange(float(len(positions))), cells))
    energy, gradient, virial = results(tmp_path, len(positions))
    np.testing.assert_allclose(energy, own.total, rtol=1e-8)
    assert np.abs(gradient + own.forces).max() < 1e-8 * np.abs(own.forces).max()
    assert np.abs(virial - own.virial).max() < 1e-8 * np.abs(own.virial).max()


@pytest.mark.plumed
def test_the_virial_is_the_answer_to_a_strain(run: Run, tmp_path: Path) -> None:
    """Energies of boxes stretched a little each way: dE/d(strain) is minus the virial."""
    box, step = BOXES["many cells"], 1e-5
    frame = frames_of(box)[0]
    strains = np.eye(3) + np.zeros((19, 3, 3))
    for k, (a, b, sign) in enumerate(product(range(3), range(3), (step, -step))):
        strains[k, a, b] += sign
    assert run(frame @ strains, box @ strains).returncode == 0
    energies, _, virials = results(tmp_path, 19)
    found = -np.subtract(energies[:18:2], energies[1:18:2]).reshape(3, 3) / (2 * step)
    np.testing.assert_allclose(virials[18], found, atol=1e-6 * np.abs(found).max())


@pytest.mark.plumed
def test_plumed_s_own_numerical_derivatives(run: Run, tmp_path: Path) -> None:
    box = BOXES["rectangular"]
    frame = frames_of(box)[:1]
    assert run(frame, box).returncode == 0
    _, gradient, virial = results(tmp_path, 1)
    assert run(frame, box, "NUMERICAL_DERIVATIVES").returncode == 0
    _, numeric, strained = results(tmp_path, 1)
    assert np.abs(gradient - numeric).max() < 1e-5 * np.abs(gradient).max()
    assert np.abs(virial - strained).max() < 1e-5 * np.abs(virial).max()


@pytest.mark.plumed
def test_without_images(run: Run, tmp_path: Path) -> None:
    """NOPBC, and a box of zeros: the sum over pairs as they lie."""
    box = BOXES["rectangular"]
    frames = frames_of(box)
    alone = 100.0 * np.eye(3)
    for options, given in (("NOPBC", box), ("", np.zeros((3, 3)))):
        assert run(frames, given, options).returncode == 0
        energies = results(tmp_path, len(frames))[0]
        wanted = [plain_sum(frame + 50.0, alone)[0] for frame in frames]
        np.testing.assert_allclose(energies, wanted, rtol=1e-8)


@pytest.mark.plumed
@pytest.mark.parametrize(
    ("edit", "options", "before", "message"),
    [
        (
            {TABLES: lambda t: t.replace("ccg_pair_tables 1", "ccg_pair_tables 2")},
            "",
            "",
            "format version 2.*version 1",
        ),
        ({TABLES: lambda t: t.replace("units nm", "units A")}, "", "", "tables are in A where this action takes nm"),
        ({}, "", "UNITS LENGTH=A\n", "tables are in nm .*UNITS are 0.1 nm"),
        ({TABLES: lambda t: t.replace("type W 90", "type W 91")}, "", "", "tables are for 211, ATOMS has 210"),
        ({TYPES: lambda t: t.replace("121 210 W", "121 209 W\n210 210 A")}, "", "", "tables are for 80, TYPES has 81"),
        ({TYPES: lambda t: t.replace("121 210 W", "121 209 W")}, "", "", "no type to bead 210 of 210"),
        ({TYPES: lambda t: t.replace(" W", " Q")}, "", "", "unknown type Q"),
        ({TABLES: lambda t: t.replace("temperature 300.0", "temperature 310.0")}, "", "", "for 310 K, .* has 300 K"),
        ({TABLES: lambda t: t.replace("none B B\n", "")}, "", "", 'neither a table nor "none" for types B and B'),
        ({TABLES: lambda t: t[: len(t) // 2]}, "", "", "words where|the file ends after|not a finite number"),
        ({TABLES: lambda t: t + "none A A\n"}, "", "", "types A and A a second time"),
        ({}, "BUFFER=-1", "", "BUFFER and THREADS must be positive"),
    ],
)
def test_what_does_not_fit_is_one_line(
    run: Run, edit: dict[str, Callable[[str], str]], options: str, before: str, message: str
) -> None:
    box = BOXES["rectangular"]
    refused(run(frames_of(box)[:1], box, options, edit, before), message)


@pytest.mark.plumed
def test_a_box_below_twice_the_cutoff_and_beads_that_are_nowhere(run: Run) -> None:
    box = np.diag([2.3, 2.1, 3.0])
    refused(run(frames_of(box)[:1], box), "the box is 2.1 nm wide .* cut-off of 1.1 nm needs 2.2 nm")
    box = BOXES["rectangular"]
    frame = frames_of(box)[:1]
    frame[0, 130] = frame[0, 131]
    refused(run(frame, box), "force on atom 13[12] is not finite")
    frame[0, 130] = np.nan
    refused(run(frame, box), "position of bead 131 of ATOMS is not finite")


def test_nodes_are_the_knots_and_the_cubic_between_them_is_the_curve() -> None:
    """The Hermite cubic between nodes, computed here, is the curve to rounding from the first node to the cut-off."""
    for pair in MODEL.pairs.values():
        r, value, slope = pair_nodes(pair)
        assert 0 <= r[0] < pair.spacing
        assert abs(r[-1] - pair.hi) < 1e-12
        x = np.linspace(r[0], pair.hi, 5000)[:-1]
        k = np.minimum(((x - r[0]) / pair.spacing).astype(int), len(r) - 2)
        t, h = (x - r[k]) / pair.spacing, pair.spacing
        cubic = value[k] * (1 + 2 * t) * (1 - t) ** 2 + value[k + 1] * t * t * (3 - 2 * t)
        cubic += h * (slope[k] * t * (1 - t) ** 2 - slope[k + 1] * t * t * (1 - t))
        wanted = pair.value_and_slope(x)[0]
        assert np.abs(cubic - wanted).max() < 1e-11 * np.abs(wanted).max()


def test_a_model_without_pairs_has_no_pair_files() -> None:
    with pytest.raises(SettingsError, match="without pair potentials"):
        pair_files(CoarseModel(300.0), TOPOLOGY)
