"""``ccg backmap``: train on fine frames, restore coarse ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ccg_gmx.commands.progress import progress_bar

if TYPE_CHECKING:
    from ccg_gmx.backmap.jobs import Target, TrainRequest


class _RestoreByDefault(click.Group):
    """``ccg backmap MODEL CG_TRAJ`` is short for ``ccg backmap restore MODEL CG_TRAJ``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["restore", *args]
        return super().parse_args(ctx, args)


@click.group("backmap", cls=_RestoreByDefault)
def backmap() -> None:
    """From beads back to atoms: any molecule, exact beads, log-likelihoods.

    `ccg backmap MODEL CG_TRAJ -o OUT.xtc` restores; `ccg backmap restore --help` lists its options.

    Example: ccg backmap train md.tpr md.xtc --beads backbone -o protein.pt
    """


@backmap.command("train")
@click.argument("topology", type=click.Path(path_type=Path))
@click.argument("trajectories", nargs=-1, metavar="[TRAJ...]", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("backmap.pt"), show_default=True)
@click.option(
    "--beads",
    default="backbone",
    show_default=True,
    help="backbone (N, CA, C), ca, atom names with commas, or a mapping file.",
)
@click.option("--structure", type=click.Path(path_type=Path), default=None, help="Reference [the first frame].")
@click.option("--start", type=float, default=0.0, help="Leave out frames before this time, ps.")
@click.option("--stride", type=click.IntRange(min=1), default=1, show_default=True, help="Use every so-manyth frame.")
@click.option("--steps", type=click.IntRange(min=1), default=1500, show_default=True, help="Of the training, at most.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Frames in a step.")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), default=3e-3, show_default=True)
@click.option(
    "--held-out", type=click.FloatRange(min=0, max=0.9), default=0.15, show_default=True, help="Part of runs."
)
@click.option("--patience", type=click.IntRange(min=1), default=6, show_default=True, help="Looks without improvement.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def backmap_train(
    topology: Path, trajectories: tuple[Path, ...], out: Path, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Learn to restore atoms from a user's own fine trajectories (.xtc, .trr, .dcd) of a .tpr or .psf.

    TOPOLOGY may be a workflow file of kind backmap (workflows/chignolin_backmap.yaml), which then says everything; its
    fine runs are made in MODEL.md. `ccg run` does that too, restores frames and scores them.
    Solvent and ions are left out. Writes MODEL and MODEL.held_out.npz, the frames that the score card compares with.
    Interrupted, it goes on when the same command is given again. On several processes: torchrun --nproc-per-node N -m
    ccg_gmx.cli backmap train ...

    Example: ccg backmap train md.tpr md.xtc --beads ca -o protein.pt
    """
    from ccg_gmx.backmap.jobs import train_from_files

    first = int(os.environ.get("RANK", "0")) == 0
    if topology.suffix in (".yaml", ".yml"):
        request = _request_of_file(topology, trajectories, out, quiet or not first)
    else:
        request = _request(topology, trajectories, out, options)
    say = (lambda line: click.echo(line, err=True)) if first and not quiet else None
    with progress_bar("backmap", quiet or not first) as bar:
        report = None if bar is None else (lambda step, steps, _: bar(step, steps))
        facts = train_from_files(request, report, say)
    if first:
        click.echo(json.dumps(facts, indent=1) if as_json else _train_text(facts, out))


def _request_of_file(file: Path, trajectories: tuple[Path, ...], out: Path, quiet: bool) -> TrainRequest:
    """What a workflow file says about training; its fine runs are made first, or gone on with."""
    from ccg_gmx.commands.progress import Bar
    from ccg_gmx.cycle.backmap.config import BackmapWorkflow
    from ccg_gmx.cycle.backmap.run import training_request
    from ccg_gmx.cycle.workflow_file import read_workflow
    from ccg_gmx.errors import SettingsError

    if trajectories:
        raise SettingsError(f"{file.name} with trajectories", expected="a workflow file alone: it names its own")
    workflow = read_workflow(file, (), {"backmap": BackmapWorkflow}).absolute(file.resolve().parent)
    return training_request(workflow, out, None if quiet else Bar)


def _request(topology: Path, trajectories: tuple[Path, ...], out: Path, options: dict[str, Any]) -> TrainRequest:
    from ccg_gmx.backmap.jobs import TrainRequest
    from ccg_gmx.backmap.model import BackmapSettings
    from ccg_gmx.backmap.train import BackmapTraining
    from ccg_gmx.errors import SettingsError

    if not trajectories:
        raise SettingsError(f"no trajectory of {topology.name}", expected="one or more .xtc, .trr or .dcd files")
    training = BackmapTraining(
        steps=options["steps"],
        batch=options["batch"],
        learning_rate=options["learning_rate"],
        held_out_fraction=options["held_out"],
        patience=options["patience"],
    )
    return TrainRequest(
        topology,
        trajectories,
        options["beads"],
        out,
        options["structure"],
        options["stride"],
        options["start"],
        BackmapSettings(seed=options["seed"]),
        training,
        options["seed"],
    )


def _train_text(facts: dict[str, Any], out: Path) -> str:
    lines = [f"{facts['frames']} frames, {facts['steps']} steps, {facts['held_out_frames']} frames held out"]
    if facts["nll_per_atom_held_out"] is not None:
        lines.append(
            f"-ln q per atom, held out: {facts['nll_per_atom_start']:.3f} before, "
            f"{facts['nll_per_atom_held_out']:.3f} at best"
        )
    if facts["blocks_outside_support"]:
        lines.append(
            f"{100 * facts['blocks_outside_support']:.2f} % of the blocks lie outside of their supports: left out"
        )
    return "\n".join([*lines, f"written: {out}"])


@backmap.command("restore")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("coarse", metavar="CG_TRAJ", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Restored frames, .xtc or .trr.")
@click.option("--samples", type=click.IntRange(min=1), default=1, show_default=True, help="Fine frames per coarse one.")
@click.option("--candidates", type=click.IntRange(min=1), default=8, show_default=True, help="Draws of each block.")
@click.option("--rounds", type=click.IntRange(min=1), default=2, show_default=True, help="Draws of each frame.")
@click.option("--sweeps", type=click.IntRange(min=0), default=0, show_default=True,
              help="Times side chains are drawn anew when all stands: fewer overlaps, no weights.")  # fmt: skip
@click.option("--weights", is_flag=True, help="Energies and log-weights; needs --tpr of the molecule in vacuum.")
@click.option("--tpr", type=click.Path(path_type=Path), default=None, help="Run input: energies, or another molecule.")
@click.option("--structure", type=click.Path(path_type=Path), default=None, help="Reference of another molecule.")
@click.option("--minimise", "top", type=click.Path(path_type=Path), default=None, metavar="TOPOL.TOP",
              help="Minimise every frame with GROMACS, bead atoms frozen.")  # fmt: skip
@click.option("--minimise-steps", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--report", is_flag=True, help="Score card: OUT.card.json and OUT.card.html.")
@click.option("--stride", type=click.IntRange(min=1), default=1, show_default=True, help="Use every so-manyth frame.")
@click.option("--frames", type=click.IntRange(min=1), default=None, help="At most so many coarse frames.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def backmap_restore(model: Path, coarse: Path, out: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Restore a coarse trajectory: atoms on the beads, exactly, and ln q of every frame in OUT.npz.

    CG_TRAJ holds the beads, or all atoms, whose beads are then taken. MODEL is a file of `ccg backmap train`, or the
    folder of a finished `ccg run` of the cycle, whose flows and energies are then used. Of each block (a side chain for
    one) several candidates are drawn and one without overlaps is preferred, and so with frames; log_choice in OUT.npz
    keeps the weights exact. --candidates 1 --rounds 1 is the plain flow. Interrupted, it goes on when the same command
    is given again.

    Example: ccg backmap protein.pt coarse.xtc -o fine.xtc --samples 4 --report
    """
    from ccg_gmx.backmap.jobs_restore import RestoreRequest, restore_from_files
    from ccg_gmx.report.backmap_page import write_card

    how = {name: options.pop(name) for name in ("tpr", "structure", "candidates", "rounds", "sweeps")}
    target = _target(model, **how)
    request = RestoreRequest(coarse, out, **options)
    with progress_bar("restore", quiet) as bar:
        facts, card = restore_from_files(request, target, bar)
    if card is not None:
        facts["files"] += write_card(card, facts, out)
    click.echo(json.dumps(facts, indent=1) if as_json else _restore_text(facts))


def _target(model: Path, tpr: Path | None, structure: Path | None, candidates: int, rounds: int, sweeps: int) -> Target:
    """What restores: a model file, or the flows of a finished run."""
    from ccg_gmx.errors import SettingsError

    if not model.is_dir():
        from ccg_gmx.backmap.jobs import load_target

        return load_target(model, tpr, structure, candidates, rounds, sweeps)
    if tpr is not None or structure is not None:
        raise SettingsError(
            f"--{'tpr' if tpr else 'structure'} with the run folder {model}",
            expected="nothing: a run has its own topology",
            remedy="leave it out; other molecules need a model of ccg backmap train",
        )
    from ccg_gmx.cycle.run_flow import load_run_target

    return load_run_target(model)


def _restore_text(facts: dict[str, Any]) -> str:
    lines = [
        f"{facts['frames']} frames restored, largest bead deviation {facts['max_bead_deviation_nm']:.1e} nm, "
        f"{facts['chirality_errors']} chirality errors, clashes in {100 * facts['clash_fraction']:.2f} %",
        f"ln q per frame: mean {facts['log_q_mean']:.1f}; {1e3 * facts['seconds_per_frame']:.1f} ms per frame",
    ]
    if facts.get("note"):
        lines.append(facts["note"])
    if facts.get("kish_fraction_median") is not None:
        lines.append(f"kish_fraction of the samples of one coarse frame: median {facts['kish_fraction_median']:.2g}")
    if facts.get("minimised"):
        row = facts["minimised"]
        lines.append(f"minimised {row['frames']} frames, largest bead deviation {row['max_bead_deviation_nm']:.1e} nm")
    for kind in ("bonds", "angles", "torsions") if "card" in facts else ():
        card = facts["card"]
        lines.append(f"JS of {kind}: at most {card[f'js_{kind}_max']:.3f} nats ({card[f'js_{kind}_worst']})")
    if "forward_ess_fraction" in facts.get("card", {}):
        card = facts["card"]
        lines.append(
            f"held-out frames: kish_fraction median {card['kish_fraction_median']:.2f}, "
            f"forward_ess_fraction {card['forward_ess_fraction']:.2f}"
        )
    return "\n".join([*lines, *(f"written: {path}" for path in facts["files"])])
