"""A compression as one HTML page: before and after, what went, the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from gaugefix.report.format import number, template_environment

_SIZES = (("parameters", "parameters"), ("nonzero", "not zero"), ("bytes", "bytes"), ("flops", "operations"))
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _POINTS = 960.0, 260.0, 52.0, 24.0, 300
_PHASES = {"dense": "without the constraint", "constrained": "with the constraint", "refit": "refit"}


def compression_page(data: Mapping[str, Any]) -> str:
    """The page: nothing is loaded from anywhere, no script, every name from the model is escaped.

    Args:
        data: from `gaugefix.control.CompressionResult.to_dict`.

    Returns:
        HTML.
    """
    from markupsafe import Markup

    from gaugefix import __version__

    environment = template_environment()
    environment.filters["number"] = number
    style = resources.files("gaugefix.report").joinpath("templates", "report.css").read_text(encoding="utf-8")
    metrics = list(dict.fromkeys(name for stage in data["stages"] for name in stage["metric"]))
    return environment.get_template("compression.html.j2").render(
        data=data,
        lead=lead(data),
        metrics=metrics,
        sizes=[(label, *data[key], data[key][1] / max(data[key][0], 1)) for key, label in _SIZES],
        collapsed=[c for c in data["collapsed"] if c["total"]],
        curve=loss_curve(data["losses"]),
        style=Markup(style),
        version=__version__,
    )


def lead(data: Mapping[str, Any]) -> str:
    """The result in one sentence.

    Args:
        data: from `gaugefix.control.CompressionResult.to_dict`.

    Returns:
        Parameters, and the first metric of the task or else the loss, before and after.
    """
    kept = [s for s in data["stages"] if s["nonzero"] == data["nonzero"][1]]
    first, last = data["stages"][0], (kept or data["stages"])[-1]
    sparse = data["method"] == "sparse"
    before, after = data["nonzero"] if sparse else data["parameters"]
    what = f"{after:,} of {before:,} {'parameters are not zero' if sparse else 'parameters are left'}"
    name = next(iter(last["metric"]), None)
    value = (first["metric"][name], last["metric"][name]) if name else (first["loss"], last["loss"])
    return f"{what}; {name or 'the loss'} goes from {number(value[0])} to {number(value[1])}."


def loss_curve(losses: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """The training loss over all passes as the points of a drawing.

    Args:
        losses: by phase, in order.

    Returns:
        Lines and labels in the units of the drawing; None if there are fewer than two passes.
    """
    values = [v for phase in losses.values() for v in phase if v is not None and v > 0]
    if len(values) < 2:
        return None
    low, high = math.log10(min(values)), math.log10(max(values))
    low, high = (low - 0.05, high + 0.05) if high - low > 0.02 else (low - 0.1, high + 0.1)
    total = sum(map(len, losses.values()))

    def x(k: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 8) * k / max(total - 1, 1)

    def y(value: float) -> float:
        return 8 + (_HEIGHT - _BOTTOM - 8) * (high - math.log10(value)) / (high - low)

    lines, start = [], 0
    for name, phase in losses.items():
        some = range(0, len(phase), max(len(phase) // _POINTS, 1))
        drawn = [(x(start + k), y(v)) for k in some if (v := phase[k]) is not None and v > 0]
        if drawn:
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in drawn)
            lines.append({"name": _PHASES[name], "passes": len(phase), "points": points, "x": drawn[0][0]})
        start += len(phase)
    ticks = [{"y": y(v), "label": number(v, 2)} for v in _ticks(low, high)]
    return {"width": _WIDTH, "height": _HEIGHT, "left": _LEFT, "bottom": _HEIGHT - _BOTTOM, "lines": lines,
            "ticks": ticks, "passes": total}  # fmt: skip


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten in the range; both ends if there are fewer than two."""
    found = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    inside = [v for v in found if low <= math.log10(v) <= high]
    return inside if 2 <= len(inside) <= 7 else [v for v in inside if f"{v:e}"[0] == "1"] if len(inside) > 7 else [
        10**low, 10**high
    ]  # fmt: skip
