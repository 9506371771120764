"""The mathematics of a comparison, and what becomes of claims that fail or crash."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gaugefix.errors import StudyError
from gaugefix.studies import Claim, Evidence, Setting, Study, Tolerance, reproduce, runner
from gaugefix.studies.framework import Comparison, compare
from gaugefix.studies.runner import run_claim, run_study

ROOT = "2309.16932"
EXACT = Tolerance("it is arithmetic", absolute=0.1)
finite = st.floats(-1e6, 1e6)


def claim(measure, *, name="sum", tolerance=EXACT, draw=None):
    return Claim(name, "One and one are two.", measure, tolerance, draw)


def evidence(measured, predicted=(2.0,), cells=("1 + 1",), **curves):
    return Evidence(np.array(predicted), np.array(measured, dtype=float), cells, curves)


def good(setting: Setting) -> Evidence:
    return evidence([[2.05]] * len(setting.seeds), extra=np.arange(3.0))


def wrong(setting: Setting) -> Evidence:
    return evidence([[2.0]] * (len(setting.seeds) - 1) + [[3.0]])


def crash(setting: Setting) -> Evidence:
    raise ZeroDivisionError("nothing to divide by")


def test_a_claim_passes_only_if_every_seed_is_within_the_bar():
    assert run_claim(claim(good), Setting()).passed
    failed = run_claim(claim(wrong), Setting())
    assert not failed.passed
    assert failed.error is None
    assert failed.deviation == pytest.approx([1.0])


def test_the_mean_over_seeds_can_be_what_is_claimed():
    scattered = [[1.0], [2.0], [3.0]]
    per_mean = Tolerance("single runs are random", absolute=0.1, per_seed=False)
    assert compare(claim(good, tolerance=per_mean), evidence(scattered)).passed
    assert not compare(claim(good), evidence(scattered)).passed


@pytest.mark.parametrize(("relation", "value", "passes"), [(">=", 5.0, True), (">=", 1.0, False), ("<=", 1.0, True)])
def test_inequalities_look_at_one_side_only(relation, value, passes):
    tolerance = Tolerance("a bound", relation=relation)
    assert compare(claim(good, tolerance=tolerance), evidence([[value]] * 3)).passed is passes


def test_relative_bars_scale_with_the_prediction_of_each_seed():
    tolerance = Tolerance("two per cent", relative=0.02)
    predicted = np.array([[1.0], [100.0]])
    within = compare(claim(good, tolerance=tolerance), evidence([[1.01], [101.0]], predicted))
    beyond = compare(claim(good, tolerance=tolerance), evidence([[1.03], [100.0]], predicted))
    assert within.passed
    assert not beyond.passed
    assert beyond.bar == pytest.approx([0.02])  # of the seed that broke it, not of the one with the larger bar


@given(arrays(float, (3, 2), elements=finite), arrays(float, (3, 2), elements=finite), st.floats(0, 10))
def test_passing_is_what_the_definition_says(predicted, measured, bar):
    result = compare(claim(good, tolerance=Tolerance("x", absolute=bar)), evidence(measured, predicted, ("a", "b")))
    assert result.passed == bool((np.abs(measured - predicted) <= bar).all())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("relation", ["=", ">=", "<="])
@pytest.mark.parametrize("per_seed", [True, False])
def test_a_measurement_that_is_not_finite_never_passes(bad, relation, per_seed):
    tolerance = Tolerance("wide", absolute=1e9, relation=relation, per_seed=per_seed)
    assert not compare(claim(good, tolerance=tolerance), evidence([[2.0], [bad], [2.0]])).passed


def test_error_bars_are_paired_with_the_prediction_of_the_seed():
    predicted = np.array([[1.0], [10.0], [100.0]])
    result = compare(claim(good), evidence(predicted + np.array([[0.0], [0.3], [0.6]]), predicted))
    assert result.stderr == pytest.approx([0.3 / np.sqrt(3)])
    assert np.isnan(compare(claim(good), evidence([[2.0]])).stderr).all()


@pytest.mark.parametrize(
    "bad",
    [
        evidence([[2.0]] * 2),
        evidence([[2.0, 2.0]] * 3),
        evidence([[2.0]] * 3, predicted=(2.0, 2.0)),
        evidence([[2.0]] * 3, predicted=[[2.0]]),
        evidence(np.empty((3, 0)), predicted=(), cells=()),
    ],
)
def test_evidence_that_does_not_fit_is_a_failed_claim_not_a_broadcast(bad):
    result = run_claim(claim(lambda setting: bad), Setting())
    assert not result.passed
    assert "ValueError" in result.error


@pytest.mark.parametrize("options", [{"reason": " "}, {"absolute": -1.0}, {"relative": np.nan}, {"absolute": np.inf}])
def test_a_tolerance_needs_a_reason_and_finite_bars(options):
    with pytest.raises(ValueError, match=r"Tolerance\."):
        Tolerance(**{"reason": "because"} | options)


def test_a_crash_is_contained_and_shown():
    study = Study(ROOT, lambda: (claim(crash, name="broken"), claim(good)))
    result = run_study(study, Setting())
    assert [c.passed for c in result.comparisons] == [False, True]
    assert not result.passed
    assert "ZeroDivisionError: nothing to divide by" in result.table()
    assert "1 of 2 claims hold" in result.table()


def test_a_study_without_claims_has_not_passed():
    assert not run_study(Study(ROOT, lambda: ()), Setting()).passed


def test_an_interrupt_is_not_swallowed():
    def interrupted(setting):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_claim(claim(interrupted), Setting())


def test_global_random_state_and_dtype_are_restored():
    def careless(setting):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.set_default_dtype(torch.float64)
        return good(setting)

    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    run_claim(claim(careless), Setting())
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert torch.get_default_dtype() is torch.float32


def test_a_comparison_survives_json():
    before = run_claim(claim(good), Setting())
    after = Comparison.from_dict(json.loads(json.dumps(before.to_dict(), allow_nan=False)))
    assert after.to_dict() == before.to_dict()
    assert after.tolerance == before.tolerance
    crashed = run_claim(claim(crash), Setting())
    assert Comparison.from_dict(json.loads(json.dumps(crashed.to_dict(), allow_nan=False))).error == crashed.error


def test_the_json_of_a_result_is_strict_and_complete():
    study = Study(ROOT, lambda: (claim(lambda s: evidence([[np.nan]] * 3)),), missing=("more",))
    data = json.loads(run_study(study, Setting()).to_json(), parse_constant=lambda name: pytest.fail(name))
    assert data["id"] == ROOT
    assert data["passed"] is False
    assert data["missing"] == ["more"]
    assert data["claims"][0]["measured"] == [[None], [None], [None]]


class Counter:
    """Counts how often a claim was measured."""

    def __init__(self, measure=good):
        self.calls, self.measure = 0, measure

    def __call__(self, setting):
        self.calls += 1
        return self.measure(setting)


def test_a_run_resumes_with_what_passed(tmp_path):
    done, failing = Counter(), Counter(wrong)
    study = Study(ROOT, lambda: (claim(done), claim(failing, name="wrong")))
    first = run_study(study, Setting(), out=tmp_path)
    second = run_study(study, Setting(), out=tmp_path)
    assert (done.calls, failing.calls) == (1, 2)
    assert second.to_dict()["claims"][0] == first.to_dict()["claims"][0]


@pytest.mark.parametrize("other", [Setting((0, 1)), Setting(full=True)])
def test_another_setting_does_not_resume(tmp_path, other):
    counter = Counter()
    study = Study(ROOT, lambda: (claim(counter),))
    run_study(study, Setting(), out=tmp_path)
    run_study(study, other, out=tmp_path)
    assert counter.calls == 2


def test_a_changed_bar_does_not_resume(tmp_path):
    counter = Counter()
    run_study(Study(ROOT, lambda: (claim(counter),)), Setting(), out=tmp_path)
    tighter = Tolerance("it is arithmetic", absolute=0.01)
    result = run_study(Study(ROOT, lambda: (claim(counter, tolerance=tighter),)), Setting(), out=tmp_path)
    assert counter.calls == 2
    assert not result.passed


def test_changed_code_does_not_resume(tmp_path, monkeypatch):
    counter = Counter()
    study = Study(ROOT, lambda: (claim(counter),))
    run_study(study, Setting(), out=tmp_path)
    monkeypatch.setattr(runner, "_package_source", lambda: b"another version")
    run_study(study, Setting(), out=tmp_path)
    assert counter.calls == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', "\x00"])
def test_a_damaged_file_is_ignored(tmp_path, content):
    (tmp_path / f"{ROOT}.json").write_text(content)
    assert run_study(Study(ROOT, lambda: (claim(good),)), Setting(), out=tmp_path).passed


def test_an_interrupted_study_keeps_what_was_done(tmp_path):
    def interrupted(setting):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(Study(ROOT, lambda: (claim(good), claim(interrupted, name="b"))), Setting(), out=tmp_path)
    assert [c["name"] for c in json.loads((tmp_path / f"{ROOT}.json").read_text())["claims"]] == ["sum"]


def test_files_are_written_whole(tmp_path):
    run_study(Study(ROOT, lambda: (claim(good),)), Setting(), out=tmp_path / "new" / "folder")
    names = sorted(p.name for p in (tmp_path / "new" / "folder").iterdir())
    assert names == [f"{ROOT}.json", f"{ROOT}.png", f"{ROOT}.svg"]  # and no temporary file


def test_a_claim_draws_into_its_own_panel():
    drawn = []
    study = Study(ROOT, lambda: (claim(good, draw=lambda axes, c: drawn.append(c.name)), claim(crash, name="broken")))
    figure = run_study(study, Setting()).figure()
    assert drawn == ["sum"]
    assert len(figure.axes) == 1  # nothing to draw for a claim that crashed


def test_progress_counts_the_claims():
    seen = []
    run_study(Study(ROOT, lambda: (claim(good),)), Setting(), progress=lambda *now: seen.append(now))
    assert seen == [(0, 1, "sum"), (1, 1, "")]


def test_of_many_cells_the_worst_are_shown():
    cells = tuple(f"c{i}" for i in range(40))
    measured = np.zeros((3, 40))
    measured[:, 33] = 1.0
    many = claim(lambda s: evidence(measured, np.zeros(40), cells))
    table = run_study(Study(ROOT, lambda: (many,)), Setting()).table()
    assert "c33" in table
    assert "and 32 more" in table
    assert max(map(len, table.splitlines())) <= 100


def test_markup_in_a_statement_is_text():
    odd = Claim("odd", "[red]x[/] <script>alert(1)</script>", good, EXACT)
    result = run_study(Study(ROOT, lambda: (odd,)), Setting())
    assert "[red]x[/]" in result.table()
    assert "<script>" not in result._repr_html_()


@pytest.mark.parametrize("seeds", [0, -1, 2.5, "3"])
def test_seeds_must_be_a_positive_integer(seeds):
    with pytest.raises(StudyError, match="seeds must be an integer >= 1"):
        reproduce(ROOT, seeds=seeds)
