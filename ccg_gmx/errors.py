"""One error tree. Every error a user can cause says what was found, what was expected and what to do, in one line."""

from __future__ import annotations

from pathlib import Path


class CcgError(Exception):
    """Base of all errors that ``ccg`` prints as one line, without a traceback.

    Args:
        found: what was found.
        expected: what was expected instead.
        remedy: what the user can do.
    """

    exit_code = 2

    def __init__(self, found: str, *, expected: str | None = None, remedy: str | None = None) -> None:
        self.found, self.expected, self.remedy = found, expected, remedy
        parts = [found.rstrip(".")]
        if expected:
            parts.append(f"expected {expected.rstrip('.')}")
        if remedy:
            parts.append(remedy.rstrip("."))
        super().__init__("; ".join(" ".join(part.split()) for part in parts))

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip back from a worker process with the message and fields intact."""
        return (_rebuild, (type(self), self.args, dict(self.__dict__)))


def _rebuild(cls: type[CcgError], args: tuple[object, ...], state: dict[str, object]) -> CcgError:
    error = cls.__new__(cls)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error


class SettingsError(CcgError):
    """A workflow file or an option is wrong."""


class TopologyError(CcgError):
    """A topology holds something the package cannot or must not use (constraints, virtual sites, bad atom index)."""


class TrajectoryError(CcgError):
    """A trajectory is truncated, empty, or does not belong to its topology."""


class StoreError(CcgError):
    """The run folder cannot be written or holds something that is not ours."""


class CheckpointError(CcgError):
    """A model file has the wrong version or does not fit the system."""


class ToolMissingError(CcgError):
    """A program the job needs is not installed."""


class ToolVersionError(CcgError):
    """A program is installed in a version that cannot do the job."""


class ToolError(CcgError):
    """An external program failed; subclasses name the tool.

    Args:
        tool: name of the program, ``gmx grompp`` for instance.
        reason: the decisive line of its output.
        log: file with the whole output.
        remedy: what the user can do.
    """

    def __init__(self, tool: str, reason: str, *, log: Path | None = None, remedy: str | None = None) -> None:
        self.tool, self.reason, self.log = tool, reason, log
        where = f" (whole output: {log})" if log else ""
        super().__init__(f"{tool} failed: {reason}{where}", remedy=remedy)


class GromppError(ToolError):
    """``gmx grompp`` refused its input."""


class MdrunError(ToolError):
    """``gmx mdrun`` stopped before its last step."""


class GmxDumpError(ToolError):
    """``gmx dump`` could not read its file."""


class GmxEnergyError(ToolError):
    """``gmx energy`` could not read its file."""


class PlumedError(ToolError):
    """``plumed driver`` failed."""


class LammpsError(ToolError):
    """LAMMPS could not read or evaluate a model."""


class PluginError(ToolError):
    """The PLUMED plug-in could not be compiled, linked or loaded, or gives a wrong answer."""
