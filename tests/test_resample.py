"""Block bootstrap: runs keep their frames' number and place, blocks are contiguous, every frame is as likely."""

from __future__ import annotations

import numpy as np
import pytest

from ccg_gmx.errors import CcgError
from ccg_gmx.flow.resample import resample_blocks

RUN = np.concatenate([np.full(100, 3), np.full(50, 1), np.full(7, 2), [5]])


def test_every_run_keeps_its_frames_in_place() -> None:
    taken = resample_blocks(RUN, 10, np.random.default_rng(0))
    np.testing.assert_array_equal(RUN[taken], RUN)
    assert taken.dtype == np.int64


def test_interleaved_runs() -> None:
    run = np.arange(60) % 3
    taken = resample_blocks(run, 4, np.random.default_rng(1))
    np.testing.assert_array_equal(run[taken], run)


def test_blocks_are_neighbours_on_the_circle_of_a_run() -> None:
    taken = resample_blocks(RUN, 10, np.random.default_rng(2))[:100].reshape(10, 10)
    assert (np.diff(taken, axis=1) % 100 == 1).all()
    assert len(set(taken[:, 0])) > 5


def test_every_frame_is_taken_once_on_average() -> None:
    """Within five standard errors for each of 158 frames; the count of one frame has variance about 1."""
    rng, repeats = np.random.default_rng(3), 4000
    counts = sum(np.bincount(resample_blocks(RUN, 7, rng), minlength=len(RUN)) for _ in range(repeats))
    assert np.abs(counts / repeats - 1).max() < 5 / np.sqrt(repeats)


def test_error_of_a_correlated_mean() -> None:
    """The bootstrap error of the mean of an autoregressive series is its exact one, within 20 %."""
    rng, count, memory = np.random.default_rng(4), 20_000, 0.9
    noise, series = rng.standard_normal(count), np.empty(count)
    series[0] = noise[0] / np.sqrt(1 - memory**2)
    for i in range(1, count):
        series[i] = memory * series[i - 1] + noise[i]
    run = np.zeros(count, dtype=np.int64)
    means = [series[resample_blocks(run, 100, rng)].mean() for _ in range(400)]
    assert np.std(means) == pytest.approx(1 / (1 - memory) / np.sqrt(count), rel=0.2)


def test_one_block_is_refused() -> None:
    with pytest.raises(CcgError, match="1 blocks per run"):
        resample_blocks(RUN, 1, np.random.default_rng(0))
