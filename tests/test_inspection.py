"""`gaugefix symmetries`: structure, numbers, and what is said about either."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gaugefix.errors import MeasurementError, TaskError
from gaugefix.inspection import inspect_symmetries
from gaugefix.report.symmetry_report import statements, symmetry_console, symmetry_page

NARROW = """
import torch, gaugefix
from torch import nn

def make():
    torch.manual_seed(0)
    x, y = torch.randn(32, 4), torch.randint(3, (32,))
    model = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(), nn.Linear(6, 5), nn.LeakyReLU(), nn.Linear(5, 3))
    return gaugefix.Task(
        model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"),
        lambda: zip(x.split(8), y.split(8)), lr=0.1, weight_decay=0.0, batch_size=8,
    )

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
    def forward(self, x):
        return self.b(torch.sort(self.a(x), dim=1)[0])

def make_tuned():
    task = make()
    task.model[0].requires_grad_(False)
    return task

def make_odd():
    import dataclasses
    return dataclasses.replace(make(), model=Odd())
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"inspected_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(NARROW)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def text(data: dict[str, Any]) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(symmetry_console(data))
    return capture.get()


def said(data: dict[str, Any]) -> dict[str, str]:
    return dict(statements(data))


class TestNumbers:
    def test_small_models_are_verified(self, module: str) -> None:
        data = inspect_symmetries(f"{module}:make")
        assert data["verified"]
        assert said(data)["directions"] == "11 flat directions of 83 parameters"
        of_the_function = [s for s in data["symmetries"] if s["level"] == "function"]
        assert len(of_the_function) == 4
        assert re.match(r"6 symmetries, largest change of the output \de-1[5-9]", said(data)["verified"])

    def test_complete(self, module: str) -> None:
        data = inspect_symmetries(f"{module}:make", complete=True, seed=1)  # at seed 0 a unit is always on
        assert data["completeness"] == {
            "measured": 11, "explained": 11, "hidden": {}, "reliable": True, "complete": True
        }  # fmt: skip
        assert said(data)["complete"] == "explains 11 of 11 flat directions"
        assert "hidden" not in said(data)

    def test_hidden_directions_are_listed_apart(self, module: str) -> None:
        """Sorted units are not understood; the scale between the layers is real."""
        data = inspect_symmetries(f"{module}:make_odd", complete=True)
        assert not data["completeness"]["complete"]
        assert "a.weight" in said(data)["hidden"]
        assert said(data)["opaque"].startswith("sort at ")

    @pytest.mark.transformers
    def test_complete_refuses_wide_models(self) -> None:
        pytest.importorskip("transformers")
        with pytest.raises(MeasurementError, match="Test a narrow copy"):
            inspect_symmetries("hf:llama", verify=False, complete=True)


class TestStructure:
    def test_meta_finds_the_same(self, module: str) -> None:
        real = inspect_symmetries(f"{module}:make", verify=False)
        meta = inspect_symmetries(f"{module}:make", meta=True)
        of_the_function = [block for block in real["blocks"] if block["block"] != "the loss only"]
        assert meta["blocks"] == of_the_function
        assert len(real["blocks"]) == len(of_the_function) + 1
        assert not meta["verified"]
        assert said(meta)["verified"].startswith("no: structure only")

    @pytest.mark.parametrize("options", [{"verify": True}, {"complete": True}])
    def test_meta_has_no_numbers(self, module: str, options: dict[str, bool]) -> None:
        with pytest.raises(TaskError, match="--meta looks at structure only"):
            inspect_symmetries(f"{module}:make", meta=True, **options)

    @pytest.mark.slow
    @pytest.mark.transformers
    def test_an_8b_configuration(self) -> None:
        """2dL + d + 1 + L·ff + L·kv·e² + L·kv·e + d(d−1)/2 with d = 4096, L = 32, ff = 14336, kv = 8, e = 128."""
        pytest.importorskip("transformers")
        data = inspect_symmetries("hf:llama-8b")
        d, layers, ff, kv, e = 4096, 32, 14336, 8, 128
        expected = 2 * d * layers + d + 1 + layers * (ff + kv * e * e + kv * e) + d * (d - 1) // 2
        assert data["flat_dim"] == expected == 13_338_625
        assert [b["count"] for b in data["blocks"]] == [1, 32]
        assert data["output"] == "logits"
        assert not data["opaque"]

    @pytest.mark.transformers
    def test_a_folder_needs_no_weights(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.LlamaConfig(
            hidden_size=8, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            vocab_size=16, architectures=["LlamaForCausalLM"], bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        config.save_pretrained(tmp_path)
        structure = inspect_symmetries(f"hf:{tmp_path}")
        checked = inspect_symmetries(f"hf:{tmp_path}", verify=True)
        assert structure["structure_only"]
        assert checked["verified"]
        assert structure["flat_dim"] == checked["flat_dim"]


class TestReports:
    def test_table(self, module: str) -> None:
        shown = text(inspect_symmetries(f"{module}:make"))
        for word in ("S_6", "R+^5", "permute", "output     the function that is kept: output"):
            assert word in shown

    def test_json_round_trip(self, module: str) -> None:
        data = inspect_symmetries(f"{module}:make")
        assert json.loads(json.dumps(data))["flat_dim"] == 11

    def test_page_is_self_contained_and_escaped(self, module: str) -> None:
        data = inspect_symmetries(f"{module}:make") | {"name": "<script>alert(1)</script>"}
        page = symmetry_page(data)
        assert "<script" not in page
        assert "&lt;script&gt;" in page
        assert not re.search(r"(src|href)=\"(?!data:|#)", page)
        assert "S<sub>6</sub>" in page
        assert "11 directions" in page


def test_trainable_only_keeps_frozen_parameters_fixed(module: str) -> None:
    whole = inspect_symmetries(f"{module}:make_tuned", complete=True)
    tuned = inspect_symmetries(f"{module}:make_tuned", complete=True, trainable_only=True)
    assert (whole["flat_dim"], tuned["flat_dim"]) == (11, 5)
    assert not any("0.weight" in axis for block in tuned["symmetries"] for axis in block["axes"])
    assert "frozen parameters" in text(tuned)
