"""The console script in this process, in a folder with a user's own task file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gaugefix import cli

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run("audit", "my_task:make")``: the exit code of the console script."""

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["gaugefix", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0)

    return call


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the test file's ``TASK_FILE`` as the module ``my_task``."""
    (tmp_path / "my_task.py").write_text(request.module.TASK_FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_task", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path
