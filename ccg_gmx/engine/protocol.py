"""What an engine must offer. ``Gmx`` and ``GmxApi`` do; ``tests/test_engine_contract.py`` holds both to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from ccg_gmx.engine.run_files import MdrunResult, ProgressCallback
from ccg_gmx.engine.settings import EngineSettings
from ccg_gmx.records import FloatArray


@runtime_checkable
class Engine(Protocol):
    """One GROMACS, however it is called.

    An engine is small and picklable, so that tasks can carry it to worker processes. It writes the files that its
    methods name into the folder it is given and no others; an error of the user's input is a ``ToolError``,
    ``SettingsError`` or ``StoreError`` of one line; a crash of GROMACS never ends the calling process. Runs that
    stopped go on from their checkpoint, whichever engine wrote it; with one seed every engine gives the same frames.
    """

    @property
    def path(self) -> Path:
        """The gmx program: of both engines, as file tools (grompp, dump, energy) exist in no other form."""

    @property
    def version(self) -> str:
        """Version of GROMACS, ``2025.2`` for instance."""

    @property
    def settings(self) -> EngineSettings:
        """How it uses the machine."""

    def grompp(
        self,
        mdp: Mapping[str, str] | str,
        conf: Path,
        top: Path,
        out: Path,
        *,
        index: Path | None = None,
        workdir: Path | None = None,
        maxwarn: int = 0,
    ) -> Path:
        """Make a run input file."""

    def mdrun(
        self,
        tpr: Path,
        workdir: Path,
        *,
        name: str = "run",
        steps_total: int | None = None,
        progress: ProgressCallback | None = None,
        tables: Sequence[Path] = (),
        checkpoint_minutes: float = 0.25,
        plumed: Path | None = None,
    ) -> MdrunResult:
        """Run to the end, from the last checkpoint if there is one; a finished run is not run again."""

    def rerun(
        self, tpr: Path, trajectory: Path, workdir: Path, *, tables: Sequence[Path] = ()
    ) -> dict[str, FloatArray]:
        """Compute the energy terms of existing frames, ``[T]`` kJ/mol each."""

    def energies(self, edr: Path) -> dict[str, FloatArray]:
        """Read all terms of an energy file, ``[T]`` each."""

    def dump(self, tpr: Path) -> str:
        """Return what ``gmx dump -s`` prints about a run input file."""

    def awh(self, edr: Path, tpr: Path, out: Path) -> tuple[Path, ...]:
        """Write the surfaces of an AWH run."""
