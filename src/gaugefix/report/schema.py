"""The documented layout of audit.json."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def audit_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `gaugefix.audit.Audit.to_dict`, with a description of every field.

    Returns:
        The schema.

    Example:
        >>> audit_schema()["title"]
        'gaugefix audit'
    """
    text = resources.files("gaugefix.report").joinpath("audit.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
