"""What a workflow file can describe, by its key ``kind``."""

from __future__ import annotations

from typing import Any

from ccg_gmx.cycle.config import Workflow
from ccg_gmx.settings import Settings

MODELS: dict[str, type[Settings]] = {"cycle": Workflow}


def json_schema(kind: str = "cycle") -> dict[str, Any]:
    """Return the JSON schema of workflow files of a kind."""
    return MODELS[kind].model_json_schema()
