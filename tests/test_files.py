"""Files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from gaugefix.files import write_atomically


def test_a_file_is_replaced_and_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b.txt"
    assert write_atomically(path, "old") == path
    write_atomically(str(path), "neu: λ".encode())
    assert path.read_text(encoding="utf-8") == "neu: λ"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "b.txt", "old")

    def fail(self, target):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_permissions_are_the_usual_ones(tmp_path):
    plain = tmp_path / "plain.txt"
    plain.write_text("x")
    assert write_atomically(tmp_path / "atomic.txt", "x").stat().st_mode == plain.stat().st_mode
