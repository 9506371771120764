"""BibTeX for a paper, or for whatever in this package rests on one."""

from __future__ import annotations

import inspect
import re

from gaugefix.errors import StudyError
from gaugefix.studies.registry import Paper, find_paper, papers

_ARXIV = re.compile(r"\b(\d{4}\.\d{5})\b")
_STOP_WORDS = {"a", "an", "the", "on", "of", "and", "for", "in", "to", "how", "what", "when", "does", "do"}
_LATEX = str.maketrans({"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$"})


def cite(what: object) -> str:
    r"""BibTeX of the papers that something rests on.

    Args:
        what: an arXiv identifier, a `Paper`, a `StudyResult`, or any object, class, function or module of this
            package: then the ids in its ``__source__`` attribute, else those named in its docstring, else in that
            of its module.

    Returns:
        One entry per paper, in the order in which they are named.

    Raises:
        StudyError: if the id is unknown, or no source is registered.

    Example:
        >>> print(cite("2309.16932"))
        @misc{ziyin2023symmetry,
          title         = {{Symmetry Induces Structure and Constraint of Learning}},
          author        = {Liu Ziyin},
          year          = {2023},
          eprint        = {2309.16932},
          archivePrefix = {arXiv},
          url           = {https://arxiv.org/abs/2309.16932},
          note          = {ICML 2024},
        }
    """
    if isinstance(what, str):
        what = find_paper(what)
    if isinstance(what, Paper):
        return "\n\n".join(map(_bibtex, [find_paper(id) for id in what.rests_on] or [what]))
    ids = _sources(what)
    if not ids:
        name = getattr(what, "__qualname__", type(what).__qualname__)
        raise StudyError(f"{name} names no source. Give an arXiv id of `gaugefix papers`, or an object that cites one.")
    return "\n\n".join(_bibtex(find_paper(id)) for id in ids)


def _sources(what: object) -> list[str]:
    """The arXiv ids that belong to an object, in order."""
    paper = getattr(what, "paper", None)
    if isinstance(paper, Paper):
        return list(paper.rests_on or (paper.id,))
    owner = what if inspect.isclass(what) or inspect.isroutine(what) or inspect.ismodule(what) else type(what)
    source = getattr(what, "__source__", None) or getattr(owner, "__source__", None)
    module = inspect.getmodule(owner)
    texts = [" ".join([source] if isinstance(source, str) else source)] if source else []
    texts += [inspect.getdoc(owner) or "", inspect.getdoc(module) or ""]
    return next((list(dict.fromkeys(found)) for found in map(_ARXIV.findall, texts) if found), [])


def _bibtex(paper: Paper) -> str:
    fields = {
        "title": f"{{{paper.title.translate(_LATEX)}}}",
        "author": " and ".join(paper.authors),
        "year": str(paper.year),
        "eprint": paper.id,
        "archivePrefix": "arXiv",
        "url": f"https://arxiv.org/abs/{paper.id}",
        "note": paper.venue.translate(_LATEX),
    }
    lines = [f"  {name:<13} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@misc{{{_key(paper)},", *lines, "}"])


def _key(paper: Paper) -> str:
    """Family name of the first author, year, the first word of the title that says something; two if one is shared."""
    short = _candidate(paper, 1)
    shared = any(other.id != paper.id and _candidate(other, 1) == short for other in papers())
    return _candidate(paper, 2) if shared else short


def _candidate(paper: Paper, n_words: int) -> str:
    family = re.sub("[^a-z]", "", paper.authors[0].split()[-1].lower())
    words = [w for w in re.findall(r"[a-z]+", paper.title.lower()) if w not in _STOP_WORDS]
    return f"{family}{paper.year}{''.join(words[:n_words])}"
