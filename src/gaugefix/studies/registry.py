"""The list of papers and the studies that belong to them."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from gaugefix.errors import StudyError
from gaugefix.studies.framework import Claim

Status = Literal["reproduced", "partial", "planned"]


@dataclass(frozen=True)
class Paper:
    """One paper of the programme and how much of it is reproduced here.

    Attributes:
        id: arXiv identifier.
        title: as published.
        authors: in order.
        year: of the first arXiv version.
        venue: where it appeared; empty if it is a preprint or not known.
        status: "reproduced" if every headline claim is implemented, "partial" if some are, else "planned".
        claims: the statements that `reproduce` checks.
        missing: headline claims that are not implemented yet.
        study: module that holds the study; empty if there is none.
        rests_on: papers that a construction of this package rests on; empty for a paper.
    """

    id: str
    title: str
    authors: tuple[str, ...]
    year: int
    venue: str = ""
    status: Status = "planned"
    claims: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    study: str = ""
    rests_on: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Study:
    """The claims of one paper.

    Attributes:
        id: arXiv identifier.
        list_claims: returns the claims; cheap, nothing is measured.
        missing: headline claims of the paper that the study does not check yet.
        doc: what it is about, the docstring of its module.
    """

    id: str
    list_claims: Callable[[], tuple[Claim, ...]]
    missing: tuple[str, ...] = ()
    doc: str = ""

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The claims, in the order in which they are told; their names must differ."""
        claims = self.list_claims()
        names = [claim.name for claim in claims]
        if len(set(names)) < len(names):
            raise StudyError(f"The claims of {self.id} need different names, got {', '.join(names)}.")
        return claims

    @property
    def module(self) -> str:
        """Name of the module that holds the study."""
        return self.list_claims.__module__

    @property
    def source(self) -> str:
        """Text of that module."""
        return Path(inspect.getfile(inspect.unwrap(self.list_claims))).read_text(encoding="utf-8")


_STUDIES: dict[str, Study] = {}


def study(id: str, *, missing: tuple[str, ...] = ()) -> Callable[[Callable[[], tuple[Claim, ...]]], Study]:
    """Register the function below as the study of a paper; it returns the claims.

    Args:
        id: arXiv identifier, one of `papers`.
        missing: headline claims that are not implemented yet, each in a few words; the paper's status is "partial"
            as long as there is one.

    Returns:
        A decorator that turns the function into a `Study`.

    Raises:
        StudyError: if the id is not in the list of papers, has a study already.
    """  # noqa: DOC502
    _entry(id)

    def register(list_claims: Callable[[], tuple[Claim, ...]]) -> Study:
        if id in _STUDIES:
            raise StudyError(
                f"{id} has a study already, in {_STUDIES[id].module}; {list_claims.__module__} is another."
            )
        doc = inspect.getdoc(inspect.getmodule(list_claims)) or ""
        _STUDIES[id] = Study(id, list_claims, missing, doc)
        return _STUDIES[id]

    return register


def papers() -> tuple[Paper, ...]:
    """All papers of the programme with the state of their reproduction.

    Returns:
        45 papers, by date.

    Example:
        >>> [p.title for p in papers() if p.id == "2309.16932"]
        ['Symmetry Induces Structure and Constraint of Learning']
    """
    _import_studies()
    return tuple(_paper(entry) for entry in _catalog().values() if not entry.get("own"))


def constructions() -> tuple[Paper, ...]:
    """Studies of what this package adds to the papers; they have a word in the place of an arXiv identifier.

    Returns:
        Entries like those of `papers`, with the papers they rest on under ``rests_on``.

    Example:
        >>> [c.id for c in constructions()]
        ['forecast']
    """
    _import_studies()
    return tuple(_paper(entry) for entry in _catalog().values() if entry.get("own"))


def find_paper(id: str) -> Paper:
    """One paper by its arXiv identifier.

    Args:
        id: such as ``"2309.16932"``; a prefix ``arXiv:`` and a version suffix are taken off.

    Returns:
        The paper.

    Raises:
        StudyError: if there is no such paper; the message names the nearest.
    """  # noqa: DOC502
    entry = _entry(id)
    _import_studies()
    return _paper(entry)


def find_study(id: str) -> Study:
    """The study of a paper.

    Args:
        id: arXiv identifier.

    Returns:
        The study.

    Raises:
        StudyError: if there is no such paper, or no study of it yet.
    """
    paper = find_paper(id)
    if paper.id not in _STUDIES:
        ready = ", ".join(sorted(_STUDIES)) or "none"
        raise StudyError(f"{paper.id} ({paper.title}) has no study yet. Ready: {ready}.")
    return _STUDIES[paper.id]


def _paper(entry: dict[str, Any]) -> Paper:
    found = _STUDIES.get(entry["id"])
    return Paper(
        id=entry["id"],
        title=entry["title"],
        authors=tuple(entry["authors"]),
        year=entry["year"] if entry.get("own") else 2000 + int(entry["id"][:2]),
        venue=entry["venue"],
        status="planned" if found is None else "partial" if found.missing else "reproduced",
        claims=tuple(c.statement for c in found.claims) if found else (),
        missing=found.missing if found else (),
        study=found.module if found else "",
        rests_on=tuple(entry.get("rests_on", ())),
    )


@cache
def _catalog() -> dict[str, dict[str, Any]]:
    """The entries of ``catalog.json`` by id."""
    entries = json.loads((Path(__file__).parent / "catalog.json").read_text(encoding="utf-8"))
    return {entry["id"]: entry for entry in sorted(entries, key=lambda e: e["id"])}


def _entry(id: str) -> dict[str, Any]:
    """Look an id up, or explain what is near."""
    catalog = _catalog()
    wanted = id.strip().lower().removeprefix("arxiv:").strip().partition("v")[0]
    if wanted in catalog:
        return catalog[wanted]
    near = difflib.get_close_matches(wanted, catalog, n=3, cutoff=0.5)
    near += [e["id"] for e in catalog.values() if len(wanted) > 3 and wanted in e["title"].lower()][:3]
    shown = "; ".join(f"{i} ({catalog[i]['title']})" for i in dict.fromkeys(near))
    raise StudyError(
        f"Unknown paper {id!r}. " + (f"Did you mean {shown}? " if shown else "") + "List them with `gaugefix papers`."
    )


@cache
def _import_studies() -> None:
    """Import every module of this folder once, so that each registers its study."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{package}.{module.name}")
