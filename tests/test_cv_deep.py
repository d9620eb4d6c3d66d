"""Deep collective variables and discriminants: known answers, resuming, files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from cv_systems import frames, xor

from ccg_gmx.cv.data import Column, CvData, held_out
from ccg_gmx.cv.lagged import lagged_pairs
from ccg_gmx.cv.lda import lda
from ccg_gmx.cv.model import CvModel, load_cv, save_cv
from ccg_gmx.cv.network import NetworkSettings, Training, perceptron
from ccg_gmx.cv.objectives import SlownessObjective, default_targets, squared_eigenvalues
from ccg_gmx.cv.tica import tica
from ccg_gmx.cv.train import CvSettings, learn
from ccg_gmx.errors import CheckpointError, SettingsError

SMALL = NetworkSettings(hidden=(16,), steps=500, batch=1024, learning_rate=1e-2, checkpoint_every=50)
A, B = np.diag([1.0, 0.2]), np.array([[0.5, 0.3], [0.3, 0.8]])


def two_states(total: int = 4000) -> CvData:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.multivariate_normal([0, 0], A, total), rng.multivariate_normal([1.5, 1], B, total)])
    return frames(x, state=np.repeat([0, 1], total), states=("A", "B"), run=np.repeat([0, 1], total))


# ---------------------------------------------------------------- LDA


@pytest.mark.parametrize("harmonic", [True, False])
def test_lda_of_two_gaussians_is_the_analytic_direction(harmonic: bool) -> None:
    data = two_states(40_000)
    found = lda(data.values, data.state, data.states, data.weights, 1, harmonic=harmonic, ridge=0.0)
    inverse = np.linalg.inv(A) + np.linalg.inv(B) if harmonic else np.linalg.inv(A + B)
    wanted = inverse @ np.array([1.5, 1.0])
    cosine = wanted @ found.vectors[:, 0] / np.linalg.norm(wanted) / np.linalg.norm(found.vectors)
    assert cosine > 1 - 2e-4  # angles of 1/sqrt(40,000) times a few; B lies at larger values


def test_lda_through_the_whole_road_and_weights() -> None:
    data = two_states()
    found = learn(data, CvSettings(method="lda"))
    assert found.cv[data.state == 1].mean() > found.cv[data.state == 0].mean()
    # weights that leave half of the frames give what that half gives alone
    half = np.arange(len(data.time)) % 2 == 0
    weighted = lda(data.values, data.state, data.states, np.where(half, 1.0, 0.0), 1)
    alone = lda(data.values[half], data.state[half], data.states, np.ones(half.sum()), 1)
    np.testing.assert_allclose(weighted.vectors, alone.vectors, rtol=1e-9)


def test_too_few_states_and_too_many_directions() -> None:
    data = two_states(50)
    one = dataclasses.replace(data, state=np.zeros(100, dtype=np.int64), states=("A",))
    for method in ("lda", "deep-tda"):
        with pytest.raises(SettingsError, match="one state, A"):
            learn(one, CvSettings(method=method))
    with pytest.raises(SettingsError, match="2 discriminants of 2 states"):
        learn(data, CvSettings(method="lda", count=2))


# ---------------------------------------------------------------- deep TDA


@pytest.mark.parametrize("count", [1, 2])
def test_deep_tda_reaches_its_targets(count: int) -> None:
    rng = np.random.default_rng(1)
    centres = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    x = np.concatenate([c + 0.3 * rng.normal(size=(1500, 2)) for c in centres])
    data = frames(x, state=np.repeat([0, 1, 2], 1500), states=("A", "B", "C"))
    settings = CvSettings(method="deep-tda", count=count, network=SMALL.model_copy(update={"steps": 1500}))
    found = learn(data, settings)
    wanted, widths = default_targets(3, count)
    for k in range(3):
        own = found.cv[(data.state == k) & found.held]
        np.testing.assert_allclose(own.mean(axis=0), wanted[k], atol=0.15)
        np.testing.assert_allclose(own.std(axis=0), widths[k], rtol=0.5)


# ---------------------------------------------------------------- deep TICA


def test_deep_tica_finds_a_slow_product_that_no_linear_combination_shows() -> None:
    flip, total = 0.05, 12_000
    values, hidden = xor(total, flip, 0.2, np.random.default_rng(2))
    data = frames(values)
    linear = learn(data, CvSettings(method="tica", lag_ps=1.0))
    assert abs(linear.timescales[0].eigenvalues[0]) < 0.05
    assert any("not slow" in word for word in linear.warnings)
    found = learn(
        data, CvSettings(method="deep-tica", lag_ps=1.0, network=SMALL.model_copy(update={"hidden": (16, 16)}))
    )
    assert abs(np.corrcoef(found.cv[:, 0], hidden)[0, 1]) > 0.97
    # the eigenvalue of the transition matrix of this run itself, which the network cannot exceed beyond its noise
    matrix = np.array([[np.sum((hidden[:-1] == a) & (hidden[1:] == b)) for b in (-1, 1)] for a in (-1, 1)], dtype=float)
    exact = np.linalg.eigvals(matrix / matrix.sum(axis=1, keepdims=True)).real.min()
    assert exact - 0.04 < found.timescales[0].eigenvalues[0] < exact + 0.005
    assert found.scores["held_out"] == pytest.approx(exact**2, abs=0.08)


def test_the_loss_is_the_sum_of_squared_eigenvalues() -> None:
    rng = np.random.default_rng(3)
    x = np.cumsum(rng.normal(size=(500, 3)), axis=0)
    pairs = lagged_pairs(frames(x, log_w=rng.normal(size=500), weighting="start"), 2.0)
    wanted = (tica(x, pairs, 3, ridge=0.0).eigenvalues ** 2).sum()
    parts = [torch.from_numpy(a) for a in (x[pairs.first], x[pairs.second], pairs.weight)]
    assert float(squared_eigenvalues(*parts)) == pytest.approx(wanted, rel=1e-4)


def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    values, _ = xor(2000, 0.05, 0.2, np.random.default_rng(4))
    pairs = lagged_pairs(frames(values), 1.0)
    settings = NetworkSettings(hidden=(8,), steps=120, batch=256, checkpoint_every=50, evaluate_every=10)

    def training(path: Path | None) -> tuple[torch.nn.Sequential, Training]:
        network = perceptron(2, (8,), 1, seed=0)
        return network, Training(network, SlownessObjective(values, pairs, None), settings, {"data": "d"}, 1, path)

    whole, straight = training(None)
    wanted = straight.run()
    _, broken = training(tmp_path / "t.pt")
    broken.run(stop_after=73)
    resumed, again = training(tmp_path / "t.pt")
    assert again.step == 73
    assert again.run() == wanted
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_training_is_not_continued_with_other_data(tmp_path: Path) -> None:
    values, _ = xor(1000, 0.05, 0.2, np.random.default_rng(5))
    settings = CvSettings(method="deep-tica", lag_ps=1.0, network=NetworkSettings(hidden=(4,), steps=5, batch=64))
    first = learn(frames(values), settings, checkpoint=tmp_path / "t.pt")
    same = learn(frames(values), settings, checkpoint=tmp_path / "t.pt")
    np.testing.assert_array_equal(first.cv, same.cv)
    with pytest.raises(CheckpointError, match="with other data"):
        learn(frames(values + 1e-3 * values**2), settings, checkpoint=tmp_path / "t.pt")


def test_training_stops_when_held_out_frames_no_longer_gain() -> None:
    """Noise alone: nothing to learn, so that held-out loss soon ends it."""
    data = frames(np.random.default_rng(6).normal(size=(400, 6)))
    settings = NetworkSettings(hidden=(32,), steps=2000, batch=256, evaluate_every=5, patience=10)
    found = learn(data, CvSettings(method="deep-tica", lag_ps=1.0, network=settings))
    assert found.history is not None
    assert found.history.stopped_early
    assert len(found.history.loss) < 1000
    assert any("follow the noise" in word for word in found.warnings)


def test_held_out_blocks_are_whole_and_seeded() -> None:
    run = np.repeat([0, 1], 100)
    held = held_out(run, 0.2, 10, seed=1)
    assert held[:100].sum() == held[100:].sum() == 20
    assert (held.reshape(-1, 10).sum(axis=1) % 10 == 0).all()
    assert (held == held_out(run, 0.2, 10, seed=1)).all()
    assert (held != held_out(run, 0.2, 10, seed=2)).any()


# ---------------------------------------------------------------- files


def test_a_model_comes_back_from_its_file(tmp_path: Path) -> None:
    columns = (Column("phi", "rad", (-np.pi, np.pi), "TORSION ATOMS=1,2,3,4"), Column("d"))
    rng = np.random.default_rng(7)
    model = CvModel(
        "deep-tica", columns, rng.normal(size=3), np.ones(3), (rng.normal(size=(4, 3)), rng.normal(size=(2, 4))),
        (rng.normal(size=4), rng.normal(size=2)), {"seed": 3},
    )  # fmt: skip
    save_cv(model, tmp_path / "m.pt")
    again = load_cv(tmp_path / "m.pt")
    values = rng.normal(size=(5, 2))
    np.testing.assert_array_equal(again(values), model(values))
    assert (again.columns, again.info, again.names) == (columns, {"seed": 3}, ("cv1", "cv2"))
    (tmp_path / "m.pt").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_cv(tmp_path / "m.pt")


def test_other_periods_than_that_of_an_angle_are_refused() -> None:
    with pytest.raises(SettingsError, match="periodic from 0 to 1"):
        Column("x", domain=(0.0, 1.0))
