"""The conditions under which two networks end with the same representations, as a checklist for a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gaugefix.errors import MeasurementError
from gaugefix.measure.records import Record
from gaugefix.task import Task

_KEYS = {
    "weight_decay", "batch_size", "n_samples", "lr", "sharpness", "label_transform", "rank", "target_rank",
    "same_inputs",
}  # fmt: skip
_SMALL = 0.2


@dataclass(frozen=True)
class Breaker(Record):
    """One of the ways in which identical representations are lost.

    Attributes:
        name: "weight decay", "label transform", "saddle", "inputs", "no noise" or "large learning rate".
        verdict: "breaks", "fine", or "unknown" if the configuration does not say.
        evidence: the number that decided, or which one is missing.
        advice: what to do about it.
    """

    name: str
    verdict: Literal["breaks", "fine", "unknown"]
    evidence: str
    advice: str


def platonic_breaker_checklist(train_config: Task | Mapping[str, Any], **more: Any) -> tuple[Breaker, ...]:
    """Six conditions under which independently trained networks do not end with the same representations.

    SGD with small steps selects one representation up to rotation, the same for every width, depth and invertible view
    of the inputs, unless one of these holds. Larger models or more data do not enter.

    Args:
        train_config: a task, or a mapping with any of the keys of ``more``.
        **more: ``weight_decay``; ``batch_size`` and ``n_samples`` of the training set (full batches have no noise);
            ``lr`` and ``sharpness``, the largest eigenvalue of the Hessian; ``label_transform``, a matrix between the
            labels of the two networks, or whether there is one; ``rank`` of the representations and ``target_rank`` of
            what is learnt; ``same_inputs``, whether both see invertible views of the same samples with the same noise.

    Returns:
        One entry per condition, in this order: weight decay, label transform, saddle, inputs, no noise, large learning
        rate.

    Raises:
        MeasurementError: if a key is unknown.

    Source: arXiv 2507.01098.

    Example:
        >>> for b in platonic_breaker_checklist({"weight_decay": 1e-4, "batch_size": 32, "n_samples": 50_000}):
        ...     print(f"{b.name:20}{b.verdict:9}{b.evidence}")
        weight decay        breaks   λ = 0.0001
        label transform     unknown  label_transform is not given
        saddle              unknown  rank and target_rank are not given
        inputs              unknown  same_inputs is not given
        no noise            fine     batches of 32 from 50000
        large learning rate unknown  lr and sharpness are not given
    """
    config = dict(train_config) if isinstance(train_config, Mapping) else {}
    if isinstance(train_config, Task):
        config = {k: getattr(train_config, k) for k in ("weight_decay", "batch_size", "lr")}
    config = {**config, **more}
    if unknown := sorted(config.keys() - _KEYS):
        raise MeasurementError(
            f"platonic_breaker_checklist: unknown {', '.join(unknown)}; known are {', '.join(sorted(_KEYS))}."
        )
    return (
        _weight_decay(config), _labels(config), _saddle(config), _inputs(config), _noise(config), _steps(config),
    )  # fmt: skip


def _weight_decay(config: dict[str, Any]) -> Breaker:
    advice = "Train without weight decay, or anneal it to zero; it prefers a kernel that depends on widths and views."
    value = config.get("weight_decay")
    if value is None:
        return _unknown("weight decay", "weight_decay", advice)
    return Breaker("weight decay", "breaks" if value > 0 else "fine", f"λ = {value:g}", advice)


def _labels(config: dict[str, Any]) -> Breaker:
    advice = "Give both networks the same labels, up to a rotation and one common factor."
    value = config.get("label_transform")
    if value is None:
        return _unknown("label transform", "label_transform", advice)
    if isinstance(value, bool):
        return Breaker("label transform", "breaks" if value else "fine", f"label_transform = {value}", advice)
    sizes = np.linalg.svd(np.atleast_2d(np.asarray(value, dtype=float)), compute_uv=False)
    spread = float(sizes[0] / sizes[-1]) if sizes[-1] > 0 else np.inf
    verdict: Literal["breaks", "fine"] = "breaks" if spread > 1 + 1e-6 else "fine"
    return Breaker("label transform", verdict, f"its singular values differ by a factor {spread:.3g}", advice)


def _saddle(config: dict[str, Any]) -> Breaker:
    advice = "Train on, or start larger: a network that rests on a saddle has learnt part of the target only."
    rank, target = config.get("rank"), config.get("target_rank")
    if rank is None or target is None:
        return _unknown("saddle", "rank and target_rank", advice)
    return Breaker("saddle", "breaks" if rank < target else "fine", f"rank {rank:g} of {target:g}", advice)


def _inputs(config: dict[str, Any]) -> Breaker:
    advice = "Compare networks that see invertible views of the same samples, with the same noise."
    value = config.get("same_inputs")
    if value is None:
        return _unknown("inputs", "same_inputs", advice)
    return Breaker("inputs", "fine" if value else "breaks", f"same_inputs = {value}", advice)


def _noise(config: dict[str, Any]) -> Breaker:
    advice = "Use minibatches: without gradient noise nothing selects one of the many minima."
    batch, n = config.get("batch_size"), config.get("n_samples")
    if batch is None or n is None:
        return _unknown("no noise", "batch_size and n_samples", advice)
    return Breaker("no noise", "breaks" if batch >= n else "fine", f"batches of {batch} from {n}", advice)


def _steps(config: dict[str, Any]) -> Breaker:
    advice = f"Lower the learning rate in the end: small steps select (lr·sharpness below {_SMALL:g})."
    lr, sharpness = config.get("lr"), config.get("sharpness")
    if lr is None or sharpness is None:
        return _unknown("large learning rate", "lr and sharpness", advice)
    product = lr * sharpness
    return Breaker("large learning rate", "breaks" if product > _SMALL else "fine", f"lr·λ_max = {product:.3g}", advice)


def _unknown(name: str, keys: str, advice: str) -> Breaker:
    return Breaker(name, "unknown", f"{keys} {'are' if ' and ' in keys else 'is'} not given", advice)
