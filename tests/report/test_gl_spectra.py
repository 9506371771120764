"""Classes with a general linear group: their spectra against λ, by hand and from a real model."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.attention_models import SeparateAttention, seeded
from torch import Tensor, nn

from gaugefix.audit import Audit, audit
from gaugefix.report import html_page
from gaugefix.report.gl_spectra import gl_classes, gl_figure
from gaugefix.task import Task

HEADS = [[0.05, 0.01, 1e-18], [0.02, 0.004, None]]


@pytest.fixture
def data(build: Callable[..., Audit]) -> dict[str, Any]:
    """The made-up audit, whose second class is two heads of queries and keys."""
    found = build().to_dict()
    name = found["collapse"]["units"][1]["name"]
    entry = {"name": f"{name}: rotate", "group": "(GL(3))^2", "dim": 18, "axes": ["q[0]"], "isometric": False}
    found["symmetries"]["symmetries"].append({**entry, "level": "function", "error": 1e-16, "class": name})
    found["forecast"]["classes"][1] |= {"fiber_spectra": HEADS, "predicted_rank": 2, "rank": 9}
    found["collapse"]["units"][1] |= {"fibers": 2, "kind": "head_dim"}
    return found


def test_a_row_for_every_class_with_the_group(data: dict[str, Any]) -> None:
    (row,) = gl_classes(data)
    assert (row["group"], row["fibers"], row["rank"], row["max_rank"]) == ("(GL(3))^2", 2, 9, 16)
    assert row["predicted_rank"] == 2
    assert row["largest"] == 0.05
    assert row["weight_decay"] == 0.01
    assert row["signal"] == [[0.05, 0.01, 1e-18], [0.02, 0.004]]


def test_every_head_is_a_line_beside_weight_decay(data: dict[str, Any]) -> None:
    figure = gl_figure(gl_classes(data))
    assert figure is not None
    *heads, decay = figure["data"]
    assert [(t["x"], t["y"]) for t in heads] == [([1, 2], [0.05, 0.01]), ([1, 2], [0.02, 0.004])]  # rounding has no log
    assert [t["showlegend"] for t in heads] == [True, False]
    assert decay["y"] == [0.01, 0.01]
    assert figure["layout"]["yaxis"]["type"] == "log"
    assert all("<script>" not in t["name"] + t["hovertemplate"] for t in heads)


def test_the_page_has_the_section_only_where_there_is_such_a_class(data: dict[str, Any], sample: Audit) -> None:
    page = html_page(data)
    assert 'id="plot-gl-spectra"' in page
    assert "<td>9 of 16</td>" in page
    assert "(GL(3))<sup>2</sup>" in page
    assert 'id="spectra"' not in html_page(sample.to_dict())


def test_a_class_without_a_forecast_keeps_its_row(data: dict[str, Any]) -> None:
    data["forecast"] = None
    (row,) = gl_classes(data)
    assert (row["signal"], row["largest"], row["verdict"]) == ([], None, "no forecast")
    assert gl_figure([row]) is None
    assert 'id="spectra"' in html_page(data)
    data["collapse"] = None
    assert gl_classes(data) == []


def test_without_weight_decay_there_is_no_line(data: dict[str, Any]) -> None:
    data["task"]["weight_decay"] = 0.0
    figure = gl_figure(gl_classes(data))
    assert figure is not None
    assert len(figure["data"]) == 2


def attention_task() -> Task:
    model = seeded(SeparateAttention, d=6, heads=2, bias=False)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(32, 4, 6, generator=generator, dtype=torch.float64) for _ in range(2))

    def loss(m: nn.Module, b: tuple[Tensor, Tensor]) -> Tensor:
        return (m(b[0]) - b[1]).square().mean((1, 2))

    def batches(seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(x.split(16), y.split(16), strict=True)

    return Task(model, loss, batches, lr=0.1, weight_decay=0.01, batch_size=16)


def test_attention_has_its_queries_and_keys_and_its_values_and_outputs() -> None:
    task = attention_task()
    found = audit(task, progress=False).to_dict()
    rows = {row["name"]: row for row in gl_classes(found)}
    assert [(r["group"], r["fibers"], len(r["signal"])) for r in rows.values()] == [("(GL(3))^2", 2, 2)] * 2
    values = next(r for name, r in rows.items() if name == "v")
    model = task.model
    assert isinstance(model, SeparateAttention)
    v, out = model.v.weight.detach(), model.out.weight.detach()
    products = [out[:, 3 * h : 3 * h + 3] @ v[3 * h : 3 * h + 3] for h in (0, 1)]
    ranks = [int(torch.linalg.matrix_rank(m)) for m in products]
    assert values["rank"] == sum(ranks) == 6
    joint = np.concatenate([torch.linalg.svdvals(m)[:3].numpy() for m in products])
    spectrum = np.asarray(next(u["spectrum"] for u in found["collapse"]["units"] if u["name"] == "v"))
    assert np.sort(spectrum) == pytest.approx(np.sort(joint), rel=1e-10)
    kappa = next(c["kappa"] for c in found["forecast"]["classes"] if c["name"] == "v")
    assert math.isclose(values["largest"], kappa, rel_tol=1e-6)
    assert html.escape("(GL(3))") in html_page(found)
