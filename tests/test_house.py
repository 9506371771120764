"""The house: data flows one way, so a room imports only from the rooms above it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gaugefix

SOURCE = Path(gaugefix.__file__).parent

#: from the ground floor up; rooms of one line do not import each other
ROOMS = [
    {"errors"},
    {"files", "task", "theory"},
    {"threads", "training", "builtin", "sweep"},
    {"symmetry"},
    {"measure", "testing", "hub"},
    {"forecast"},
    {"control"},
    {"monitor"},
    {"advice"},
    {"audit", "run_summary"},
    {"report", "studies"},
    {"inspection"},
    {"cli_options", "cli_output"},
    {"cli_change", "cli_studies"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports when it is loaded; what a function imports when it is called is its own affair."""
    rooms = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
        rooms |= {name.split(".")[1] for name in names if name.startswith("gaugefix.")}
    return rooms - {room_of(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_imports_only_from_rooms_above_it(path: Path) -> None:
    wrong = {room for room in imported_rooms(path) if FLOOR[room] >= FLOOR[room_of(path)]}
    assert wrong == set()


def test_no_file_is_longer_than_500_lines() -> None:
    assert [str(p) for p in FILES if len(p.read_text(encoding="utf-8").splitlines()) > 500] == []


def test_packages_only_re_export() -> None:
    """An ``__init__.py`` has a docstring and imports; the one of the package also its version and its late imports."""
    for path in SOURCE.rglob("__init__.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        extra = [node for node in body[1:] if not isinstance(node, ast.ImportFrom)]
        assert len(extra) <= (5 if path.parent == SOURCE else 0), path
