"""Model files: the flow, the kinds it knows, and the system it was trained on; readable with ``weights_only=True``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from ccg_gmx.backmap.model import BackmapFlow, BackmapSettings
from ccg_gmx.backmap.system import Atoms, BackmapSystem, make_system_on
from ccg_gmx.errors import CheckpointError
from ccg_gmx.flow.checkpoint import read_torch, write_torch
from ccg_gmx.molecule.bead_file import MappingFile
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.molecule.mapping import BeadMapping

FORMAT, VERSION = "ccg_gmx.backmap", 4


@dataclass(frozen=True, eq=False)
class BackmapModel:
    """What a model file holds.

    Attributes:
        flow: float64.
        system: the system of the training.
        info: facts of the training: frames, held-out likelihood, what was left out.
        mapping_file: what its beads were made by, for other molecules; None for beads given by names of atoms.
    """

    flow: BackmapFlow
    system: BackmapSystem
    info: dict[str, Any]
    mapping_file: MappingFile | None = None


def save_model(model: BackmapModel, path: Path) -> None:
    """Write a model file, whole or not at all."""
    flow, system = model.flow, model.system
    content = {
        "format": FORMAT,
        "version": VERSION,
        "settings": flow.settings.model_dump(mode="json"),
        "kinds": [
            {
                "kind": kind,
                "label": flow.kind_flow(k).label,
                "slots": list(flow.kind_flow(k).slots),
                "coordinates": [asdict(c) for c in flow.kind_flow(k).coordinates],
            }
            for k, kind in enumerate(flow.kinds)
        ],
        "atoms": system.atoms.to_dict(),
        "bead_names": list(system.bead_names),
        "beads": _mapping_content(system.mapping),
        "mapping_file": None if model.mapping_file is None else model.mapping_file.model_dump(mode="json"),
        "reference": torch.as_tensor(system.reference),
        "info": model.info,
        "state": {
            name: value.to(torch.float64) for name, value in flow.state_dict().items() if value.is_floating_point()
        }
        | {name: value for name, value in flow.state_dict().items() if not value.is_floating_point()},
    }
    write_torch(content, path)


def load_model(path: Path) -> BackmapModel:
    """Read a model file.

    Raises:
        CheckpointError: missing, damaged, or another kind of file.
    """
    content = read_torch(Path(path), FORMAT, VERSION)
    try:
        kinds = {
            entry["kind"]: (
                entry["label"],
                tuple(Coordinate(**values) for values in entry["coordinates"]),
                tuple(entry["slots"]),
            )
            for entry in content["kinds"]
        }
        flow = BackmapFlow(kinds, BackmapSettings(**content["settings"]))
        flow.load_state_dict(content["state"])
        system = make_system_on(
            Atoms.from_dict(content["atoms"]),
            _mapping(content["beads"]),
            content["bead_names"],
            content["reference"].numpy(),
        )
        file = content["mapping_file"]
        mapping_file = None if file is None else MappingFile(**file)
    except (KeyError, TypeError, RuntimeError, ValidationError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {str(error).splitlines()[0]})", remedy="train again"
        ) from error
    flow.requires_grad_(False)
    return BackmapModel(flow, system, content["info"], mapping_file)


def _mapping_content(mapping: BeadMapping) -> dict[str, Any]:
    """Beads as plain values and tensors: groups one after the other, and their sizes."""
    return {
        "kind": mapping.kind,
        "names": list(mapping.names),
        "n_atoms": mapping.n_atoms,
        "sizes": torch.tensor([len(group) for group in mapping.atoms]),
        "atoms": torch.tensor([atom for group in mapping.atoms for atom in group]),
        "weights": torch.tensor([w for own in mapping.weights for w in own], dtype=torch.float64),
    }


def _mapping(content: dict[str, Any]) -> BeadMapping:
    sizes = content["sizes"].tolist()
    atoms, weights = (
        tuple(tuple(part.tolist()) for part in content[name].split(sizes)) for name in ("atoms", "weights")
    )
    return BeadMapping(tuple(content["names"]), atoms, weights, content["n_atoms"], content["kind"])
