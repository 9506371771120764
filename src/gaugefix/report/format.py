"""Numbers and settings in words, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def number(value: float | None, digits: int = 3) -> str:
    """A number for people.

    Args:
        value: None where the value is not finite or was not measured.
        digits: significant digits.

    Returns:
        Text; an en dash for None.

    Example:
        >>> number(0.0123456), number(1234567.0), number(None), number(3)
        ('0.0123', '1.23e+06', '–', '3')
    """
    return "–" if value is None else f"{value:.{digits}g}"


def facts(task: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings of a task as pairs of label and value.

    Args:
        task: the ``task`` entry of an audit.

    Returns:
        In reading order; the task's own metric comes first.
    """
    optimizer = f"{task['optimizer']}, lr {number(task['lr'])}"
    if task["momentum"]:
        optimizer += f", momentum {number(task['momentum'])}"
    return [
        *((label, number(value, 4)) for label, value in task["metric"].items()),
        ("parameters", f"{task['parameters']:,}"),
        ("weight decay λ", number(task["weight_decay"])),
        ("optimizer", f"{optimizer}, batch {task['batch_size']}"),
        (
            "trained",
            f"{task['epochs']} {'pass' if task['epochs'] == 1 else 'passes'}"
            if task["epochs"]
            else "not by this audit",
        ),
    ]


def headline(data: Mapping[str, Any]) -> str:
    """The audit in one sentence.

    Args:
        data: from `gaugefix.audit.Audit.to_dict`.

    Returns:
        What has collapsed, or that nothing has.
    """
    collapse = data["collapse"]
    if not collapse or not collapse["n_units"]:
        return "No hidden units were found to measure; what could be measured is below."
    total, dead, copies = collapse["n_units"], collapse["n_dead"], collapse["n_duplicate"]
    if dead == total:
        return f"All {total} hidden units are dead: the network computes nothing."
    if not dead + copies:
        return f"All {total} hidden units do work of their own."
    parts = [f"{dead} dead"] * (dead > 0) + [f"{copies} {'copies' if copies > 1 else 'copy'} of others"] * (copies > 0)
    return f"{dead + copies} of {total} hidden units add nothing: {' and '.join(parts)}."


def template_environment() -> Environment:
    """The Jinja2 environment of every page: names that came from a model are escaped, a missing one is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("gaugefix.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
