"""Watch whether the units of a layer could merge, split or pass through each other at this learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gaugefix.errors import MeasurementError
from gaugefix.measure.classes import units_of
from gaugefix.measure.topology import MAX_PAIRS, TopologyStep, topology_step
from gaugefix.symmetry import Symmetries, Units


class NeuronTopologyMonitor:
    """Compares the distances of units before and after optimizer steps of a training run.

    Call `step` once per optimizer step, after ``backward`` and before ``optimizer.step()``, and `finish` after the last
    one. While every lr·R_ij stays below 1 no two units pass through each other; while lr·K does, they cannot merge or
    split at all. The rates R_ij are those of gradient descent: for other optimizers look at ratios and reversals alone.

    Args:
        model: the network; nothing of it is changed.
        unit_groups: what `find_symmetries` gave, or classes of units.
        lr: learning rate; nan leaves the rates and the bound out.
        weight_decay: λ of SGD, part of the gradient.
        every: optimizer steps from one look to the next.
        curvature: gives K, the largest curvature of the penalised loss at the present weights, for the bound; called
            at every look.
        max_pairs: pairs of a class that are looked at, a random sample if there are more.
        seed: of the sample.

    Attributes:
        history: ``(step, comparisons)`` of every look, one comparison per class.

    Raises:
        MeasurementError: if ``every`` < 1, or no class has two units that are all trained.

    Source: arXiv 2510.02670.

    Example:
        >>> from gaugefix import find_symmetries
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.01)
        >>> monitor = NeuronTopologyMonitor(net, find_symmetries(net, (x,)), lr=0.01)
        >>> for _ in range(3):
        ...     sgd.zero_grad()
        ...     net(x).square().mean().backward()
        ...     seen = monitor.step()
        ...     sgd.step()
        >>> monitor.finish()[0].n_pairs, len(monitor.history), monitor.safe
        (6, 3, True)
    """

    def __init__(
        self, model: nn.Module, unit_groups: Symmetries | Sequence[Units], lr: float = math.nan, *,
        weight_decay: float = 0.0, every: int = 1, curvature: Callable[[], float] | None = None,
        max_pairs: int = MAX_PAIRS, seed: int = 0,
    ) -> None:  # fmt: skip
        if every < 1:
            raise MeasurementError(f"NeuronTopologyMonitor: every must be at least 1, got {every!r}.")
        self._params = {k: p for k, p in model.named_parameters() if p.requires_grad}
        self._classes = [
            u for u in units_of(unit_groups) if u.size > 1 and u.slices and self._params.keys() >= set(u.parameters)
        ]
        if not self._classes:
            raise MeasurementError(
                "NeuronTopologyMonitor: no class of two or more trained units. Pass what find_symmetries gives for "
                "this model."
            )
        self._lr, self._decay, self._every, self._curvature = lr, weight_decay, every, curvature
        self._max_pairs, self._seed = max_pairs, seed
        self._count = 0
        self._before: tuple[int, dict[str, Tensor], dict[str, Tensor] | None, float] | None = None
        self.history: list[tuple[int, tuple[TopologyStep, ...]]] = []

    def step(self) -> tuple[TopologyStep, ...]:
        """Remember the weights and gradients of this step; compare those of the one before.

        Returns:
            One comparison per class if the step before was one to look at, else nothing.
        """
        found = self._compare()
        if self._count % self._every == 0:
            gradients = {k: p.grad for k, p in self._params.items() if p.grad is not None}
            known = math.isfinite(self._lr) and len(gradients) == len(self._params)
            before = {k: p.detach().clone() for k, p in self._params.items()}
            pull = {k: g.detach() + self._decay * before[k] for k, g in gradients.items()} if known else None
            self._before = self._count, before, pull, self._curvature() if self._curvature else math.nan
        self._count += 1
        return found

    def finish(self) -> tuple[TopologyStep, ...]:
        """Compare the last step.

        Returns:
            One comparison per class if it was one to look at, else nothing.
        """
        return self._compare()

    @property
    def safe(self) -> bool:
        """Whether no two units changed places or came together in the steps that were looked at."""
        return not any(s.reversals or s.merges for _, steps in self.history for s in steps)

    def _compare(self) -> tuple[TopologyStep, ...]:
        if self._before is None:
            return ()
        number, before, pull, curvature = self._before
        self._before = None
        with torch.no_grad():
            found = tuple(
                topology_step(
                    before, self._params, units, lr=self._lr, gradients=pull, curvature=curvature,
                    max_pairs=self._max_pairs, seed=self._seed,
                )
                for units in self._classes
            )  # fmt: skip
        self.history.append((number, found))
        return found
