"""What follows for gradient and Hessian when a change of the parameters changes the output in a known way.

If f(T_sθ; x) = ρ_s(f(θ; x)) with generators ξ(θ) of T and η(f) of ρ, then for the loss L = E ℓ(f, y)

    ∇L·ξ = E⟨ℓ', η(f)⟩ =: R(θ),    Hξ = ∇R − (Dξ)ᵀ∇L,

exactly, at every point (arXiv 2512.21447). η = 0 is a symmetry; ξ = θ with η = kf is homogeneity of degree k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gaugefix.errors import MeasurementError
from gaugefix.measure.classes import exact_copy
from gaugefix.measure.perexample import LossModule, differentiable_attention, trainable
from gaugefix.task import Task

Field = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
Output = float | Tensor | Callable[[Tensor], Tensor] | None
Tangent = dict[str, Tensor]

KINDS = ("scale", "rescale", "rotation", "homogeneous")


@dataclass(frozen=True, eq=False)
class Generator:
    """A one-parameter change of the weights with a known effect on the output.

    Attributes:
        kind: "scale", the named parameters are multiplied by one factor that does not matter (a layer before a
            normalisation); "rescale", every entry by a factor of its own; "rotation", a matrix along one dimension;
            "homogeneous", all by one factor, of which the output takes the k-th power; or a function from the
            parameters to ξ(θ) by name.
        parameters: of "scale" names; of "rescale" name -> rates, broadcast against the parameter; of "rotation" name
            -> (dimension, matrix); of "homogeneous" names, all if empty.
        output: η(f): None for 0, a number k for kf, a matrix B for Bf along the last dimension, or a function.
        name: for reports.

    Raises:
        MeasurementError: if the kind is unknown, or "homogeneous" comes without its degree.

    Example:
        >>> xi = Generator("rescale", {"w": torch.tensor([[1.0], [0.0]]), "u": torch.tensor([[-1.0, 0.0]])})
        >>> params = {"w": torch.ones(2, 3), "u": torch.ones(1, 2), "b": torch.ones(2)}
        >>> {k: v.tolist() for k, v in xi.at(params).items()}
        {'w': [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], 'u': [[-1.0, 0.0]]}
    """

    kind: str | Field
    parameters: Any = field(default=(), repr=False)
    output: Output = field(default=None, repr=False)
    name: str = ""

    def __post_init__(self) -> None:
        """Refuse what would be an identity about something else."""
        if isinstance(self.kind, str) and self.kind not in KINDS:
            raise MeasurementError(
                f"Generator: kind must be one of {', '.join(KINDS)} or a function, got {self.kind!r}."
            )
        if self.kind == "homogeneous" and not isinstance(self.output, int | float):
            raise MeasurementError(
                "Generator: 'homogeneous' needs output=k, the degree (`homogeneity_degree` finds it)."
            )

    @property
    def title(self) -> str:
        """Its name, or what kind it is."""
        return self.name or (self.kind if isinstance(self.kind, str) else "function")

    def at(self, params: Mapping[str, Tensor]) -> Tangent:
        """ξ(θ) by name; parameters that do not move are left out.

        Args:
            params: parameters by name.

        Returns:
            The tangent.

        Raises:
            MeasurementError: if a parameter that it names is not there.
        """
        if not isinstance(self.kind, str):
            return dict(self.kind(params))
        if missing := sorted(set(self.parameters) - params.keys()):
            raise MeasurementError(f"Generator {self.title!r}: no parameter {', '.join(missing)}.")
        if self.kind in {"scale", "homogeneous"}:
            return {k: params[k] for k in self.parameters or params}
        if self.kind == "rescale":
            return {k: torch.as_tensor(rate).to(params[k]) * params[k] for k, rate in self.parameters.items()}
        return {k: _along(torch.as_tensor(a).to(params[k]), params[k], dim) for k, (dim, a) in self.parameters.items()}

    def move_output(self, output: Tensor) -> Tensor:
        """η(f).

        Args:
            output: of the model.

        Returns:
            The tangent, in the same shape.
        """
        if self.output is None:
            return torch.zeros_like(output)
        if isinstance(self.output, Tensor):
            return output @ self.output.to(output).mT
        return self.output(output) if callable(self.output) else self.output * output


def predicted_products(
    task: Task, generator: Generator, *, max_samples: int = 2048, seed: int = 0
) -> tuple[float, Tangent]:
    """∇L·ξ and Hξ as the identities give them, without a Hessian-vector product.

    Args:
        task: gives model, loss and data; nothing of it is changed. The loss must call the model and use its output, a
            tensor, alone.
        generator: the change of the parameters.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        R = E⟨ℓ', η(f)⟩ and ∇R − (Dξ)ᵀ∇L by name, over the trainable parameters. Cost: three gradients.

    Source: arXiv 2512.21447.

    Example:
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> task = Task(nn.Linear(1, 1, bias=False), lambda m, b: m(b[0])[:, 0] ** 2, lambda: [(x,)],
        ...             lr=0.1, weight_decay=0.0, batch_size=2)
        >>> slope, product = predicted_products(task, Generator("homogeneous", output=1.0))
        >>> w = task.model.weight.double()  # L = 5w²
        >>> bool(abs(slope - 10 * w**2) < 1e-9), bool((product["weight"] - 10 * w).abs() < 1e-9)
        (True, True)
    """
    clone = exact_copy(task)
    leaves = {k: p.detach().clone().requires_grad_() for k, p in trainable(clone.model).items()}
    module = LossModule(_Moved(clone.model, generator), clone.loss)
    values = {f"model.model.{k}": p for k, p in leaves.items()}
    first = next(iter(leaves.values()))
    angle = torch.zeros((), dtype=first.dtype, device=first.device, requires_grad=True)
    total, count = first.new_zeros(()), 0
    with differentiable_attention():
        for batch in clone.batch_iter(seed):
            losses = functional_call(module, {**values, "model.angle": angle}, (batch,))
            total, count = total + losses.sum(), count + len(losses)
            if count >= max_samples:
                break
        mean = total / count
        slope, *gradient = torch.autograd.grad(
            mean, [angle, *leaves.values()], create_graph=True, allow_unused=True, materialize_grads=True
        )
        turned = _grad(slope, leaves)
    xi = generator.at(leaves)
    inner = torch.stack([(xi[k] * g.detach()).sum() for k, g in zip(leaves, gradient, strict=True) if k in xi]).sum()
    pulled = _grad(inner, leaves)
    return float(slope.detach()), {k: turned[k] - pulled[k] for k in leaves}


class _Moved(nn.Module):
    """f + tη(f), t at zero."""

    def __init__(self, model: nn.Module, generator: Generator) -> None:
        super().__init__()
        self.model, self._generator = model, generator
        self.angle = nn.Parameter(torch.zeros(()))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the model."""
        output: Tensor = self.model(*args, **kwargs)
        return output + self.angle * self._generator.move_output(output)


def _grad(value: Tensor, leaves: Tangent) -> Tangent:
    if not value.requires_grad:
        return {k: torch.zeros_like(p) for k, p in leaves.items()}
    grads = torch.autograd.grad(
        value, list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, grads, strict=True))


def _along(matrix: Tensor, tensor: Tensor, dim: int) -> Tensor:
    moved: Tensor = torch.tensordot(matrix, tensor, dims=([1], [dim]))
    return moved.movedim(0, dim)
