"""``ccg bench pairs``: its text, and one short run of all of it."""

from __future__ import annotations

import numpy as np
import pytest

from ccg_gmx.bench.pairs import DENSITY_PER_NM3, bench_pairs, bench_text, fluid
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.plumed_build import Plugin


def test_the_fluid_has_its_density_and_a_smooth_end() -> None:
    model, topology, start = fluid(500)
    assert topology.n_beads == len(start.positions[0]) == 500
    assert 500 / np.linalg.det(start.box[0]) == pytest.approx(DENSITY_PER_NM3)
    value, slope = model.pairs["W", "W"].value_and_slope(np.array([0.25, 0.899999]))
    assert value[0] > 10 * model.kT
    assert abs(value[1]) < 1e-9
    assert abs(slope[1]) < 1e-6


def test_the_text_has_a_line_for_each_fluid() -> None:
    row = {"beads": 500, "gromacs_plumed_steps_per_s": 2000.0, "openmm_steps_per_s": 65.0, "ratio": 30.8}
    text = bench_text({"threads": 2, "fluids": [row]})
    assert "2 thread(s)" in text
    assert text.splitlines()[-1].split() == ["500", "2000", "65.0", "30.8"]


@pytest.mark.gmx
@pytest.mark.plumed
def test_a_short_run(gmx: Gmx, plugin: Plugin) -> None:
    pytest.importorskip("openmm")
    said: list[str] = []
    result = bench_pairs([216], 200, 1, 1, said.append)
    (row,) = result["fluids"]
    assert row["ratio"] == pytest.approx(row["gromacs_plumed_steps_per_s"] / row["openmm_steps_per_s"])
    assert len(said) == 2
