"""The page "Watch a training run": its first example runs and says what the page says it says."""

from __future__ import annotations

import contextlib
import io
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "watch.rst").read_text(encoding="utf-8")


def test_the_first_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = textwrap.dedent(re.findall(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", PAGE)[0])
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as out, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(code, names)
    kinds = [e.kind for e in names["monitor"].events]
    assert "balance reached" in kinds
    assert "unit died" in kinds
    assert "died during the run" in out.getvalue()
    assert (tmp_path / "run.jsonl").is_file()
