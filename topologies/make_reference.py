"""Make the reference surfaces of the example systems: many walkers under a static bias on the torsions.

    .venv/bin/python topologies/make_reference.py alanine_dipeptide

Short rounds refine the bias, then one long round under a bias that no longer changes is reweighted exactly; nothing of
the rounds before enters the result. Stop it at any time: run again, it goes on from its last checkpoint; run again
with more --steps, it goes on from the end. Walkers are those of ``ccg_gmx.molecule.langevin`` (BAOAB), in double
precision on one processor core.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path

import click
import numpy as np
import torch

from ccg_gmx.commands.progress import Bar
from ccg_gmx.cycle.system import System
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import Mdp
from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.biased_walkers import BasinVisits, BiasTarget, WeightedHistograms
from ccg_gmx.free_energy.reference import load_reference, save_marginals, save_reference
from ccg_gmx.free_energy.surface import delta_f, noise_floor, rmsd_kT
from ccg_gmx.free_energy.torsion_grid import Basin, grid_points, shifted
from ccg_gmx.molecule.implicit import ImplicitSolventSettings
from ccg_gmx.molecule.langevin import EnergyAndGradient, Langevin, LangevinState
from ccg_gmx.molecule.structure import read_structure
from ccg_gmx.molecule.topology import parse_tpr_dump
from ccg_gmx.molecule.torsion_bias import TorsionBias, biased
from ccg_gmx.records import FreeEnergySurface
from ccg_gmx.units import thermal_energy

HERE = Path(__file__).resolve().parent
TEMPERATURE_K = 300.0
DT_PS, FRICTION_PER_PS = 0.001, 2.0
BINS, GROUPS, SAMPLE_EVERY = 100, 16, 10
SAVE_EVERY = 20_000
ROUND_STEPS, ROUND_EQUILIBRATION, LAST_EQUILIBRATION = 30_000, 10_000, 100_000
AWH_SURFACE = HERE / "alanine_dipeptide" / "reference" / "awh.npz"


@dataclass(frozen=True)
class Case:
    """One system and how its torsions are biased.

    Attributes:
        folder: its folder under ``topologies``.
        beads: names and atom numbers of a bonded chain that the torsions are of.
        torsions: name -> four atom numbers.
        biased: torsions of each map of the bias.
        basins: boxes whose visits are counted; the first two give ``delta_f`` where there is one surface.
        target: what the bias aims at.
        rounds: rounds that refine the bias.
        first_estimate: surface file that every pair of torsions starts from, None for no bias at first.
        solvent: implicit solvent, None in vacuum.
    """

    folder: str
    beads: dict[str, int]
    torsions: dict[str, tuple[int, int, int, int]]
    biased: tuple[tuple[int, ...], ...]
    basins: tuple[Basin, ...]
    target: BiasTarget = field(default_factory=BiasTarget)
    rounds: int = 2
    first_estimate: Path | None = AWH_SURFACE
    solvent: ImplicitSolventSettings | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the torsions."""
        return tuple(self.torsions)

    @property
    def marginals(self) -> tuple[tuple[int, ...], ...]:
        """The whole surface of one or two torsions; all pairs and single ones of more."""
        count = len(self.torsions)
        if count <= 2:
            return (tuple(range(count)),)
        return (*combinations(range(count), 2), *((index,) for index in range(count)))


def _cores(phi: Sequence[str], psi: Sequence[str], halves: bool = False) -> tuple[Basin, ...]:
    """Boxes about the minima of the (phi, psi) of every residue, all combinations; ``halves``: of phi alone."""
    ranges = {"left": {"phi": (-150, -45)}, "right": {"phi": (40, 80)}}
    if halves:
        boxes = {name: {**box, "psi": (-180, 180)} for name, box in ranges.items()}
    else:
        sides = {"psi > 0": (30, 170), "psi < 0": (-110, -20)}
        boxes = {f"{n}, {m}": {**box, "psi": side} for n, box in ranges.items() for m, side in sides.items()}
    cores = []
    for names in product(boxes, repeat=len(phi)):
        sides_of = [(boxes[name], torsions) for name, torsions in zip(names, zip(phi, psi, strict=True), strict=True)]
        box = {
            torsion: core[axis] for core, pair in sides_of for axis, torsion in zip(("phi", "psi"), pair, strict=True)
        }
        cores.append(Basin(name="; ".join(names), ranges=box))
    return tuple(cores)


