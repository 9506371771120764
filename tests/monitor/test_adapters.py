"""Adapters against the real libraries: each gives what the plain loop gives, survives mixed precision and restarts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.monitor.models import batches, found, mlp, run, seeded
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from gaugefix import Monitor
from gaugefix.monitor import JsonlSink, read_log

STEPS = 12


def data() -> TensorDataset:
    parts = list(batches(STEPS, (8, 5), dtype=torch.float32))
    return TensorDataset(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))


def plain(every: int = 2, steps: int = STEPS) -> list[dict[str, float]]:
    """The rows of the plain loop on the same batches."""
    model = seeded(mlp)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, found(model, 5), optimizer=optimizer, every=every)
    return run(model, optimizer, monitor, list(DataLoader(data(), batch_size=8))[:steps])


def assert_same(rows: list[dict[str, Any]], wanted: list[dict[str, float]]) -> None:
    assert len(rows) == len(wanted)
    for row, expected in zip(rows, wanted, strict=True):
        assert {k: row[k] for k in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning 2.6 against torch 2.13
class TestLightning:
    lightning = pytest.importorskip("lightning")

    def module(self, **hooks: Any) -> Any:
        class Module(self.lightning.LightningModule):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                super().__init__()
                self.net = seeded(mlp)

            def training_step(self, batch: Any, index: int) -> Any:
                return F.cross_entropy(self.net(batch[0]), batch[1])

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        return type("Module", (Module,), hooks)()

    def fit(self, module: Any, callback: Any, tmp_path: Path, *, batch_size: int = 8, **options: Any) -> Any:
        path = options.pop("ckpt_path", None)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        settings = {"max_epochs": 1, "enable_checkpointing": False, "default_root_dir": tmp_path, **quiet, **options}
        trainer = self.lightning.Trainer(callbacks=[callback], **settings)
        trainer.fit(module, DataLoader(data(), batch_size=batch_size), ckpt_path=path)
        return trainer

    def callback(self, monitor: Any) -> Any:
        from gaugefix.monitor.adapters.lightning import MonitorCallback

        return MonitorCallback(monitor)

    def test_rows_are_those_of_the_plain_loop(self, tmp_path: Path) -> None:
        module, log = self.module(), tmp_path / "run.jsonl"
        monitor = Monitor(module.net, found(module.net, 5), every=2, sinks=[JsonlSink(log)])
        trainer = self.fit(module, self.callback(monitor), tmp_path)
        read = read_log(log)
        assert_same([row for _, row in read.rows], plain())
        assert trainer.callback_metrics["0/live"] == 8  # what EarlyStopping looks at
        assert read.rows[-1][1]["loss"] == pytest.approx(1.0, abs=0.5)
        assert read.advice is not None  # the run has ended

    def test_rows_go_to_the_loggers(self, tmp_path: Path) -> None:
        from lightning.pytorch.loggers import CSVLogger

        module, logger = self.module(), CSVLogger(tmp_path)
        callback = self.callback(lambda m: Monitor(m.net, found(m.net, 5), every=4))
        self.fit(module, callback, tmp_path, logger=logger, log_every_n_steps=1)
        logger.save()
        text = (Path(logger.log_dir) / "metrics.csv").read_text()
        assert "0/law_error" in text

    def test_accumulation_counts_optimizer_steps(self, tmp_path: Path) -> None:
        module = self.module()
        monitor = Monitor(module.net, found(module.net, 5), every=1)
        self.fit(module, self.callback(monitor), tmp_path, batch_size=4, accumulate_grad_batches=2)
        assert monitor.steps == STEPS
        assert monitor.log.rows[-1][1] == pytest.approx(
            {**plain(every=1)[-1], **monitor.log.rows[-1][1]}, rel=1e-4, abs=1e-5
        )

    def test_clipping_comes_after_the_hook_and_is_no_violation(self, tmp_path: Path) -> None:
        module = self.module()
        monitor = Monitor(module.net, found(module.net, 5), every=2)
        self.fit(module, self.callback(monitor), tmp_path, gradient_clip_val=0.01)
        assert monitor.events == ()
        assert any("clipped" in reason for reason in monitor.skipped)

    @pytest.mark.parametrize("fused", [False, True], ids=["unscaled by the plugin", "optimizer unscales itself"])
    def test_scaled_gradients(self, tmp_path: Path, fused: bool) -> None:
        """Optimizers that unscale by themselves leave scaled gradients to the hook."""
        from lightning.pytorch.plugins.precision import MixedPrecision

        module = self.module(
            configure_optimizers=lambda self: torch.optim.Adam(self.parameters(), lr=1e-9, fused=fused or None)
        )
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
        plugin.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)  # float32, but scaled
        norms = []
        monitor = Monitor(module.net, every=1, sinks=[lambda row, step: norms.append(row["gradients/norm"])])
        self.fit(module, self.callback(monitor), tmp_path, plugins=[plugin])
        model = seeded(mlp)
        x, y = next(iter(DataLoader(data(), batch_size=8)))
        F.cross_entropy(model(x), y).backward()
        wanted = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
        assert norms[0] == pytest.approx(wanted, rel=1e-3)

    def test_a_checkpoint_has_the_monitor_in_it(self, tmp_path: Path) -> None:
        module = self.module()
        monitor = Monitor(module.net, found(module.net, 5), every=2)
        trainer = self.fit(module, self.callback(monitor), tmp_path)
        trainer.save_checkpoint(tmp_path / "half.ckpt")
        module = self.module()
        again = self.callback(lambda m: Monitor(m.net, found(m.net, 5), every=2))
        self.fit(module, again, tmp_path, ckpt_path=tmp_path / "half.ckpt", max_epochs=2)
        assert again.monitor is not None
        assert again.monitor.steps == 2 * STEPS
        assert again.monitor.log.rows[0][1] == monitor.log.rows[0][1]

    def test_of_several_optimizers_one_makes_the_steps(self) -> None:
        from gaugefix.monitor.adapters.common import owns_parameter

        net, other = seeded(mlp), seeded(mlp)
        monitor = Monitor(net)
        own, foreign = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (net, other))
        second = torch.optim.SGD(net[2].parameters(), lr=0.1)  # type: ignore[index]
        assert [owns_parameter(o, monitor) for o in (own, foreign, second)] == [True, False, False]


@pytest.mark.transformers
class TestTransformers:
    transformers = pytest.importorskip("transformers")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = seeded(mlp)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.net(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    def train(self, model: nn.Module, monitor: Any, folder: Path, *, resume: Any = None, **options: Any) -> Any:
        from gaugefix.monitor.adapters.transformers import MonitorCallback

        class InOrder(self.transformers.Trainer):  # type: ignore[name-defined, misc]
            def _get_train_sampler(self, dataset: Any = None) -> Any:
                return torch.utils.data.SequentialSampler(self.train_dataset)

        settings = {"num_train_epochs": 1, "save_strategy": "no", "per_device_train_batch_size": 8, **options}
        arguments = self.transformers.TrainingArguments(
            output_dir=str(folder), report_to=[], use_cpu=True, disable_tqdm=True, max_grad_norm=0.0,
            logging_strategy="no", **settings,
        )  # fmt: skip
        callback = MonitorCallback(monitor)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        rows = [{"x": x, "labels": y} for x, y in data()]
        trainer = InOrder(
            model=model, args=arguments, train_dataset=rows, callbacks=[callback], optimizers=(optimizer, constant)
        )
        trainer.train(resume_from_checkpoint=resume)
        return callback

    def test_rows_are_those_of_the_plain_loop(self, tmp_path: Path) -> None:
        model, log = self.Net(), tmp_path / "run.jsonl"
        monitor = Monitor(model.net, found(model.net, 5), every=2, sinks=[JsonlSink(log)])
        self.train(model, monitor, tmp_path)
        read = read_log(log)
        assert_same([row for _, row in read.rows], plain())
        assert read.advice is not None

    def test_accumulation_counts_optimizer_steps(self, tmp_path: Path) -> None:
        model = self.Net()
        callback = self.train(
            model, lambda m: Monitor(m.net, found(m.net, 5), every=2), tmp_path,
            per_device_train_batch_size=4, gradient_accumulation_steps=2,
        )  # fmt: skip
        assert callback.monitor.steps == STEPS

    def test_resuming(self, tmp_path: Path) -> None:
        model = self.Net()
        first = self.train(
            model, Monitor(model.net, found(model.net, 5), every=2), tmp_path,
            save_strategy="steps", save_steps=6, max_steps=6,
        ).monitor  # fmt: skip
        assert (tmp_path / "checkpoint-6" / "gaugefix_monitor.safetensors").is_file()
        again = self.train(
            self.Net(), lambda m: Monitor(m.net, found(m.net, 5), every=2), tmp_path,
            resume=str(tmp_path / "checkpoint-6"), max_steps=STEPS,
        ).monitor  # fmt: skip
        assert again.steps == STEPS
        assert again.log.rows[0][1] == first.log.rows[0][1]


class TestAccelerate:
    accelerate = pytest.importorskip("accelerate")

    def loop(self, accelerator: Any, monitor: Monitor, model: nn.Module, size: int, **options: Any) -> Any:
        from gaugefix.monitor.adapters.accelerate import watch

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        net, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data(), batch_size=size))
        watching = watch(monitor, accelerator, **options)
        rows = []
        for x, y in loader:
            with accelerator.accumulate(net):
                loss = F.cross_entropy(net(x), y)
                accelerator.backward(loss)
                if row := watching(optimizer, loss=loss):
                    rows.append(row)
                optimizer.step()
                optimizer.zero_grad()
        return rows

    @pytest.mark.parametrize(("size", "accumulate"), [(8, 1), (4, 2)])
    def test_rows_are_those_of_the_plain_loop(self, size: int, accumulate: int) -> None:
        accelerator = self.accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        model = seeded(mlp)
        monitor = Monitor(model, found(model, 5), every=2)
        assert_same(self.loop(accelerator, monitor, model, size), plain())

    def test_logging_and_checkpoints(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        accelerator = self.accelerate.Accelerator(cpu=True)
        logged: list[int] = []
        monkeypatch.setattr(accelerator, "log", lambda values, step: logged.append(step))
        model = seeded(mlp)
        monitor = Monitor(model, found(model, 5), every=4)
        self.loop(accelerator, monitor, model, 8, log=True)
        assert logged == [0, 4, 8]
        accelerator.save_state(str(tmp_path / "state"))
        monitor.load_state_dict(Monitor(model).state_dict())
        accelerator.load_state(str(tmp_path / "state"))
        assert monitor.steps == STEPS
