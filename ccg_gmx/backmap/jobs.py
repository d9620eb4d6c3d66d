"""What ``ccg backmap`` does, from files to files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ccg_gmx.backmap.checkpoint import BackmapModel, load_model, save_model
from ccg_gmx.backmap.data import HeldOut, Source, read_fine, read_mapped_source, read_source
from ccg_gmx.backmap.model import BackmapFlow, BackmapSettings
from ccg_gmx.backmap.restore import Energy
from ccg_gmx.backmap.restorer import Restorer
from ccg_gmx.backmap.sampling import Sampler
from ccg_gmx.backmap.system import (
    BackmapSystem,
    bead_names,
    make_system,
    make_system_on,
    mapped_names,
    names_a_file,
    relabelled,
)
from ccg_gmx.backmap.train import BackmapTraining, state_paths, train_backmap
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.settings import EngineSettings
from ccg_gmx.errors import SettingsError, TopologyError, TrajectoryError
from ccg_gmx.molecule.energy import ForceField
from ccg_gmx.molecule.structure import read_structure
from ccg_gmx.molecule.topology import parse_tpr_dump
from ccg_gmx.molecule.votca_xml import read_mapping
from ccg_gmx.records import FloatArray
from ccg_gmx.units import thermal_energy

HELD_OUT_FRAMES = 2000
"""Held-out frames kept beside the model for its score card, at most."""


@dataclass(frozen=True)
class TrainRequest:
    """What to train on.

    Attributes:
        topology: .tpr or .psf.
        trajectories: fine frames.
        beads: choice of beads: as :func:`ccg_gmx.backmap.system.bead_names`, or a mapping file.
        out: model file to write.
        structure: reference structure; None for the first frame.
        stride: every so-manyth frame.
        start_ps: leave out frames before.
        model: shape of the flow.
        training: settings.
        seed: of the held-out blocks and batches.
        engine: says which GROMACS dumps a .tpr.
    """

    topology: Path
    trajectories: tuple[Path, ...]
    beads: str
    out: Path
    structure: Path | None = None
    stride: int = 1
    start_ps: float = 0.0
    model: BackmapSettings = field(default_factory=BackmapSettings)
    training: BackmapTraining = field(default_factory=BackmapTraining)
    seed: int = 0
    engine: EngineSettings = field(default_factory=EngineSettings)


def train_from_files(request: TrainRequest, progress: Any = None, say: Any = None) -> dict[str, Any]:
    """Train a model; write it, its held-out frames and, while it trains, the state it goes on from.

    Args:
        request: what to train on.
        progress: called as ``progress(step, steps, message)``.
        say: called with lines for people.

    Returns:
        Facts of the training.
    """
    say = say or (lambda line: None)
    file = read_mapping(request.beads) if names_a_file(request.beads) else None
    names = bead_names(request.beads) if file is None else mapped_names(file)
    if file is None:
        source = read_source(request.topology, request.engine)
    else:
        source = read_mapped_source(request.topology, file, request.engine)
    if source.note:
        say(source.note)
    fine = read_fine(source, request.trajectories, request.stride, request.start_ps)
    reference = fine.positions[0] if request.structure is None else _structure(request.structure, source.kept, source)
    system = _make(source, names, reference)
    say(system.describe())
    flow = BackmapFlow.of_system(system, request.model)
    frames = relabelled(system, fine.positions)
    _check_chirality(system, frames)
    state = request.out.with_name(f"{request.out.stem}.training.pt")
    with distributed():
        trained = train_backmap(
            flow,
            system,
            frames,
            fine.run,
            request.training,
            request.seed,
            box=fine.box,
            checkpoint=state,
            progress=progress,
        )
        facts = {
            **trained.facts,
            "topology": str(request.topology),
            "trajectories": [str(path) for path in request.trajectories],
            "left_out": source.note,
            "seed": request.seed,
            "assumptions": list(system.placement.describe_supports()),
        }
        if not dist.is_initialized() or dist.get_rank() == 0:
            losses = {name: values.tolist() for name, values in trained.losses.items()}
            save_model(BackmapModel(flow, system, {**facts, "losses": losses}, file), request.out)
            chosen = trained.held_out[:: max(1, -(-len(trained.held_out) // HELD_OUT_FRAMES))]
            box = None if fine.box is None else fine.box[chosen]
            _save_held_out(held_out_path(request.out), HeldOut(frames[chosen].numpy(), box))
            for path in state_paths(state):
                if path is not None:
                    path.unlink(missing_ok=True)
    return facts


def _make(source: Source, names: Sequence[str], reference: FloatArray) -> BackmapSystem:
    if source.beads is None:
        return make_system(source.atoms, names, reference)
    return make_system_on(source.atoms, source.beads, names, reference)


class distributed:  # noqa: N801  a context manager, used like a function
    """Join the processes of torchrun for a while, if there are any; gloo, on processors."""

    def __enter__(self) -> None:
        self.joined = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
        if self.joined:
            dist.init_process_group("gloo")

    def __exit__(self, *_: object) -> None:
        if self.joined:
            dist.destroy_process_group()


def held_out_path(model: Path) -> Path:
    """Where the held-out frames of a model lie."""
    return model.with_name(f"{model.stem}.held_out.npz")


def _save_held_out(path: Path, frames: HeldOut) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.npz")
    box = {} if frames.box is None else {"box": frames.box}
    np.savez_compressed(partial, positions=frames.positions.astype(np.float32), **box)  # type: ignore[arg-type]
    os.replace(partial, path)


def read_held_out(model: Path) -> HeldOut:
    """Held-out frames of a model.

    Raises:
        TrajectoryError: there are none.
    """
    path = held_out_path(model)
    try:
        with np.load(path, allow_pickle=False) as data:
            frames = HeldOut(data["positions"].astype(np.float64), data.get("box"))
    except (OSError, ValueError, KeyError):
        frames = HeldOut(np.zeros((0, 0, 3)))
    if not len(frames):
        raise TrajectoryError(
            f"no held-out frames in {path}",
            expected="the file that the training wrote beside the model",
            remedy="keep it beside the model, or train with --held-out above 0",
        )
    return frames


def _structure(path: Path, kept: Any, source: Any) -> FloatArray:
    positions, _ = read_structure(path)
    if len(positions) not in (source.n_all, len(kept)):
        raise TopologyError(f"{path} has {len(positions)} atoms", expected=f"the {source.n_all} of the topology")
    return positions if len(positions) == len(kept) else positions[kept]


def _check_chirality(system: BackmapSystem, frames: torch.Tensor) -> None:
    wrong = int((system.placement.chirality_errors(frames) > 0).sum())
    if wrong:
        raise TrajectoryError(
            f"{wrong} of {len(frames)} training frames have a stereocentre of another handedness than the reference",
            expected="one handedness throughout",
            remedy="give --structure with the right handedness, or leave these frames out",
        )


# --- restoration --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Target:
    """What restores, and what its frames can be compared with.

    Attributes:
        restorer: draws atoms on beads.
        note: what was left out, for people.
        energy: makes the function that gives energies in kT of frames, for weights; raises where they are no Boltzmann
            exponent.
        held_out: reads fine frames that the training never saw; raises where there are none.
    """

    restorer: Restorer
    note: str
    energy: Callable[[], Energy]
    held_out: Callable[[], HeldOut]


def load_target(
    model: Path,
    tpr: Path | None = None,
    structure: Path | None = None,
    candidates: int = 8,
    rounds: int = 2,
    sweeps: int = 0,
) -> Target:
    """Read a model and what to restore with it.

    Args:
        model: model file.
        tpr: another topology, or that of the training for its energies; None for the system of the training.
        structure: reference of the other topology.
        candidates: draws of each block of which one is taken.
        rounds: the same of whole frames.
        sweeps: of side chains when all the rest stands; without weights.

    Raises:
        SettingsError: another topology without a reference structure.
    """
    found = load_model(model)
    if tpr is None and structure is not None:
        raise SettingsError("--structure without --tpr", expected="both, for another molecule")
    source = None if tpr is None else _source_for(found, tpr)
    note = "" if source is None else source.note
    system = _restored_system(found, source, tpr, structure)
    own = system is found.system
    return Target(
        Sampler(found.flow, system, candidates, rounds, sweeps),  # refuses kinds that the model does not know
        note,
        lambda: _no_weights() if sweeps else _file_energy(tpr, note),
        lambda: read_held_out(model) if own else _no_held_out(),
    )


def _source_for(model: BackmapModel, topology: Path) -> Source:
    if model.mapping_file is None:
        return read_source(topology)
    return read_mapped_source(topology, model.mapping_file)


def _restored_system(
    found: BackmapModel, source: Source | None, tpr: Path | None, structure: Path | None
) -> BackmapSystem:
    if source is None or (source.atoms.names == found.system.atoms.names and structure is None):
        return found.system
    if structure is None:
        raise SettingsError(
            f"{tpr} is another molecule than that of the training, without a structure",
            expected="--structure FILE.gro, whose handedness the restored frames keep",
        )
    return _make(source, found.system.bead_names, _structure(structure, source.kept, source))


def _no_weights() -> Energy:
    raise SettingsError(
        "--weights with --sweeps",
        expected="one of them: the density of swept frames is not known",
        remedy="leave out --sweeps, and raise --candidates",
    )


def _no_held_out() -> HeldOut:
    raise SettingsError(
        "--report for another molecule than that of the training",
        expected="held-out fine frames, which only the molecule of the training has",
        remedy="leave out --report",
    )


def _file_energy(tpr: Path | None, note: str) -> Energy:
    """Energies in kT of frames, by a .tpr.

    Raises:
        SettingsError: no .tpr, or not the whole of what it holds is restored.
        TopologyError: constraints, cut-offs or terms that the energies do not cover.
    """
    if tpr is None or tpr.suffix != ".tpr":
        raise SettingsError("--weights without --tpr", expected="the .tpr of the molecule in vacuum")
    if note:
        raise SettingsError(
            f"--weights for a molecule in solvent ({note})",
            expected="the whole of the .tpr, a molecule in vacuum",
            remedy="without its solvent the energy of the solute is no Boltzmann exponent: leave out --weights",
        )
    topology = parse_tpr_dump(Gmx.find().dump(tpr))
    return reduced_energy(ForceField(topology), topology.run.temperature_K)


def reduced_energy(force_field: Callable[[torch.Tensor], torch.Tensor], temperature_K: float) -> Energy:
    """Energies in kT of frames ``[T, N, 3]`` nm.

    Args:
        force_field: energies in kJ/mol.
        temperature_K: temperature.
    """
    kT = thermal_energy(temperature_K)

    def energy(positions: FloatArray) -> FloatArray:
        with torch.no_grad():
            values: FloatArray = force_field(torch.from_numpy(positions)).numpy()
        return values / kT

    return energy
