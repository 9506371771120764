"""Small work on one thread, and everything as before afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gaugefix import Task
from gaugefix.threads import is_small, one_thread


def _fail_inside() -> None:
    with one_thread():
        assert torch.get_num_threads() == 1
        raise RuntimeError("inside")


def test_the_number_of_threads_is_restored_even_after_an_error() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="inside"):
            _fail_inside()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("width", "batch_size", "small"), [(10, 100, True), (1000, 9, True), (1000, 11, False)])
def test_small_is_parameters_times_batch_size(width: int, batch_size: int, small: bool) -> None:
    model = nn.Linear(width, 1000, bias=False)
    task = Task(
        model,
        lambda m, b: m(b).sum(1),
        lambda: [torch.zeros(2, width)],
        lr=0.1,
        weight_decay=0.0,
        batch_size=batch_size,
    )
    assert is_small(task) is small
