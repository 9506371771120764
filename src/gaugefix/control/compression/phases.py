"""Training in phases that can stop after any step and go on exactly there."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from gaugefix.control.compression.checkpoint import generators, pack, set_generators, unpack
from gaugefix.errors import TaskError
from gaugefix.task import Task

Progress = Callable[[str, int, int, str], None]


@dataclass
class Position:
    """Where a phase is.

    Attributes:
        epoch: passes that are done.
        step: steps that are done of the next one.
        total: sum of the losses in it.
        count: number of samples in it.
        losses: mean loss of every pass that is done.
        pass_start: generators at its start, so that its batches can be drawn again.
    """

    epoch: int = 0
    step: int = 0
    total: float = 0.0
    count: int = 0
    losses: list[float] = field(default_factory=list)
    pass_start: dict[str, Any] = field(default_factory=dict)


@dataclass
class Phase:
    """One phase of a run, with what its steps need.

    Attributes:
        name: for progress and checkpoints.
        task: with the model that is trained.
        optimizer: of its parameters.
        epochs: passes.
        steps: in each pass.
        seed: of the first pass.
        anneal: from this part of the phase on, lower the learning rate to zero along half a cosine; 1 for never.
        before_step: called with the fraction of the phase that is done, before each step.
        penalty: added to the mean loss.
        after_step: called after each step of the optimizer.
        position: where it is.
    """

    name: str
    task: Task
    optimizer: torch.optim.Optimizer
    epochs: int
    steps: int
    seed: int
    anneal: float = 1.0
    before_step: Callable[[float], object] | None = None
    penalty: Callable[[], Tensor] | None = None
    after_step: Callable[[], object] | None = None
    position: Position = field(default_factory=Position)

    def __post_init__(self) -> None:
        self.lr = [float(group["lr"]) for group in self.optimizer.param_groups]

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        return self.task.model

    def save(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """State for a checkpoint; the tensors go into the dictionary."""
        return {
            "model": pack(tensors, "model", dict(self.model.state_dict())),
            "optimizer": pack(tensors, "optimizer", self.optimizer.state_dict()),
            "position": pack(tensors, "position", vars(self.position)),
            "generators": pack(tensors, "generators", generators()),
        }

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go to where a checkpoint was."""
        self.model.load_state_dict(unpack(tensors, state["model"]))
        self.optimizer.load_state_dict(unpack(tensors, state["optimizer"]))
        self.position = Position(**unpack(tensors, state["position"]))
        set_generators(unpack(tensors, state["generators"]))

    def run(self, after: Callable[[], bool], progress: Progress) -> None:
        """Train to the end of the phase.

        Args:
            after: called after every step; True stops.
            progress: called after every pass with (phase, passes done, passes in all, loss).

        Raises:
            KeyboardInterrupt: if ``after`` says so.
            TaskError: if the loss stops being finite.
        """  # noqa: DOC502
        at = self.position
        self.model.train()
        progress(self.name, at.epoch, self.epochs, "")
        while at.epoch < self.epochs:
            for batch in self._batches():
                self._step(batch)
                ended = at.step == self.steps
                if ended:
                    self._end_pass()
                    progress(self.name, at.epoch, self.epochs, f"loss {at.losses[-1]:.4g}")
                if after():
                    raise KeyboardInterrupt
                if ended:
                    break

    def _batches(self) -> Iterator[Any]:
        """The rest of the pass."""
        at = self.position
        if at.step == 0:
            at.pass_start = generators()
            yield from self.task.batch_iter(self.seed + at.epoch)
            return
        now = generators()
        set_generators(at.pass_start)
        batches = self.task.batch_iter(self.seed + at.epoch)
        for _ in islice(batches, at.step):
            pass
        set_generators(now)
        yield from batches

    def _step(self, batch: Any) -> None:
        at = self.position
        done = (at.epoch * self.steps + at.step) / (self.epochs * self.steps)
        for group, lr in zip(self.optimizer.param_groups, self.lr, strict=True):
            late = (done - self.anneal) / (1 - self.anneal) if done > self.anneal else 0.0
            group["lr"] = lr * (1 + math.cos(math.pi * late)) / 2
        if self.before_step is not None:
            self.before_step(done)
        losses = self.task.loss(self.model, batch)
        mean = losses.mean()
        self.optimizer.zero_grad(set_to_none=True)
        (mean if self.penalty is None else mean + self.penalty()).backward()
        self.optimizer.step()
        if self.after_step is not None:
            self.after_step()
        at.step, at.total, at.count = at.step + 1, at.total + mean.item() * len(losses), at.count + len(losses)

    def _end_pass(self) -> None:
        at = self.position
        loss = at.total / at.count
        if not math.isfinite(loss):
            raise TaskError(
                f"compress: the loss is {loss} after pass {at.epoch + 1} of {self.name}. Lower the learning rate "
                f"(now {self.task.lr:g}) or the strength."
            )
        at.losses.append(loss)
        at.epoch, at.step, at.total, at.count = at.epoch + 1, 0, 0.0, 0


class Saver:
    """Says when a checkpoint is due, and when to stop.

    Args:
        save: writes the checkpoint; None if there is none to be written.
        seconds: between two of them.
    """

    def __init__(self, save: Callable[[], None] | None, seconds: float) -> None:
        self._save, self._seconds, self._last, self._stop = save, seconds, time.monotonic(), False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it, Ctrl-C and a polite kill let the step end and the checkpoint be written; a second one does not."""
        if self._save is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

        def hear(number: int, frame: FrameType | None) -> None:
            del frame
            self._stop = True
            signal.signal(number, before[signal.Signals(number)])

        for number in before:
            signal.signal(number, hear)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def __call__(self) -> bool:
        """After a step: write if it is time, and say whether to stop."""
        if self._save is not None and (self._stop or time.monotonic() - self._last >= self._seconds):
            self._save()
            self._last = time.monotonic()
        return self._stop
