"""``ccg bench backmap``: every size and work has a figure, and the ratios are those of the figures."""

from __future__ import annotations

import pytest

from ccg_gmx.bench import backmap
from ccg_gmx.bench.backmap import CHOSEN, DRAWN, SCORED, bench_backmap, bench_text
from ccg_gmx.engine.gromacs import Gmx


def test_proteins_have_figures_for_every_work(gmx: Gmx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backmap, "_adenylate_kinase", lambda: None)
    monkeypatch.setattr(backmap, "CHUNK_ATOMS", 2000)
    monkeypatch.setattr(backmap, "RESIDUES", (2,))
    result = bench_backmap(1, (1,))
    assert result["molecules"] == ["alanine_dipeptide", "cln025", "ALA2"]
    assert [(row["atoms"], row["work"]) for row in result["rows"]] == [
        (atoms, work) for atoms in (22, 166, 32) for work in (DRAWN, SCORED, CHOSEN)
    ]
    costs = [1.0 / (row["frames_per_s"] * row["atoms"]) for row in result["rows"] if row["work"] == DRAWN]
    assert result["cost_per_atom_ratio"][f"{DRAWN}, 1 thread"] == pytest.approx(max(costs) / min(costs))
    assert "cost per atom, largest / smallest" in bench_text(result)


def test_adenylate_kinase_is_the_one_of_mdanalysis() -> None:
    pytest.importorskip("MDAnalysisTests")
    found = backmap._adenylate_kinase()
    assert found is not None
    assert len(found.atoms) == 3341
    assert len(found.beads) == 3 * 214
