"""Training: an analytic target whose conditional density the flow can represent, exact resuming, refusals."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ccg_gmx.errors import CheckpointError, TrajectoryError
from ccg_gmx.flow.conditional import FlowSettings, LadderFlow
from ccg_gmx.flow.train import (
    EnergySettings,
    LikelihoodSettings,
    TrainingError,
    _own_losses,
    _resampled,
    _temper,
    hold_out_blocks,
    train_energy,
    train_likelihood,
)
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.records import CoarseSplit

torch.set_num_threads(1)

B = (Coordinate("bond", "bond", "positive"), Coordinate("angle", "angle", "polar"))
Y = (Coordinate("offset", "torsion", "window", centre=-2.0, width=2.0), Coordinate("other", "bond", "positive"))
SHAPE = FlowSettings(couplings=0, bead_couplings=0, width=24, depth=1, harmonics=2)


class LatentGaussian:
    """log/logit of (b, y) are jointly normal given one torsion s, with mean and coupling that turn with s."""

    def latent(self, b: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [b[:, 1] / math.pi, (y[:, 0] + 3.0) / 2.0]
        logits = [torch.log(part) - torch.log1p(-part) for part in parts]
        values = torch.stack([torch.log(b[:, 0]), logits[0], logits[1], torch.log(y[:, 1])], 1)
        sizes = [b[:, 0], math.pi * parts[0] * (1 - parts[0]), 2.0 * parts[1] * (1 - parts[1]), y[:, 1]]
        return values, -torch.log(torch.stack(sizes, 1)).sum(1)

    def mean_and_factor(self, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = torch.cos(s[:, 0]), torch.sin(s[:, 0])
        one = torch.ones_like(cos)
        mean = torch.stack([-2.0 + 0.1 * cos, 0.3 * sin, 0.4 * cos, -1.5 + 0.1 * sin], 1)
        zero = 0.0 * one
        rows = [
            [0.1 * one, zero, zero, zero],
            [0.2 * sin, 0.3 + 0.1 * cos, zero, zero],
            [0.2 * one, 0.2 * cos, 0.4 * one, zero],
            [0.02 * one, 0.03 * sin, 0.05 * cos, 0.1 + 0.03 * sin],
        ]
        return mean, torch.stack([torch.stack(row, 1) for row in rows], 1)

    def sample(self, s: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        mean, factor = self.mean_and_factor(s)
        z = torch.randn(len(s), 4, 1, generator=generator, dtype=torch.float64)
        v = mean + (factor @ z)[:, :, 0]
        b = torch.stack([torch.exp(v[:, 0]), math.pi * torch.sigmoid(v[:, 1])], 1)
        return b, torch.stack([-3.0 + 2.0 * torch.sigmoid(v[:, 2]), torch.exp(v[:, 3])], 1)

    def u(self, s: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Minus the normalised log-density, so that f(s) is zero and E_q[u + ln q] is the reverse KL."""
        v, log_det = self.latent(b, y)
        mean, factor = self.mean_and_factor(s)
        z = torch.linalg.solve_triangular(factor, (v - mean).unsqueeze(2), upper=False)[:, :, 0]
        log_factor = torch.log(factor.diagonal(dim1=1, dim2=2)).sum(1)
        return 0.5 * z.square().sum(1) + 2.0 * math.log(2 * math.pi) + log_factor - log_det

    def parts(self, s: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_jacobian = self.latent(b, y)[1]
        return self.u(s, b, y) + log_jacobian, log_jacobian

    def __call__(self, s: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.u(s, b, y)


TARGET = LatentGaussian()


def propose(batch: int, generator: torch.Generator) -> torch.Tensor:
    return math.pi * (2.0 * torch.rand(batch, 1, generator=generator, dtype=torch.float64) - 1.0)


def frames(count: int, seed: int) -> CoarseSplit:
    generator = torch.Generator().manual_seed(seed)
    s = propose(count, generator)
    b, y = TARGET.sample(s, generator)
    run = np.repeat(np.arange(4), count // 4)
    return CoarseSplit(s.numpy(), b.numpy(), y.numpy(), TARGET.u(s, b, y).numpy(), run)


def upper_kl(flow: LadderFlow, forward: bool, seed: int = 99, count: int = 20_000) -> tuple[float, float]:
    """Return estimate and standard error of KL(p, q) or KL(q, p), averaged over uniform s."""
    generator = torch.Generator().manual_seed(seed)
    s = propose(count, generator)
    with torch.no_grad():
        if forward:
            b, y = TARGET.sample(s, generator)
            gap = -TARGET.u(s, b, y) - flow.log_prob(b, y, s)
        else:
            b, y, log_q = flow.draw(s, generator)
            gap = TARGET.u(s, b, y) + log_q
    return float(gap.mean()), float(gap.std() / math.sqrt(count))


def test_target_is_normalised():
    """Importance sampling with a flow that knows nothing: mean weight 1 within three standard errors."""
    flow = LadderFlow(1, B, Y, SHAPE)
    split = frames(4000, 1)
    flow.fit_scales(torch.as_tensor(split.b), torch.as_tensor(split.y))
    generator = torch.Generator().manual_seed(2)
    s = propose(40_000, generator)
    with torch.no_grad():
        b, y, log_q = flow.draw(s, generator)
        w = torch.exp(-TARGET.u(s, b, y) - log_q)
    assert abs(float(w.mean()) - 1.0) < 3.0 * float(w.std()) / 200.0


def test_likelihood_reaches_the_exact_density():
    flow = LadderFlow(1, B, Y, SHAPE)
    split = frames(20_000, 3)
    settings = LikelihoodSettings(steps=300, batch=512, learning_rate=1e-2, warm_up=20, held_out_every=30)
    losses = train_likelihood(flow, split, settings, 4)
    assert losses["train"].shape == (300,)
    assert losses["held_out"].shape == (11,)
    assert losses["held_out"].min() < losses["held_out"][0] - 0.3
    for forward in (True, False):
        kl, error = upper_kl(flow, forward)
        assert -3.0 * error < kl < 0.02 + 3.0 * error


@pytest.mark.parametrize("with_data", [False, True])
def test_energies_reach_the_exact_density(with_data):
    flow = LadderFlow(1, B, Y, SHAPE)
    split = frames(2000, 5)
    flow.fit_scales(torch.as_tensor(split.b), torch.as_tensor(split.y))
    settings = EnergySettings(steps=250, batch=128, learning_rate=2e-2, warm_up=20, forward_batch=64)
    losses = train_energy(flow, TARGET, propose, split if with_data else None, settings, 6)
    names = {"reverse", "clash", "weighted", "weight_power"}
    assert set(losses) == names | ({"forward"} if with_data else set())
    assert all(values.shape == (250,) for values in losses.values())
    for forward in (True, False):
        kl, error = upper_kl(flow, forward)
        assert -3.0 * error < kl < 0.01 + 3.0 * error


def test_path_gradient_has_the_mean_of_the_full_gradient():
    """Within four standard errors for each of two parameters: the score that is left out has mean zero."""
    generator = torch.Generator().manual_seed(16)
    flow = LadderFlow(1, B, Y, SHAPE)
    split = frames(2000, 8)
    flow.fit_scales(torch.as_tensor(split.b), torch.as_tensor(split.y))
    head = flow.rest.affine.shift.weight
    settings = EnergySettings(batch=500, clash_margin=1e6, own_weighted_fraction=0.0)
    left_out, path = [], []
    for _ in range(60):
        before = generator.get_state()
        loss, parts = _own_losses(flow, TARGET.u, propose, settings, generator)
        assert parts["clash"] == 0.0
        path.append(torch.autograd.grad(loss, head)[0][:, -1])
        generator.set_state(before)
        s = propose(500, generator)
        b, y, log_q = flow.draw(s, generator)
        full = torch.autograd.grad((TARGET.u(s, b, y) + log_q).mean(), head)[0][:, -1]
        left_out.append(full - path[-1])
    left_out, path = torch.stack(left_out), torch.stack(path)
    assert (left_out.mean(0).abs() < 4.0 * left_out.std(0) / math.sqrt(60)).all()
    assert (path.mean(0).abs() > 10.0 * left_out.std(0) / math.sqrt(60)).any()


def test_path_gradient_vanishes_at_the_exact_density():
    flow = LadderFlow(1, B, Y, FlowSettings(couplings=2, width=8, coupling_width=8))
    generator = torch.Generator().manual_seed(17)
    with torch.no_grad():
        for value in flow.parameters():
            value += 0.05 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
    exact = copy.deepcopy(flow)
    settings = EnergySettings(batch=64, clash_margin=1e6, own_weighted_fraction=0.0)
    loss, _ = _own_losses(flow, lambda s, b, y: -exact.log_prob(b, y, s), propose, settings, generator)
    assert abs(float(loss.detach())) < 1e-10
    for gradient in torch.autograd.grad(loss, list(flow.parameters())):
        assert gradient.abs().max() < 1e-10


def test_clashes_are_compressed_in_the_loss_only():
    def steep(s, b, y):
        return TARGET.u(s, b, y) + torch.where(b[:, 0] > 0.14, 1e30 * b[:, 0], 0.0)

    flow = LadderFlow(1, B, Y, SHAPE)
    split = frames(2000, 9)
    flow.fit_scales(torch.as_tensor(split.b), torch.as_tensor(split.y))
    losses = train_energy(flow, steep, propose, None, EnergySettings(steps=20, batch=256, temper_from=1.0), 10)
    assert np.isfinite(losses["reverse"]).all()
    assert 0.05 < losses["clash"][0] < 0.9


class StopHereError(Exception):
    pass


@pytest.mark.parametrize("kind", ["likelihood", "energy", "everything"])
def test_resuming_is_bit_identical(tmp_path, kind):
    split = frames(400, 11)
    shape = FlowSettings(couplings=2, width=8, coupling_width=8, bins=4)

    def training(checkpoint, progress=None):
        flow = LadderFlow(1, B, Y, shape)
        if kind == "likelihood":
            settings = LikelihoodSettings(steps=25, batch=32, held_out_every=4, checkpoint_every=7, bootstrap_blocks=5)
            losses = train_likelihood(flow, split, settings, 12, checkpoint=checkpoint, progress=progress)
        else:
            plain = {"temper_from": 1.0, "own_weighted_fraction": 0.0}
            more = {"temper_from": 0.3, "own_weighted_fraction": 0.4, "group": 4, "bootstrap_blocks": 5}
            settings = EnergySettings(
                steps=25, batch=32, forward_batch=16, checkpoint_every=7, **(more if kind == "everything" else plain)
            )
            losses = train_energy(flow, TARGET, propose, split, settings, 12, checkpoint=checkpoint, progress=progress)
        return flow, losses

    def stop(done, total, message):
        assert total == 25
        assert message
        if done == 17:
            raise StopHereError

    whole, whole_losses = training(None)
    with pytest.raises(StopHereError):
        training(tmp_path / "state.pt", stop)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 14
    steps = []
    for _ in range(2):  # The second time finds a finished training.
        resumed, losses = training(tmp_path / "state.pt", lambda done, total, message: steps.append(done))
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
        assert all(np.array_equal(whole_losses[name], losses[name]) for name in whole_losses)
    assert steps == list(range(15, 26))
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_state_of_another_training_is_refused(tmp_path):
    path = tmp_path / "state.pt"
    settings = LikelihoodSettings(steps=2, batch=8)
    shape = FlowSettings(couplings=0, bead_couplings=0, width=8)
    train_likelihood(LadderFlow(1, B, Y, shape), frames(80, 13), settings, 1, checkpoint=path)
    for split, seed, other in (
        (frames(80, 14), 1, settings),
        (frames(80, 13), 2, settings),
        (frames(80, 13), 1, LikelihoodSettings(steps=3, batch=8)),
    ):
        with pytest.raises(CheckpointError, match=r"another (data|seed|settings)"):
            train_likelihood(LadderFlow(1, B, Y, shape), split, other, seed, checkpoint=path)
    wide = LadderFlow(1, B, Y, FlowSettings(couplings=0, bead_couplings=0, width=9))
    with pytest.raises(CheckpointError, match="another shape"):
        train_likelihood(wide, frames(80, 13), settings, 1, checkpoint=path)


def test_a_loss_that_is_not_a_number_stops_the_training():
    flow = LadderFlow(1, B, Y, SHAPE)
    settings = EnergySettings(steps=5, batch=8, temper_from=1.0)

    def broken(s, b, y):
        return torch.full_like(b[:, 0], math.nan)

    with pytest.raises(TrainingError, match="loss is nan at training step 0"):
        train_energy(flow, broken, propose, None, settings, 1)
    assert all(torch.isfinite(value).all() for value in flow.parameters())

    def kinked(s, b, y):
        return torch.sqrt(0.0 * b[:, 0])

    with pytest.raises(TrainingError, match="gradient is nan at training step 0"):
        train_energy(flow, kinked, propose, None, settings, 1)
    assert all(torch.isfinite(value).all() for value in flow.parameters())


def test_wrong_input_is_refused():
    flow = LadderFlow(1, B, Y, SHAPE)
    split = frames(40, 15)
    with pytest.raises(TrainingError, match="forward_fraction"):
        train_energy(flow, TARGET.u, propose, split, EnergySettings(forward_fraction=0.0), 1)
    split.y[3, 0] = 0.5
    with pytest.raises(TrajectoryError, match=r"offset is 0\.5 in training frame 3"):
        train_likelihood(flow, split, LikelihoodSettings(), 1)
    empty = CoarseSplit(*(array[:0] for array in (split.s, split.b, split.y, split.u, split.run)))
    with pytest.raises(TrajectoryError, match="no fine frames"):
        train_likelihood(flow, empty, LikelihoodSettings(), 1)


def test_beta_rises_in_equal_ratios():
    settings = EnergySettings(steps=100, temper_from=0.25, temper_fraction=0.4)
    factors = [_temper(step, settings) for step in range(100)]
    assert factors[0] == pytest.approx(0.25)
    assert factors[20] == pytest.approx(0.5)
    assert factors[40:] == [1.0] * 60
    assert set(np.round(np.diff(np.log(factors[:41])), 12)) == {round(math.log(4.0) / 40, 12)}
    assert _temper(0, EnergySettings(temper_from=0.25, temper_fraction=0.0)) == 1.0
    assert _temper(0, EnergySettings(temper_from=1.0)) == 1.0


def test_a_tempered_training_sees_the_energy_at_the_raised_temperature():
    """The volume element stays as it is: u at factor 0.25 is a quarter of the energy less ln|J|."""
    seen = []

    class Recorder:
        def __call__(self, s, b, y):
            raise AssertionError("u is not what is asked for at a raised temperature")

        def parts(self, s, b, y):
            seen.append(TARGET.parts(s, b, y))
            return seen[-1]

    flow = LadderFlow(1, B, Y, SHAPE)
    split = frames(2000, 5)
    flow.fit_scales(torch.as_tensor(split.b), torch.as_tensor(split.y))
    with torch.no_grad():
        flow_before = copy.deepcopy(flow)
    settings = EnergySettings(steps=1, batch=64, temper_from=0.25, clash_margin=1e6, own_weighted_fraction=0.0)
    losses = train_energy(flow, Recorder(), propose, None, settings, 3)
    energy, log_jacobian = seen[0]
    generator = torch.Generator().manual_seed(3)
    s = propose(64, generator)
    _, _, log_q = flow_before.draw(s, generator)
    expected = (0.25 * energy - log_jacobian + log_q).mean()
    assert losses["reverse"][0] == pytest.approx(float(expected.detach()))


def test_a_target_without_parts_cannot_be_tempered():
    with pytest.raises(TrainingError, match="no energy apart"):
        train_energy(LadderFlow(1, B, Y, SHAPE), TARGET.u, propose, None, EnergySettings(temper_from=0.5), 1)


def test_weighted_draws_need_whole_groups():
    with pytest.raises(ValidationError, match="multiple of group"):
        EnergySettings(batch=100, own_weighted_fraction=0.1, group=8)


def test_bootstrap_is_the_same_in_both_trainings_and_another_for_every_flow():
    run = np.repeat([0, 1], [60, 40])
    first, second = (LadderFlow(1, B, Y, SHAPE.model_copy(update={"seed": seed})) for seed in (1, 2))
    assert torch.equal(_resampled(run, 0, first), torch.arange(100))
    assert torch.equal(_resampled(run, 5, first), _resampled(run, 5, first))
    assert not torch.equal(_resampled(run, 5, first), _resampled(run, 5, second))
    split = frames(400, 7)
    whitening = []
    for blocks in (0, 5):
        flow = LadderFlow(1, B, Y, SHAPE)
        settings = LikelihoodSettings(steps=1, batch=8, held_out_fraction=0.0, bootstrap_blocks=blocks)
        train_likelihood(flow, split, settings, 1)
        whitening.append(flow.rest.line.mean)
        taken = _resampled(split.run, blocks, flow)
        expected = flow.rest.line.latent(torch.as_tensor(split.y)[taken].T[flow.rest.order])[0].mean(1)
        torch.testing.assert_close(flow.rest.line.mean[:, 0], expected)
    assert not torch.allclose(*whitening)


def test_held_out_frames_are_one_block_of_each_run():
    run = np.repeat([0, 1, 2], [100, 50, 8])
    train, held_out = hold_out_blocks(run, 0.2, 3)
    assert sorted([*train, *held_out]) == list(range(158))
    for label, length in ((0, 20), (1, 10), (2, 2)):
        frames_of_run = held_out[run[held_out] == label]
        assert len(frames_of_run) == length
        assert (np.diff(frames_of_run) == 1).all()
    assert len(hold_out_blocks(run, 0.0, 3)[1]) == 0
