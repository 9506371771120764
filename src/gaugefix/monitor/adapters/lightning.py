"""Lightning: a callback that watches the module that is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning
from torch import nn

from gaugefix.monitor.adapters.common import owns_parameter
from gaugefix.monitor.monitor import Monitor


class MonitorCallback(lightning.Callback):
    """Steps a monitor before every optimizer step, and logs its rows.

    Rows go to the loggers of the trainer as well as to the sinks of the monitor, and the latest ones are in
    ``trainer.callback_metrics``, so that ``EarlyStopping("net.0/live", …)`` works. Gradients that mixed precision has
    left scaled are divided by the scale. Lightning clips gradients after this hook: with ``gradient_clip_val`` the law
    of the balance is not checked. The state of the monitor is part of every checkpoint.

    Args:
        monitor: of the whole module or of a part of it, or a function that makes it from the module when training
            starts (after a strategy has sharded it).

    Example::

        monitor = Monitor(module.net, args=(example,), every=50)
        trainer = lightning.Trainer(callbacks=[MonitorCallback(monitor)])
    """

    def __init__(self, monitor: Monitor | Callable[[nn.Module], Monitor]) -> None:
        self._make = None if isinstance(monitor, Monitor) else monitor
        self._monitor = monitor if isinstance(monitor, Monitor) else None
        self._state: dict[str, Any] | None = None
        self._loss: Any = None

    @property
    def monitor(self) -> Monitor | None:
        """The monitor; None before a function has made it."""
        return self._monitor

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Make the monitor, and go on from a checkpoint that was read before."""
        del trainer
        if self._monitor is None and self._make is not None:
            self._monitor = self._make(pl_module)
        if self._monitor is not None and self._state is not None:
            self._monitor.load_state_dict(self._state)
            self._state = None

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Any) -> None:
        """Remember the loss."""
        del pl_module
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._loss = None if scaler is not None and scaler.is_enabled() else loss.detach()  # it would be scaled

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Any
    ) -> None:
        """Look at gradients, then let the optimizer step."""
        monitor = self._monitor
        if monitor is None or not owns_parameter(optimizer, monitor):
            return
        row = monitor.step(
            optimizer,
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            loss=None if self._loss is None else self._loss * trainer.accumulate_grad_batches,
            clipped_later=bool(trainer.gradient_clip_val),
        )
        if row:
            pl_module.log_dict(row, on_step=True, on_epoch=False, logger=False, batch_size=1)
            for logger in trainer.loggers:
                logger.log_metrics(row, step=trainer.global_step)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Give the summary to the sinks."""
        del trainer, pl_module
        if self._monitor is not None:
            self._monitor.finish()

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {} if self._monitor is None else self._monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint; used when training starts."""
        self._state = state_dict or None
