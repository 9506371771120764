"""Reports are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from gaugefix.errors import ReportError
from gaugefix.report import write_text


def test_folders_are_made_and_files_replaced(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "report.html"
    for text in ("one", "two – λ"):
        assert write_text(target, text) == target
        assert target.read_text(encoding="utf-8") == text
    assert list(target.parent.iterdir()) == [target]


def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write_text(tmp_path / "audit.json", "old")

    def full_disk(self: Path, other: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(ReportError, match=r"Cannot write .*audit\.json: No space left on device"):
        write_text(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "audit.html").mkdir()
    with pytest.raises(ReportError, match="Choose another folder"):
        write_text(tmp_path / "audit.html", "text")
