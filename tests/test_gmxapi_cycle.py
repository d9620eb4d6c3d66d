"""One small cycle with ``engine: gmxapi``: the numbers of the same cycle with ``engine: gmx``, bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engines import engine_or_skip
from small_cycle import ccg, run_arguments
from test_cycle import numbers, strict_json

from ccg_gmx.engine.gromacs import Gmx

pytestmark = [pytest.mark.gmx, pytest.mark.gmxapi, pytest.mark.slow]

SMALL = ("engine.workers=1", "cycle.members=1", "cycle.min_turns=1", "cycle.max_turns=1")


@pytest.fixture(scope="module")
def runs(gmx: Gmx, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished run folders by the name of their engine; both engines are of one GROMACS."""
    engine_or_skip("gmxapi")
    folders = {}
    for driver in ("gmx", "gmxapi"):
        folders[driver] = tmp_path_factory.mktemp(driver) / "run"
        done = ccg(*run_arguments(folders[driver], *SMALL, f"engine.driver={driver}"))
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode in (0, 3), done.stderr  # 3: so few draws are not to be trusted
    return folders


def test_it_was_gmxapi_that_ran(runs: dict[str, Path]) -> None:
    """The gmx program names itself mdrun in its output, the library does not."""
    for driver, folder in runs.items():
        outputs = [path.read_text(errors="replace") for path in folder.rglob("*.out")]
        assert outputs
        assert all(("gmx mdrun" in text) is (driver == "gmx") for text in outputs)


def test_same_numbers_as_with_the_gmx_program(runs: dict[str, Path]) -> None:
    ours, theirs = (numbers(strict_json(runs[driver] / "summary.json")) for driver in ("gmxapi", "gmx"))
    assert ours == theirs
    for name in ("fes.npz", "restored/restored.npz"):
        with np.load(runs["gmxapi"] / name) as a, np.load(runs["gmx"] / name) as b:
            assert a.files == b.files
            for key in a.files:
                np.testing.assert_array_equal(a[key], b[key], err_msg=f"{name}: {key}")
