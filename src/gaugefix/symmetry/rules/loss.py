"""Losses: what they do not see of the outputs is a symmetry of the loss."""

from __future__ import annotations

from gaugefix.symmetry.graph import Op, Value
from gaugefix.symmetry.lowering import Lowering, aligned, register_rule
from gaugefix.symmetry.records import Label, Softmax


def _pick(lower: Lowering, log_probs: Value, dim: int, op: Op) -> None:
    """The entries of a class axis that the targets choose, then the reduction."""
    lower.pin_dims(log_probs, [dim])
    kept = [d for d in range(log_probs.ndim) if d != dim]
    per_sample = lower.temp([log_probs.shape[d] for d in kept], f"{op.out.name}.picked")
    chosen: dict[Label, int] = {d: d for d in kept}
    lower.sum([(log_probs, chosen)], per_sample, {d: i for i, d in enumerate(kept)})
    _reduce(lower, per_sample, op.out)


def _reduce(lower: Lowering, per_sample: Value, out: Value) -> None:
    if out.shape == per_sample.shape:
        lower.same(per_sample, out)
    else:
        lower.product([(per_sample, aligned(per_sample, per_sample))], out, {})


@register_rule("cross_entropy_loss")
def cross_entropy(op: Op, lower: Lowering) -> None:
    """−log softmax at the target, or its expectation under target probabilities."""
    x, target = op.args[0], op.args[1]
    dim = 1 if x.ndim > 1 else 0
    log_probs = lower.temp(x.shape, f"{op.out.name}.log_probs")
    lower.emit(
        Softmax(
            out=lower.operand(log_probs, aligned(log_probs, log_probs)),
            place=lower.place,
            x=lower.operand(x, aligned(x, log_probs)),
            label=dim,
            log=True,
        )
    )
    if target.is_float and target.shape == x.shape:
        weighted = lower.temp(x.shape, f"{op.out.name}.weighted")
        labels = aligned(x, x)
        lower.product([(log_probs, labels), (target, labels)], weighted, labels)
        kept = [d for d in range(x.ndim) if d != dim]
        total = lower.temp([x.shape[d] for d in kept], f"{op.out.name}.total")
        lower.product([(weighted, labels)], total, {d: i for i, d in enumerate(kept)})
        _reduce(lower, total, op.out)
    else:
        _pick(lower, log_probs, dim, op)


@register_rule("nll_loss", "nll_loss_nd", "nll_loss2d")
def nll(op: Op, lower: Lowering) -> None:
    """−log p at the target."""
    _pick(lower, op.args[0], 1 if op.args[0].ndim > 1 else 0, op)


@register_rule("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
def regression(op: Op, lower: Lowering) -> None:
    """Distances between outputs and targets: the targets fix everything."""
    x = op.args[0]
    seen = lower.temp(x.shape, f"{op.out.name}.difference")
    lower.pointwise(x, seen, "difference")
    lower.pin_dims(x, range(x.ndim))
    _reduce(lower, seen, op.out)


@register_rule("binary_cross_entropy_with_logits", "binary_cross_entropy")
def binary(op: Op, lower: Lowering) -> None:
    """Entry by entry against targets."""
    regression(op, lower)
