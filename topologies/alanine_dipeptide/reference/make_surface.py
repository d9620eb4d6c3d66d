"""Make surface.npz: two independent AWH runs of alanine dipeptide in (phi, psi), compared and put together.

    .venv/bin/python topologies/alanine_dipeptide/reference/make_surface.py

With its default options it repeats the runs behind the surface that is shipped (60 ns each; 40 minutes on two cores).
AWH, GROMACS' own adaptive biasing: doi:10.1063/1.4890371. Stop it at any time: run again, it goes on from the last
checkpoint of mdrun.
"""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click

from ccg_gmx.commands.progress import Bar
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import Mdp
from ccg_gmx.engine.parallel import report_steps, run_all
from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.reference import load_reference, read_awh, save_reference
from ccg_gmx.free_energy.surface import Basin, delta_f, noise_floor, rmsd_kT
from ccg_gmx.records import FreeEnergySurface
from ccg_gmx.units import thermal_energy

HERE = Path(__file__).resolve().parent
STEPS_PER_NS = 1_000_000
STEPS_BETWEEN_SURFACES = 5_000_000
C7EQ = Basin(name="C7eq", ranges={"phi": (-180, 0), "psi": (-180, 180)})
C7AX = Basin(name="C7ax", ranges={"phi": (0, 180), "psi": (-180, 180)})


@dataclass(frozen=True)
class Run:
    """One AWH run: ``ld_seed`` of its noise, ``gen_seed`` of its first velocities, its length and its folder."""

    ld_seed: int
    gen_seed: int
    ns: float
    folder: Path

    @property
    def steps(self) -> int:
        """Length in steps of 1 fs."""
        return round(self.ns * STEPS_PER_NS)


def sample(run: Run) -> tuple[Path, ...]:
    """Run to the end, from its checkpoint if there is one; return one surface file (.xvg) per time written."""
    gmx = Gmx.find()
    tpr = run.folder / "awh.tpr"
    if not tpr.exists():
        every = min(STEPS_BETWEEN_SURFACES, run.steps)
        mdp = Mdp.read(HERE / "awh.mdp").with_options(
            nsteps=run.steps,
            ld_seed=run.ld_seed,
            gen_seed=run.gen_seed,
            nstenergy=every,
            nstlog=every,
            awh_nstout=every,
        )
        system = HERE.parent
        gmx.grompp(mdp, system / "conf.gro", system / "topol.top", tpr, index=HERE / "index.ndx")
    result = gmx.mdrun(tpr, run.folder, name="awh", steps_total=run.steps, progress=report_steps)
    return gmx.awh(result.edr, tpr, run.folder / "surface.xvg")


def compare(half_a: FreeEnergySurface, half_b: FreeEnergySurface) -> str:
    """Say in one line how far two independent surfaces agree."""
    kT = thermal_energy(half_a.temperature_K)
    differences = [delta_f(half, C7AX, C7EQ) * kT for half in (half_a, half_b)]
    return (
        f"RMSD below 8 kT {rmsd_kT(half_a, half_b):.4f} kT, noise floor {noise_floor(half_a, half_b):.2e}, "
        f"delta_f {differences[0]:.2f} and {differences[1]:.2f} kJ/mol"
    )


def make_surface(ns: float, seed: int, out: Path) -> Path:
    """Run both halves side by side and write ``out/surface.npz``; return its path."""
    runs = [Run(seed + i, seed + 100 + i, ns, out.resolve() / f"{ns:g}ns_seed{seed + i}") for i in (1, 2)]
    with closing(Bar("AWH", len(runs))) as bar:
        files = run_all(sample, runs, progress=lambda _label, done, _total: bar.update_to(done), label="AWH")
    for path_a, path_b in zip(*files, strict=True):
        if path_a != files[0][0]:  # the first is written before the first step
            time_ps = path_a.stem.rpartition("_t")[2]
            click.echo(f"{float(time_ps) / 1000:6.1f} ns: {compare(read_awh(path_a, 300.0), read_awh(path_b, 300.0))}")
    origin = (
        f"Two independent {ns:g} ns AWH runs of GROMACS {Gmx.find().version} (awh.mdp, "
        f"ld-seed {runs[0].ld_seed} and {runs[1].ld_seed}, gen-seed {runs[0].gen_seed} and {runs[1].gen_seed}), "
        "300 K, 1 fs, no constraints; 100 x 100 points."
    )
    target = out / "surface.npz"
    save_reference(target, read_awh(files[0][-1], 300.0), read_awh(files[1][-1], 300.0), origin)
    return target


@click.command()
@click.option("--ns", type=click.FloatRange(min=0.01), default=60.0, show_default=True, help="Length of each run.")
@click.option("--seed", type=int, default=100, show_default=True, help="The runs' seeds follow from it.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/alanine_dipeptide_reference"))
def main(ns: float, seed: int, out: Path) -> None:
    """Make the reference surface of alanine dipeptide; run again with the same options, it resumes.

    Example: make_surface.py --ns 0.2 --out runs/quick_look
    """
    try:
        path = make_surface(ns, seed, out)
    except CcgError as error:
        click.echo(f"make_surface: {error}", err=True)
        sys.exit(error.exit_code)
    reference = load_reference(path)
    click.echo(f"{path}: {compare(reference.half_a, reference.half_b)}")


if __name__ == "__main__":
    main()
