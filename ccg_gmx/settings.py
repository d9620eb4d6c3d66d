"""Base of every settings model: frozen, and an unknown key is an error rather than a silent no-op.

Settings live beside the code they steer; ``cycle/config.py`` only composes them.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen pydantic model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
