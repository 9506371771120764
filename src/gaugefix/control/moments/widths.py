"""A narrower layer whose units count with weights, so that it computes and learns what the wide one does."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gaugefix.control.moments.points import compress_points
from gaugefix.errors import ControlError


class WeightedMLP(nn.Module):
    """Two layers whose hidden units count c_j times: f(x) = V (c ⊙ σ(W x + b)) + a.

    A unit stands for c_j units of a wider network. Its gradients are those that each of these would have,
    (1/c_j) ∂L/∂(w_j, b_j, v_j), so that training follows the wide network; weight decay is not divided.

    Args:
        first: the hidden layer.
        activation: between them.
        second: the output layer.
        weights: c, positive, one for each hidden unit.

    Raises:
        ControlError: if the shapes do not fit or a weight is not positive.

    Source: arXiv 2510.00504, dynamical lottery tickets.

    Example:
        >>> net = WeightedMLP(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), torch.ones(4))
        >>> net.fold()
        Sequential(
          (0): Linear(in_features=3, out_features=4, bias=True)
          (1): Tanh()
          (2): Linear(in_features=4, out_features=2, bias=True)
        )
    """

    weights: Tensor

    def __init__(
        self, first: nn.Linear, activation: nn.Module, second: nn.Linear, weights: Float[Tensor, " hidden"]
    ) -> None:
        super().__init__()
        if not first.out_features == second.in_features == len(weights):
            raise ControlError(
                f"The hidden layer has {first.out_features} units, the output layer reads {second.in_features}, and "
                f"there are {len(weights)} weights; they must be the same number."
            )
        if not bool((weights > 0).all()) or not bool(torch.isfinite(weights).all()):
            raise ControlError("The weights of the units must be positive numbers.")
        self.first, self.activation, self.second = first, activation, second
        self.register_buffer("weights", weights.detach().to(first.weight))

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """The output; gradients are those of the compressed dynamics."""
        share = 1 / self.weights
        bias = self.first.bias
        w = _slowed(self.first.weight, share[:, None])
        hidden = self.activation(nn.functional.linear(x, w, None if bias is None else _slowed(bias, share)))
        return nn.functional.linear(hidden * self.weights, _slowed(self.second.weight, share), self.second.bias)

    def fold(self) -> nn.Sequential:
        """The same function as plain layers, with c_j v_j as outgoing weights.

        For inference and for Adam; SGD with one learning rate for all is not the compressed dynamics any more.

        Returns:
            A copy, ``Sequential(Linear, activation, Linear)``.
        """
        first, second = copy.deepcopy(self.first), copy.deepcopy(self.second)
        with torch.no_grad():
            second.weight.mul_(self.weights)
        return nn.Sequential(first, copy.deepcopy(self.activation), second)

    def extra_repr(self) -> str:
        """What `print` shows beside the layers."""
        return f"{len(self.weights)} units that count for {float(self.weights.sum()):g}"


def compress_width(
    first: nn.Linear, second: nn.Linear, k: int = 3, target: float | None = None, *, activation: nn.Module
) -> WeightedMLP:
    """Keep few hidden units of two layers, with weights such that the moments of (w_i, b_i, v_i) of degree ≤ k stay.

    The units are as they were, none is moved. With an identity activation and k = 2 the output and every later step of
    SGD (with momentum, with weight decay) are exactly those of the wide network; a smooth activation follows it
    closely, ReLU less so.

    Args:
        first: the hidden layer, left as it is.
        second: the output layer, left as it is.
        k: degree of the moments.
        target: how many units to keep, a fraction if it is a float below 1; None for C(m + k, k) with m = inputs +
            outputs + 1 (without the 1 if there is no bias).
        activation: the module between the layers.

    Returns:
        The narrow network; `WeightedMLP.fold` makes plain layers of it.

    Raises:
        ControlError: if the layers do not fit, have entries that are not finite, or a number is out of range.

    Warns:
        ValidityWarning: as `compress_points`.

    Source: arXiv 2510.00504, network compression.

    Example:
        >>> wide = nn.Sequential(nn.Linear(2, 500), nn.Identity(), nn.Linear(500, 1)).double()
        >>> narrow = compress_width(wide[0], wide[2], k=2, activation=wide[1])
        >>> x = torch.randn(50, 2).double()
        >>> narrow.first.out_features, torch.allclose(narrow(x), wide(x))
        (15, True)
    """
    if first.out_features != second.in_features:
        raise ControlError(
            f"The hidden layer has {first.out_features} units and the output layer reads {second.in_features}."
        )
    columns = [first.weight, second.weight.T] if first.bias is None else [
        first.weight, first.bias[:, None], second.weight.T
    ]  # fmt: skip
    found = compress_points(torch.cat([c.detach().double().cpu() for c in columns], dim=1), k, target)
    kept = torch.from_numpy(found.indices)
    narrow = [_selected(first, kept, 0), _selected(second, kept, 1)]
    return WeightedMLP(narrow[0], copy.deepcopy(activation), narrow[1], torch.from_numpy(found.weights))


def _selected(layer: nn.Linear, kept: Tensor, dim: int) -> nn.Linear:
    """A copy of a layer with some of its units."""
    weight = layer.weight.detach().index_select(dim, kept.to(layer.weight.device))
    bias = layer.bias
    out = nn.Linear(
        weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=weight.dtype
    )  # fmt: skip
    with torch.no_grad():
        out.weight.copy_(weight)
        if bias is not None:
            out.bias.copy_(bias if dim == 1 else bias[kept.to(bias.device)])
    return out


def _slowed(parameter: Tensor, share: Tensor) -> Tensor:
    """The parameter itself, with a share of its gradient."""
    fixed = parameter.detach()
    return fixed + share * (parameter - fixed)