def _dipeptide(folder: str, rounds: int, solvent: ImplicitSolventSettings | None = None) -> Case:
    return Case(
        folder,
        {"C_ACE": 5, "N_ALA": 7, "CA_ALA": 9, "C_ALA": 15, "N_NME": 17},
        {"phi": (5, 7, 9, 15), "psi": (7, 9, 15, 17)},
        ((0, 1),),
        _cores(["phi"], ["psi"]),
        rounds=rounds,
        solvent=solvent,
    )


CASES = {
    "alanine_dipeptide": _dipeptide("alanine_dipeptide", rounds=0),
    "ff96_obc1": _dipeptide("alanine_dipeptide_amber96", rounds=2, solvent=ImplicitSolventSettings(model="obc1")),
    "n_butane": Case(
        "n_butane",
        {"C1": 1, "C2": 2, "C3": 3, "C4": 4},
        {"phi": (1, 2, 3, 4)},
        ((0,),),
        tuple(
            Basin(name=name, ranges={"phi": box})
            for name, box in {"trans": (140, -140), "gauche+": (40, 90), "gauche-": (-90, -40)}.items()
        ),
        target=BiasTarget(boltzmann=0.0, root=0.2, uniform=0.8),
        first_estimate=None,
    ),
    "alanine_tripeptide": Case(
        "alanine_tripeptide",
        {"C_ACE": 5, "N_1": 7, "CA_1": 9, "C_1": 15, "N_2": 17, "CA_2": 19, "C_2": 25, "N_NME": 27},
        {"phi1": (5, 7, 9, 15), "psi1": (7, 9, 15, 17), "phi2": (15, 17, 19, 25), "psi2": (17, 19, 25, 27)},
        ((0, 1), (2, 3)),
        _cores(["phi1", "phi2"], ["psi1", "psi2"], halves=True),
        BiasTarget(boltzmann=0.4, root=0.4, uniform=0.2, cap_kJ_mol=35.0),
    ),
}


class Sampler:
    """Walkers of one system, round after round, each round in a file that holds all it needs to go on."""

    def __init__(self, case: Case, walkers: int, seed: int, out: Path) -> None:
        self.case, self.walkers, self.seed, self.out = case, walkers, seed, out
        out.mkdir(parents=True, exist_ok=True)
        self.system = load_system(case, out)
        self.quadruples = [(i - 1, j - 1, k - 1, l - 1) for i, j, k, l in case.torsions.values()]  # noqa: E741
        self.energy = self.system.energy().energy_and_gradient

    def estimates(self) -> list[FreeEnergySurface]:
        """Return what is known before the first round, one surface for each map."""
        shown = [tuple(self.case.names[axis] for axis in axes) for axes in self.case.biased]
        if self.case.first_estimate is None:
            return [shifted(np.zeros((BINS,) * len(names)), names, TEMPERATURE_K) for names in shown]
        f = load_reference(self.case.first_estimate).surface.f
        return [shifted(f, names, TEMPERATURE_K) for names in shown]

    def bias(self, estimates: Sequence[FreeEnergySurface]) -> TorsionBias:
        """Return the bias that these estimates call for."""
        values = [self.case.target.bias(estimate) for estimate in estimates]
        return TorsionBias(self.quadruples, list(zip(self.case.biased, values, strict=True)))

    def start(self, bias: TorsionBias) -> torch.Tensor:
        """Return positions ``[W, N, 3]`` nm: torsions drawn where the bias is highest, relaxed."""
        rng = np.random.default_rng(self.seed)
        points = rng.choice(grid_points(BINS), size=(40 * self.walkers, len(self.quadruples)))
        height = bias.energy(points)
        chosen = torch.from_numpy(points[height >= np.quantile(height, 0.7)][: self.walkers])
        coordinates = self.system.coordinates
        _, b, y = coordinates.split(coordinates.relabel(torch.from_numpy(self.system.structure)[None]))
        x = coordinates.join(chosen, b.expand(self.walkers, -1), y.expand(self.walkers, -1)).contiguous()
        return relaxed(biased(self.energy, bias), x)

    def round(self, index: int, bias: TorsionBias, before: LangevinState | None, steps: int) -> Round:
        """Equilibrate, then run ``steps`` steps of each walker; go on from the checkpoint if there is one."""
        equilibration = LAST_EQUILIBRATION if index == self.case.rounds else ROUND_EQUILIBRATION
        result = Round(self.case, self.walkers, equilibration, self.out / f"round_{index}.pt")
        total = biased(self.energy, bias)
        langevin = Langevin(
            total, self.system.topology.masses, TEMPERATURE_K, FRICTION_PER_PS, DT_PS, self.seed + index
        )
        if not result.resume():
            positions = self.start(bias) if before is None else before.positions
            result.state = langevin.start(positions - positions.mean(1, keepdim=True))
        with closing(Bar(f"round {index}", equilibration + steps)) as bar:
            result.run(langevin, bias, equilibration + steps, bar)
        return result


