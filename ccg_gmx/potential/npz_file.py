"""Arrays with a JSON header in one .npz: no pickle, whole or not there."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ccg_gmx.errors import CheckpointError


def save_arrays(path: Path, header: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays with a JSON header as one .npz; the file is replaced in one step."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, header=np.array(json.dumps(header)), **arrays)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_arrays(
    path: Path, file_format: str, version: int, remedy: str | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what :func:`save_arrays` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, of another format or version.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(str(arrays.pop("header")))
        found = header["format"], header["version"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error})", expected=f"a file of {file_format}", remedy=remedy
        ) from None
    if found != (file_format, version):
        wanted = f"{file_format} version {version}"
        raise CheckpointError(f"{path} is {found[0]} version {found[1]}", expected=wanted, remedy=remedy)
    return header, arrays
