"""Monitor: watch what the symmetries do during any training run, without changing it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from gaugefix.errors import MeasurementError
from gaugefix.monitor.events import Event
from gaugefix.monitor.log import LOG_VERSION, MonitorLog
from gaugefix.monitor.schedule import Level, Schedule
from gaugefix.monitor.shards import is_first_process
from gaugefix.monitor.sinks import Row, Sink
from gaugefix.monitor.state import State, read_state, write_state
from gaugefix.monitor.survey import Survey
from gaugefix.monitor.wrappers import clean_name, gradient_scale, inner_model, inner_optimizers
from gaugefix.symmetry import DenseMirror, Mirror, Symmetries, Units, find_symmetries
from gaugefix.task import Task

if TYPE_CHECKING:
    from gaugefix.advice import Advice


class Monitor:
    """Watches a run: call `step` once per optimizer step, after ``backward`` and before ``optimizer.step()``.

    Every ``every`` steps it measures the cheap numbers (norms, live units, balance of every rescaling symmetry and
    whether the law of the balance holds), at every ``dear``-th of those also ranks, duplicates and mirror distances,
    and turns what changed into events. Keys of a row are ``"<class>/<number>"``:

    ==================================== ===============================================================================
    ``weights/norm, gradients/norm``     of the whole model; ``loss`` if it is given
    ``units/live, units/all``            over all classes
    ``…/live``                           live units of the class, as `gaugefix.measure.live_units`
    ``…/effective_units``                participation ratio (Σs²)²/Σs⁴ of the unit sizes
    ``…/weight_norm, …/gradient_norm``   over all slices of the class
    ``…/imbalance``                      Σ|‖u‖² − ‖w‖²|/Σ(‖u‖² + ‖w‖²), 0 when balanced
    ``…/gradient_imbalance``             the same of the gradients, of the totals: 0 where SGD comes to rest
    ``…/identity_error``                 ⟨u, g_u⟩ = ⟨w, g_w⟩, 0 for a true symmetry under any optimizer
    ``…/law_error``                      one SGD step against `predict_charge_step`, 0 if it did what the law says
    ``…/participation``                  dear: directions that the incoming rows fill
    ``…/distinct, …/duplicates``         dear: live units without and with an original among the others
    ``…/mirror_distance``                dear: distance of the closest two units to their mirror
    ``…/rank, …/effective_rank``         dear: of a product under a general linear group (per fiber the smallest); at
                                         level "full" of every class
    ``adam/step, adam/frozen``           level "full": size of Adam's steps, share of entries below its ε
    ==================================== ===============================================================================

    Training is never changed: no random number is drawn, no hook is set, weights with and without a monitor are the
    same bits. A logging step waits for the device once; a dear one a few times per class. DDP and FSDP2
    (``fully_shard``, DTensor) give the numbers of one process; then every process must call `step`, and only the first
    one writes to the sinks.

    Args:
        target: the model, or a `Task`. Wrappers of DDP and ``torch.compile`` are looked through.
        symmetries: what `find_symmetries` gave, or classes of units. By default found for a task, or for a model with
            ``args``; without either only norms are watched.
        args: example arguments of the model, to find its symmetries.
        optimizer: the optimizer, or several; the law of the balance needs it. `step` takes it too.
        every: optimizer steps between logging steps.
        dear: logging steps between dear ones.
        level: "cheap", "standard" or "full", see `gaugefix.monitor.LEVELS`.
        sinks: called as ``sink(row, step)`` at every logging step, see `gaugefix.monitor.JsonlSink` and its neighbours.
        mirrors: mirrors of your own; ``mirror/<name>`` is their distance, a dear number.
        tolerance: relative size below which a unit is dead and two units are equal, as in `collapse_report`.

    Attributes:
        model: the model without its wrapper.
        symmetries: what is watched.
        schedule: the intervals.
        overhead: share of the wall-clock time since the first step that was spent in `step`.

    Raises:
        MeasurementError: if a setting is out of its range, or the model has no parameters or lies on the meta device.

    Source: 2308.06671 (law of balance), 2402.07193 (charges), 2502.05300 (broken and restored symmetries as events).

    Example:
        >>> from gaugefix import Monitor, load_task
        >>> from gaugefix.training import make_optimizer
        >>> task = load_task("digits-mlp")
        >>> optimizer = make_optimizer(task)
        >>> monitor = Monitor(task, optimizer=optimizer, every=2)
        >>> for batch in list(task.batch_iter())[:3]:
        ...     optimizer.zero_grad()
        ...     task.loss(task.model, batch).mean().backward()
        ...     row = monitor.step()
        ...     optimizer.step()
        >>> row["0/live"], row["0/law_error"] < 1e-2
        (64.0, True)
    """

    def __init__(
        self,
        target: nn.Module | Task,
        symmetries: Symmetries | Sequence[Units] | None = None,
        *,
        args: tuple[Any, ...] | None = None,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        every: int = 50,
        dear: int = 10,
        level: Level = "standard",
        sinks: Sequence[Sink] = (),
        mirrors: Sequence[Mirror | DenseMirror] = (),
        tolerance: float = 0.01,
    ) -> None:
        self.schedule = Schedule(every, dear, level)
        if not 0 < tolerance < 0.5:
            raise MeasurementError(f"Monitor: tolerance must be in (0, 0.5), got {tolerance!r}; the default is 0.01.")
        self.model = inner_model(target.model if isinstance(target, Task) else target)
        if symmetries is None and isinstance(target, Task):
            symmetries = find_symmetries(target)
        elif symmetries is None and args is not None:
            symmetries = find_symmetries(self.model, args)
        self.symmetries = symmetries
        self.sinks = list(sinks)
        self.overhead = 0.0
        self._optimizers = inner_optimizers(optimizer)
        self._state = State()
        self._started: float | None = None
        self._spent = 0.0
        self._announced = False
        params = self._params()
        if not params or any(p.is_meta for p in params.values()):
            what = "parameters on the meta device" if params else "no parameters"
            raise MeasurementError(f"Monitor: {type(self.model).__name__} has {what}. Make its weights first.")
        self._survey = Survey(params, symmetries, tuple(mirrors), self.schedule, tolerance)

    def step(
        self,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        *,
        scaler: Any = None,
        loss: Tensor | float | None = None,
        clipped_later: bool = False,
    ) -> Row:
        """Look at the run; to be called after ``backward`` and before ``optimizer.step()``.

        With gradient accumulation, call it once per optimizer step. With a ``GradScaler`` pass it: gradients that are
        still scaled are divided by its scale here, and left as they are for the optimizer.

        Args:
            optimizer: about to step; by default the one given to the constructor.
            scaler: the ``torch.amp.GradScaler`` in use.
            loss: logged under ``loss``; a tensor is read together with everything else.
            clipped_later: gradients will still be clipped before the optimizer sees them, so that the law of the
                balance cannot be checked.

        Returns:
            The row at logging steps, else an empty dictionary.
        """
        begin = time.perf_counter()
        if self._started is None:
            self._started = begin
        if optimizer is not None:
            self._optimizers = inner_optimizers(optimizer)
        state, number = self._state, self._state.count
        state.count += 1
        row: Row = {}
        if self.schedule.logs(number):
            row = self._log(number, scaler, loss, clipped_later)
        elif state.booked and state.booked_at == number - 1:
            with torch.no_grad():
                state.after = self._survey.after(self._params(), self._optimizers, state.booked)
        self._spent += time.perf_counter() - begin
        self.overhead = self._spent / max(time.perf_counter() - self._started, 1e-9)
        return row

    def _log(self, number: int, scaler: Any, loss: Tensor | float | None, clipped_later: bool) -> Row:
        """Measure, notice, and tell the sinks."""
        params = self._params()
        events = self._survey.refresh(params, number, self._state)
        scale = gradient_scale(scaler, self._optimizers)
        with torch.no_grad(), np.errstate(all="ignore"):
            row, found = self._survey.look(number, params, self._optimizers, self._state, scale, loss, clipped_later)
        events += found
        self._state.events += events
        self._state.first = self._state.first or row
        self._state.last = {**self._state.last, **row}
        if is_first_process():
            self._announce(number)
            for sink in self.sinks:
                sink(row, number)
                hear: Callable[[Event], None] | None = getattr(sink, "event", None)
                for event in events if hear is not None else ():
                    hear(event)  # type: ignore[misc]
        return row

    def _announce(self, number: int) -> None:
        """Tell the sinks what the run is about, once."""
        if not self._announced:
            self._announced = True
            for sink in self.sinks:
                if (start := getattr(sink, "start", None)) is not None:
                    start({**self.log.run, "step": number})

    @property
    def events(self) -> tuple[Event, ...]:
        """Everything that changed so far, in order."""
        return tuple(self._state.events)

    @property
    def steps(self) -> int:
        """Optimizer steps seen."""
        return self._state.count

    @property
    def skipped(self) -> tuple[str, ...]:
        """What is not watched, and why."""
        return tuple(self._survey.skipped)

    @property
    def log(self) -> MonitorLog:
        """The run so far: what it is about, the first row and the latest numbers, all events."""
        from gaugefix import __version__

        watched = self._survey.watched
        run = {
            "schema_version": LOG_VERSION,
            "gaugefix": __version__,
            "every": self.schedule.every,
            "dear": self.schedule.dear,
            "level": self.schedule.level,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "classes": [
                {"name": w.units.name, "title": w.title, "units": len(w.units), "kind": w.units.kind,
                 "activation": w.units.activation}
                for w in watched.classes
            ],
            "charges": [c.name for c in watched.charges],
            "skipped": list(self.skipped),
        }  # fmt: skip
        log = MonitorLog(run, events=list(self._state.events))
        if self._state.first:
            log.rows = [(0, dict(self._state.first)), (max(self._state.count - 1, 0), dict(self._state.last))]
        return log

    def summary(self) -> tuple[Advice, ...]:
        """What the run has shown: diagnosis, evidence and next step, the most urgent first.

        Returns:
            Advice.
        """
        from gaugefix.run_summary import summarize

        return summarize(self.log)

    def finish(self) -> tuple[Advice, ...]:
        """End the run: give the summary to the sinks that want it.

        Returns:
            The summary.
        """
        advice = self.summary()
        if is_first_process():
            self._announce(self._state.count)
            for sink in self.sinks:
                if (end := getattr(sink, "finish", None)) is not None:
                    end([a.to_dict() for a in advice])
        return advice

    def state_dict(self) -> dict[str, Any]:
        """What the monitor remembers, as plain values and tensors; goes into any checkpoint.

        Returns:
            For `load_state_dict`. A run that goes on from it has the rows and events of one that was not interrupted.
        """
        return self._state.to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: from `state_dict`.

        Raises:
            MeasurementError: if it is something else.
        """  # noqa: DOC502
        self._state = State.from_dict(state)

    def save(self, path: str | Path) -> Path:
        """Write `state_dict` to a safetensors file, its plain values as JSON in the header.

        Args:
            path: where to.

        Returns:
            The absolute path.

        Raises:
            ReportError: if it cannot be written.
        """  # noqa: DOC502
        return write_state(path, self.state_dict())

    def load(self, path: str | Path) -> None:
        """Go on from a file of `save`.

        Args:
            path: the file.

        Raises:
            MeasurementError: if it is missing or something else.
        """  # noqa: DOC502
        self.load_state_dict(read_state(path))

    def _params(self) -> dict[str, nn.Parameter]:
        return {clean_name(name): p for name, p in self.model.named_parameters()}
