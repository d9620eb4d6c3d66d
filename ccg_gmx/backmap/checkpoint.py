"""Model files: the flow, the kinds it knows, and the system it was trained on; readable with ``weights_only=True``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from ccg_gmx.backmap.model import BackmapFlow, BackmapSettings
from ccg_gmx.backmap.system import Atoms, BackmapSystem, make_system
from ccg_gmx.errors import CheckpointError
from ccg_gmx.flow.checkpoint import read_torch, write_torch
from ccg_gmx.molecule.coordinate import Coordinate

FORMAT, VERSION = "ccg_gmx.backmap", 2


@dataclass(frozen=True, eq=False)
class BackmapModel:
    """What a model file holds.

    Attributes:
        flow: float64.
        system: the system of the training.
        info: facts of the training: frames, held-out likelihood, what was left out.
    """

    flow: BackmapFlow
    system: BackmapSystem
    info: dict[str, Any]


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
        "beads": list(system.bead_names),
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
        system = make_system(Atoms.from_dict(content["atoms"]), content["beads"], content["reference"].numpy())
    except (KeyError, TypeError, RuntimeError, ValidationError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {str(error).splitlines()[0]})", remedy="train again"
        ) from error
    flow.requires_grad_(False)
    return BackmapModel(flow, system, content["info"])
