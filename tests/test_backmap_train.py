"""Training of backmapping flows: every kind has its own best parameters and its own end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backmap_systems import SMALL, frames, system

from ccg_gmx.backmap.model import BackmapFlow
from ccg_gmx.backmap.train import BackmapTraining, train_backmap
from ccg_gmx.flow.train import hold_out_blocks

NAME, BEADS = "alanine_tripeptide", ("C", "N", "CA")


@pytest.mark.parametrize("patience", [1, 50])
def test_every_kind_ends_with_its_own_best_parameters(patience: int) -> None:
    """The held-out value that is told is that of the flow that is returned, in float32; and it falls at every look."""
    of = system(NAME, BEADS)
    x, run = frames(of, 120, 2), np.repeat([0, 1], 60)
    flow = BackmapFlow.of_system(of, SMALL)
    settings = BackmapTraining(
        steps=120, batch=16, warm_up=2, learning_rate=0.01, held_out_every=5, patience=patience, held_out_fraction=0.2
    )
    found = train_backmap(flow, of, x, run, settings, 3)
    curve = found.losses["held_out"]
    assert (np.diff(curve) <= 0).all()
    assert curve[-1] < curve[0]
    _, held_out = hold_out_blocks(run, 0.2, 3)
    own = x[held_out].permute(2, 1, 0).contiguous()
    with torch.no_grad():
        y = of.placement.split(x[held_out])[0].T.contiguous()
        blocks = flow.log_prob_blocks(own, y, flow.view(of))
    value = -sum(float(block.sum()) for block in blocks) / len(held_out) / of.placement.n_rows
    assert value == pytest.approx(float(curve[-1]), abs=2e-4)
    assert (found.facts["steps"] < 120) == (patience == 1)
