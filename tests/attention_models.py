"""Attention with separate projections, for tests of its classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SeparateAttention(nn.Module):
    """Self-attention, causal by default, that reads the head dimension off its weights.

    ``scale=None`` leaves the division by √(head dimension) to the operation.
    """

    def __init__(self, d: int = 6, heads: int = 2, *, scale: float | None = 0.5, bias: bool = True,
                 causal: bool = True) -> None:  # fmt: skip
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(d, d, bias=bias) for _ in range(4))
        self.heads, self.scale, self.causal = heads, scale, causal

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (m(x).view(b, t, self.heads, -1).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=self.scale)
        return self.out(y.transpose(1, 2).reshape(b, t, -1))


def seeded(make: type[nn.Module], seed: int = 0, **options: object) -> nn.Module:
    """A model in float64 with weights of its own seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(**options).double()
