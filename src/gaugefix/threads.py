"""How many threads small work gets: one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gaugefix.task import Task

#: Multiplications of a training step below which one thread is faster than several.
_SMALL_STEP = 10_000_000


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread inside, on as many as before afterwards.

    Handing out the products of small matrices costs more than it gains, and an order of magnitude more on a machine
    whose cores have other work to do: threads that spin while they wait for one that was put to sleep. It also makes
    sums add up in one order, so that a number is the same on every machine with the same processor.

    Example:
        >>> with one_thread():
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_small(task: Task) -> bool:
    """Whether one thread trains a task at least as fast as several: parameters x batch size below ten million.

    Args:
        task: any task.

    Returns:
        The answer.
    """
    return sum(p.numel() for p in task.model.parameters()) * task.batch_size < _SMALL_STEP
