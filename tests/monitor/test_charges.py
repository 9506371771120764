"""The law of the balance in a live run: holds to rounding where it must, is violated where it must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.monitor.models import Attention, batches, found, mlp, run, seeded
from torch import Tensor, nn

from gaugefix import Monitor
from gaugefix.measure import balance
from gaugefix.symmetry import Slice, Units


def watched(model: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> Monitor:
    return Monitor(model, found(model, 5), optimizer=optimizer, **{"every": 2, "level": "cheap", **options})


def errors(rows: list[dict[str, float]], number: str = "law_error") -> list[float]:
    return [v for row in rows for k, v in row.items() if k.endswith(f"/{number}")]


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 0.1}, {"momentum": 0.9}, {"momentum": 0.8, "weight_decay": 0.05}]
)
def test_the_law_holds_to_rounding(options: dict[str, float], every: int) -> None:
    model = seeded(mlp).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, **options)
    monitor = watched(model, optimizer, every=every)
    rows = run(model, optimizer, monitor, batches(12))
    assert len(errors(rows)) == len(rows) - 1
    assert max(errors(rows)) < 1e-12
    assert max(errors(rows, "identity_error")) < 1e-12
    assert [e for e in monitor.events if "law" in e.kind] == []


def test_the_law_holds_for_every_pair_of_attention() -> None:
    """Queries against keys, values against outputs: charges of general linear groups, found by the search."""
    model = seeded(Attention).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.02)
    monitor = Monitor(model, found(model, 3, 8), optimizer=optimizer, every=2, level="cheap")
    rows = run(model, optimizer, monitor, batches(8, (6, 3, 8)))
    pairs = {k.removesuffix("/law_error") for row in rows for k in row if k.endswith("/law_error")}
    assert len(pairs) >= 2
    assert max(errors(rows)) < 1e-12


def test_the_law_follows_a_schedule_of_the_learning_rate() -> None:
    model = seeded(mlp).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
    monitor = watched(model, optimizer)
    data = list(batches(9))
    with pytest.warns(UserWarning, match="lr_scheduler.step"):  # its rate is set before the step here
        rows = run(model, optimizer, monitor, data, before=schedule.step)
    assert max(errors(rows)) < 1e-12


def test_the_charge_is_that_of_measure() -> None:
    model = seeded(mlp)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    symmetries = found(model, 5)
    row = run(model, optimizer, Monitor(model, symmetries, every=1, level="cheap"), batches(1, dtype=torch.float32))[0]
    start = balance(dict(seeded(mlp).named_parameters()), symmetries)[0]
    wanted = np.abs(start.charge).sum() / (start.incoming + start.outgoing).sum()
    assert row["0/imbalance"] == pytest.approx(wanted, rel=1e-5)


def changed(kind: str) -> tuple[nn.Module, torch.optim.Optimizer, Monitor, Callable[[], None] | None]:
    """A run in which something is not as the law wants it, and what is done after the monitor has looked."""
    tanh = kind == "not symmetric"
    model = seeded(lambda: mlp(activation=nn.Tanh if tanh else nn.ReLU)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    if tanh:  # a claim that is false: tanh is not homogeneous
        index = np.arange(8).reshape(1, 8, 1)
        slices = (
            Slice("0.weight", 0, index, "write"),
            Slice("0.bias", 0, index, "write"),
            Slice("2.weight", 1, index, "read"),
        )
        monitor = Monitor(model, [Units("0", 8, 1, slices, "relu")], optimizer=optimizer, every=2, level="cheap")
        return model, optimizer, monitor, None
    monitor = watched(model, optimizer)

    def clip_value() -> None:
        nn.utils.clip_grad_value_(model.parameters(), 1e-3)

    def clip_norm() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)

    return model, optimizer, monitor, {"clipped by value": clip_value, "clipped by norm": clip_norm}[kind]


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("not symmetric", "the pair is not symmetric"),
        ("clipped by value", "clipped after it"),
        ("clipped by norm", "clipped after it"),
    ],
)
def test_a_violation_is_an_event_that_names_the_cause(kind: str, cause: str) -> None:
    model, optimizer, monitor, after = changed(kind)
    run(model, optimizer, monitor, batches(8), after=after)
    bad = [e for e in monitor.events if e.kind == "charge law violated"]
    assert len(bad) == 1  # not again at every step
    assert bad[0].where == "0"
    assert bad[0].value > 0.1
    assert cause in bad[0].message


def test_clipping_entry_by_entry_before_the_monitor_breaks_the_identity() -> None:
    model, optimizer, monitor, clip = changed("clipped by value")
    run(model, optimizer, monitor, batches(4), before=clip)
    bad = [e for e in monitor.events if e.kind == "charge law violated"]
    assert "clipping by value" in bad[0].message


def test_clipping_the_norm_before_the_monitor_is_fine() -> None:
    model, optimizer, monitor, clip = changed("clipped by norm")
    rows = run(model, optimizer, monitor, batches(8), before=clip)
    assert max(errors(rows)) < 1e-12
    assert monitor.events == ()


def test_a_violation_ends() -> None:
    model, optimizer, monitor, clip = changed("clipped by norm")
    run(model, optimizer, monitor, batches(6), after=clip)
    run(model, optimizer, monitor, batches(6))
    assert [e.kind for e in monitor.events] == ["charge law violated", "charge law restored"]


def groups(model: nn.Module) -> list[dict[str, Any]]:
    first, last = model[0], model[2]  # type: ignore[index]
    return [{"params": list(first.parameters())}, {"params": list(last.parameters()), "lr": 0.05}]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda m: torch.optim.Adam(m.parameters(), lr=0.01), "the law holds for SGD, the optimizer is Adam"),
        (lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True), "SGD with nesterov"),
        (lambda m: torch.optim.SGD(groups(m), lr=0.1), "different learning rates"),
        (lambda m: torch.optim.SGD(m[0].parameters(), lr=0.1), "frozen or belongs to another optimizer"),
    ],
)
def test_where_there_is_no_law_it_says_so(make: Callable[[nn.Module], torch.optim.Optimizer], reason: str) -> None:
    model = seeded(mlp).double()
    optimizer = make(model)
    monitor = watched(model, optimizer)
    rows = run(model, optimizer, monitor, batches(6))
    assert errors(rows) == []
    if "frozen" not in reason:  # the identity of the symmetry holds under any optimizer
        assert len(errors(rows, "identity_error")) > 0
    assert max(errors(rows, "identity_error"), default=0.0) < 1e-12
    assert any(reason in line for line in monitor.skipped)
    assert [e for e in monitor.events if "law" in e.kind] == []


def test_without_an_optimizer_there_is_no_law() -> None:
    model = seeded(mlp).double()
    monitor = Monitor(model, found(model, 5), every=1, level="cheap")
    nn.functional.cross_entropy(model(torch.ones(2, 5).double()), torch.tensor([0, 1])).backward()
    assert "0/identity_error" in monitor.step()
    assert any("no optimizer was given" in line for line in monitor.skipped)


def test_a_frozen_side_has_balance_but_no_law() -> None:
    model = seeded(mlp).double()
    model[2].weight.requires_grad_(False)  # type: ignore[index, union-attr]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    monitor = watched(model, optimizer)
    rows = run(model, optimizer, monitor, batches(6))
    assert "0/imbalance" in rows[0]
    assert errors(rows) == errors(rows, "identity_error") == []
    assert any("frozen" in line for line in monitor.skipped)


def test_bfloat16_noise_is_no_violation() -> None:
    model = seeded(lambda: mlp((5, 64, 3))).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    monitor = watched(model, optimizer)

    def blur() -> None:
        for p in model.parameters():
            p.grad = p.grad.bfloat16().double() if isinstance(p.grad, Tensor) else None

    run(model, optimizer, monitor, batches(30), before=blur)
    assert monitor.events == ()


def test_balance_is_reached_by_weight_decay() -> None:
    model = seeded(mlp).double()
    with torch.no_grad():
        model[2].weight *= 5  # type: ignore[index, operator]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, weight_decay=0.05)
    monitor = watched(model, optimizer, every=5)
    rows = run(model, optimizer, monitor, batches(400))
    (event,) = [e for e in monitor.events if "balance" in e.kind]
    assert event.kind == "balance reached"
    at = [row["0/imbalance"] for row in rows]
    assert at[event.step // 5] < 0.05 <= min(at[: event.step // 5])
