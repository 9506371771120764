"""The monitor in a training run: its numbers, its manners, its memory."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.monitor.models import Attention, batches, found, mlp, run, seeded
from torch import nn
from torch.nn import functional as F

import gaugefix
from gaugefix import Monitor, Task
from gaugefix.errors import MeasurementError
from gaugefix.measure import collapse_report, live_units
from gaugefix.symmetry import mirror_from_matrix


def sgd(model: nn.Module, **options: float) -> torch.optim.SGD:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], **{"lr": 0.2, **options})


class TestNumbers:
    def test_norms_units_and_duplicates_are_those_of_measure(self) -> None:
        model = seeded(lambda: mlp((5, 8, 6, 3))).double()
        with torch.no_grad():
            model[0].weight[1], model[0].bias[1] = model[0].weight[0], model[0].bias[0]  # type: ignore[index]
            model[0].weight[2], model[0].bias[2], model[2].weight[:, 2] = 0, 0, 0  # type: ignore[index]
        symmetries = found(model, 5)
        params = {n: p.detach().clone() for n, p in model.named_parameters()}
        (row,) = run(model, sgd(model), Monitor(model, symmetries, level="full"), batches(1))
        report = {u.name: u for u in collapse_report(params, symmetries).units}
        for name, unit in report.items():
            assert row[f"{name}/live"] == live_units(params, next(u for u in symmetries.units if u.name == name)).sum()
            assert row[f"{name}/distinct"] == unit.distinct
            assert row[f"{name}/rank"] == unit.numerical_rank
            assert row[f"{name}/effective_rank"] == pytest.approx(unit.effective_rank)
            sizes = unit.norms**2
            assert row[f"{name}/effective_units"] == pytest.approx(sizes.sum() ** 2 / (sizes**2).sum())
        assert (row["0/live"], row["0/distinct"]) == (7, 6)
        assert (row["units/live"], row["units/all"]) == (13, 14)
        norm = torch.cat([p.reshape(-1) for p in params.values()]).norm()
        assert row["weights/norm"] == pytest.approx(norm.item())
        grads = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
        assert row["gradients/norm"] == pytest.approx(grads.norm().item())

    def test_the_schedule(self) -> None:
        model = seeded(mlp)
        rows = []
        monitor = Monitor(model, found(model, 5), every=3, dear=2, sinks=[lambda row, step: rows.append((step, row))])
        returned = run(model, sgd(model), monitor, batches(14, dtype=torch.float32))
        assert [step for step, _ in rows] == [0, 3, 6, 9, 12]
        assert ["0/distinct" in row for _, row in rows] == [True, False, True, False, True]
        assert returned == [row for _, row in rows]
        assert all(isinstance(v, float) for row in returned for v in row.values())
        assert monitor.steps == 14
        assert 0 < monitor.overhead < 1

    def test_levels_add_numbers(self) -> None:
        model = seeded(mlp)
        keys = []
        for level in ("cheap", "standard", "full"):
            monitor = Monitor(model, found(model, 5), level=level)  # type: ignore[arg-type]
            optimizer = torch.optim.Adam(model.parameters())
            run(model, optimizer, None, batches(1, dtype=torch.float32))
            keys.append(set(run(model, optimizer, monitor, batches(1, dtype=torch.float32))[0]))
        assert keys[0] < keys[1] < keys[2]
        assert {"0/participation", "0/mirror_distance"} <= keys[1] - keys[0]
        assert {"0/rank", "adam/step"} <= keys[2] - keys[1]

    def test_the_loss_is_logged(self) -> None:
        model = seeded(mlp)
        monitor = Monitor(model, found(model, 5), every=1)
        assert "loss" not in monitor.step()
        assert monitor.step(loss=torch.tensor(2.5))["loss"] == 2.5
        assert monitor.step(loss=1.5)["loss"] == 1.5

    def test_a_task_brings_its_symmetries(self) -> None:
        task = gaugefix.load_task("digits-mlp")
        assert Monitor(task).step()["0/live"] == 64

    def test_a_model_with_arguments_is_searched_and_one_without_is_not(self) -> None:
        model = seeded(mlp)
        assert "0/live" in Monitor(model, args=(torch.zeros(2, 5),)).step()
        bare = Monitor(model)
        assert set(bare.step()) == {"weights/norm", "gradients/norm"}
        assert "pass symmetries=" in bare.skipped[0]

    def test_mirrors_of_the_user(self) -> None:
        model = nn.Linear(2, 1, bias=False).double()
        params = dict(model.named_parameters())
        swap = mirror_from_matrix(torch.tensor([[1.0], [-1.0]]).double(), params, name="a = b")
        monitor = Monitor(model, mirrors=[swap], every=1, dear=1)
        distances = []
        for b in (0.0, 0.99, 0.5):
            with torch.no_grad():
                model.weight.copy_(torch.tensor([[1.0, b]]))
            distances.append(monitor.step()["mirror/a = b"])
        assert distances == pytest.approx([
            swap.distance({"weight": torch.tensor([[1.0, b]])}) for b in (0.0, 0.99, 0.5)
        ])
        assert [(e.step, e.kind) for e in monitor.events] == [(1, "mirror restored"), (2, "mirror broken")]


class Dropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class TestManners:
    @pytest.mark.parametrize("kind", ["sgd", "adam"])
    def test_weights_with_and_without_a_monitor_are_the_same_bits(self, kind: str) -> None:
        results = []
        for watched in (False, True):
            model = seeded(Dropout)
            torch.manual_seed(3)
            optimizer = sgd(model, momentum=0.9) if kind == "sgd" else torch.optim.AdamW(model.parameters())
            monitor = None
            if watched:
                monitor = Monitor(model, args=(torch.zeros(2, 5),), every=2, dear=1, level="full")
            run(model, optimizer, monitor, batches(12, dtype=torch.float32))
            results.append((copy.deepcopy(model.state_dict()), torch.random.get_rng_state()))
        assert all(torch.equal(a, b) for a, b in zip(results[0][0].values(), results[1][0].values(), strict=True))
        assert torch.equal(results[0][1], results[1][1])

    def test_nothing_is_left_on_the_model(self) -> None:
        model = seeded(mlp)
        F.cross_entropy(model(torch.ones(2, 5)), torch.tensor([0, 1])).backward()
        before = {n: (p.grad.clone(), p.requires_grad, p._version) for n, p in model.named_parameters()}  # type: ignore[union-attr]
        Monitor(model, found(model, 5), level="full").step()
        for n, p in model.named_parameters():
            grad, requires, version = before[n]
            assert torch.equal(p.grad, grad)  # type: ignore[arg-type]
            assert (p.requires_grad, p._version) == (requires, version)
        assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())

    def test_gradients_are_let_go(self) -> None:
        model = seeded(mlp)
        monitor = Monitor(model, found(model, 5), optimizer=sgd(model), every=2)
        run(model, sgd(model), monitor, batches(3, dtype=torch.float32))
        assert not [t for t in vars(monitor._survey).values() if isinstance(t, torch.Tensor)]

    def test_one_transfer_per_logging_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing else asks a tensor for its numbers: no ``.item()``, no ``.tolist()``, one ``.cpu()``."""
        model = seeded(lambda: mlp((5, 8, 6, 3)))
        optimizer = sgd(model, momentum=0.9)
        monitor = Monitor(model, found(model, 5), optimizer=optimizer, every=3, level="cheap")
        run(model, optimizer, monitor, batches(4, dtype=torch.float32))
        calls: list[str] = []
        for name in ("item", "tolist", "cpu", "__float__", "__bool__", "__int__", "numpy"):
            original = getattr(torch.Tensor, name)

            def counted(self: Any, *args: Any, _name: str = name, _original: Any = original, **kw: Any) -> Any:
                calls.append(_name)
                return _original(self, *args, **kw)

            monkeypatch.setattr(torch.Tensor, name, counted)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        for _ in range(3):  # steps 4, 5 and 6: one of them logs
            monitor.step(loss=torch.tensor(1.0))
        assert calls.count("cpu") == 1
        assert set(calls) <= {"cpu", "numpy"}


