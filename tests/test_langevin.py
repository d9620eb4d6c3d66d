"""The Langevin integrator on systems whose averages are known, to order and within error bars."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_topology import PEROXIDE

from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import fine_run
from ccg_gmx.errors import CheckpointError, TrajectoryError
from ccg_gmx.molecule.energy import ForceField
from ccg_gmx.molecule.implicit import ImplicitSolvent, ImplicitSolventSettings, SolvatedForceField
from ccg_gmx.molecule.langevin import Langevin, LangevinState
from ccg_gmx.molecule.langevin_fused import FusedSteps, kernel_jobs
from ccg_gmx.molecule.langevin_kernel import BaoabUpdate
from ccg_gmx.molecule.topology import Topology, parse_tpr_dump
from ccg_gmx.molecule.trajectory import make_whole, read_frames
from ccg_gmx.units import BOLTZMANN_KJ_MOL_K, thermal_energy

ALANINE = Path(__file__).resolve().parent.parent / "topologies" / "alanine_dipeptide"
KT = thermal_energy(300.0)
SIGMA = 5.0
"""Every statistical assertion is at five standard errors of independent walkers: one false alarm in 1.7 million."""


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Harmonic:
    """Wells k/2 x^2, one spring constant per atom."""

    def __init__(self, k: list[float]) -> None:
        self.k = torch.tensor(k, dtype=torch.float64)[:, None]

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 0.5 * (self.k * x**2).sum((1, 2)), self.k * x


def quartic(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """U / kT = x^4 / 4 - x^2 / 2: two wells at +-1 nm, a barrier of kT / 4."""
    return KT * (0.25 * x**4 - 0.5 * x**2).sum((1, 2)), KT * (x**3 - x)


def averages(
    langevin: Langevin, start: torch.Tensor, warm: int, steps: int, every: int = 1
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Mean and standard error over walkers of x^2 and m v^2 / kT, each ``[N]``, time-averaged within each walker."""
    sums = torch.zeros(2, *start.shape, dtype=torch.float64)

    def collect(state: LangevinState, _: torch.Tensor) -> None:
        sums[0] += state.positions**2
        sums[1] += langevin.masses * state.velocities**2 / langevin.kT

    state = langevin.run(langevin.start(start), warm)
    before = state.step
    state = langevin.run(state, steps, every=every, callback=collect)
    count = state.step // every - before // every
    walkers = (sums / count).mean(-1).numpy()  # over the axes, which are alike
    error = walkers.std(1, ddof=1) / math.sqrt(walkers.shape[1])
    mean = walkers.mean(1)
    return (mean[0], error[0]), (mean[1], error[1])


def test_harmonic_wells_temperature_equipartition_and_exact_positions():
    """BAOAB samples positions exactly at any stable step; <m v^2> is short by the factor 1 - (omega dt)^2 / 4."""
    masses, k, dt = [1.0, 12.0, 16.0], [200.0, 400.0, 1000.0], 0.05
    omega_dt = np.sqrt(np.divide(k, masses)) * dt
    assert omega_dt.max() > 0.7  # a long step
    langevin = Langevin(Harmonic(k), masses, 300.0, 5.0, dt, seed=1)
    (x2, x2_error), (v2, v2_error) = averages(langevin, torch.zeros(4000, 3, 3, dtype=torch.float64), 200, 200, every=2)
    assert np.all(x2_error / (KT / np.array(k)) < 3e-3)
    assert np.all(np.abs(x2 - KT / np.array(k)) < SIGMA * x2_error)
    assert np.all(np.abs(v2 - (1 - omega_dt**2 / 4)) < SIGMA * v2_error)
    assert np.all(np.abs(x2 * np.array(k) / KT - 1) < 0.012)


