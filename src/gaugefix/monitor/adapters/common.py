"""What the adapters share."""

from __future__ import annotations

from typing import Any

from gaugefix.monitor.monitor import Monitor


def owns_parameter(optimizer: Any, monitor: Monitor) -> bool:
    """Whether an optimizer moves the first trainable parameter of a monitored model.

    With several optimizers (two networks, or two kinds of parameters of one) exactly one of them makes a step of the
    monitor, so that steps are not counted twice.

    Args:
        optimizer: from a hook.
        monitor: of the run.

    Returns:
        Whether it is this one.
    """
    first = next((p for p in monitor.model.parameters() if p.requires_grad), None)
    return first is not None and any(p is first for g in optimizer.param_groups for p in g["params"])
