"""Signal and noise of the gradients from the state of Adam, averaged over a run: no extra backward pass."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gaugefix.measure import OptimizerReport, ParameterState, optimizer_report
from gaugefix.theory import adam_noise_mean_square


@dataclass
class _Sums:
    """Of one parameter: Σm̂² − c·Σv̂ and Σv̂ − Σm̂² at every snapshot, whose ratio is the signal-to-noise ratio."""

    signal: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)

    def ratio(self) -> tuple[float, float]:
        """Ratio of the sums and its standard error."""
        signal, noise = sum(self.signal), sum(self.noise)
        if not self.noise:
            return math.nan, math.nan
        if noise <= 0:
            return math.inf, math.nan
        value = signal / noise
        scatter = sum((a - value * b) ** 2 for a, b in zip(self.signal, self.noise, strict=True))
        n = len(self.noise)
        return max(0.0, value), math.sqrt(scatter * n / (n - 1)) / noise if n > 1 else math.nan


class AdamStateMonitor:
    """Averages what Adam's state says about every parameter over the snapshots of a run.

    A single snapshot of m̂²/v̂ gives the signal-to-noise ratio of the gradients to 10–35 %; numerator and denominator
    averaged over some hundred snapshots, some 20 steps apart, to a few per cent. The parameters should move little in
    between.

    Args:
        optimizer: Adam, AdamW, NAdam, RAdam, AMSGrad or LaProp.
        model: names the parameters in the report.
        batch_size: of the run; with it the report has the gradient noise scale.

    Source: arXiv 2105.07222.

    Example:
        >>> layer = nn.Linear(50, 1)
        >>> adam = torch.optim.Adam(layer.parameters(), lr=0.0)
        >>> monitor, generator = AdamStateMonitor(adam, layer), torch.Generator().manual_seed(0)
        >>> for step in range(2000):  # a gradient of one, noise of variance two
        ...     for p in layer.parameters():
        ...         p.grad = 1 + 2**0.5 * torch.randn(p.shape, generator=generator)
        ...     adam.step()
        ...     if step % 20 == 0:
        ...         snapshot = monitor.update()
        >>> row = monitor.report()[0]
        >>> row["parameter"], bool(abs(row["snr"] - 0.5) < 0.1)
        ('weight', True)
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module | None = None, *, batch_size: int | None = None
    ) -> None:
        self._optimizer, self._model, self._batch = optimizer, model or nn.Module(), batch_size
        self._sums: dict[str, _Sums] = {}

    def update(self) -> OptimizerReport:
        """Take a snapshot, a few passes over the state; call it every 20 steps or so.

        Returns:
            The report of this moment.
        """
        found = optimizer_report(self._optimizer, self._model)
        betas = {b for group in found.groups for b in (group.betas[0],)}
        for state in found.parameters:
            if state.valid and len(betas) == 1:
                sums = self._sums.setdefault(state.name, _Sums())
                noise = adam_noise_mean_square(state.step, next(iter(betas)))
                sums.signal.append(state.mean_square - noise * state.second_moment)
                sums.noise.append(state.second_moment - state.mean_square)
        return found

    def report(self) -> list[dict[str, Any]]:
        """One row per parameter that has been updated, for ``pandas.DataFrame`` or a logger.

        Returns:
            Dictionaries with ``parameter``, ``step``, ``snapshots``; ``rms_update`` and ``noise_rms``, what pure noise
            would give; ``bound`` and ``near_bound``, the share of entries above half of it; ``snr`` = ‖E g‖²/Tr C_B of
            a minibatch with ``snr_stderr``; ``noise_scale`` = batch size/snr, the batch size at which signal and noise
            are equal (with ``batch_size``); ``valid`` and ``reason`` of the last snapshot.
        """
        return [self._row(state) for state in optimizer_report(self._optimizer, self._model).parameters]

    def _row(self, state: ParameterState) -> dict[str, Any]:
        sums = self._sums.get(state.name, _Sums())
        snr, stderr = sums.ratio()
        row: dict[str, Any] = {
            "parameter": state.name,
            "step": state.step,
            "snapshots": len(sums.noise),
            "rms_update": state.rms_update,
            "noise_rms": state.noise_rms,
            "bound": state.bound,
            "near_bound": state.near_bound,
            "snr": snr,
            "snr_stderr": stderr,
            "valid": state.valid,
            "reason": state.reason,
        }
        if self._batch is not None:
            row["noise_scale"] = self._batch / snr if snr > 0 else math.inf if snr == 0 else math.nan
        return row
