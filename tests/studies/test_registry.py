"""The 45 papers, the registry and BibTeX."""

from __future__ import annotations

import re

import pytest

from gaugefix.errors import StudyError
from gaugefix.studies import Claim, Study, cite, constructions, find_paper, papers, study
from gaugefix.studies.registry import find_study
from gaugefix.theory import mirror_plane, multiplicative_noise, product_regression

STUDIED = [p for p in papers() if p.study]


def parse_bibtex(text: str) -> dict[str, str]:
    """Fields of one entry; fails on anything that is not balanced BibTeX."""
    head, *lines, end = text.splitlines()
    assert re.fullmatch(r"@misc\{[a-z]+\d{4}[a-z]+,", head), head
    assert end == "}"
    fields = dict(re.fullmatch(r"  (\w+) += \{(.*)\},", line).groups() for line in lines)
    for value in fields.values():
        assert value.count("{") == value.count("}")
        assert not re.search(r"(?<!\\)[&%#_$]", value)
    return fields


def test_there_are_45_different_papers():
    ids = [p.id for p in papers()]
    assert len(set(ids)) == len(ids) == 45
    assert all(re.fullmatch(r"\d{4}\.\d{5}", i) for i in ids)
    assert len({p.title for p in papers()}) == 45
    assert all(p.authors and "Liu Ziyin" in p.authors for p in papers())


def test_the_status_follows_from_the_registered_claims():
    for paper in papers():
        if not paper.study:
            assert (paper.status, paper.claims, paper.missing) == ("planned", (), ())
        else:
            assert paper.claims
            assert paper.status == ("partial" if paper.missing else "reproduced")


def test_papers_are_plain_data():
    data = find_paper("2309.16932").to_dict()
    assert {"id", "title", "authors", "year", "status", "claims"} <= set(data)
    assert data["year"] == 2023


@pytest.mark.parametrize("spelling", ["2309.16932", " arXiv:2309.16932 ", "2309.16932v2"])
def test_an_id_may_be_written_in_the_usual_ways(spelling):
    assert find_paper(spelling).id == "2309.16932"


@pytest.mark.parametrize("unknown", ["2309.16923", "symmetry", "", "../../etc/passwd", "2309.1693x"])
def test_an_unknown_id_names_the_nearest(unknown):
    with pytest.raises(StudyError, match="Unknown paper") as error:
        find_study(unknown)
    if unknown in {"2309.16923", "symmetry", "2309.1693x"}:
        assert "2309.16932" in str(error.value)


def test_a_planned_paper_says_which_studies_are_ready():
    planned = next(p for p in papers() if p.status == "planned")
    with pytest.raises(StudyError, match=r"no study yet\. Ready: .*2309\.16932"):
        find_study(planned.id)


def test_a_paper_has_one_study():
    with pytest.raises(StudyError, match="has a study already"):
        study("2309.16932")(tuple)
    with pytest.raises(StudyError, match="Unknown paper"):
        study("0000.00000")


def test_claims_need_different_names():
    twice = Study("2309.16932", lambda: (Claim("a", "", None, None), Claim("a", "", None, None)))
    with pytest.raises(StudyError, match="different names"):
        _ = twice.claims


@pytest.mark.parametrize("paper", papers(), ids=lambda p: p.id)
def test_every_paper_can_be_cited(paper):
    fields = parse_bibtex(cite(paper))
    assert fields["eprint"] == paper.id
    assert fields["archivePrefix"] == "arXiv"
    assert fields["author"].split(" and ") == list(paper.authors)
    assert fields["year"] == str(paper.year)


def test_citation_keys_are_unique():
    keys = [cite(p).splitlines()[0] for p in papers()]
    assert len(set(keys)) == 45


def test_functions_and_objects_are_cited_by_their_sources():
    assert "2309.16932" in cite(product_regression.product_growth)
    both = cite(multiplicative_noise.lyapunov_exponent).split("\n\n")
    assert [parse_bibtex(entry)["eprint"] for entry in both] == ["2309.16932", "2303.13093"]

    assert cite(mirror_plane.critical_decay) == cite("2309.16932")  # from the docstring of its module

    class Sourced:
        __source__ = ("2210.01212",)

    assert cite(Sourced) == cite(Sourced()) == cite("2210.01212")


def test_what_names_no_source_cannot_be_cited():
    with pytest.raises(StudyError, match="names no source"):
        cite(parse_bibtex)


@pytest.mark.parametrize("paper", STUDIED, ids=lambda p: p.study.rpartition(".")[2])
def test_a_study_is_one_readable_file_that_names_its_source(paper):
    source = find_study(paper.id).source
    assert len(source.splitlines()) <= 300
    assert f"arXiv {paper.id}" in source
    for claim in find_study(paper.id).claims:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", claim.name)
        assert claim.statement.endswith(".")


def test_constructions_of_the_package_are_not_papers():
    own = constructions()
    assert [c.id for c in own] == ["forecast"]
    assert not {c.id for c in own} & {p.id for p in papers()}
    assert find_paper("forecast") == own[0]
    assert own[0].claims
    assert own[0].study
    assert len(find_study("forecast").source.splitlines()) <= 300


def test_a_construction_is_cited_by_the_papers_it_rests_on():
    entries = [parse_bibtex(entry)["eprint"] for entry in cite("forecast").split("\n\n")]
    assert entries == list(find_paper("forecast").rests_on) == ["2309.16932", "2205.12510", "2210.01212", "2202.04777"]
