"""LayerNorm and RMSNorm over the last axis, written out with means, squares and roots."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gaugefix.symmetry.graph import Op, Value
from gaugefix.symmetry.producers import Producers, over_last

#: the largest constant under a root that is taken for the ε of a normalisation, and neglected like it
LARGEST_EPS = 1e-3


def written_norm(op: Op, made: Producers) -> Op | None:
    """u/√(mean(u²) + ε) as RMSNorm of u, or as LayerNorm of x where u = x − mean(x).

    The variance may be ``var(x)``, the divisor ``std(x) + ε``; Bessel's correction √((n−1)/n) is kept as ``scale``.

    Args:
        op: the last operation of the pattern, the division.
        made: what makes each value.

    Returns:
        One operation in its place, or None.
    """
    for u, divisor in _divisions(op, made):
        x, centred = _centred(u, made)
        n = op.out.shape[-1]
        scale = _of_spread(divisor, x, n, made) if centred else None
        if scale is None:
            scale = 1.0 if _is_root_mean_square(divisor, u, (x, centred), made) else None
        if scale is not None:
            options = {"scale": scale} if scale != 1.0 else {}
            name = "layer_norm" if centred else "rms_norm"
            return Op(name, (made.source(x if centred else u), [n], None), options, op.outputs, op.place)
    return None


def gain_of_norm(op: Op, made: Producers, readers: Mapping[Value, int]) -> Op | None:
    """A parameter times a norm without one, LayerNorm or RMS, that nothing else reads: its gain.

    Args:
        op: the product.
        made: what makes each value.
        readers: how many operations read each value.

    Returns:
        The norm with its gain, or None.
    """
    if op.name != "mul" or len(op.args) < 2:
        return None
    for gain, x in (op.args[:2], op.args[1::-1]):
        norm = made.by(x, "rms_norm", "layer_norm")
        if norm is None or norm.arg(2, "weight") is not None or norm.arg(3, "bias") is not None:
            continue
        weight = made.source(gain)
        fits = isinstance(weight, Value) and weight.kind == "param" and weight.shape == norm.out.shape[-1:]
        if fits and readers[norm.out] == 1:
            return Op(norm.name, (*norm.args[:2], weight), norm.kwargs, op.outputs, op.place)
    return None


@dataclass(frozen=True)
class _Divisor:
    """√inner if ``root``, else inner itself; ε is left out."""

    inner: Any
    root: bool


def _divisions(op: Op, made: Producers) -> Iterator[tuple[Value, _Divisor]]:
    """What op divides, and by what: u·rsqrt(s + ε), u/√(s + ε), u/(r + ε) or u/r."""
    if op.name not in {"mul", "div"} or len(op.args) < 2:
        return
    pairs = [op.args[:2]] if op.name == "div" else [op.args[:2], op.args[1::-1]]
    for u, factor in pairs:
        root = made.by(factor, "sqrt" if op.name == "div" else "rsqrt")
        if not isinstance(u, Value) or u.shape != op.out.shape or (op.name == "mul" and root is None):
            continue
        yield u, _Divisor(_without_eps(root.args[0] if root else factor, made), root is not None)


def _without_eps(value: Any, made: Producers) -> Any:
    shifted = made.by(value, "add")
    if shifted is None:
        return value
    eps = shifted.args[1]
    return shifted.args[0] if isinstance(eps, int | float) and 0 <= eps <= LARGEST_EPS else None


def _is_root_mean_square(divisor: _Divisor, u: Any, core: tuple[Any, bool], made: Producers) -> bool:
    """Whether the divisor is √mean(u²) over the last axis; the same difference from a mean may be taken twice."""
    mean = made.by(divisor.inner, "mean") if divisor.root else None
    square = made.by(mean.args[0], "pow", "mul", "square") if mean is not None and over_last(mean) else None
    if square is None or (square.name == "pow" and square.args[1] != 2):
        return False
    if square.name == "mul" and not made.same(*square.args[:2]):
        return False
    other = square.args[0]
    y, centred = _centred(other, made)
    return made.same(u, other) or (core[1] and centred and made.same(core[0], y))


def _of_spread(divisor: _Divisor, x: Any, n: int, made: Producers) -> float | None:
    """LayerNorm's divisor over this one, if it is √var(x) or std(x) over the last axis."""
    spread = made.by(divisor.inner, "var" if divisor.root else "std")
    if spread is None or not over_last(spread) or not made.same(x, spread.args[0]):
        return None
    correction = spread.arg(2, "correction", spread.kwargs.get("unbiased", 1))
    correction = 1 if correction is None else int(correction)
    return math.sqrt((n - correction) / n) if 0 <= correction < n else None


def _centred(value: Any, made: Producers) -> tuple[Any, bool]:
    """(x, True) if the value is x − mean(x) over the last axis, else (value, False)."""
    difference = made.by(value, "sub")
    if difference is not None and difference.arg(2, "alpha", 1) == 1:
        x = difference.args[0]
        mean = made.by(difference.args[1], "mean")
        if mean is not None and over_last(mean) and made.same(mean.args[0], x):
            return x, True
    return value, False
