"""Finding the shift gauges: the systems of conditions on constants, component by component, and their solutions."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch

from gaugefix.symmetry.axes import Axis
from gaugefix.symmetry.groups import Symmetry
from gaugefix.symmetry.records import Product
from gaugefix.symmetry.shift_action import ShiftAction
from gaugefix.symmetry.shift_forms import Condition, Source
from gaugefix.symmetry.shift_group import Shift, condition_matrix, number_of_constants
from gaugefix.symmetry.shifts import ShiftFlow

#: unknowns up to which conditions that pass through weights are solved numerically
MAX_NUMERIC = 3000


def find_shifts(flow: ShiftFlow, names: dict[Axis, str]) -> tuple[list[Symmetry], list[str]]:
    """Every shift gauge of a lowered graph.

    Args:
        flow: how constants flow through it.
        names: readable names of the classes.

    Returns:
        The symmetries and notes on what was not solved.
    """
    action = ShiftAction(flow)
    symmetries: list[Symmetry] = []
    notes: list[str] = []
    for sources, conditions in _components(flow):
        if any(a.how != "copy" for c in conditions for a in c.form.values()):
            symmetry, note = _numeric(action, sources, conditions)
            symmetries += [symmetry] if symmetry is not None else []
            notes += [note] if note else []
        else:
            symmetries += _exact(action, sources, conditions, names)
    return symmetries, notes


def _components(flow: ShiftFlow) -> list[tuple[list[Source], list[Condition]]]:
    """Sources that share a condition, with their conditions; sources killed by a wild arrival are left out."""
    dead: set[Source] = set()
    for c in flow.conditions:
        dead |= {s for s, a in c.form.items() if a.how == "wild"}
    parent = {s: s for s in flow.sources if s not in dead}

    def find(s: Source) -> Source:
        while parent[s] != s:
            parent[s] = parent[parent[s]]
            s = parent[s]
        return s

    live = []
    for c in flow.conditions:
        alive = [s for s in c.form if s not in dead]
        if alive:
            live.append(replace(c, form={s: c.form[s] for s in alive}))
        for s in alive[1:]:
            parent[find(s)] = find(alive[0])
    groups: dict[Source, tuple[list[Source], list[Condition]]] = defaultdict(lambda: ([], []))
    for s in parent:
        groups[find(s)][0].append(s)
    for c in live:
        groups[find(next(iter(c.form)))][1].append(c)
    return list(groups.values())


def _exact(
    action: ShiftAction, sources: list[Source], conditions: list[Condition], names: dict[Axis, str]
) -> list[Symmetry]:
    """Copies only: one small null space for each sector."""
    flow = action.flow
    place = {leaf: i for i, leaf in enumerate(names)}
    sectors = dict.fromkeys(
        frozenset(some)
        for s in sources
        for n in range(len(flow.sources[s]), -1, -1)
        for some in combinations(sorted(flow.sources[s], key=place.__getitem__), n)
    )
    solutions: dict[tuple[tuple[Source, float], ...], list[frozenset[Axis]]] = defaultdict(list)
    for sector in sectors:
        columns = [s for s in sources if sector <= flow.sources[s]]
        rows = [
            [c.form[s].coefficient if s in c.form else 0.0 for s in columns]
            for c in conditions
            if c.free is None or sector & c.free
        ]
        for vector in _sparse_null_space(np.array(rows, dtype=float).reshape(len(rows), len(columns))):
            solutions[tuple((s, float(x)) for s, x in zip(columns, vector, strict=True) if x)].append(sector)
    out: list[Symmetry] = []
    for weights, allowed in solutions.items():
        leaves = tuple(sorted(frozenset().union(*allowed), key=lambda a: place.get(a, 0)))
        dim = sum(math.prod(leaf.size - 1 for leaf in sector) for sector in allowed)
        if dim:
            out.append(_shift(action, weights, leaves, tuple(allowed), dim))
    return out


def _shift(
    action: ShiftAction, vector: tuple[tuple[Source, float], ...], leaves: tuple[Axis, ...],
    sectors: tuple[frozenset[Axis], ...], dim: int, conditions: tuple[Condition, ...] = (),
) -> Shift:  # fmt: skip
    params = dict.fromkeys(_moved(action, s) for s, _ in vector)
    return Shift(
        f"{', '.join(params)}: shift",
        f"T({dim})",
        dim,
        tuple(f"{p}[0]" for p in dict.fromkeys([*params, *_touched(action, vector)])),
        False,
        action=action,
        sources=vector,
        leaves=leaves,
        sectors=sectors,
        conditions=conditions,
    )


def _moved(action: ShiftAction, source: Source) -> str:
    """The parameter behind a source: itself, or the weight of a product that takes up a constant."""
    record = action.producers.get(source[0])
    return action.flow.biased[record].value.name if isinstance(record, Product) else source[0].name


def _touched(action: ShiftAction, vector: tuple[tuple[Source, float], ...]) -> list[str]:
    """Biases that absorb the shift."""
    sources = {s for s, _ in vector}
    touched = [_moved(action, absorber) for absorber, form in action.flow.absorbed.items() if sources & form.keys()]
    readings = [action.flow.tied[s[0]] for s in sources if s[0] in action.flow.tied]
    return touched + [r.bias for r in readings if r.bias is not None]


def _sparse_null_space(matrix: np.ndarray) -> list[np.ndarray]:
    """A null-space basis with small integer-like entries, by row reduction."""
    m = matrix.astype(float).copy()
    rows, n = m.shape
    pivots: list[int] = []
    r = 0
    for c in range(n - 1, -1, -1):  # later sources absorb, earlier ones stay free
        if r >= rows:
            break
        k = r + int(np.argmax(np.abs(m[r:, c])))
        if abs(m[k, c]) < 1e-12:
            continue
        m[[r, k]] = m[[k, r]]
        m[r] /= m[r, c]
        for i in range(rows):
            if i != r:
                m[i] -= m[i, c] * m[r]
        pivots.append(c)
        r += 1
    basis = []
    for f in (c for c in range(n) if c not in pivots):
        v = np.zeros(n)
        v[f] = 1.0
        for i, c in enumerate(pivots):
            v[c] = -m[i, f]
        v[np.abs(v) < 1e-12] = 0
        basis.append(v)
    return basis


def _numeric(
    action: ShiftAction, sources: list[Source], conditions: list[Condition]
) -> tuple[Symmetry | None, str | None]:
    """Some arrival went through weights: the null space depends on θ; its generic dimension is computed."""
    n = sum(number_of_constants(action, s) for s in sources)
    names = ", ".join(dict.fromkeys(_moved(action, s) for s in sources))
    if n > MAX_NUMERIC:
        return None, f"shifts of {names} ({n} numbers) pass through weights without a bias; not solved at this size"
    generator = torch.Generator().manual_seed(0)
    params = {
        name: torch.randn(v.shape, generator=generator, dtype=torch.float64)
        for name, v in action.flow.classes.cells.lower.graph.params.items()
    }
    matrix = condition_matrix(action, sources, tuple(conditions), params).numpy()
    dim = n - (int(np.linalg.matrix_rank(matrix)) if matrix.size else 0)
    if not dim:
        return None, None
    return _shift(action, tuple((s, 1.0) for s in sources), (), (), dim, tuple(conditions)), None
