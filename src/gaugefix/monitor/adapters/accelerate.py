"""accelerate: a monitor that knows when gradients are complete, scaled, and who logs."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator

from gaugefix.monitor.monitor import Monitor
from gaugefix.monitor.sinks import Row, TrackerSink


def watch(monitor: Monitor, accelerator: Accelerator, *, log: bool = False, checkpoint: bool = True) -> AcceleratedStep:
    """Join a monitor to an accelerator.

    Args:
        monitor: of the model, before or after ``prepare``.
        accelerator: of the run.
        log: also pass rows to ``accelerator.log``.
        checkpoint: let ``accelerator.save_state`` and ``load_state`` keep the state of the monitor.

    Returns:
        Call it after ``accelerator.backward`` and before ``optimizer.step()``, at every microbatch.

    Example::

        watching = watch(Monitor(model, args=(example,)), accelerator)
        with accelerator.accumulate(model):
            accelerator.backward(loss)
            watching(optimizer, loss=loss)
            optimizer.step()
    """
    if log:
        monitor.sinks.append(TrackerSink(accelerator))
    if checkpoint:
        accelerator.register_for_checkpointing(monitor)
    return AcceleratedStep(monitor, accelerator)


class AcceleratedStep:
    """`Monitor.step` for a loop with ``accelerator.accumulate``: only microbatches that end in a step count.

    Args:
        monitor: of the model.
        accelerator: of the run.
    """

    def __init__(self, monitor: Monitor, accelerator: Accelerator) -> None:
        self.monitor, self._accelerator = monitor, accelerator

    def __call__(self, optimizer: Any = None, *, loss: Any = None, clipped_later: bool = False) -> Row:
        """See `Monitor.step`; empty where gradients are not complete yet."""
        if not self._accelerator.sync_gradients:
            return {}
        return self.monitor.step(optimizer, scaler=self._accelerator.scaler, loss=loss, clipped_later=clipped_later)
