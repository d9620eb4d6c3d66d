"""BAR between held-out fine frames and draws, as the summary asks for it in every basin."""

from __future__ import annotations

import numpy as np

from ccg_gmx.cycle.stages.draws import HeldOut
from ccg_gmx.cycle.summary import _bar_gap


def held_out(shift: float, frames: int = 400) -> HeldOut:
    """Frames of N(0, 1) and draws of N(0.3, 1.2^2), ln Z of p ``shift`` too high."""
    rng = np.random.default_rng(0)

    def log_w(x):
        return -0.5 * x**2 + 0.5 * ((x - 0.3) / 1.2) ** 2 + np.log(1.2) + shift

    fine, drawn = rng.standard_normal(frames), 0.3 + 1.2 * rng.standard_normal((frames, 4))
    return HeldOut(np.zeros((frames, 2)), np.repeat([0, 1], frames // 2), log_w(fine), log_w(drawn))


def test_gap_is_what_f_is_off_by() -> None:
    held = held_out(0.4)
    gap = _bar_gap([held, held], np.zeros(400), np.ones(400, dtype=bool))
    assert gap is not None
    assert 0 < gap["error"] < 0.1
    assert abs(gap["gap"] + 0.4) < 4 * gap["error"]


def test_no_overlap_leaves_the_basin_out() -> None:
    held = held_out(0.0)
    rows = np.ones(400, dtype=bool)
    without = HeldOut(held.s, held.run, held.fine, np.full_like(held.drawn, -np.inf))
    assert _bar_gap([held, without], np.zeros(400), rows) is None
    outside = HeldOut(held.s, held.run, np.where(np.arange(400) == 3, np.inf, held.fine), held.drawn)
    assert _bar_gap([outside], np.zeros(400), rows) is None
