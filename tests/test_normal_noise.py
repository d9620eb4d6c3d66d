"""The stream of normal numbers: distribution, independence, repetition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from ccg_gmx.molecule.normal_noise import NormalNoise

COUNT = 2_000_000


@pytest.fixture(scope="module")
def numbers() -> np.ndarray:
    return NormalNoise(5).fill(torch.empty(COUNT, dtype=torch.float64)).numpy()


def test_distribution_is_normal(numbers: np.ndarray):
    """Kolmogorov-Smirnov at p > 1e-4, moments within four standard errors, tails as frequent as they should be."""
    assert stats.kstest(numbers, "norm").pvalue > 1e-4
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs((numbers**power).mean() - mean) < 4 * np.sqrt(variance / COUNT)
    for limit in (3.0, 4.0):
        expected = 2 * stats.norm.sf(limit) * COUNT
        assert abs((np.abs(numbers) > limit).sum() - expected) < 4 * np.sqrt(expected)


def test_neighbours_generators_and_pairs_are_independent(numbers: np.ndarray):
    """Correlations of numbers and of their squares at the lags of the eight generators and of cosine with sine."""
    for lag in (1, 2, 7, 8, 9, 15, 16, 17, 32, 66):
        for values in (numbers, numbers**2, np.abs(numbers)):
            correlation = np.corrcoef(values[:-lag], values[lag:])[0, 1]
            assert abs(correlation) < 4.5 / np.sqrt(COUNT)
    by_place = numbers.reshape(-1, 16)
    assert np.abs(np.corrcoef(by_place.T) - np.eye(16)).max() < 4.5 / np.sqrt(COUNT / 16)


def test_numbers_are_box_and_mullers_transform():
    """Sixteen numbers are radius times cosine and sine of eight pairs of uniform ones."""
    block = NormalNoise(1).fill(torch.empty(16, dtype=torch.float64)).numpy()
    words = xoshiro_words(np.random.SeedSequence(1).generate_state(32, np.uint64).reshape(4, 8), 2)
    radius = np.sqrt(-2 * np.log((words[0] + 1) * 2.0**-53))
    np.testing.assert_allclose(block[:8], radius * np.cos(2 * np.pi * words[1] * 2.0**-53 - np.pi), atol=2e-15 * 8)
    np.testing.assert_allclose(block[8:], radius * np.sin(2 * np.pi * words[1] * 2.0**-53 - np.pi), atol=2e-15 * 8)


def xoshiro_words(state: np.ndarray, count: int) -> np.ndarray:
    """The upper 53 bits of xoshiro256++ in plain integers, ``[count, 8]``."""
    mask, words = 2**64 - 1, []

    def turned(x: int, k: int) -> int:
        return ((x << k) | (x >> (64 - k))) & mask

    columns = [[int(word) for word in column] for column in state.T]
    for _ in range(count):
        row = []
        for s in columns:
            row.append((turned((s[0] + s[3]) & mask, 23) + s[0] & mask) >> 11)
            shifted = s[1] << 17 & mask
            s[2] ^= s[0]
            s[3] ^= s[1]
            s[1] ^= s[2]
            s[0] ^= s[3]
            s[2] ^= shifted
            s[3] = turned(s[3], 45)
        words.append(row)
    return np.array(words, dtype=np.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(5,), (16,), (3, 7, 3)])
def test_any_shape_and_both_types(shape: tuple[int, ...], dtype: torch.dtype, numbers: np.ndarray):
    filled = NormalNoise(5).fill(torch.full(shape, torch.nan, dtype=dtype))
    assert filled.dtype == dtype
    expected = torch.from_numpy(numbers[: filled.numel()]).to(dtype).reshape(shape)
    torch.testing.assert_close(filled, expected, rtol=0, atol=0)


def test_a_saved_state_goes_on_with_the_same_numbers():
    noise = NormalNoise(3)
    noise.fill(torch.empty(100))
    again = NormalNoise.from_state(noise.state())
    assert torch.equal(again.fill(torch.empty(50)), noise.fill(torch.empty(50)))
    assert not torch.equal(again.state(), NormalNoise(3).state())


def test_seeds_give_other_streams():
    first, second = (NormalNoise(seed).fill(torch.empty(50_000, dtype=torch.float64)) for seed in (1, 2))
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 4.5 / np.sqrt(50_000)


@pytest.mark.parametrize("state", [torch.zeros(31, dtype=torch.int64), torch.zeros(32)])
def test_what_is_no_state_is_refused(state: torch.Tensor):
    with pytest.raises(ValueError, match="32 int64"):
        NormalNoise.from_state(state)
