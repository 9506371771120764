"""Files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from gaugefix.errors import ReportError
from gaugefix.files import check_writable, write_atomically


def test_a_file_is_replaced_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    assert write_atomically(path, "old") == path
    write_atomically(str(path), "neu: λ".encode())
    assert path.read_text(encoding="utf-8") == "neu: λ"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomically(tmp_path / "audit.json", "old")

    def full_disk(self: Path, other: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(ReportError, match=r"Cannot write .*audit\.json: No space left on device"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interruption_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Path, mode: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "chmod", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "audit.json", "new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "audit.html").mkdir()
    with pytest.raises(ReportError, match="Choose another folder"):
        write_atomically(tmp_path / "audit.html", "text")
    assert list(tmp_path.iterdir()) == [tmp_path / "audit.html"]


def test_what_cannot_be_written_is_known_beforehand(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "audit.json")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(ReportError, match="Is a directory"):
        check_writable(tmp_path / "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match=r"Cannot write .*audit\.json"):
        check_writable(tmp_path / "file" / "audit.json")


def test_the_permissions_are_the_usual_ones(tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("x")
    assert write_atomically(tmp_path / "atomic.txt", "x").stat().st_mode == plain.stat().st_mode