class Round:
    """Histograms and visits of the walkers under one bias."""

    def __init__(self, case: Case, walkers: int, equilibration: int, checkpoint: Path) -> None:
        self.case, self.equilibration, self.checkpoint = case, equilibration, checkpoint
        self.histograms = WeightedHistograms(case.names, case.marginals, BINS, GROUPS, TEMPERATURE_K)
        self.visits = BasinVisits(case.basins, case.names, walkers, GROUPS)
        self.state: LangevinState
        self.cpu_s = 0.0

    def resume(self) -> bool:
        """Take up the checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return False
        self.state, more = LangevinState.load(self.checkpoint)
        arrays = {key: value.numpy() for key, value in more.items()}
        self.visits.last, self.visits.entries = arrays.pop("last"), arrays.pop("entries")
        self.cpu_s = float(arrays.pop("cpu_s"))
        self.histograms.restore(arrays)
        return True

    def run(self, langevin: Langevin, bias: TorsionBias, steps: int, bar: Bar) -> None:
        """Go on until ``steps`` steps of each walker are done."""
        beta, clock = 1 / langevin.kT, time.process_time() - self.cpu_s

        def sample(now: LangevinState, _: torch.Tensor) -> None:
            if now.step > self.equilibration:
                s = bias.torsions(now.positions).numpy()
                self.histograms.add(s, beta * bias.energy(s))
                self.visits.add(s)
            if now.step % SAVE_EVERY == 0:
                self.cpu_s = time.process_time() - clock
                self.state = now
                self.save()
                bar.update_to(now.step)

        if self.state.step >= steps:
            return
        self.state = langevin.run(self.state, steps - self.state.step, every=SAMPLE_EVERY, callback=sample)
        self.cpu_s = time.process_time() - clock
        self.save()

    def save(self) -> None:
        """Write the checkpoint."""
        more = {**self.histograms.arrays(), "last": self.visits.last, "entries": self.visits.entries}
        tensors = {key: torch.from_numpy(np.array(value)) for key, value in more.items()}
        self.state.save(self.checkpoint, cpu_s=torch.tensor(self.cpu_s, dtype=torch.float64), **tensors)

    def describe(self) -> str:
        """Say how precise each marginal is and how often walkers changed basins."""
        case, kT = self.case, thermal_energy(TEMPERATURE_K)
        lines = [
            f"{self.state.step - self.equilibration} steps (after {self.equilibration}) of {len(self.visits.last)} "
            f"walkers, {self.histograms.frames} frames, "
            f"Kish fraction {self.histograms.kish_fraction:.3f}, {self.cpu_s:.0f} s of processor time"
        ]
        for marginal in case.marginals:
            half_a, half_b = self.histograms.halves(marginal)
            line = (
                f"{' '.join(half_a.names):12s} noise floor {noise_floor(half_a, half_b):.2e}, from groups "
                f"{self.histograms.group_floor(marginal):.2e}, RMSD of halves below 8 kT {rmsd_kT(half_a, half_b):.4f}"
            )
            if len(case.torsions) == len(marginal):
                groups = [self.histograms.surface(marginal, [group]) for group in range(GROUPS)]
                values = [delta_f(each, *named_basins(case)) * kT for each in (half_a, half_b, *groups)]
                with np.errstate(invalid="ignore"):  # a group that has not seen both basins yet
                    error = np.std(values[2:], ddof=1) / GROUPS**0.5
                line += f", delta_f {values[0]:.3f} and {values[1]:.3f} kJ/mol, error of their mean {error:.3f}"
            lines.append(line)
        for name, (fewest, all_of_them) in self.visits.summary().items():
            lines.append(f"entries into ({name}): {all_of_them}, fewest in a group {fewest}")
        return "\n".join(lines)


def named_basins(case: Case) -> tuple[Basin, Basin]:
    """Return the two halves that ``delta_f`` compares: positive against negative phi, gauche against trans."""
    if case.folder == "n_butane":
        return Basin(name="gauche", ranges={"phi": (-120, 120)}), Basin(name="trans", ranges={"phi": (120, -120)})
    boxes = {"positive phi": (0, 180), "negative phi": (-180, 0)}
    first, second = (Basin(name=name, ranges={"phi": box, "psi": (-180, 180)}) for name, box in boxes.items())
    return first, second


def load_system(case: Case, out: Path) -> System:
    """Return the system as grompp resolves its topology."""
    folder, gmx, tpr = HERE / case.folder, Gmx.find(), out / "system.tpr"
    if not tpr.exists():
        gmx.grompp(Mdp.read(folder / "fine.mdp"), folder / "conf.gro", folder / "topol.top", tpr)
    topology, (structure, _) = parse_tpr_dump(gmx.dump(tpr)), read_structure(folder / "conf.gro")
    torsions = {name: list(atoms) for name, atoms in case.torsions.items()}
    return System.build(topology, structure, case.beads, torsions, TEMPERATURE_K, case.solvent)


def relaxed(energy_and_gradient: EnergyAndGradient, x: torch.Tensor, steps: int = 1000) -> torch.Tensor:
    """Walk downhill, no atom further than 2 pm at once, so that clashes of turned structures dissolve."""
    for _ in range(steps):
        _, gradient = energy_and_gradient(x)
        largest = gradient.norm(dim=2).amax(1)[:, None, None]
        x = x - gradient * torch.minimum(2e-3 / largest, torch.tensor(2e-6, dtype=x.dtype))
    return x


def write_result(round_: Round, case: Case, origin: str, path: Path) -> None:
    """Write the two halves of every marginal."""
    halves = {}
    for marginal in case.marginals:
        half_a, half_b = round_.histograms.halves(marginal)
        halves[half_a.names] = (half_a, half_b)
    if len(halves) == 1:
        save_reference(path, *next(iter(halves.values())), origin)
    else:
        save_marginals(path, halves, origin)


def make_reference(name: str, steps: int, walkers: int, seed: int, out: Path) -> Path:
    """Refine the bias, run the long round and write ``out/surface.npz``; return its path."""
    case = CASES[name]
    sampler = Sampler(case, walkers, seed, out.resolve())
    estimates, state = sampler.estimates(), None
    for index in range(case.rounds):
        done = sampler.round(index, sampler.bias(estimates), state, ROUND_STEPS)
        click.echo(f"round {index}: {done.describe()}")
        estimates, state = [done.histograms.surface(axes) for axes in case.biased], done.state
    last = sampler.round(case.rounds, sampler.bias(estimates), state, steps)
    click.echo(f"last round: {last.describe()}")
    origin = (
        f"topologies/make_reference.py {name} --walkers {walkers} --seed {seed}, "
        f"{last.state.step - last.equilibration} steps of each walker: BAOAB at "
        f"{TEMPERATURE_K:g} K, {DT_PS * 1000:g} fs, friction {FRICTION_PER_PS:g}/ps, no constraints, static bias; "
        "the halves are even and odd groups of walkers."
    )
    write_result(last, case, origin, out / "surface.npz")
    return out / "surface.npz"


@click.command()
@click.argument("system", type=click.Choice(sorted(CASES)))
@click.option("--steps", type=click.IntRange(min=100), default=600_000, show_default=True, help="Of each walker.")
@click.option("--walkers", type=click.IntRange(min=GROUPS), default=512, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Default: runs/reference_SYSTEM.")
def main(system: str, steps: int, walkers: int, seed: int, out: Path | None) -> None:
    """Make the reference surface of a system; run again with the same options, it resumes.

    Example: make_reference.py n_butane --steps 20000 --out runs/quick_look
    """
    torch.set_num_threads(1)
    try:
        path = make_reference(system, steps, walkers - walkers % GROUPS, seed, out or Path(f"runs/reference_{system}"))
    except CcgError as error:
        click.echo(f"make_reference: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo(f"wrote {path}")


if __name__ == "__main__":
    main()
