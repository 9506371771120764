"""What enters a class of units and what pulls on it: inputs h and pulls g = −∂ℓ/∂y, captured by hooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from gaugefix.measure.activations import Activation, known_activation, leaky
from gaugefix.measure.classes import exact_copy, units_of
from gaugefix.measure.perexample import trainable
from gaugefix.symmetry import Symmetries, Units
from gaugefix.task import Task

_MISMATCH = 1e-2


@dataclass(frozen=True, eq=False)
class ClassProbe:
    """One class of units seen from inside a forward and backward pass over the data.

    Attributes:
        units: the class.
        h: ``(rows, d)`` its input, with a column of ones if it has a bias; rows are samples (times positions).
        g: ``(rows, m)`` −∂ℓ/∂y of what it feeds, scaled so that the mean over rows of g φ(w·h) is E[Σ g φ(w·h)].
        activation: what sits between, checked against the captured values.
        reason: why the class could not be probed, or ""; then the arrays are empty.
    """

    units: Units
    h: Float[np.ndarray, "rows d"]
    g: Float[np.ndarray, "rows m"]
    activation: Activation | None
    reason: str


@dataclass(frozen=True, eq=False)
class Probe:
    """All classes of a model probed in one pass.

    Attributes:
        classes: one per class, in order.
        params: parameters of the copy, float64 where the loss allows.
        gradients: of the mean data loss, by name; zero where it does not reach, absent where frozen.
        n_samples: number of samples.
        loss: mean data loss.
    """

    classes: tuple[ClassProbe, ...]
    params: dict[str, Tensor] = field(repr=False)
    gradients: dict[str, Tensor] = field(repr=False)
    n_samples: int
    loss: float


@dataclass
class _Tape:
    """Inputs and outputs of one module in the order of its calls, and a zero added to each output."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    probes: list[Tensor] = field(default_factory=list)

    def hook(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        probe = torch.zeros_like(output, requires_grad=True)
        self.inputs.append(args[0].detach().clone())
        self.outputs.append(output.detach().clone())
        self.probes.append(probe)
        return output + probe


def class_inputs(
    task: Task, symmetries: Symmetries | Sequence[Units], *, max_samples: int = 4096, seed: int = 0
) -> dict[str, Tensor]:
    """The data as every class of units sees it, for `collapse_report`.

    Args:
        task: gives model, loss and data; nothing of it is changed.
        symmetries: what `find_symmetries` gave, or the classes themselves.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        ``(rows, d)`` by name of the class, with a column of ones for a bias; classes that cannot be probed are
        left out.
    """
    found = probe_classes(exact_copy(task), units_of(symmetries), max_samples=max_samples, seed=seed)
    return {c.units.name: torch.from_numpy(c.h) for c in found.classes if not c.reason}


def probe_classes(copy: Task, classes: Sequence[Units], *, max_samples: int = 4096, seed: int = 0) -> Probe:
    """Run the data once through a copy of the model and record every class.

    A class can be probed if its incoming and outgoing slices are weights of `nn.Linear` modules, each called once in
    a forward pass, untied and trainable, with nothing but a known activation in between. That is read off the values:
    φ(incoming output) must reproduce the outgoing input to 1 %.

    Args:
        copy: from `exact_copy`; hooks are put on it for the pass and taken off again.
        classes: the classes.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        The recording. Cost: one forward and one backward pass over the data.
    """
    model = copy.model
    structure = {u.name: _modules(u, model) for u in classes}
    names = {n for found in structure.values() if not isinstance(found, str) for n in (*found[0], *found[1])}
    records: dict[str, list[_Tape]] = {n: [] for n in names}
    grads: list[tuple[Tensor, ...]] = []
    params, n_samples, loss = trainable(model), 0, 0.0
    for batch in copy.batch_iter(seed):
        tapes = {n: _Tape() for n in names}
        handles = [model.get_submodule(n).register_forward_hook(t.hook) for n, t in tapes.items()]
        try:
            losses = copy.loss(model, batch)
        finally:
            for handle in handles:
                handle.remove()
        probes = [p for t in tapes.values() for p in t.probes]
        found = torch.autograd.grad(
            losses.sum(), [*probes, *params.values()], allow_unused=True, materialize_grads=True
        )
        pulls = iter(found)
        for name, tape in tapes.items():
            tape.probes = [-next(pulls) for _ in tape.probes]
            records[name].append(tape)
        grads.append(found[len(probes) :])
        n_samples, loss = n_samples + len(losses), loss + float(losses.detach().sum())
        if n_samples >= max_samples:
            break
    sums = [torch.stack(g).sum(0) / n_samples for g in zip(*grads, strict=True)]
    return Probe(
        tuple(_assemble(u, structure[u.name], records, n_samples) for u in classes),
        {k: p.detach() for k, p in model.named_parameters()},
        dict(zip(params, sums, strict=True)),
        n_samples,
        loss / n_samples,
    )


_Structure = tuple[list[str], list[str]]


def _modules(units: Units, model: nn.Module) -> _Structure | str:
    """Names of the Linear modules that write and read a class, or why there are none."""
    params = dict(model.named_parameters())
    if not units.incoming or not units.outgoing:
        return f"no {'outgoing' if units.incoming else 'incoming'} slice"
    if units.fibers != 1 or any(s.index.shape[2] != 1 for s in units.slices):
        return "units are blocks of parameters, not single neurons"
    if units.gains:
        return f"normalisation or gain {units.gains[0].param!r} in the class: decay is a gauge there"
    if any(s.param not in params for s in units.slices):
        return "a slice belongs to no parameter of this model"
    frozen = [s.param for s in units.slices if not params[s.param].requires_grad]
    if frozen:
        return f"{frozen[0]!r} is frozen: neither trained nor decayed"
    if len(units.parameters) != len(units.slices):
        return "tied slices: one parameter is on both sides of the class"
    names = [k for k, p in model.named_parameters(remove_duplicate=False) for q in units.parameters if p is params[q]]
    if len(names) > len(units.parameters):
        return "tied slices: a parameter of the class is used under two names"
    sides: _Structure = ([], [])
    for s in units.slices:
        owner, _, leaf = s.param.rpartition(".")
        module = model.get_submodule(owner)
        wanted = (1 if s.role == "read" else 0) if leaf == "weight" else 0
        if type(module) is not nn.Linear or s.dim != wanted or (leaf == "bias" and s.role == "read"):
            return f"{s.param!r} is not the weight of a Linear layer on that side"
        side = sides[s.role == "read"]
        if owner not in side:
            side.append(owner)
    if not all(f"{n}.weight" in units.parameters for n in sides[0]):
        return "a bias writes the class without its weight"
    return sides


def _assemble(units: Units, modules: _Structure | str, records: dict[str, list[_Tape]], n: int) -> ClassProbe:
    """Join the batches of one class and check that the activation explains the values."""
    if isinstance(modules, str):
        return _failed(units, modules)
    writers, readers = modules
    if any(len(t.inputs) != 1 for name in (*writers, *readers) for t in records[name]):
        return _failed(units, "a layer of the class is not called exactly once in a forward pass")
    inputs = [_rows([t.inputs[0] for t in records[name]]) for name in writers]
    outputs = [_rows([t.outputs[0] for t in records[name]]) for name in writers]
    seen = [_rows([t.inputs[0] for t in records[name]]) for name in readers]
    pulls = [_rows([t.probes[0] for t in records[name]]) for name in readers]
    if len({len(a) for a in (*inputs, *seen)}) != 1:
        return _failed(units, "positions are mixed between the two sides of the class")
    index = {s.param.rpartition(".")[0]: s.index[0, :, 0] for s in units.slices}
    before = np.sum([out[:, index[name]] for name, out in zip(writers, outputs, strict=True)], axis=0)
    after = [x[:, index[name]] for name, x in zip(readers, seen, strict=True)]
    if len(writers) > 1 and not before.any():
        return _failed(units, "several layers write the class and all are zero: sum or product cannot be told")
    activation = _identify(units, before, after)
    if activation is None:
        return _failed(units, f"the values between the two sides are not those of {units.activation!r} alone")
    h = _augmented(units, dict(zip(writers, inputs, strict=True)))
    g = np.hstack(pulls) * (len(h) / n)
    return ClassProbe(units, h, g, activation, "")


def _identify(units: Units, before: np.ndarray, after: list[np.ndarray]) -> Activation | None:
    """The activation if it maps ``before`` to every ``after``."""
    activation = known_activation(units.activation)
    if units.activation == "leaky_relu" and (before < 0).any():
        activation = leaky(float(np.median(after[0][before < 0] / before[before < 0])))
    if activation is None:
        return None
    expected = activation.function(torch.from_numpy(before)).numpy()
    scale = max(float(np.linalg.norm(expected)), 1e-30)
    fits = all(np.linalg.norm(a - expected) <= _MISMATCH * scale for a in after)
    return activation if fits else None


def _augmented(units: Units, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Inputs in the column order of `Units.rows`, ones where a bias stands."""
    owners = [s.param.rpartition(".") for s in units.incoming]
    return np.hstack([inputs[o] if leaf == "weight" else np.ones((len(inputs[o]), 1)) for o, _, leaf in owners])


def _rows(parts: list[Tensor]) -> np.ndarray:
    return torch.cat([p.reshape(-1, p.shape[-1]) for p in parts]).double().cpu().numpy()


def _failed(units: Units, reason: str) -> ClassProbe:
    return ClassProbe(units, np.zeros((0, 0)), np.zeros((0, 0)), None, reason)
