"""audit.json: valid JSON, and the layout that audit.schema.json documents."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gaugefix.audit import SCHEMA_VERSION, Audit
from gaugefix.report import audit_schema


def test_a_full_audit_fits_the_schema(sample: Audit) -> None:
    schema = audit_schema()
    assert problems(json.loads(sample.to_json()), schema, schema) == []


def test_an_audit_with_nothing_measured_fits_too(sample: Audit) -> None:
    schema = audit_schema()
    nothing = dict.fromkeys(("collapse", "charges", "noise", "forecast", "certificate", "full", "run"))
    empty = replace(sample, advice=(), **nothing)
    assert problems(json.loads(empty.to_json()), schema, schema) == []


def test_the_schema_covers_every_field(sample: Audit) -> None:
    assert set(audit_schema()["properties"]) == set(sample.to_dict())
    assert re.match(audit_schema()["properties"]["schema_version"]["pattern"], SCHEMA_VERSION)


def test_every_field_is_described() -> None:
    schema = audit_schema()
    places = [schema, *schema["$defs"].values()]
    bare = [k for place in places for k, v in place["properties"].items() if "description" not in v and "$ref" not in v]
    assert bare == []


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("task", "lr"), "fast", "$.task.lr: 'fast' is not"),
        (("task", "optimizer"), "lion", "is not one of"),
        (("schema_version",), "2.0", "does not match"),
        (("advice", 0, "severity"), "panic", "$.advice[0].severity"),
        (("collapse", "units", 0, "norms"), [True], "$.collapse.units[0].norms[0]"),
        (("task", "surprise"), 1, "surprise is not in the schema"),
    ],
)
def test_the_check_sees_what_is_wrong(sample: Audit, path: tuple[Any, ...], value: object, complaint: str) -> None:
    schema, data = audit_schema(), json.loads(sample.to_json())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert any(complaint in p for p in problems(data, schema, schema))


def test_numbers_that_are_not_finite_become_null(sample: Audit) -> None:
    odd = replace(sample, training=(1.0, float("nan"), float("inf")), seconds=float("-inf"))

    def refuse(token: str) -> None:
        raise AssertionError(token)

    data = json.loads(odd.to_json(), parse_constant=refuse)
    assert data["training"] == [1.0, None, None]
    assert data["seconds"] is None
    assert data["forecast"]["classes"][0]["drives"][3] is None  # nan for a dead unit


def test_the_file_is_the_text(build: Callable[..., Audit], tmp_path: Path) -> None:
    text = build().to_json(tmp_path / "new folder" / "audit.json")
    assert (tmp_path / "new folder" / "audit.json").read_text(encoding="utf-8") == text


# The part of JSON Schema that the file uses, so that no validator has to be installed.

_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
_KNOWN = {
    "$schema", "$defs", "title", "description", "type", "properties", "required", "additionalProperties", "items",
    "enum", "pattern", "anyOf", "$ref",
}  # fmt: skip


def problems(value: Any, schema: dict[str, Any], root: dict[str, Any], path: str = "$") -> list[str]:
    """Where and how a value breaks a schema; empty if it fits."""
    assert set(schema) <= _KNOWN, f"the checker does not know {set(schema) - _KNOWN}"
    if "$ref" in schema:
        return problems(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, path)
    if "anyOf" in schema:
        tried = [problems(value, option, root, path) for option in schema["anyOf"]]
        return [] if [] in tried else [p for ps in tried for p in ps]
    wanted = schema.get("type", list(_TYPES))
    names = [wanted] if isinstance(wanted, str) else wanted
    if not any(_is(value, name) for name in names):
        return [f"{path}: {value!r} is not {names}"]
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{path}: {value!r} is not one of {schema['enum']}")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{path}: {value!r} does not match {schema['pattern']}")
    if isinstance(value, list) and "items" in schema:
        found += [p for i, v in enumerate(value) for p in problems(v, schema["items"], root, f"{path}[{i}]")]
    if isinstance(value, dict):
        known = schema.get("properties", {})
        found += [f"{path}: {name} is missing" for name in schema.get("required", ()) if name not in value]
        for name, v in value.items():
            rest = schema.get("additionalProperties", {})
            if name in known:
                found += problems(v, known[name], root, f"{path}.{name}")
            elif rest is False:
                found.append(f"{path}: {name} is not in the schema")
            else:
                found += problems(v, rest, root, f"{path}.{name}")
    return found


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _TYPES[name])
