"""Random architectures: no claim is ever false."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from tests.symmetry.architectures import Block, Plan, build, plans, random_architecture, random_plan, shrink
from tests.symmetry.fuzz import examine, run

from gaugefix.symmetry import find_symmetries

pytestmark = pytest.mark.long

N_SEEDS = 200


@pytest.mark.parametrize("start", range(0, N_SEEDS, 20))
def test_no_false_claim_on_seeded_architectures(start: int) -> None:
    """Every claimed symmetry holds in float64, whatever the architecture; nothing raises."""
    for seed in range(start, start + 20):
        model, args = random_architecture(seed)
        found = find_symmetries(model, args, verify=True)
        assert [(v.name, v.error) for v in found.rejected] == [], f"seed {seed}: {random_plan(seed)}"


@given(plan=plans())
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_dimensions_are_never_overclaimed(plan: Plan) -> None:
    outcome = examine(plan, seeds=1)
    assert outcome.verdict not in {"false", "error"}, outcome


def blocks(*items: Block) -> tuple[Block, ...]:
    return items


# shrunk failures of earlier versions, each with what went wrong
REGRESSIONS = {
    "parts of a normalised concatenation scaled apart": Plan(
        final="layer", bias=False, blocks=blocks(Block("concat", width=3, act="tanh", bias=False))),
    "a shift seen through a concatenation": Plan(
        blocks=blocks(Block("concat", width=5, act="tanh", norm="layer-plain", bias=False))),
    "a table shift seen through a concatenation": Plan(
        source="tokens", n_in=7, bias=False, blocks=blocks(Block("concat", act="tanh", bias=False))),
    "a mean shift of one part of a normalised concatenation": Plan(
        n_in=8, n_out=8, final="layer-gain",
        blocks=blocks(Block("concat", width=5), Block("post", width=5, norm="group", bias=False, option=1))),
    "a bias shift through two convolutions": Plan(
        source="image", width=3, blocks=blocks(Block("conv", width=5, act="tanh"))),
    "a bias shift through a linear residual of convolutions": Plan(
        source="image", n_in=7, width=3, bias=False, blocks=blocks(Block("conv-residual", width=3, act="identity"))),
    "null direction and softmax shift counted twice": Plan(
        n_in=7, width=3, final="layer-gain", bias=False, end="softmax"),
    "bias shift and GL(n) of a wide layer counted twice": Plan(n_in=3, n_out=2),
    "bias shift and mean shift of two groups counted twice": Plan(
        source="sequence", n_in=7, width=6, final="group", bias=False, blocks=blocks(Block("attention", act="tanh"))),
    "rounding noise of projected shifts counted as directions": Plan(
        source="tokens", n_in=8, n_out=8, final="layer-plain", end="log_softmax",
        blocks=blocks(Block("attention", width=5, norm="rms", option=2), Block("residual", width=5))),
    "a fused reader of a LayerNorm": Plan(
        source="tokens", n_in=7, bias=False, blocks=blocks(Block("attention", width=5, norm="layer"))),
    "what a table gives taken for a parameter": Plan(
        source="tokens", n_in=7, bias=False, blocks=blocks(Block("attention", act="tanh", bias=False))),
    "no condition on a shift at all": Plan(
        source="image", n_in=3, n_out=3, bias=False, blocks=blocks(Block("conv-concat", act="tanh"))),
}  # fmt: skip


@pytest.mark.parametrize("plan", REGRESSIONS.values(), ids=REGRESSIONS.keys())
def test_what_once_went_wrong(plan: Plan) -> None:
    outcome = examine(plan, seeds=2)
    assert outcome.verdict not in {"false", "error"}, outcome


# shrunk misses of earlier versions, each with the rule that finds the rest
COMPLETE = {
    "a rotation of one part of what an RMS norm reads": Plan(
        source="sequence", n_in=8, n_out=11, final="rms", bias=False,
        blocks=blocks(Block("concat", width=5, act="tanh", bias=False))),
    "a rotation of one part of what a LayerNorm reads": Plan(
        source="sequence", n_in=7, n_out=10, final="layer-gain", bias=False,
        blocks=blocks(Block("concat", width=5, act="tanh", bias=False))),
    "a rotation through two norms in series": Plan(
        source="sequence", n_in=7, n_out=10, final="layer", bias=False,
        blocks=blocks(Block("post", width=5, act="tanh", norm="layer-plain", bias=False))),
    "a shear across a norm, into a stream": Plan(
        source="sequence", n_in=7, n_out=11, bias=False,
        blocks=blocks(Block("dense", width=5, act="tanh", norm="layer-gain", bias=False, option=1),
                      Block("attention", width=6, act="tanh", bias=False))),
    "constants that a weight without a bias takes up": Plan(
        source="sequence", n_in=7, n_out=10, bias=False,
        blocks=blocks(Block("attention", width=5, act="tanh", norm="group", bias=False))),
    "a constraint on one part of a concatenation": Plan(
        source="sequence", n_in=8, n_out=11, bias=False,
        blocks=blocks(Block("post", width=5, act="tanh", norm="layer-plain", bias=False),
                      Block("concat", width=5, act="tanh", bias=False))),
    "a constraint that goes through an RMS norm": Plan(
        source="sequence", n_in=7, n_out=11, bias=False,
        blocks=blocks(Block("dense", width=5, act="tanh", norm="layer-gain", bias=False, option=1),
                      Block("residual", width=5, act="tanh", norm="rms", bias=False))),
    "a constant of a tied table that the last bias takes back": Plan(
        source="tokens", n_in=7, n_out=10, final="layer", tied=True,
        blocks=blocks(Block("attention", width=5, act="tanh", bias=False))),
    "a constant of a tied table under a softmax": Plan(
        source="tokens", n_in=8, n_out=11, final="rms", bias=False, end="softmax", tied=True,
        blocks=blocks(Block("attention", width=6, act="tanh"))),
    "gains between two LayerNorms": Plan(
        n_in=7, n_out=11, width=3, final="layer", bias=False,
        blocks=blocks(Block("post", width=5, act="tanh", norm="layer", bias=False))),
    "gains between a LayerNorm and an RMS norm": Plan(
        source="sequence", n_in=7, n_out=11, final="rms",
        blocks=blocks(Block("post", width=5, act="tanh", norm="layer-gain"),
                      Block("residual", width=5, act="tanh", norm="rms"))),
    "what the second of two narrow maps does not see": Plan(
        n_in=7, n_out=11, width=3, bias=False, narrow=True,
        blocks=blocks(Block("low", width=5, act="tanh", bias=False, option=0))),
}  # fmt: skip


@pytest.mark.parametrize("plan", COMPLETE.values(), ids=COMPLETE.keys())
def test_what_was_once_missed(plan: Plan) -> None:
    outcome = examine(plan)
    assert outcome.verdict == "complete", outcome


def test_parts_of_size_one_are_no_whole_axis() -> None:
    """Groups that cut through a concatenation: a norm over three of four numbers and one of another part."""
    outcome = examine(
        Plan(width=3, n_in=8, n_out=10, final="group",
             blocks=blocks(Block("concat", width=5, act="tanh"), Block("residual", width=5, act="gelu", option=1))),
        seeds=2,
    )  # fmt: skip
    assert outcome.verdict not in {"false", "error"}, outcome


def test_a_table_that_is_tied_to_two_norms_does_not_slide() -> None:
    """The table reads what the last norm writes, and a norm reads the table: they turn by inverse matrices."""
    outcome = examine(
        Plan(source="tokens", n_in=7, n_out=10, final="layer", bias=False, tied=True,
             blocks=blocks(Block("attention", width=6, norm="layer", option=0))),
        seeds=1,
    )  # fmt: skip
    assert outcome.verdict not in {"false", "error"}, outcome


def test_a_seed_makes_the_same_architecture_twice() -> None:
    assert random_plan(7) == random_plan(7)
    (a, x), (b, y) = random_architecture(7), random_architecture(7)
    assert str(a) == str(b)
    assert all((p == q).all() for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert all((s == t).all() for s, t in zip(x, y, strict=True))


def test_plans_shrink_to_what_fails() -> None:
    plan = Plan(blocks=(Block("dense"), Block("residual", norm="layer", act="gelu"), Block("gate")), final="rms")
    small = shrink(plan, lambda p: any(b.kind == "residual" for b in p.blocks))
    assert [b.kind for b in small.blocks] == ["residual"]
    assert small.final == "none"
    assert build(small)[0](*build(small)[1]).shape == (8, plan.n_out)


def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examined: list[Plan] = []
    real = examine

    def watched(plan: Plan, **options: Any) -> object:
        examined.append(plan)
        return real(plan, **options)

    monkeypatch.setattr("tests.symmetry.fuzz.examine", watched)
    out = tmp_path / "fuzz.json"
    first = run(0, 2, minimise=False, out=out, chunk=1)
    assert (first["seeds"], len(examined)) == (2, 2)
    again = run(0, 3, minimise=False, out=out, chunk=1)
    assert (again["seeds"], len(examined)) == (3, 3)
    assert sum(again["counts"].values()) == 3
    assert json.loads(out.read_text()) == again
    whole = run(0, 3, minimise=False)
    assert {k: whole[k] for k in ("counts", "failures")} == {k: again[k] for k in ("counts", "failures")}
    out.write_text(json.dumps({**again, "version": "other"}))
    with pytest.raises(ValueError, match="choose another"):
        run(0, 3, out=out)
