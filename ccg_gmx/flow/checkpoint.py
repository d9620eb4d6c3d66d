"""Model files of the flow: a plain dictionary that carries its own contract, readable with ``weights_only=True``."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from ccg_gmx.errors import CheckpointError
from ccg_gmx.flow.conditional import FlowSettings, LadderFlow
from ccg_gmx.molecule.coordinate import Coordinate

FORMAT = "ccg_gmx.flow"
VERSION = 2


def write_torch(content: dict[str, Any], path: Path) -> None:
    """Write a dictionary of tensors and plain values under a temporary name, then rename it to ``path``."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.save(content, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_torch(path: Path, expected_format: str, expected_version: int) -> dict[str, Any]:
    """Read a file of ``write_torch`` without unpickling code.

    Raises:
        CheckpointError: the file is missing, unreadable, or of another format or version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", expected=f"a {expected_format} file") from error
    except Exception as error:  # torch.load raises whatever zipfile, pickle or the tensor reader raise.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read ({reason})", expected=f"a {expected_format} file", remedy="write it again"
        ) from error
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found != expected_format:
        raise CheckpointError(f"{path} is a {found} file", expected=f"a {expected_format} file")
    if content.get("version") != expected_version:
        raise CheckpointError(
            f"{path} has version {content.get('version')} of {expected_format}",
            expected=f"version {expected_version}",
            remedy="train again, or read it with the ccg_gmx release that wrote it",
        )
    return content


def save_flow(flow: LadderFlow, path: Path) -> None:
    """Write a flow: settings, coordinates with their supports, whitening buffers and parameters.

    Args:
        flow: the flow.
        path: file to write, conventionally ``.pt``.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "settings": flow.settings.model_dump(mode="json"),
        "n_s": flow.n_s,
        "b": [asdict(c) for c in flow.b],
        "y": [asdict(c) for c in flow.y],
        "dtype": str(flow.dtype).removeprefix("torch."),
        "state": flow.state_dict(),
    }
    write_torch(content, Path(path))


def load_flow(
    path: Path, *, coordinates: tuple[int, tuple[Coordinate, ...], tuple[Coordinate, ...]] | None = None
) -> LadderFlow:
    """Read a flow that ``save_flow`` wrote.

    Args:
        path: model file.
        coordinates: ``(n_s, b, y)`` of the system at hand; when given, the file must fit them exactly.

    Raises:
        CheckpointError: the file is missing, unreadable, of another format or version, or does not fit ``coordinates``.
    """
    content = read_torch(Path(path), FORMAT, VERSION)
    try:
        b, y = (tuple(Coordinate(**c) for c in content[level]) for level in ("b", "y"))
        flow = LadderFlow(content["n_s"], b, y, FlowSettings(**content["settings"]))
        flow.to({"float64": torch.float64, "float32": torch.float32}[content["dtype"]])
        flow.load_state_dict(content["state"])
    except (KeyError, TypeError, RuntimeError, ValidationError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {str(error).splitlines()[0]})", remedy="train again"
        ) from error
    if coordinates is not None:
        _check_fit(flow, coordinates, Path(path))
    return flow


def _check_fit(
    flow: LadderFlow, coordinates: tuple[int, tuple[Coordinate, ...], tuple[Coordinate, ...]], path: Path
) -> None:
    n_s, b, y = coordinates
    if (flow.n_s, len(flow.b), len(flow.y)) != (n_s, len(b), len(y)):
        raise CheckpointError(
            f"{path} is for {flow.n_s} + {len(flow.b)} + {len(flow.y)} coordinates",
            expected=f"{n_s} + {len(b)} + {len(y)} (s, b, y)",
            remedy="use the model of this system, or train again",
        )
    for ours, theirs in zip(flow.b + flow.y, tuple(b) + tuple(y), strict=True):
        if ours != theirs:
            raise CheckpointError(
                f"{path} has {ours.name} ({ours.support}, centre {ours.centre:.4f}, width {ours.width:.4f})",
                expected=f"{theirs.name} ({theirs.support}, centre {theirs.centre:.4f}, width {theirs.width:.4f})",
                remedy="use the model of this system, or train again",
            )