class TestTraining:
    def test_a_scaler_is_taken_into_account(self) -> None:
        model = seeded(mlp)
        plain, scaled, unscaled = (Monitor(model, found(model, 5)) for _ in range(3))
        (x, y), optimizer = next(batches(1, dtype=torch.float32)), sgd(model)
        F.cross_entropy(model(x), y).backward()
        wanted = plain.step(optimizer)
        optimizer.zero_grad()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        assert scaled.step(optimizer, scaler=scaler) == pytest.approx(wanted, rel=1e-5)
        assert model[0].weight.grad.abs().max() > 1  # type: ignore[index, union-attr] # left for the scaler
        scaler.unscale_(optimizer)
        assert unscaled.step(optimizer, scaler=scaler) == pytest.approx(wanted, rel=1e-5)

    def test_a_scaler_that_is_off_or_unused_changes_nothing(self) -> None:
        model = seeded(mlp)
        rows = [Monitor(model).step(scaler=s) for s in (None, torch.amp.GradScaler("cpu", enabled=False))]
        rows.append(Monitor(model).step(scaler=torch.amp.GradScaler("cpu")))
        assert rows[0] == rows[1] == rows[2]

    def test_a_step_that_the_scaler_skips_is_an_event_and_no_violation(self) -> None:
        model = seeded(mlp)
        optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=2.0**8)
        monitor = Monitor(model, found(model, 5), optimizer=optimizer, every=1, level="cheap")
        for i, (x, y) in enumerate(batches(6, dtype=torch.float32)):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y)).backward()
            if i == 2:
                model[0].weight.grad[0, 0] = float("inf")  # type: ignore[index, union-attr]
            monitor.step(scaler=scaler)
            scaler.step(optimizer)
            scaler.update()
        assert [(e.step, e.kind) for e in monitor.events] == [(2, "not finite"), (3, "finite again")]
        assert "0.weight" in monitor.events[0].message

    def test_accumulated_gradients_are_one_step(self) -> None:
        model = seeded(mlp).double()
        symmetries, (x, y) = found(model, 5), next(batches(1))
        whole, parts = Monitor(model, symmetries), Monitor(model, symmetries)
        F.cross_entropy(model(x), y).backward()
        wanted = whole.step()
        model.zero_grad()
        for k in range(2):
            (F.cross_entropy(model(x[8 * k : 8 * k + 8]), y[8 * k : 8 * k + 8]) / 2).backward()
        assert parts.step() == pytest.approx(wanted, rel=1e-9)

    def test_nan_gradients_and_weights_are_events(self) -> None:
        model = seeded(mlp)
        monitor = Monitor(model, found(model, 5), optimizer=sgd(model), every=1, dear=1, level="full")
        monitor.step()
        for p in model.parameters():
            p.grad = torch.full_like(p, float("nan"))
        row = monitor.step()
        assert row["0/live"] == 8
        assert np.isnan(row["gradients/norm"])
        with torch.no_grad():
            model[2].weight[0, 0] = float("nan")  # type: ignore[index]
        row = monitor.step()
        assert "0/live" not in row
        assert [e.kind for e in monitor.events] == ["not finite", "not finite"]
        assert "2.weight" in monitor.events[1].message

    def test_parameters_that_come_and_go(self) -> None:
        model = seeded(mlp)
        monitor = Monitor(model, found(model, 5), every=1)
        before = monitor.step()
        model.append(nn.ReLU()).append(nn.Linear(3, 3))  # type: ignore[operator]
        row = monitor.step()
        (event,) = monitor.events
        assert (event.kind, event.value) == ("parameters changed", 2.0)
        assert "+4.weight" in event.message
        assert row["weights/norm"] > before["weights/norm"]
        assert row["0/live"] == before["0/live"]
        model[0] = nn.Linear(5, 4)  # type: ignore[operator]
        model[2] = nn.Linear(4, 3)  # type: ignore[operator]
        row = monitor.step()
        assert "0/live" not in row
        assert any("find its symmetries again" in s or "too small" in s for s in monitor.skipped)

    def test_moving_the_model_is_no_change(self) -> None:
        model = seeded(mlp)
        monitor = Monitor(model, found(model, 5), every=1, level="cheap")
        before = monitor.step()
        model.double()
        assert monitor.step() == pytest.approx(before, rel=1e-5)
        assert monitor.events == ()

    def test_wrappers_are_looked_through(self) -> None:
        model = seeded(mlp)
        wrapped = nn.DataParallel(torch.compile(model))  # compiled when it runs, which it does not here
        assert Monitor(wrapped, found(model, 5)).step()["0/live"] == 8

    def test_sparse_gradients(self) -> None:
        model = nn.Sequential(nn.Embedding(6, 4, sparse=True), nn.Linear(4, 3))
        model(torch.tensor([0, 1, 1])).sum().backward()
        row = Monitor(model, args=(torch.tensor([0, 1]),)).step()
        dense = torch.cat([p.grad.to_dense().reshape(-1) for p in model.parameters()])  # type: ignore[union-attr]
        assert row["gradients/norm"] == pytest.approx(dense.norm().item())

    def test_two_optimizers(self) -> None:
        model = seeded(mlp).double()
        optimizers = [sgd(model[0]), sgd(model[2])]  # type: ignore[index]
        monitor = Monitor(model, found(model, 5), optimizer=optimizers, every=1)
        for x, y in batches(3):
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            row = monitor.step()
            for o in optimizers:
                o.step()
        assert row["0/law_error"] < 1e-12


