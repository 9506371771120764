"""What holds for tests and for the examples in docstrings alike."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    """Random weights are those of the test alone, whatever ran before it and in whatever order."""
    torch.manual_seed(0)
