"""transformers: a callback for ``Trainer``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from gaugefix.monitor.adapters.common import owns_parameter
from gaugefix.monitor.monitor import Monitor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_FILE = "gaugefix_monitor.safetensors"


class MonitorCallback(TrainerCallback):
    """Steps a monitor before every optimizer step, after gradients were accumulated, unscaled and clipped.

    Rows go to the sinks of the monitor; what ``Trainer`` logs by itself is not touched. Its state is written next to
    every checkpoint as ``gaugefix_monitor.safetensors`` and read again on resuming.

    Args:
        monitor: of the model or of a part of it, or a function that makes it from the model when training starts.

    Example::

        trainer = Trainer(model, args, callbacks=[MonitorCallback(Monitor(model, symmetries, sinks=[sink]))], …)
    """

    def __init__(self, monitor: Monitor | Callable[[nn.Module], Monitor]) -> None:
        self._make = None if isinstance(monitor, Monitor) else monitor
        self._monitor = monitor if isinstance(monitor, Monitor) else None

    @property
    def monitor(self) -> Monitor | None:
        """The monitor; None before a function has made it."""
        return self._monitor

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the monitor; go on from the checkpoint that the trainer goes on from."""
        del control
        if self._monitor is None and self._make is not None:
            self._monitor = self._make(kwargs["model"])
        file = self._file(args, state)
        if self._monitor is not None and state.global_step and file.is_file():
            self._monitor.load(file)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at gradients, then let the optimizer step."""
        del args, state, control
        optimizer = kwargs["optimizer"]
        if self._monitor is not None and owns_parameter(optimizer, self._monitor):
            self._monitor.step(optimizer, scaler=getattr(optimizer, "scaler", None))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the state next to the checkpoint."""
        del control, kwargs
        file = self._file(args, state)
        if self._monitor is not None and state.is_world_process_zero and file.parent.is_dir():
            self._monitor.save(file)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the summary to the sinks."""
        del args, state, control, kwargs
        if self._monitor is not None:
            self._monitor.finish()

    def _file(self, args: TrainingArguments, state: TrainerState) -> Path:
        return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}" / _FILE
