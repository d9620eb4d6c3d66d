"""The layers and the ladder: inverses, exact log-densities, supports, periodicity, model files."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ccg_gmx.errors import CheckpointError, TrajectoryError
from ccg_gmx.flow.affine import ConditionalAffine, halvings
from ccg_gmx.flow.checkpoint import load_flow, save_flow
from ccg_gmx.flow.conditional import FlowSettings, LadderFlow, TorsionFeatures, repeats
from ccg_gmx.flow.layers import CircularAutoregressive, RealLine, SplineCoupling
from ccg_gmx.flow.splines import wrap
from ccg_gmx.molecule.coordinate import Coordinate

torch.set_num_threads(1)

N_CONTEXT = 3
BOND = Coordinate("bond", "bond", "positive")
ANGLE = Coordinate("angle", "angle", "polar")
CIRCLE = Coordinate("circle", "torsion", "circle")
WINDOW = Coordinate("window", "torsion", "window", centre=2.1, width=1.5)
ROTOR = Coordinate("rotor", "torsion", "rotor", centre=0.4, width=2.0 * math.pi / 3.0)
BEADS = (BOND, ANGLE, WINDOW)
REST = (ROTOR, BOND, WINDOW, CIRCLE, ANGLE, BOND, ROTOR)
SMALL = {
    "couplings": 3,
    "bead_couplings": 2,
    "bins": 5,
    "width": 16,
    "coupling_width": 12,
    "circle_width": 10,
    "harmonics": 2,
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stirred(module: torch.nn.Module, size: float = 0.3, seed: int = 1) -> torch.nn.Module:
    """Give every parameter a random value, the ones that start at zero included."""
    generator = seeded(seed)
    with torch.no_grad():
        for value in module.parameters():
            value += size * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    return module


def ladder(n_s: int = 2, b=BEADS, y=REST, size: float = 0.1, **changes) -> LadderFlow:
    flow = stirred(LadderFlow(n_s, b, y, FlowSettings(**{**SMALL, **changes})), size)
    with torch.no_grad():
        for level in (flow.beads, flow.rest):
            level.line.mean += 0.1
            level.line.std *= 0.7
    return flow


def torsions(batch: int, n_s: int = 2, seed: int = 2) -> torch.Tensor:
    return math.pi * (2.0 * torch.rand(batch, n_s, generator=seeded(seed), dtype=torch.float64) - 1.0)


def coupling(n: int, moved: list[int]) -> SplineCoupling:
    shape = {"bins": 6, "bound": 2.0, "width": 10, "depth": 2, "generator": seeded(0)}
    return SplineCoupling(n, torch.tensor(moved), N_CONTEXT, **shape)


class Affine(ConditionalAffine):
    """The whole context is steady."""

    def __init__(self, n: int) -> None:
        shape = {"width": 12, "lower_width": 6, "depth": 2, "generator": seeded(0)}
        super().__init__(n, N_CONTEXT, N_CONTEXT, **shape)

    def push(self, z, context):
        return super().push(z, context, context)

    def pull(self, x, context):
        return super().pull(x, context, context)

    def push_path(self, z, context, slope):
        return super().push_path(z, context, context.detach(), slope)


LAYERS = {
    **{f"affine {n}": (n, lambda n=n: Affine(n)) for n in (1, 2, 5, 7, 12, 13)},
    "coupling": (5, lambda: coupling(5, [0, 3])),
    "coupling without steering rows": (1, lambda: coupling(1, [0])),
    "circles": (3, lambda: CircularAutoregressive(3, N_CONTEXT, 6, 10, seeded(0))),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("compiled", [True, False])
def test_layer_inverse_and_log_det(name, compiled):
    n, make = LAYERS[name]
    layer = stirred(make())
    layer.compiled = compiled
    z = torch.rand(n, 6, generator=seeded(3), dtype=torch.float64) * 5.0 - 2.5
    context = torch.randn(N_CONTEXT, 6, generator=seeded(4), dtype=torch.float64)
    x, log_det = layer.push(z, context)
    back, log_back = layer.pull(x, context)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-10)
    torch.testing.assert_close(log_back, -log_det, rtol=0, atol=1e-10)
    for i in range(z.shape[1]):
        one = context[:, i : i + 1]
        jacobian = torch.autograd.functional.jacobian(lambda v, one=one: layer.push(v[:, None], one)[0][:, 0], z[:, i])
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[i], rtol=0, atol=1e-10)


def test_real_line_inverse_and_log_det():
    line = RealLine([BOND, BOND, ANGLE, WINDOW])
    line.mean += 0.2
    line.std *= 0.5
    w = torch.randn(4, 30, generator=seeded(5), dtype=torch.float64)
    x, log_det = line.push(w)
    back, log_back = line.pull(x)
    torch.testing.assert_close(back, w, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_back, -log_det, rtol=0, atol=1e-12)
    jacobian = torch.autograd.functional.jacobian(lambda v: line.push(v[:, None])[0][:, 0], w[:, 0])
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", range(1, 60))
def test_halvings_cover_the_lower_triangle_once(n):
    padded, levels = halvings(n)
    count = torch.zeros(padded, padded, dtype=torch.int64)
    for block, start, top, bottom in levels:
        for first in range(start, padded, block):
            count[first + top : first + top + bottom, first : first + top] += 1
    assert n <= padded <= 1.25 * n + 1
    assert torch.equal(count, torch.ones_like(count).tril(-1))


@pytest.mark.parametrize("n", [1, 3, 6, 7, 20])
def test_affine_reaches_any_covariance(n):
    factor = torch.randn(n, n, generator=seeded(6), dtype=torch.float64)
    covariance = factor @ factor.T + 0.1 * torch.eye(n, dtype=torch.float64)
    layer = Affine(n)
    layer.start_from(covariance)
    lower, _ = layer.push(torch.eye(n, dtype=torch.float64), torch.zeros(N_CONTEXT, n, dtype=torch.float64))
    torch.testing.assert_close(lower, torch.linalg.cholesky(covariance), rtol=0, atol=1e-10)


def test_fresh_affine_and_couplings_are_the_identity():
    z = torch.randn(7, 10, generator=seeded(7), dtype=torch.float64)
    context = torch.randn(N_CONTEXT, 10, generator=seeded(8), dtype=torch.float64)
    for layer in (Affine(7), coupling(7, [1, 2, 4])):
        x, log_det = layer.push(z, context)
        torch.testing.assert_close(x, z, rtol=0, atol=1e-14)
        torch.testing.assert_close(log_det, torch.zeros_like(log_det), rtol=0, atol=1e-14)


@pytest.mark.parametrize("changes", [{}, {"couplings": 0, "bead_couplings": 0}, {"couplings": 4, "depth": 1}])
def test_density_of_a_draw_is_its_log_prob(changes):
    flow, s = ladder(**changes), torsions(500)
    with torch.no_grad():
        b, y, log_q = flow.draw(s, seeded(9))
        torch.testing.assert_close(flow.log_prob(b, y, s), log_q, rtol=0, atol=1e-9)
        parts = flow.log_prob_beads(b, s) + flow.log_prob_rest(y, s, b)
        torch.testing.assert_close(parts, log_q, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("b", "y"), [((), REST), (BEADS, (ROTOR,)), ((BOND,), (WINDOW,)), ((CIRCLE,), (CIRCLE, BOND))])
def test_levels_of_few_coordinates(b, y):
    flow, s = ladder(b=b, y=y), torsions(50)
    found_b, found_y, log_q = flow.draw(s, seeded(9))
    assert found_b.shape == (50, len(b))
    assert found_y.shape == (50, len(y))
    torch.testing.assert_close(flow.log_prob(found_b, found_y, s), log_q, rtol=0, atol=1e-9)


def test_ladder_factorises():
    flow, s = ladder(), torsions(40)
    z_b, z_y = flow.base_noise(40, seeded(10))
    b, y, log_q = flow.push(s, z_b, z_y)
    b_alone, log_q_b = flow.push_beads(s, z_b)
    y_alone, log_q_y = flow.push_rest(s, b, z_y)
    assert torch.equal(b, b_alone)
    assert torch.equal(y, y_alone)
    torch.testing.assert_close(log_q_b + log_q_y, log_q, rtol=0, atol=1e-12)
    other = b.roll(1, 0)
    assert not torch.allclose(flow.log_prob_rest(y, s, other), log_q_y)


def test_samples_of_a_batch_are_independent():
    flow, s = ladder(), torsions(20)
    z_b, z_y = flow.base_noise(20, seeded(11))
    whole = flow.push(s, z_b, z_y)
    part = flow.push(s[7:9], z_b[7:9], z_y[7:9])
    for one, other in zip(whole, part, strict=True):
        torch.testing.assert_close(one[7:9], other, rtol=1e-12, atol=1e-12)


def test_log_density_is_that_of_the_whole_map():
    flow, s = ladder(), torsions(4)
    z_b, z_y = flow.base_noise(4, seeded(12))
    _, _, log_q = flow.push(s, z_b, z_y)
    n_b = len(BEADS)
    lines = torch.tensor([c.support not in ("circle", "rotor") for c in BEADS + REST])
    for i in range(4):

        def whole(z, i=i):
            b, y, _ = flow.push(s[i : i + 1], z[None, :n_b], z[None, n_b:])
            return torch.cat([b[0], y[0]])

        z = torch.cat([z_b[i], z_y[i]])
        log_det = torch.linalg.slogdet(torch.autograd.functional.jacobian(whole, z))[1]
        base = -0.5 * z[lines].square().sum() - 0.5 * len(z) * math.log(2 * math.pi)
        base = base - 0.5 * int((~lines).sum()) * math.log(2 * math.pi)
        torch.testing.assert_close(log_q[i], base - log_det, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n_s", [1, 2, 4])
def test_densities_are_periodic(n_s):
    flow, s = ladder(n_s), torsions(60, n_s)
    b, y, log_q = flow.draw(s, seeded(13))
    for i in range(n_s):
        turn = torch.zeros(n_s, dtype=torch.float64)
        turn[i] = 2.0 * math.pi
        torch.testing.assert_close(flow.log_prob(b, y, s + turn), log_q, rtol=0, atol=1e-8)
    period = torch.tensor([c.width if c.support in ("circle", "rotor") else 0.0 for c in REST], dtype=torch.float64)
    torch.testing.assert_close(flow.log_prob(b, y + period, s), log_q, rtol=0, atol=1e-8)
    torch.testing.assert_close(flow.log_prob(b, y - 3 * period, s), log_q, rtol=0, atol=1e-8)


@pytest.mark.parametrize("index", [i for i, c in enumerate(REST) if c.support in ("circle", "rotor")])
def test_density_is_continuous_across_the_end_of_a_period(index):
    flow, s = ladder(), torsions(100)
    b, y, _ = flow.draw(s, seeded(14))
    c = REST[index]
    values = []
    for edge in (c.centre - 0.5 * c.width + 1e-8, c.centre + 0.5 * c.width - 1e-8):
        y = y.clone()
        y[:, index] = edge
        values.append(flow.log_prob(b, y, s))
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-4)


def inside(values: torch.Tensor, c: Coordinate, slack: float = 0.0) -> bool:
    if c.support == "positive":
        return bool((values > 0).all())
    low, high = (0.0, math.pi) if c.support == "polar" else (c.centre - c.width / 2, c.centre + c.width / 2)
    return bool(((values >= low - slack) & (values <= high + slack)).all())


def test_many_draws_stay_in_their_support():
    flow = ladder(couplings=1)
    with torch.no_grad():
        for block in range(30):
            s = torsions(10_000, seed=block)
            b, y, log_q = flow.draw(s, seeded(100 + block))
            assert torch.isfinite(log_q).all()
            assert all(inside(v, c) for v, c in zip((*b.T, *y.T), BEADS + REST, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_noise_stays_in_its_support(dtype):
    flow = ladder(size=0.05).to(dtype)
    s = torsions(400).to(dtype)
    z_b, z_y = flow.base_noise(400, seeded(15))
    lines = torch.tensor([c.support not in ("circle", "rotor") for c in REST])
    with torch.no_grad():
        b, y, log_q = flow.push(s, 8.0 * z_b, torch.where(lines, 8.0 * z_y, z_y))
    assert torch.isfinite(log_q).all()
    assert all(inside(v, c, 1e-6) for v, c in zip((*b.T, *y.T), BEADS + REST, strict=True))


def test_no_density_outside_the_support():
    flow, s = ladder(), torsions(5)
    b, y, _ = flow.draw(s, seeded(16))
    for index, value in ((1, 0.0), (1, -0.1), (2, WINDOW.centre + 1.0), (4, -0.2), (4, math.pi)):
        outside = y.clone()
        outside[2, index] = value
        log_q = flow.log_prob(b, outside, s)
        assert log_q[2] == -math.inf
        assert torch.isfinite(log_q[[0, 1, 3, 4]]).all()


def midpoints(low: float, high: float, n: int) -> tuple[torch.Tensor, float]:
    step = (high - low) / n
    return low + step * (torch.arange(n, dtype=torch.float64) + 0.5), step


@pytest.mark.parametrize(
    ("c", "low", "high"),
    [
        (WINDOW, WINDOW.centre - 0.75, WINDOW.centre + 0.75),
        (ANGLE, 0.0, math.pi),
        (ROTOR, 0.0, ROTOR.width),
        (CIRCLE, -math.pi, math.pi),
        (BOND, 0.0, 60.0),
    ],
)
def test_one_dimensional_densities_integrate_to_one(c, low, high):
    flow = ladder(1, (), (c,))
    x, step = midpoints(low, high, 200_000)
    s = torch.full((len(x), 1), 0.7, dtype=torch.float64)
    with torch.no_grad():
        density = torch.exp(flow.log_prob(torch.zeros(len(x), 0, dtype=torch.float64), x[:, None], s))
    assert float(density.sum() * step) == pytest.approx(1.0, abs=2e-4)


def test_two_dimensional_density_integrates_to_one():
    flow = ladder(1, (WINDOW,), (ROTOR,))
    first, step_1 = midpoints(WINDOW.centre - 0.75, WINDOW.centre + 0.75, 500)
    second, step_2 = midpoints(0.0, ROTOR.width, 500)
    b, y = (grid.reshape(-1, 1) for grid in torch.meshgrid(first, second, indexing="ij"))
    with torch.no_grad():
        density = torch.exp(flow.log_prob(b, y, torch.full_like(b, -1.9)))
    assert float(density.sum() * step_1 * step_2) == pytest.approx(1.0, abs=1e-3)


def test_derivative_of_push_by_torsions_and_beads():
    flow, s = ladder(), torsions(3)
    z_b, z_y = flow.base_noise(3, seeded(17))
    b, _ = flow.push_beads(s, z_b)
    b = b.detach()

    def everything(s, b):
        y, log_q = flow.push_rest(s, b, z_y)
        b_again, log_q_b = flow.push_beads(s, z_b)
        return torch.cat([torch.sin(wrap(y)).flatten(), b_again.flatten(), log_q, log_q_b])

    assert torch.autograd.gradcheck(everything, (s.requires_grad_(), b.requires_grad_()), atol=1e-5, rtol=1e-4)


def test_derivative_by_parameters_against_finite_differences():
    flow, s = ladder(), torsions(30)
    b, y, _ = (v.detach() for v in flow.draw(s, seeded(18)))
    z = flow.base_noise(30, seeded(19))
    generator = seeded(20)
    for loss in (lambda: flow.log_prob(b, y, s).mean(), lambda: flow.push(s, *z)[2].mean()):
        for _ in range(5):
            directions = [torch.randn(v.shape, generator=generator, dtype=torch.float64) for v in flow.parameters()]
            flow.zero_grad()
            loss().backward()
            pairs = list(zip(flow.parameters(), directions, strict=True))
            slope = sum(float((value.grad * direction).sum()) for value, direction in pairs)
            ends = []
            with torch.no_grad():
                for step in (1e-6, -2e-6):
                    for value, direction in pairs:
                        value += step * direction
                    ends.append(float(loss()))
                for value, direction in pairs:
                    value += 1e-6 * direction
            assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("b", "y"), [(BEADS, REST), ((), REST), ((CIRCLE, BOND), (ROTOR,)), ((BOND,), (WINDOW,))])
def test_slope_along_the_path_is_that_of_the_density(b, y, compiled):
    """d ln q / d(b, y) found while drawing equals autograd of log_prob at the draws, with no formula in common."""
    flow, s = ladder(b=b, y=y).use_compiled(compiled), torsions(30)
    z = flow.base_noise(30, seeded(25))
    found = flow.push_path(s, *z)
    for one, other in zip(found[:3], flow.push(s, *z), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    at = [value.detach().requires_grad_() for value in found[:2]]
    expected = torch.autograd.grad(flow.log_prob(*at, s).sum(), at)
    for one, other in zip(found[3:], expected, strict=True):
        assert not one.requires_grad
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_derivatives_after_the_path_are_those_of_push():
    flow, s = ladder(), torsions(30)
    z = flow.base_noise(30, seeded(26))
    gradients = []
    for draw in (flow.push, flow.push_path):
        b, y, log_q = draw(s, *z)[:3]
        loss = torch.sin(b).sum() + torch.cos(y).sum() + log_q.mean()
        gradients.append(torch.autograd.grad(loss, list(flow.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_kernels_and_torch_operations_agree():
    flow, s = ladder(), torsions(50)
    z = flow.base_noise(50, seeded(27))
    found = []
    for compiled in (True, False):
        b, y, log_q = flow.use_compiled(compiled).push(s, *z)
        gradients = torch.autograd.grad(log_q.mean() + torch.sin(y).sum(), list(flow.parameters()))
        found.append([b, y, log_q, flow.log_prob(b, y, s), *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_repeated_torsions_are_found():
    s = torsions(6)
    with torch.no_grad():
        assert repeats(s) == 1
        assert repeats(s.repeat_interleave(4, 0)) == 4
        assert repeats(s[:1].repeat(9, 1)) == 9
        assert repeats(s.repeat_interleave(4, 0)[:-1]) == 1
        assert repeats(s[[0, 0, 0, 1, 1, 2]]) == 1
        assert repeats(s[[0, 0, 0, 0, 1, 2]]) == 1
    assert repeats(s.repeat_interleave(4, 0)) == 1


@pytest.mark.parametrize("group", [4, 16])
@pytest.mark.parametrize("compiled", [True, False])
def test_draws_that_share_torsions_are_the_same_draws(group, compiled):
    flow, s = ladder().use_compiled(compiled), torsions(5).repeat_interleave(group, 0)
    z = flow.base_noise(len(s), seeded(28))
    expected = flow.push(s, *z)
    with torch.no_grad():
        for one, other in zip(flow.push(s, *z), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_features_are_harmonics_and_pair_sums():
    s = torsions(5, 3).T
    features = TorsionFeatures(3, 2)(s)
    assert features.shape == (24, 5)
    torch.testing.assert_close(features[0], torch.cos(s[0]))
    torch.testing.assert_close(features[4], torch.cos(2 * s[1]))
    torch.testing.assert_close(features[12 + 6], torch.sin(s[0] + s[1]))
    torch.testing.assert_close(features[12 + 7], torch.sin(s[0] - s[1]))


def test_fit_scales_whitens_and_starts_at_the_data_covariance():
    source = ladder(size=0.05)
    s = torsions(4000)
    with torch.no_grad():
        b, y, _ = source.draw(s, seeded(21))
        flow = LadderFlow(2, BEADS, REST, FlowSettings(**SMALL))
        flow.fit_scales(b, y)
        for level, values in ((flow.beads, b), (flow.rest, y)):
            lines = values.T[level.order][level.n_circles :]
            w, _ = level.line.pull(lines)
            torch.testing.assert_close(w.mean(1), torch.zeros_like(w[:, 0]), rtol=0, atol=1e-12)
            torch.testing.assert_close(w.std(1, unbiased=False), torch.ones_like(w[:, 0]), rtol=0, atol=1e-12)
            context = torch.zeros(level.affine.trunk.weights[0].shape[1], len(s), dtype=torch.float64)
            z, _ = level.affine.pull(w, context, context[: flow.features.n_features])
            covariance = z @ z.T / len(s)
            torch.testing.assert_close(covariance, torch.eye(len(z), dtype=torch.float64), rtol=0, atol=0.05)
        assert flow.fitted


@pytest.mark.parametrize(("index", "value"), [(2, WINDOW.centre - 1.0), (1, -0.1), (4, 3.5), (3, math.nan)])
def test_fit_scales_refuses_values_outside_the_support(index, value):
    flow = ladder()
    b, y, _ = (v.detach().clone() for v in flow.draw(torsions(10), seeded(22)))
    y[3, index] = value
    with pytest.raises(TrajectoryError, match=f"{REST[index].name} is .* in training frame 3"):
        flow.fit_scales(b, y)


def test_float32_agrees_with_float64():
    flow, s = ladder(size=0.1), torsions(200)
    b, y, log_q = flow.draw(s, seeded(23))
    single = flow.to(torch.float32).log_prob(b.float(), y.float(), s.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), log_q, rtol=1e-3, atol=2e-3)


def test_the_seed_alone_decides_the_start():
    torch.manual_seed(1)
    first = LadderFlow(2, BEADS, REST, FlowSettings(**SMALL)).state_dict()
    torch.manual_seed(2)
    second = LadderFlow(2, BEADS, REST, FlowSettings(**SMALL)).state_dict()
    other = LadderFlow(2, BEADS, REST, FlowSettings(**SMALL, seed=1)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_model_file_round_trip(tmp_path, dtype):
    flow = ladder().to(dtype)
    save_flow(flow, tmp_path / "flow.pt")
    read = load_flow(tmp_path / "flow.pt", coordinates=(2, BEADS, REST))
    s = torsions(20).to(dtype)
    for one, other in zip(flow.draw(s, seeded(24)), read.draw(s, seeded(24)), strict=True):
        assert torch.equal(one, other)
    assert read.settings == flow.settings
    assert [path.name for path in tmp_path.iterdir()] == ["flow.pt"]


def test_model_files_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "flow.pt"
    save_flow(ladder(), path)
    good = torch.load(path, weights_only=True)
    with pytest.raises(CheckpointError, match=r"has rotor .* expected rotor .*centre 0.5"):
        load_flow(path, coordinates=(2, BEADS, (replace(ROTOR, centre=0.5), *REST[1:])))
    with pytest.raises(CheckpointError, match=r"2 \+ 3 \+ 7"):
        load_flow(path, coordinates=(2, BEADS, REST[:-1]))
    for change, message in (
        ({"version": 1}, "version 1"),
        ({"format": "other"}, "is a other file"),
        ({"n_s": 3}, "damaged"),
        ({"settings": {"colour": 1}}, "damaged"),
        ({"state": {}}, "damaged"),
    ):
        torch.save({**good, **change}, path)
        with pytest.raises(CheckpointError, match=message):
            load_flow(path)
    path.write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_flow(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_flow(tmp_path / "absent.pt")
