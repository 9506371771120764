"""The audit from end to end on small real tasks, its boundary, and the advice it gives."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gaugefix.advice import Advice, advise
from gaugefix.audit import Audit, audit
from gaugefix.errors import ConvergenceWarning, MeasurementError, TaskError
from gaugefix.forecast import Certificate, ClassForecast, CollapseThreshold, Forecast
from gaugefix.measure import (
    ChargeReport,
    CollapseReport,
    EntropicLoss,
    EntropyReport,
    Equipartition,
    GradientNoise,
    LyapunovReport,
    MirrorExponent,
    NoiseGroup,
    UnitBalance,
    UnitCollapse,
)
from gaugefix.symmetry import OpaqueOp, Slice, Symmetries, Units, Verification
from gaugefix.task import Task

module = importlib.import_module("gaugefix.audit.run")


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def batches(seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    for chunk in torch.randperm(64, generator=torch.Generator().manual_seed(seed)).split(16):
        yield x[chunk], y[chunk]


def small_task(**changes: Any) -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    settings = {"lr": 0.1, "weight_decay": 1e-2, "batch_size": 16, "name": "small", "epochs": 3}
    return Task(**{"model": model, "loss": loss, "batches": batches, **settings, **changes})


@pytest.fixture(scope="module")
def result() -> Audit:
    return audit(small_task(metric=lambda model: {"train accuracy": 0.5}), progress=False)


class TestAudit:
    def test_every_part_is_measured(self, result: Audit) -> None:
        assert result.skipped == ()
        assert [u.name for u in result.symmetries.units] == ["0", "2"]
        assert result.symmetries.verified
        for part in (result.collapse, result.charges, result.noise, result.forecast, result.certificate):
            assert part is not None
        assert len(result.training) == result.task.epochs == 3
        assert result.task.metric == {"train accuracy": 0.5}
        assert result.task.parameters == 36 + 28 + 15

    def test_the_charge_law_is_exact(self, result: Audit) -> None:
        assert result.charges is not None
        assert {law.name for law in result.charges.law} == {"0", "2"}
        assert all(law.exact and law.error < 1e-12 for law in result.charges.law)

    def test_a_dead_and_a_copied_unit_are_found_and_advised_on(self) -> None:
        task = small_task(epochs=0)
        first, second = task.model[0], task.model[2]
        with torch.no_grad():
            first.weight[2], first.bias[2], second.weight[:, 2] = 0.0, 0.0, 0.0
            first.weight[4], first.bias[4] = 3.0 * first.weight[1], 3.0 * first.bias[1]  # equal up to rescaling
        found = audit(task, progress=False)
        assert found.collapse is not None
        unit = found.collapse.units[0]
        assert (unit.dead, unit.duplicates, unit.distinct) == ((2,), ((1, 4),), 4)
        advice = next(a for a in found.advice if a.where == "0" and a.severity == "act")
        assert advice.finding == "2 of 6 units in layer 0 add nothing: 1 dead and 1 copy of others."
        assert (
            "a layer of 4 computes the same function to that accuracy with 20 fewer parameters" in advice.action
        )  # 2 x (5 + 1 + 4)

    def test_the_advised_layer_does_compute_the_same_function(self) -> None:
        """The claim of the advice, done by hand: drop the dead unit, merge the copy."""
        task = small_task(epochs=0)
        first, second = task.model[0], task.model[2]
        with torch.no_grad():
            first.weight[2], first.bias[2], second.weight[:, 2] = 0.0, 0.0, 0.0
            first.weight[4], first.bias[4] = 3.0 * first.weight[1], 3.0 * first.bias[1]
            narrow = nn.Sequential(nn.Linear(5, 4), *list(task.model)[1:2], nn.Linear(4, 4), *list(task.model)[3:])
            keep = [0, 1, 3, 5]
            narrow[0].weight[:], narrow[0].bias[:] = first.weight[keep], first.bias[keep]
            merged = second.weight.clone()
            merged[:, 1] += 3.0 * merged[:, 4]
            narrow[2].weight[:], narrow[2].bias[:] = merged[:, keep], second.bias
            x = torch.randn(50, 5, generator=torch.Generator().manual_seed(1))
            assert torch.allclose(narrow(x), task.model(x), atol=1e-5)

    def test_without_training_the_model_is_only_looked_at(self) -> None:
        task = small_task(epochs=0)
        task.model.train()
        before = {k: v.clone() for k, v in task.model.state_dict().items()}
        state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        threads = torch.get_num_threads()
        audit(task, progress=False)
        assert all(torch.equal(v, before[k]) for k, v in task.model.state_dict().items())
        assert task.model.training
        assert all(p.grad is None and p.requires_grad for p in task.model.parameters())
        assert torch.equal(torch.get_rng_state(), state)
        assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
        assert random.getstate() == python_state
        assert torch.get_num_threads() == threads

    def test_one_seed_one_audit(self) -> None:
        one, two = (audit(small_task(), progress=False, seed=3).to_dict() for _ in range(2))
        assert {**one, "seconds": 0} == {**two, "seconds": 0}

    @pytest.mark.long
    def test_level_full_counts_the_flat_directions(self) -> None:
        leaky = nn.Sequential(nn.Linear(5, 6), nn.LeakyReLU(), nn.Linear(6, 4), nn.LeakyReLU(), nn.Linear(4, 3))
        found = audit(small_task(model=leaky, epochs=0), level="full", progress=False)
        assert found.extra["flat_directions"]["flat"] == found.extra["flat_directions"]["found"] == 6 + 4
        assert found.notes == ()
        assert found.extra["lowest_curvature"]["residual"] < 1e-3
        assert found.full is not None
        for part in (found.full.lyapunov, found.full.entropy, found.full.alignment, found.full.unit_noise):
            assert part
        assert [len(u.incoming) for u in found.full.unit_noise or ()] == [6, 4]

    def test_the_log_of_a_monitor_is_part_of_the_report(self, tmp_path: Path) -> None:
        path = tmp_path / "run.jsonl"
        event = {"step": 40, "kind": "unit died", "where": "0", "value": None, "message": "M.", "units": [3]}
        lines = [
            {"type": "run", "step": 0, "classes": [{"name": "0", "title": "first layer", "units": 6}]},
            {"type": "row", "step": 0, "values": {"loss": 2.0}},
            {"type": "event", **event},
            {"type": "row", "step": 90, "values": {"loss": 1.0}},
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "not json\n")
        found = audit(small_task(epochs=0), log=path, progress=False)
        assert found.run is not None
        assert (found.run.steps, found.run.titles, found.run.broken) == (90, {"0": "first layer"}, 1)
        data = found.to_dict()["run"]
        assert data["log"] == "run.jsonl"
        assert data["events"] == [event]
        page = found.to_html()
        assert "What happened during training" in page
        assert "first layer" in page
        assert 'id="plot-events"' in page

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (None, "Cannot read"),
            ("hello\n", "is not the log of a monitor"),
            ('{"type": "run", "classes": []}\n', "has no step yet"),
        ],
    )
    def test_a_bad_log_is_refused_before_training(self, text: str | None, words: str, tmp_path: Path) -> None:
        path = tmp_path / "run.jsonl"
        if text is not None:
            path.write_text(text)
        task = small_task(epochs=2)
        before = {k: v.clone() for k, v in task.model.state_dict().items()}
        with pytest.raises(MeasurementError, match=words):
            audit(task, log=path, progress=False)
        assert all(torch.equal(v, before[k]) for k, v in task.model.state_dict().items())

    def test_unknown_level(self) -> None:
        with pytest.raises(MeasurementError, match="level must be 'quick' or 'full', got 'deep'"):
            audit(small_task(), level="deep", progress=False)  # type: ignore[arg-type]

    def test_a_bad_task_is_refused_before_anything_runs(self) -> None:
        with pytest.raises(TaskError, match="per sample"):
            audit(small_task(loss=lambda m, b: loss(m, b).mean()), progress=False)

    def test_a_model_without_hidden_units(self) -> None:
        found = audit(small_task(model=nn.Linear(5, 3), epochs=0), progress=False)
        assert found.collapse is found.forecast is None
        assert "collapse, charges, forecast: no class of hidden units was found" in found.skipped
        assert found.noise is not None
        assert found.symmetries.n_parameters == 18  # an empty search result is kept, not replaced

    def test_progress_goes_to_standard_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        audit(small_task(epochs=1))
        out, err = capsys.readouterr()
        assert out == ""
        assert "Training" in err

    def test_files(self, result: Audit, tmp_path: Path) -> None:
        result.to_html(tmp_path / "a.html")
        result.to_json(tmp_path / "a.json")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "a.json"]


class TestBoundary:
    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (MeasurementError("no gradient here"), "noise: no gradient here"),
            (RuntimeError("vmap: no rule"), "noise: RuntimeError: vmap: no rule"),
            (ZeroDivisionError("by zero"), "noise: ZeroDivisionError: by zero"),
        ],
    )
    def test_a_failure_is_reported_and_the_rest_goes_on(
        self, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
    ) -> None:
        def fail(*args: object, **options: object) -> None:
            raise error

        monkeypatch.setattr(module, "gradient_noise", fail)
        found = audit(small_task(epochs=0), progress=False)
        assert found.noise is None
        assert found.skipped == (reason,)
        assert found.forecast is not None
        assert reason in found.to_dict()["skipped"]

    def test_a_failed_search_leaves_a_report_with_the_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: object, **options: object) -> None:
            raise MeasurementError("cannot trace")

        monkeypatch.setattr(module, "find_symmetries", fail)
        found = audit(small_task(epochs=0), progress=False)
        assert found.skipped[0] == "symmetries: cannot trace"
        assert len(found.symmetries) == 0
        assert "cannot trace" in found.to_html()

    def test_an_interrupt_is_not_swallowed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*args: object, **options: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(module, "gradient_noise", interrupt)
        with pytest.raises(KeyboardInterrupt):
            audit(small_task(epochs=0), progress=False)

    def test_warnings_about_quality_become_notes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import warnings

        measure = module.gradient_noise

        def careful(task: Task, **options: Any) -> GradientNoise:
            warnings.warn("40 of 50 steps", ConvergenceWarning, stacklevel=1)
            return measure(task, **options)

        monkeypatch.setattr(module, "gradient_noise", careful)
        assert audit(small_task(epochs=0), progress=False).notes == ("noise: 40 of 50 steps",)


# Advice, one diagnosis at a time, from hand-made records.


def collapse_of(**changes: Any) -> CollapseReport:
    healthy = UnitCollapse(
        name="fc",
        size=4,
        fibers=1,
        activation="relu",
        kind="hidden",
        norms=np.ones(4),
        dead=(),
        duplicates=(),
        distinct=4,
        inactive=(),
        effective_rank=3.5,
        numerical_rank=4,
        max_rank=4,
        spectrum=np.ones(4),
        nearest_pair=(0, 1),
        nearest_distance=0.3,
        tolerance=1e-3,
        verdict="healthy",
    )
    unit = replace(healthy, **changes)
    return CollapseReport((unit,), len(unit.dead), len(unit.norms) - len(unit.dead) - unit.distinct, len(unit.norms))


def forecast_of(threshold: float = float("nan"), **changes: Any) -> Forecast:
    calm = ClassForecast(
        name="fc",
        size=4,
        alive=4,
        kappa=0.01,
        weight_decay=0.01,
        headroom=1.0,
        drives=np.full(4, 0.01),
        growth=np.zeros(4),
        spectrum=np.ones(3),
        residual=0.0,
        verdict="",
        rate=0.0,
        dying=(),
        critical_weight_decay=0.1,
        predicted_rank=None,
        valid=True,
        reason="",
    )
    item = replace(calm, **changes)
    return Forecast((item,), 0.01, 0.1, 16, CollapseThreshold(threshold, np.ones(3), True, None, ""), 0, 0.0, "")


def units(size: int = 4) -> Symmetries:
    index = np.arange(size).reshape(1, size, 1)
    slices = (Slice("fc.weight", 0, index, "write"), Slice("out.weight", 1, index, "read"))
    return Symmetries((), (Units("fc", size, 1, slices),), shapes={"fc.weight": (size, 7), "out.weight": (3, size)})


def only(
    collapse: CollapseReport | None = None,
    charges: ChargeReport | None = None,
    noise: GradientNoise | None = None,
    forecast: Forecast | None = None,
    certificate: Certificate | None = None,
    symmetries: Symmetries | None = None,
) -> Advice:
    (advice,) = advise(units() if symmetries is None else symmetries, collapse, charges, noise, forecast, certificate)
    return advice


class TestAdvice:
    def test_healthy_needs_nothing(self) -> None:
        assert advise(units(), collapse_of(), None, None, forecast_of(), None) == ()

    def test_nothing_measured_says_nothing(self) -> None:
        assert advise(units(), None, None, None, None, None) == ()

    def test_redundant_units_cost_parameters(self) -> None:
        advice = only(collapse_of(dead=(3,), duplicates=((0, 2),), distinct=2))
        assert advice.severity == "act"
        assert "a layer of 2 computes the same function to that accuracy with 20 fewer parameters" in advice.action

    def test_a_wholly_dead_layer_gets_its_critical_weight_decay(self) -> None:
        report = collapse_of(norms=np.zeros(4), dead=(0, 1, 2, 3), distinct=0, verdict="collapsed")
        advice = advise(units(), report, None, None, forecast_of(critical_weight_decay=0.0047), None)[0]
        assert "Layer fc has collapsed" in advice.finding
        assert "Set weight_decay well below 0.0047" in advice.action

    def test_fading_units_get_the_decay_that_keeps_them(self) -> None:
        drives = np.array([0.01, 0.01, 0.00812, 0.0075])
        advice = only(forecast=forecast_of(drives=drives, dying=(2, 3)))
        assert advice.severity == "watch"
        assert advice.finding == "2 of 4 live units in layer fc are fading."
        assert "0.0075 to 0.00812 against weight decay 0.01 for units 2, 3" in advice.evidence
        assert advice.action == "Lower weight_decay below 0.0075 to keep them alive in layer fc, or plan for 2 units."

    def test_a_unit_that_the_loss_itself_shrinks_cannot_be_kept(self) -> None:
        advice = only(forecast=forecast_of(drives=np.array([0.01, 0.01, 0.01, -0.2]), dying=(3,)))
        assert advice.action.startswith("No weight decay keeps all of them")

    def test_low_rank(self) -> None:
        assert "2 directions are left of 4" in only(collapse_of(verdict="low rank", numerical_rank=2)).finding

    @pytest.mark.parametrize(
        ("verdict", "words"),
        [
            ("saturated: more width cannot help", "wide enough"),
            ("wants more width", "A new small unit in layer fc would grow"),
            ("would be reborn", "dead units of layer fc can come back"),
        ],
    )
    def test_width(self, verdict: str, words: str) -> None:
        assert words in only(forecast=forecast_of(verdict=verdict)).finding

    def test_a_layer_that_wants_units_should_use_its_spare_ones_first(self) -> None:
        found = advise(
            units(), collapse_of(dead=(3,), distinct=3), None, None, forecast_of(verdict="wants more width"), None
        )
        assert "re-initialise its 1 spare unit at" in found[-1].action
        assert "widen the layer" in only(forecast=forecast_of(verdict="wants more width")).action

    def test_a_certificate_speaks_for_all_layers_at_once(self) -> None:
        proof = Certificate(0.0101, 0.01, 0.004, True, "fc", (), "")
        advice = only(forecast=forecast_of(verdict="saturated: more width cannot help"), certificate=proof)
        assert advice.where == "network"
        assert "κ/λ = 1.010" in advice.evidence

    def test_not_stationary(self) -> None:
        assert "284%" in only(forecast=forecast_of(verdict="not stationary", residual=2.84, valid=False)).evidence

    def test_decay_into_a_normalisation_is_a_gauge(self) -> None:
        item = forecast_of(verdict="not applicable", valid=False, reason="feeds a LayerNorm: scale invariance")
        assert "Weight decay is a gauge in layer fc" in only(forecast=item).finding

    @pytest.mark.parametrize(("threshold", "severity"), [(0.011, "watch"), (0.008, "act")])
    def test_close_to_the_critical_weight_decay(self, threshold: float, severity: str) -> None:
        advice = only(forecast=forecast_of(threshold))
        assert advice.severity == severity
        assert f"λ_c = {threshold}" in advice.evidence

    def test_far_from_the_critical_weight_decay(self) -> None:
        assert advise(units(), None, None, None, forecast_of(0.2), None) == ()

    def test_imbalance(self) -> None:
        w, u = np.full(4, 0.01), np.full(4, 1.0)
        report = ChargeReport((UnitBalance("fc", w, u, u - w, (u - w) / (u + w), True, ""),), ())
        advice = only(charges=report)
        assert "outgoing" in advice.finding
        assert "needs 20% of the squared norm" in advice.evidence  # 2·√(.01·1) / 1.01

    def test_noise(self) -> None:
        group = NoiseGroup("total", 1.0, 0.01, 0.16)
        assert "0.16 over 64 samples" in only(noise=GradientNoise((), group, 64, 0.1, 0.01, "vmap")).evidence

    def test_what_the_search_could_not_see(self) -> None:
        opaque = only(symmetries=Symmetries((), (), opaque=(OpaqueOp("fft", "block", "no rule"),)))
        rejected = only(symmetries=Symmetries((), (), rejected=(Verification("swap", 0.5, 1e-9, 3, False),)))
        assert "Without a rule: fft." in opaque.evidence
        assert "swap (error 5e-01)" in rejected.evidence

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({}, True),
            ({"verdict": "undecided"}, False),
            ({"verdict": "escapes", "value": 0.01}, False),
            ({"valid": False}, False),
        ],
    )
    def test_a_plane_that_attracts(self, changes: dict[str, Any], said: bool) -> None:
        mirror = MirrorExponent(
            "fc: 5 = 14", "path", -0.002, 0.0001, "collapses", 400, 0.1, 0.01, 32, 0.0, 0.09, 1e-16, np.nan, True, ""
        )
        report = LyapunovReport((replace(mirror, **changes),), ())
        found = advise(units(), None, None, None, None, None, lyapunov=report)
        assert [a.finding for a in found] == ["SGD is drawn onto the mirror plane fc: 5 = 14."] * said
        if said:
            assert (found[0].severity, found[0].where) == ("watch", "fc")
            assert "Λ = -0.002 ± 0.0001 per step" in found[0].evidence
            assert "factor e in 500 steps" in found[0].evidence
            head = LyapunovReport((replace(mirror, name="q #2[0]: 0 dropped"),), ())
            assert advise(units(), *5 * [None], lyapunov=head)[0].where == "q #2"

    @pytest.mark.parametrize(
        ("spread", "drift", "words"),
        [
            (1.4, 0.1, "towards the outgoing weights"),
            (1.4, -0.1, "towards the incoming weights"),
            (0.3, 0.1, ""),
            (float("nan"), 0.1, ""),
        ],
    )
    def test_gradient_balance(self, spread: float, drift: float, words: str) -> None:
        sides = np.ones((4, 2))
        item = Equipartition("fc", tuple("0123"), sides, sides, np.ones(4), np.full(4, drift), spread, 64)
        report = EntropyReport(EntropicLoss(0.5, 0.0, 0.0, 0.5, 0.1, 0.1, 0.01, 64, True, ""), (item,), ())
        found = advise(units(), None, None, None, None, None, entropy=report)
        assert [a.severity for a in found] == ["info"] * bool(words)
        if words:
            assert words in found[0].finding
            assert "1.4 over 64 batches" in found[0].evidence

    def test_the_most_urgent_comes_first(self) -> None:
        item = forecast_of(drives=np.array([0.01, 0.01, 0.01, 0.005]), dying=(3,), verdict="wants more width")
        found = advise(units(), collapse_of(dead=(2,), distinct=3), None, None, item, None)
        assert [a.severity for a in found] == ["act", "watch", "info"]