def test_equipartition_at_a_short_step():
    """At omega dt = 0.05 the kinetic temperature of every atom is the thermostat's within the error bar."""
    masses = [1.0, 12.0, 16.0]
    k = [mass * (0.05 / 0.02) ** 2 for mass in masses]
    langevin = Langevin(Harmonic(k), masses, 300.0, 10.0, 0.02, seed=2)
    _, (v2, error) = averages(langevin, torch.zeros(2000, 3, 3, dtype=torch.float64), 200, 400, every=4)
    temperatures, error = 300.0 * v2, 300.0 * error
    assert np.all(error < 1.0)
    assert np.all(np.abs(temperatures - 300.0 * (1 - 0.05**2 / 4)) < SIGMA * error)


def test_velocities_are_of_second_order():
    """Slope of ln|1 - <m v^2>/kT| against ln dt is 2 within five standard errors."""
    steps = np.array([0.4, 0.8, 1.2])
    deviation, relative = [], []
    for index, dt in enumerate(steps):
        langevin = Langevin(Harmonic([1.0]), [1.0], 1.0 / BOLTZMANN_KJ_MOL_K, 1.0, float(dt), seed=10 + index)
        _, (v2, error) = averages(langevin, torch.zeros(8000, 1, 3, dtype=torch.float64), 60, 300)
        deviation.append(1 - v2[0])
        relative.append(error[0] / abs(1 - v2[0]))
    slope, slope_error = weighted_slope(np.log(steps), np.log(deviation), np.array(relative))
    assert slope_error < 0.1
    assert abs(slope - 2) < SIGMA * slope_error


