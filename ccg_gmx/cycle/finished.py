"""A finished run as later commands find it: results.json, the workflow it is about, and the folders of its stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ccg_gmx.cycle.config import Workflow
from ccg_gmx.cycle.store import read_json
from ccg_gmx.errors import StoreError


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a finished ``ccg run``.

    Attributes:
        folder: as given.
        content: of its results.json.
    """

    folder: Path
    content: dict[str, Any]

    @classmethod
    def open(cls, folder: Path, expected: str = "the folder of a finished run") -> FinishedRun:
        """Read results.json.

        Args:
            folder: of ``ccg run``.
            expected: what else would have been taken, for the message.

        Raises:
            StoreError: the run is not finished.
        """
        packed = folder / "results.json"
        if not packed.is_file():
            raise StoreError(
                f"{folder} has no results.json",
                expected=expected,
                remedy="`ccg status` shows where it stands; `ccg run` with the same --out resumes it",
            )
        return cls(folder, read_json(packed))

    def workflow(self) -> Workflow:
        """The cycle's workflow that the results are of.

        Raises:
            StoreError: they are of another version, or of another kind of workflow.
        """
        try:
            return Workflow.model_validate(self.content["workflow"])
        except (KeyError, TypeError, ValidationError):
            raise self.another_version() from None

    def numbered(self, key: str) -> dict[str, tuple[int, ...]]:
        """Atom numbers, from 1, of the workflow's ``coarse.beads`` or ``coarse.torsions`` by name.

        Of all of the workflow only this must be as today, so that old runs stay useful.

        Raises:
            StoreError: the results are of another version, or of another kind of workflow.
        """
        try:
            listed = self.content["workflow"]["coarse"][key]
            return {str(name): tuple(map(int, np.atleast_1d(atoms))) for name, atoms in listed.items()}
        except (KeyError, TypeError, AttributeError, ValueError):
            raise self.another_version() from None

    def stage(self, name: str) -> Path:
        """Folder of a final stage.

        Raises:
            StoreError: it is gone, or the results are of another version.
        """
        return self._there(name)[0]

    def stages(self, name: str) -> list[Path]:
        """Folders of the final stages of which there are several: ``flows`` for one.

        Raises:
            StoreError: one is gone, or the results are of another version.
        """
        return self._there(name)

    def _there(self, name: str) -> list[Path]:
        found = self.content.get(name)
        names = [found] if isinstance(found, str) else found
        if not isinstance(names, list) or not names:
            raise self.another_version()
        paths = [self.folder / "stages" / one for one in names]
        for path in paths:
            if not path.is_dir():
                raise StoreError(f"{path} is gone", remedy="`ccg run` with the same --out makes it again")
        return paths

    def another_version(self) -> StoreError:
        """What to raise where results.json lacks something."""
        return StoreError(
            f"{self.folder / 'results.json'} is of another version of ccg_gmx", remedy="run `ccg run` again"
        )
