"""The schema of ``engine:`` against what the settings themselves accept, by the keywords that it uses."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from ccg_gmx.cycle.kinds import json_schema
from ccg_gmx.engine.settings import EngineSettings


def valid(value: Any, schema: dict[str, Any]) -> bool:
    """Judge a value as the JSON Schema specification does, for the keywords that this schema has."""
    known = {"title", "description", "default", "type", "pattern", "properties", "additionalProperties", "enum"}
    assert set(schema) <= known | {"anyOf", "items", "minimum"}, "a keyword that this judge does not know"
    types = {"object": dict, "string": str, "boolean": bool, "integer": int, "array": list, "null": type(None)}
    listed = schema.get("type", [])
    wanted = tuple(types[name] for name in ([listed] if isinstance(listed, str) else listed))
    if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted)):
        return False
    if "anyOf" in schema and not any(valid(value, one) for one in schema["anyOf"]):
        return False
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        return False
    if isinstance(value, dict):
        known_keys = schema.get("properties", {})
        return all(key in known_keys and valid(item, known_keys[key]) for key, item in value.items())
    if isinstance(value, list) and not all(valid(item, schema.get("items", {})) for item in value):
        return False
    if isinstance(value, int) and value < schema.get("minimum", value):
        return False
    return value in schema.get("enum", [value])


@pytest.mark.parametrize(
    "value",
    [
        *("gmx", "gmxapi", "auto", "lammps", "", "gmx "),
        *(
            {},
            {"driver": "gmxapi"},
            {"driver": "lammps"},
            {"drive": "gmx"},
            {"workers": 0},
            {"workers": 2, "gpu": True},
        ),
        *(["gmx"], 3, None, {"mdrun_flags": ["-nb", "cpu"], "gmx": None}, {"gmx": 5}),
    ],
    ids=repr,
)
def test_schema_and_settings_agree(value: Any) -> None:
    schema = json_schema()
    assert schema["properties"]["engine"]["$ref"] == "#/$defs/EngineSettings"
    try:
        EngineSettings.model_validate(value)
        accepted = True
    except ValidationError:
        accepted = False
    assert valid(value, schema["$defs"]["EngineSettings"]) is accepted