def weighted_slope(x: np.ndarray, y: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    """Slope of a straight line and its standard error."""
    weight = error**-2.0
    centre = (weight * x).sum() / weight.sum()
    spread = (weight * (x - centre) ** 2).sum()
    return float((weight * (x - centre) * y).sum() / spread), float(spread**-0.5)


@pytest.mark.slow
def test_order_of_the_configurational_error_in_a_double_well():
    """<x^2> in the wells x^4/4 - x^2/2 against quadrature at two steps: the error's order is 2 or better.

    Five standard errors of the slope are less than 1, so a method of first order would not pass.
    """
    nodes, weights = np.polynomial.legendre.leggauss(400)
    x2 = (5 * nodes) ** 2
    density = np.exp(-(x2**2) / 4 + x2 / 2) * weights
    exact = float(density @ x2 / density.sum())
    time_steps = np.array([0.2, 0.36])  # in units where kT / m = 1; at 0.4 the quartic walls are no longer stable
    errors, noise = [], []
    for index, (dt, steps) in enumerate(zip(time_steps, (4000, 1500), strict=True)):
        langevin = Langevin(quartic, [KT], 300.0, 1.0, float(dt), seed=20 + index)
        (found, error), _ = averages(langevin, torch.zeros(12000, 1, 3, dtype=torch.float64), 150, steps)
        errors.append(found[0] - exact)
        noise.append(error[0])
    magnitude = np.abs(errors)
    slope, slope_error = weighted_slope(np.log(time_steps), np.log(magnitude), np.array(noise) / magnitude)
    assert slope_error < 1 / SIGMA
    assert 2 - SIGMA * slope_error < slope < 4 + SIGMA * slope_error, (slope, slope_error)
    assert magnitude[0] < 0.005 * exact


@pytest.mark.gmx
@pytest.mark.slow
def test_mean_potential_energy_against_gromacs(gmx: Gmx, tmp_path: Path):
    """Walkers started from frames of a GROMACS sd run keep its mean potential energy.

    GROMACS' sd integrator samples positions as BAOAB does (velocity kick, half drift, noise, half drift), so the two
    agree at the same step. At four combined standard errors: one false alarm in 16,000.
    """
    mdp = fine_run(300.0, 300_000, 5, output_every=100, tau_t_ps=0.2)
    tpr = gmx.grompp(mdp, ALANINE / "conf.gro", ALANINE / "topol.top", tmp_path / "sd.tpr")
    topology = parse_tpr_dump(gmx.dump(tpr))
    read = read_frames(gmx.mdrun(tpr, tmp_path, name="sd").trajectory, topology.n_atoms, start_ps=20.0)
    x = torch.from_numpy(make_whole(read.positions, read.box, topology.bonds))
    force_field = ForceField(topology)
    theirs = force_field(x).numpy()
    blocks = np.array([block.mean() for block in np.array_split(theirs, 40)])

    langevin = Langevin(force_field.energy_and_gradient, topology.masses, 300.0, 5.0, 0.001, seed=6)
    energies: list[torch.Tensor] = []
    warm = langevin.run(langevin.start(x[:: len(x) // 128][:128]), 1000)
    langevin.run(warm, 3000, every=20, callback=lambda _, energy: energies.append(energy))
    walkers = torch.stack(energies).mean(0).numpy()
    error = math.hypot(blocks.std(ddof=1) / math.sqrt(40), walkers.std(ddof=1) / math.sqrt(128))
    assert error < 1.0  # kJ/mol; 3.5 K of the thermostat are worth as much
    assert abs(walkers.mean() - theirs.mean()) < 4 * error


def test_frictionless_run_conserves_energy():
    langevin = Langevin(Harmonic([100.0, 50.0]), [1.0, 2.0], 300.0, 0.0, 0.002, seed=4)
    state = langevin.start(torch.full((8, 2, 3), 0.1, dtype=torch.float64))

    def total(state: LangevinState) -> torch.Tensor:
        return Harmonic([100.0, 50.0])(state.positions)[0] + langevin.kinetic_energy(state.velocities)

    after = langevin.run(state, 5000)
    torch.testing.assert_close(total(after), total(state), rtol=1e-3, atol=0)
    assert (after.positions - state.positions).abs().max() > 0.01


def test_a_resumed_run_is_the_same_run(tmp_path: Path):
    langevin = Langevin(quartic, [5.0, 7.0], 300.0, 2.0, 0.05, seed=6)
    begin = langevin.start(torch.zeros(16, 2, 3, dtype=torch.float64))
    whole = langevin.run(begin, 100)
    langevin.run(begin, 37).save(tmp_path / "state.pt", extra=torch.arange(3))
    state, more = LangevinState.load(tmp_path / "state.pt")
    again = Langevin(quartic, [5.0, 7.0], 300.0, 2.0, 0.05, seed=999).run(
        state, 63
    )  # the state alone carries the noise
    assert again.step == whole.step == 100
    assert torch.equal(again.positions, whole.positions)
    assert torch.equal(again.velocities, whole.velocities)
    assert torch.equal(again.noise, whole.noise)
    assert more["extra"].tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [tmp_path / "state.pt"]


def test_seeds_and_walkers_differ_and_repeat():
    def ends(seed: int) -> torch.Tensor:
        langevin = Langevin(quartic, [5.0], 300.0, 2.0, 0.05, seed=seed)
        return langevin.run(langevin.start(torch.zeros(4, 1, 3, dtype=torch.float64)), 20).positions

    assert torch.equal(ends(1), ends(1))
    assert not torch.equal(ends(1), ends(2))
    assert len(torch.unique(ends(1))) == 12


def test_callback_and_progress_come_at_multiples_of_every():
    langevin = Langevin(quartic, [5.0], 300.0, 2.0, 0.05, seed=1)
    seen: list[int] = []
    bars: list[tuple[int, int]] = []

    def collect(state: LangevinState, energy: torch.Tensor) -> None:
        seen.append(state.step)
        torch.testing.assert_close(energy, quartic(state.positions)[0])

    state = langevin.run(langevin.start(torch.zeros(2, 1, 3, dtype=torch.float64)), 15)
    langevin.run(state, 20, every=10, callback=collect, progress=lambda done, total: bars.append((done, total)))
    assert seen == [20, 30]
    assert bars == [(5, 20), (15, 20)]


def test_a_walker_that_blows_up_is_named():
    def explosive(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        energy, gradient = quartic(x)
        return torch.where((x > 3).any(-1).any(-1), torch.nan, energy), gradient

    start = torch.zeros(5, 1, 3, dtype=torch.float64)
    start[2] = 2.9
    langevin = Langevin(explosive, [1e6], 300.0, 0.0, 0.1, seed=1)
    state = langevin.start(start)
    state.velocities[2] = 0.3
    with pytest.raises(TrajectoryError, match=r"walker 3 of 5 .* at step 4 .*nan.*shorter time step than 0\.1 ps"):
        langevin.run(state, 50)


def test_a_force_that_is_not_finite_is_named_at_its_step_even_if_the_energy_is():
    calls = []

    def explosive(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        energy, gradient = quartic(x)
        calls.append(0)
        if len(calls) == 8:  # the first call is step 0
            gradient[1, 0, 2] = torch.nan
        return energy, gradient

    langevin = Langevin(explosive, [5.0], 300.0, 1.0, 0.01, seed=1)
    with pytest.raises(TrajectoryError, match=r"walker 2 of 3 .* at step 7"):
        langevin.run(langevin.start(torch.zeros(3, 1, 3, dtype=torch.float64)), 50)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_compiled_update_is_that_of_torch(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(1)
    x, v, gradient, noise = (torch.randn(7, 5, 3, generator=generator, dtype=dtype) for _ in range(4))
    masses = torch.tensor([1.0, 12.0, 14.0, 16.0, 1.0], dtype=torch.float64)[:, None]
    ends = []
    for compiled in (True, False):
        update = BaoabUpdate(x, masses, 0.002, 0.97, 0.1 / masses.sqrt(), compiled=compiled)
        r, w = x.clone(), v.clone()
        update.advance(r, w, gradient, noise)
        total = update.finish(w, gradient, noise[:, 0, 0].contiguous())
        assert total == pytest.approx(float(noise[:, 0, 0].sum() + w.sum()), rel=1e-4)
        ends.append((r, w))
    torch.testing.assert_close(ends[0], ends[1])
    assert not torch.equal(ends[0][0], x)


def test_calls_between_do_not_change_the_run():
    langevin = Langevin(quartic, [5.0, 7.0], 300.0, 2.0, 0.05, seed=6)
    begin = langevin.start(torch.zeros(16, 2, 3, dtype=torch.float64))
    often = langevin.run(begin, 60, every=7, callback=lambda state, energy: None)
    assert torch.equal(often.positions, langevin.run(begin, 60).positions)


def test_float32_stays_float32():
    langevin = Langevin(quartic, [5.0], 300.0, 2.0, 0.05, seed=1)
    end = langevin.run(langevin.start(torch.zeros(3, 1, 3)), 5)
    assert end.positions.dtype == end.velocities.dtype == torch.float32


PEROXIDE_NM = ((0.02, 0.09, 0.01), (0.0, 0.0, 0.0), (0.14, 0.0, 0.0), (0.16, -0.03, 0.09))
Energy = ForceField | SolvatedForceField
Build = Callable[[torch.dtype], Energy]
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def hydrogen_peroxide() -> Topology:
    """The topology with the element that its dump leaves out."""
    return replace(parse_tpr_dump(PEROXIDE), atomic_numbers=np.array([1, 8, 8, 1]))


@pytest.fixture(params=["vacuum", "gbsa"])
def peroxide(request: pytest.FixtureRequest) -> Build:
    """Energies that are compiled from end to end."""
    topology = hydrogen_peroxide()
    solvent = ImplicitSolventSettings(model="obc1") if request.param == "gbsa" else None

    def build(dtype: torch.dtype) -> Energy:
        vacuum = ForceField(topology, dtype)
        return vacuum if solvent is None else SolvatedForceField(vacuum, ImplicitSolvent(topology, solvent, dtype))

    return build


def both_ways(energy: Energy, friction: float = 5.0) -> tuple[Langevin, Langevin]:
    """The same integrator with all steps in one compiled call, and with one step after another."""
    masses = hydrogen_peroxide().masses
    functions = (energy.energy_and_gradient, lambda x: energy.energy_and_gradient(x))
    fused, plain = (Langevin(function, masses, 300.0, friction, 0.0005, seed=3) for function in functions)
    return fused, plain


def walkers(count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(PEROXIDE_NM, dtype=dtype).repeat(count, 1, 1)


def same(one: LangevinState, other: LangevinState) -> bool:
    return one.step == other.step and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("positions", "velocities", "noise")
    )


@PRECISIONS
@pytest.mark.parametrize("count", [0, 1, 16, 37])
@pytest.mark.parametrize("friction", [0.0, 5.0])
def test_fused_steps_are_the_plain_ones_bit_for_bit(peroxide: Build, dtype: torch.dtype, count: int, friction: float):
    """37 walkers leave lanes of the last vector empty in either precision, and their numbers end within a block."""
    energy = peroxide(dtype)
    fused, plain = both_ways(energy, friction)
    begin = fused.start(walkers(count, dtype))
    assert kernel_jobs(energy.energy_and_gradient, begin.positions) is not None
    end = fused.run(begin, 120)
    assert same(end, plain.run(begin, 120))
    assert not count or not torch.equal(end.positions, begin.positions)
    assert torch.equal(begin.positions, walkers(count, dtype)), "the state given is left as it is"


@PRECISIONS
def test_fused_steps_with_calls_between_and_resumed(peroxide: Build, dtype: torch.dtype):
    """Calls see the same states and energies, and may keep them; a run that stops between two calls goes on."""
    energy = peroxide(dtype)
    whole = []
    seen: list[list[tuple[LangevinState, torch.Tensor]]] = [[], [], []]
    bars: list[list[tuple[int, int]]] = [[], [], []]

    for which, langevin in enumerate((*both_ways(energy), both_ways(energy)[0])):
        state = langevin.start(walkers(5, dtype))
        for steps in (100,) if which < 2 else (1, 32, 0, 67):
            state = langevin.run(
                state,
                steps,
                every=7,
                callback=lambda now, energies, kept=seen[which]: kept.append((now, energies)),  # type: ignore[misc]
                progress=lambda done, total, kept=bars[which]: kept.append((done, total)),  # type: ignore[misc]
            )
        whole.append(state)
    assert same(whole[0], whole[1])
    assert same(whole[0], whole[2])
    assert bars[0] == bars[1] == [(done, 100) for done in range(7, 100, 7)]
    for others in seen[1:]:
        assert len(others) == len(seen[0]) == 14
        for (mine, my_energy), (theirs, their_energy) in zip(seen[0], others, strict=True):
            assert same(mine, theirs)
            assert torch.equal(my_energy, their_energy)
    for state, energies in seen[0]:
        torch.testing.assert_close(energies, energy(state.positions))


def test_one_compiled_call_is_short(peroxide: Build, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C is heard between calls, and more of them change nothing."""
    fused, plain = both_ways(peroxide(torch.float64))
    begin = fused.start(walkers(16, torch.float64))
    lengths: list[int] = []
    call = FusedSteps.__call__

    def listen(self: FusedSteps, limit: int) -> tuple[int, float]:
        done, total = call(self, limit)
        lengths.append(done)
        return done, total

    monkeypatch.setattr(FusedSteps, "__call__", listen)
    assert same(fused.run(begin, 2500), plain.run(begin, 2500))
    assert lengths == [1000, 1000, 500]
    lengths.clear()
    fused.run(fused.start(walkers(4000, torch.float64)), 12)
    assert lengths == [5, 5, 2]


@PRECISIONS
def test_fused_steps_name_walker_and_step_as_plain_ones_do(peroxide: Build, dtype: torch.dtype):
    """An atom of walker 3 that is fast beyond all bounds, and one that is nan at the start."""
    messages = []
    for langevin in both_ways(peroxide(dtype)):
        state = langevin.start(walkers(19, dtype))
        state.velocities[2, 1, 0] = 1e30 if dtype == torch.float32 else 1e200
        with pytest.raises(TrajectoryError, match=r"walker 3 of 19 .* at step 1 ") as error:
            langevin.run(state, 50, every=40)
        messages.append(str(error.value))
        state.positions[4, 0, 0] = torch.nan
        with pytest.raises(TrajectoryError, match=r"walker 5 of 19 .* at step 0 "):
            langevin.run(state, 50)
    assert messages[0] == messages[1]


@PRECISIONS
def test_fused_steps_stop_at_the_step_of_the_plain_ones_in_the_middle(peroxide: Build, dtype: torch.dtype):
    """A time step that is too long for one walker, whose bond starts far from its length."""
    messages = []
    energy = peroxide(dtype)
    for langevin in both_ways(energy, friction=0.0):
        start = walkers(19, dtype)
        start[7, 0] *= 3.0
        langevin = Langevin(langevin._energy_and_gradient, langevin.masses[:, 0], 300.0, 0.0, 0.006, seed=3)
        with pytest.raises(TrajectoryError, match=r"at step \d\d") as error:
            langevin.run(langevin.start(start), 5000)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_numbers_whose_sum_alone_is_not_finite_do_not_stop_fused_steps(peroxide: Build):
    fused, plain = both_ways(peroxide(torch.float64))
    state = fused.start(walkers(3, torch.float64))
    state.velocities[:, :, 1] = 1.2e308  # all atoms alike: the molecule moves as a whole
    assert same(fused.run(state, 3), plain.run(state, 3))


def test_only_energies_that_are_compiled_from_end_to_end_are_fused():
    topology, x = hydrogen_peroxide(), walkers(2, torch.float64)
    plain, slow, shared = (ForceField(topology, **more) for more in ({}, {"compiled": False}, {"threads": 2}))
    wet, *not_fused = (
        ImplicitSolvent(topology, ImplicitSolventSettings(model="obc2"), **more)
        for more in ({}, {"compiled": False}, {"threads": 2})
    )
    assert kernel_jobs(plain.energy_and_gradient, x) is not None
    assert kernel_jobs(SolvatedForceField(plain, wet).energy_and_gradient, x) is not None
    for other in (quartic, Harmonic([1.0]).__call__, plain.forward, lambda x: plain.energy_and_gradient(x)):
        assert kernel_jobs(other, x) is None
    for force_field in (slow, shared):
        assert kernel_jobs(force_field.energy_and_gradient, x) is None
        assert kernel_jobs(SolvatedForceField(force_field, wet).energy_and_gradient, x) is None
    for solvent in not_fused:
        assert kernel_jobs(SolvatedForceField(plain, solvent).energy_and_gradient, x) is None
    plain.others.append(torch.nn.Identity())
    assert kernel_jobs(plain.energy_and_gradient, x) is None
    assert kernel_jobs(SolvatedForceField(plain, wet).energy_and_gradient, x) is None


@pytest.mark.parametrize(
    "wrong", [{"dt_ps": 0.0}, {"friction_per_ps": -1.0}, {"masses": [0.0]}, {"temperature_K": -3.0}]
)
def test_wrong_numbers_are_refused(wrong: dict[str, object]):
    arguments = {"masses": [1.0], "temperature_K": 300.0, "friction_per_ps": 1.0, "dt_ps": 0.1, "seed": 1} | wrong
    with pytest.raises(ValueError):
        Langevin(quartic, **arguments)  # type: ignore[arg-type]


def test_positions_that_do_not_fit_the_masses_are_refused():
    with pytest.raises(ValueError, match="positions must be"):
        Langevin(quartic, [1.0, 2.0], 300.0, 1.0, 0.1, seed=1).start(torch.zeros(3, 1, 3))


def test_a_damaged_state_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "state.pt").write_bytes(b"no state")
    with pytest.raises(CheckpointError, match="cannot read the Langevin state"):
        LangevinState.load(tmp_path / "state.pt")
