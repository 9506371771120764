"""A run of SGD on a mirror plane together with an infinitesimal step off it: what stability is measured on.

On the plane z = Oᵀθ = 0 the gradient of every sample has no normal component, so a small z obeys a linear equation with
random coefficients, z ← z − lr·(OᵀH_B O + λ)z, where H_B is the Hessian of the minibatch that moves θ along the plane
in the same step. With momentum the pair (z, buffer) is what is multiplied.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gaugefix.errors import MeasurementError
from gaugefix.measure.batches import batch_gradient, endless
from gaugefix.measure.classes import exact_copy, to_dtype
from gaugefix.measure.invariant_sets import InvariantSet
from gaugefix.measure.perexample import trainable
from gaugefix.symmetry import DenseMirror, Mirror, mirror_from_matrix
from gaugefix.task import Batch, Task

_LISTED = 100_000_000

Directions = Mirror | DenseMirror | InvariantSet | Tensor | np.ndarray


def as_mirror(directions: Directions, task: Task, name: str = "directions") -> Mirror | DenseMirror:
    """A mirror from what a user gives.

    Args:
        directions: a mirror, an invariant set such as `ZeroNeuron`, or a matrix ``(P, k)`` over the stacked trainable
            parameters.
        task: gives the parameters.
        name: for a matrix.

    Returns:
        The mirror.

    Raises:
        MeasurementError: if a parameter of it is frozen or missing.
    """
    params = trainable(task.model)
    if isinstance(directions, Tensor | np.ndarray):
        matrix = torch.as_tensor(directions, dtype=torch.float64)
        return mirror_from_matrix(matrix, {k: p.detach() for k, p in params.items()}, name=name)
    if isinstance(directions, InvariantSet):
        directions = directions.mirror(task.model)
    for k in directions.parameters:
        if k not in params:
            raise MeasurementError(
                f"Mirror {directions.name!r}: {k!r} is no trainable parameter of task {task.name!r}. "
                "Unfreeze it, or find the symmetries of this model."
            )
    return directions


def plain_sgd_only(task: Task, what: str, *, momentum: bool = False) -> None:
    """Refuse an optimiser to which a measurement does not apply.

    Args:
        task: gives the optimiser.
        what: name of the measurement, for the message.
        momentum: whether momentum is allowed.

    Raises:
        MeasurementError: if it is not SGD, or has a momentum that is not allowed.
    """
    if task.optimizer != "sgd":
        raise MeasurementError(
            f"{what} is defined for optimizer='sgd', got {task.optimizer!r}: its step is no linear function of the "
            "gradient. Use dataclasses.replace(task, optimizer='sgd', lr=…) to ask about SGD at this point."
        )
    if task.momentum and not momentum:
        raise MeasurementError(
            f"{what} needs momentum=0, got {task.momentum:g}: the update depends on the steps before. "
            "Use dataclasses.replace(task, momentum=0.0, lr=lr/(1 - momentum))."
        )


class _NormalSpace:
    """Coordinates normal to a plane, with the entries of O listed once: a step asks for them five times."""

    def __init__(self, mirror: Mirror | DenseMirror, params: dict[str, Tensor]) -> None:
        self._mirror, self._shapes = mirror, {k: params[k].shape for k in mirror.parameters}
        self._sizes = [shape.numel() for shape in self._shapes.values()]
        first = params[next(iter(self._shapes))]
        self.codim = mirror.codim(params)
        self._entries: tuple[Tensor, Tensor, Tensor] | None = None
        if self.codim * sum(self._sizes) > _LISTED:
            return
        found = []
        for i, e in enumerate(torch.eye(self.codim, dtype=first.dtype, device=first.device)):
            column = self._stack(mirror.embed(e, params))
            rows = column.nonzero()[:, 0]
            found.append((rows, torch.full_like(rows, i), column[rows]))
        self._entries = tuple(map(torch.cat, zip(*found, strict=True)))  # type: ignore[assignment]

    def coordinates(self, params: dict[str, Tensor]) -> Tensor:
        """Oᵀθ."""
        if self._entries is None:
            return self._mirror.coordinates(params)
        rows, columns, values = self._entries
        flat = self._stack(params)
        return flat.new_zeros(self.codim).index_add_(0, columns, values * flat[rows])

    def embed(self, z: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """Oz."""
        if self._entries is None:
            return self._mirror.embed(z, params)
        rows, columns, values = self._entries
        flat = z.new_zeros(sum(self._sizes)).index_add_(0, rows, values * z[columns])
        parts = zip(self._shapes.items(), flat.split(self._sizes), strict=True)
        return {k: part.reshape(shape) for (k, shape), part in parts}

    def project_(self, params: dict[str, Tensor]) -> None:
        """Onto the plane, in place."""
        for k, normal in self.embed(self.coordinates(params), params).items():
            params[k].sub_(normal)

    def _stack(self, params: dict[str, Tensor]) -> Tensor:
        return torch.cat([params[k].detach().reshape(-1) for k in self._shapes])


class TangentPath:
    """SGD of a copy of the model, held on a plane, with a normal vector that is carried along and renormalised.

    Args:
        task: gives model, loss, data and settings; nothing of it is changed.
        mirror: whose plane.
        weight_decay: λ instead of the task's.
        frozen: keep θ where it is.
        seed: of the data order and the first vector.

    Attributes:
        params: trainable parameters of the copy.
        distance: relative distance of the model to the plane before it was projected.
        type2_residual: largest ‖Oᵀ∇ℓ_B‖/‖∇ℓ_B‖ met; it is rounding if the plane is that of a symmetry.
    """

    def __init__(
        self, task: Task, mirror: Mirror | DenseMirror, *, weight_decay: float | None = None, frozen: bool, seed: int
    ) -> None:
        self._task, self._mirror, self._frozen = exact_copy(task), mirror, frozen
        self._decay = task.weight_decay if weight_decay is None else weight_decay
        self.params = trainable(self._task.model)
        self._all = {k: p.detach() for k, p in self._task.model.named_parameters()}  # share storage
        self.distance = mirror.distance(self._all)
        self._normal = _NormalSpace(mirror, self._all)
        self._normal.project_(self._all)
        self.type2_residual = 0.0
        self._batches = endless(self._task, seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._z = self._random()
        self._buffers: dict[str, Tensor] | None = None
        self._z_buffer = torch.zeros_like(self._z)

    def step(self) -> float:
        """One minibatch step of θ along the plane and of z off it.

        Returns:
            log‖z'‖/‖z‖, of the pair (z, lr·buffer) under momentum; −inf if z is exactly zero afterwards.

        Raises:
            MeasurementError: if the gradient is not finite.
        """  # noqa: DOC502
        return self._carry(next(self._batches), self._task.lr, self._decay, self._task.momentum)

    def follow(
        self, params: Mapping[str, Tensor], batch: Batch, *, lr: float, weight_decay: float, momentum: float = 0.0
    ) -> float:
        """One step of z along a run that is trained elsewhere; for a path that is frozen itself.

        Args:
            params: of that run before its step; their projection on the plane is where z is carried.
            batch: of that step.
            lr: its learning rate.
            weight_decay: λ.
            momentum: heavy-ball momentum.

        Returns:
            As `step`.
        """
        with torch.no_grad():
            for k, p in self.params.items():
                p.copy_(params[k])
        self.distance = self._mirror.distance(self._all)
        self._normal.project_(self._all)
        return self._carry(to_dtype(batch, next(iter(self.params.values())).dtype), lr, weight_decay, momentum)

    def _carry(self, batch: Batch, lr: float, weight_decay: float, momentum: float) -> float:
        gradients, pushed = self._derivatives(batch)
        if not all(bool(torch.isfinite(g).all()) for g in gradients.values()):
            raise MeasurementError(
                f"Mirror {self._mirror.name!r}: the run on the plane diverges at lr = {lr:g}. Lower the learning rate."
            )
        self._z_buffer = momentum * self._z_buffer + pushed + weight_decay * self._z
        self._z = self._z - lr * self._z_buffer
        if not self._frozen:
            self._advance(gradients)
        state = torch.cat([self._z, lr * self._z_buffer]) if momentum else self._z
        norm = float(state.norm())
        if norm == 0:
            self._z, self._z_buffer = self._random(), torch.zeros_like(self._z)
            return -float("inf")
        self._z, self._z_buffer = self._z / norm, self._z_buffer / norm
        return float(np.log(norm))

    def stationarity(self) -> float:
        """How far θ is from a stationary point of the penalised loss on the plane.

        Returns:
            ‖∇L + λθ‖ over one pass, relative to λ‖θ‖ + √mean‖∇ℓ_B‖²; 0 if the force itself is rounding.
        """
        total: dict[str, Tensor] = {k: torch.zeros_like(p) for k, p in self.params.items()}
        squares, count = 0.0, 0
        for batch in self._task.batch_iter():
            _, gradients = batch_gradient(self._task, batch, self.params)
            squares += sum(float(g.square().sum()) for g in gradients.values())
            total = {k: total[k] + g for k, g in gradients.items()}
            count += 1
        force = sum(float((total[k] / count + self._decay * p.detach()).square().sum()) for k, p in self.params.items())
        size = sum(float(p.detach().square().sum()) for p in self.params.values())
        scale = self._decay * size**0.5 + (squares / count) ** 0.5
        return force**0.5 / scale if force**0.5 > 1e-9 else 0.0

    def _derivatives(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Gradient of the batch, and OᵀH_B O z."""
        _, gradients = batch_gradient(self._task, batch, self.params, create_graph=True)
        tangent = self._normal.embed(self._z, self._all)
        names = [k for k in tangent if gradients[k].requires_grad]
        image = {k: torch.zeros_like(v) for k, v in tangent.items()}
        if names:
            with sdpa_kernel(SDPBackend.MATH):
                found = torch.autograd.grad(
                    [gradients[k] for k in names],
                    [self.params[k] for k in tangent],
                    [tangent[k] for k in names],
                    allow_unused=True,
                    materialize_grads=True,
                )
            image = dict(zip(tangent, found, strict=True))
        gradients = {k: g.detach() for k, g in gradients.items()}
        size = sum(float(g.square().sum()) for g in gradients.values()) ** 0.5
        if size > 0:
            normal = float(self._normal.coordinates(gradients).norm())
            self.type2_residual = max(self.type2_residual, normal / size)
        return gradients, self._normal.coordinates(image)

    def _advance(self, gradients: dict[str, Tensor]) -> None:
        pulls = {k: g + self._decay * self.params[k].detach() for k, g in gradients.items()}
        old = self._buffers or {k: torch.zeros_like(g) for k, g in pulls.items()}
        self._buffers = {k: self._task.momentum * old[k] + g for k, g in pulls.items()}
        with torch.no_grad():
            for k, p in self.params.items():
                p.sub_(self._buffers[k], alpha=self._task.lr)
        self._normal.project_(self._all)  # rounding would leave a plane that repels

    def _random(self) -> Tensor:
        like = next(iter(self.params.values()))
        z = torch.randn(self._normal.codim, generator=self._generator, dtype=torch.float64)
        unit: Tensor = z / z.norm()
        return unit.to(like.device, like.dtype)
