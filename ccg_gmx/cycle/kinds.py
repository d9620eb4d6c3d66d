"""What a workflow file can describe, by its key ``kind``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ccg_gmx.cycle.backmap.config import BackmapWorkflow
from ccg_gmx.cycle.config import Workflow
from ccg_gmx.cycle.tables.config import TablesWorkflow
from ccg_gmx.cycle.workflow_file import read_workflow
from ccg_gmx.errors import SettingsError

AnyWorkflow = Workflow | TablesWorkflow | BackmapWorkflow
MODELS: dict[str, type[AnyWorkflow]] = {"cycle": Workflow, "tables": TablesWorkflow, "backmap": BackmapWorkflow}


def load_any(path: Path, overrides: tuple[str, ...] = ()) -> AnyWorkflow:
    """Read and validate a workflow file of any kind.

    Args:
        path: YAML file.
        overrides: ``a.b=value`` strings that replace single values (value is parsed as YAML).

    Returns:
        The workflow, its input paths absolute.

    Raises:
        SettingsError: naming the line of the file, what was found and what was expected.
    """
    return read_workflow(path, overrides, MODELS).absolute(path.resolve().parent)


def json_schema(kind: str = "cycle") -> dict[str, Any]:
    """Return the JSON schema of workflow files of a kind.

    Raises:
        SettingsError: if there is no such kind.
    """
    if kind not in MODELS:
        raise SettingsError(f"workflows of kind {kind!r}", expected=" or ".join(MODELS))
    return MODELS[kind].model_json_schema()