class TestMemory:
    def rows_and_events(self, tmp_path: Path, how: str) -> tuple[list[dict[str, float]], Any]:
        model = seeded(lambda: Attention(8, 2)).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.8, weight_decay=0.1)
        data = list(batches(40, (6, 3, 8)))
        done = 0

        def make() -> Monitor:
            return Monitor(model, found(model, 3, 8), optimizer=optimizer, every=3, dear=2, level="full")

        def train(monitor: Monitor, count: int) -> list[dict[str, float]]:
            """Gradients are broken at some logging steps, and mended before the optimizer sees them."""
            nonlocal done
            rows = []
            for batch in data[done : done + count]:
                value = float("nan") if done in {12, 15, 24} else 0.0

                def add(value: float = value) -> None:
                    model.head.bias.grad += value  # type: ignore[operator, union-attr]

                def mend() -> None:
                    model.head.bias.grad.nan_to_num_()  # type: ignore[operator, union-attr]

                rows += run(model, optimizer, monitor, [batch], before=add, after=mend)
                done += 1
            return rows

        monitor = make()
        if how == "not interrupted":
            return train(monitor, 40), monitor.events
        rows = train(monitor, {"before the check": 19, "after the check": 20}[how])  # 18 is logged, 19 sees its effect
        monitor.save(tmp_path / "monitor.safetensors")
        monitor = make()
        monitor.load(tmp_path / "monitor.safetensors")
        assert monitor.steps == done
        return rows + train(monitor, 40), monitor.events

    @pytest.mark.parametrize("how", ["before the check", "after the check"])
    def test_a_resumed_run_has_the_same_rows_and_events(self, tmp_path: Path, how: str) -> None:
        wanted, events = self.rows_and_events(tmp_path, "not interrupted")
        got, same = self.rows_and_events(tmp_path, how)
        assert [{k: v for k, v in row.items() if v == v} for row in got] == [
            {k: v for k, v in row.items() if v == v} for row in wanted
        ]
        assert same == events
        assert [(e.step, e.kind) for e in events] == [
            (12, "not finite"), (18, "finite again"), (24, "not finite"), (27, "finite again"),
        ]  # fmt: skip
        assert sum("qkv #2/law_error" in row for row in got) > 8

    def test_the_state_is_plain(self) -> None:
        """What torch loads with ``weights_only`` and JSON can write, so that any checkpoint takes it."""
        model = seeded(mlp)
        monitor = Monitor(model, found(model, 5), optimizer=sgd(model), every=2)
        run(model, sgd(model), monitor, batches(4, dtype=torch.float32))
        state = monitor.state_dict()
        json.dumps(state["plain"])
        assert all(isinstance(t, torch.Tensor) for t in state["tensors"].values())

    @pytest.mark.parametrize("bad", [{}, {"version": 99, "plain": {}, "tensors": {}}, [1]])
    def test_a_state_of_something_else_is_refused(self, bad: Any) -> None:
        with pytest.raises(MeasurementError, match="state"):
            Monitor(seeded(mlp)).load_state_dict(bad)

    def test_a_file_of_something_else_is_refused(self, tmp_path: Path) -> None:
        monitor = Monitor(seeded(mlp))
        (tmp_path / "pickle").write_bytes(pickle.dumps({"version": 1}))
        for name in ("absent", "pickle"):
            with pytest.raises(MeasurementError, match=name):
                monitor.load(tmp_path / name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every must be an integer >= 1, got 0"),
        ({"dear": 1.5}, "dear must be an integer >= 1, got 1.5"),
        ({"level": "deep"}, "level must be one of cheap, standard, full, got 'deep'"),
        ({"tolerance": 0.0}, "tolerance must be in"),
        ({"optimizer": 3}, "torch.optim.Optimizer"),
        ({"target": nn.ReLU()}, "no parameters"),
        ({"target": nn.Linear(2, 2, device="meta")}, "meta device"),
        ({"target": 3}, "got int"),
    ],
)
def test_errors_say_what_is_legal(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        Monitor(arguments.pop("target", nn.Linear(2, 2)), **arguments)


def test_train_takes_a_monitor() -> None:
    task: Task = gaugefix.load_task("digits-mlp")
    monitor = Monitor(task, every=4)
    gaugefix.train(task, 2, before_step=monitor.step)
    assert monitor.steps == 2 * len(list(task.batch_iter()))
    assert monitor.log.rows[-1][1]["0/law_error"] is not None
