"""Several small files written together: none when one of them is there already, each whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ccg_gmx.engine.run_files import storing, writable_folder
from ccg_gmx.errors import SettingsError


def refuse_to_replace(files: Iterable[Path]) -> None:
    """See whether files are there, before work that would be lost.

    Args:
        files: paths to write later.

    Raises:
        SettingsError: if one is there.
    """
    there = [path for path in files if path.exists()]
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise SettingsError(f"{there[0]}{more} exists already", remedy="choose another --out, or --force to replace it")


def write_files(files: Mapping[Path, str], *, force: bool = False) -> None:
    """Write texts under temporary names, then rename them.

    Args:
        files: path -> text.
        force: replace files that are there.

    Raises:
        SettingsError: if one is there and ``force`` is not set; nothing is written then.
        StoreError: if a folder cannot be written.
    """
    if not force:
        refuse_to_replace(files)
    for path, text in files.items():
        writable_folder(path.parent)
        partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with storing(path):
            try:
                partial.write_text(text, encoding="utf-8")
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
