"""Output folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ccg_gmx.errors import StoreError


def replace_folder(folder: Path, files: Mapping[str, str]) -> None:
    """Write text files beside ``folder``, then put the finished folder in its place.

    Args:
        folder: where they go; one of that name is replaced.
        files: path within the folder -> text.

    Raises:
        StoreError: if the folder cannot be written.
    """
    with new_folder(folder) as temporary:
        write_texts(temporary, files)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder; one of the target's name is replaced when the copy is whole.

    Raises:
        StoreError: if the target cannot be written.
    """
    with new_folder(target) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)


def write_texts(folder: Path, files: Mapping[str, str]) -> None:
    """Write text files into an existing folder, folders between made as needed."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that takes the place of ``folder`` when the block ends without an error.

    Raises:
        StoreError: if it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            temporary.chmod(0o755)  # mkdtemp keeps others out
            yield temporary
            old = temporary.with_name(f"{temporary.name}.old")
            if folder.exists():
                os.replace(folder, old)
            os.replace(temporary, folder)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise StoreError(
            f"cannot write {folder} ({error.strerror or error})",
            expected="a writable folder with free space",
            remedy="choose another output folder",
        ) from error
