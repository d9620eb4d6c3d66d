"""The flat-histogram test on densities whose truth is known, and its command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from test_static_bias import surface

from ccg_gmx.cli import main
from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.flatness import _cell_sums, _overlap, flatness
from ccg_gmx.free_energy.surface_files import save_surface
from ccg_gmx.records import FloatArray, FreeEnergySurface
from ccg_gmx.units import thermal_energy

KT = thermal_energy(300.0)


def walk(steps: int, seed: int, tilt: float = 0.0, dims: int = 2, size: float = 0.35, keep: int = 4) -> FloatArray:
    """Metropolis walkers ``[steps, dims]`` in the torsions with the density exp(tilt cos(s_0)); correlated frames."""
    rng = np.random.default_rng(seed)
    s = rng.uniform(-np.pi, np.pi, dims)
    frames = np.empty((steps, dims))
    for step in range(steps * keep):
        new = (s + size * rng.normal(size=dims) + np.pi) % (2 * np.pi) - np.pi
        if np.log(rng.uniform()) < tilt * (np.cos(new[0]) - np.cos(s[0])):
            s = new
        frames[step // keep] = s
    return frames


@pytest.mark.parametrize(("n", "count"), [(72, 12), (100, 12), (100, 36), (30, 7)])
def test_cells_share_out_every_bin(n: int, count: int) -> None:
    overlap = _overlap(n, count)
    np.testing.assert_allclose(overlap.sum(axis=0), 1)
    np.testing.assert_allclose(overlap.sum(axis=1), n / count)
    assert _cell_sums(np.ones((n, n), dtype=bool), count).sum() == pytest.approx(n * n)


@pytest.mark.parametrize("dims", [1, 2])
def test_flat_walkers_pass_about_as_often_as_stated(dims: int) -> None:
    f = surface(("phi", "psi")[:dims])
    p = [flatness(f, walk(4000, seed, dims=dims), np.zeros(4000, dtype=int))[0].p_value for seed in range(12)]
    # at the true 1 % level two of twelve failures have a chance of 0.6 %
    assert sum(value < 0.01 for value in p) <= 1
    assert np.median(p) > 0.1


def test_flat_walkers_are_called_flat_and_tilted_ones_not() -> None:
    f = surface(("phi", "psi"))
    found, table = flatness(f, walk(12_000, 1), np.zeros(12_000, dtype=int))
    assert found.flat
    assert found.verdict.startswith("flat")
    assert found.noise_kT < 0.5
    assert table.shares.sum() == pytest.approx(1)
    assert table.observed.sum() == pytest.approx(1)
    tilted, _ = flatness(f, walk(12_000, 1, tilt=0.7), np.zeros(12_000, dtype=int))
    assert not tilted.flat
    assert tilted.p_value < 0.01
    assert tilted.verdict.startswith("NOT flat")
    assert tilted.rms_kT > 2 * tilted.noise_kT


def test_correlation_is_not_taken_for_a_fault() -> None:
    f = surface(("phi", "psi"))
    slow = walk(12_000, 5, size=0.15, keep=2)
    found, _ = flatness(f, slow, np.zeros(12_000, dtype=int))
    assert found.independent < 2000
    naive = np.bincount((np.floor((slow[:, 0] + np.pi) / (np.pi / 6)).astype(int)) % 12, minlength=12)
    assert ((naive - 1000) ** 2 / 1000).sum() > 60  # chi2 of 11 degrees of freedom, were the frames independent
    assert found.p_value >= 0.01


def test_too_short_a_run_cannot_tell() -> None:
    found, _ = flatness(surface(("phi", "psi")), walk(150, 2), np.zeros(150, dtype=int))
    assert not found.flat
    assert found.verdict.startswith("cannot tell yet")


def test_no_frame_in_the_region_is_refused() -> None:
    f = np.full((36, 36), 20.0)
    f[0, 0] = 0.0
    with pytest.raises(CcgError, match="no frame where f"):
        flatness(FreeEnergySurface(f, f, ("phi", "psi"), 300.0), np.ones((50, 2)), np.zeros(50, dtype=int))


def ccg(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["check", "flat-histogram", *map(str, arguments)], catch_exceptions=False)


def colvar(path: Path, s: FloatArray, bias: FloatArray | None = None) -> Path:
    """A COLVAR file of torsions and a bias."""
    fields = "time phi psi" + ("" if bias is None else " static.bias")
    rows = np.column_stack([np.arange(len(s)), s, *([] if bias is None else [bias])])
    lines = [f"#! FIELDS {fields}"]
    lines += [f"#! SET {end}_{name} {sign}pi" for name in ("phi", "psi") for end, sign in (("min", "-"), ("max", ""))]
    path.write_text("\n".join([*lines, *(" ".join(f"{x:.6f}" for x in row) for row in rows), ""]))
    return path


@pytest.fixture(scope="module")
def fes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fes") / "fes.npz"
    save_surface(surface(("phi", "psi")), path)
    return path


def test_command_says_flat_draws_and_exits_0(fes: Path, tmp_path: Path) -> None:
    file = colvar(tmp_path / "COLVAR", walk(12_000, 1))
    done = ccg(fes, file, "--plot", tmp_path / "flat.png")
    assert done.exit_code == 0, done.output
    assert "flat within its sampling error" in done.output
    assert (tmp_path / "flat.png").stat().st_size > 10_000
    report = json.loads(ccg(fes, file, "--json").output)
    assert report["flat"] is True
    assert report["cells"] > 50


def test_command_exits_3_when_not_flat(fes: Path, tmp_path: Path) -> None:
    done = ccg(fes, colvar(tmp_path / "COLVAR", walk(12_000, 1, tilt=0.7)))
    assert done.exit_code == 3
    assert "NOT flat" in done.output


def test_command_refuses_a_run_under_another_bias(fes: Path, tmp_path: Path) -> None:
    s = walk(2000, 1)
    done = ccg(fes, colvar(tmp_path / "COLVAR", s, KT * np.cos(s[:, 0])))
    assert done.exit_code == 2
    assert done.output.count("\n") == 1
    assert "static.bias is not -f of this surface" in done.output


def test_command_accepts_minus_f_with_any_constant(fes: Path, tmp_path: Path) -> None:
    from ccg_gmx.export.static_bias import static_bias
    from ccg_gmx.molecule.torsion_bias import TorsionBias

    s = walk(2000, 1)
    bias = static_bias(surface(("phi", "psi")))
    values = TorsionBias([(0, 1, 2, 3), (1, 2, 3, 4)], [((0, 1), bias.values)]).energy(s)
    assert ccg(fes, colvar(tmp_path / "COLVAR", s, values + 7.0)).exit_code in (0, 3)


def test_degrees_are_refused(fes: Path, tmp_path: Path) -> None:
    done = ccg(fes, colvar(tmp_path / "COLVAR", np.degrees(walk(200, 1))))
    assert done.exit_code == 2
    assert "torsions in radians" in done.output
