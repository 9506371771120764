"""PROVE: one file per paper, predicted against measured."""

from gaugefix.studies.batch import Summary as Summary
from gaugefix.studies.batch import reproduce_all as reproduce_all
from gaugefix.studies.citation import cite as cite
from gaugefix.studies.framework import Claim as Claim
from gaugefix.studies.framework import Comparison as Comparison
from gaugefix.studies.framework import Evidence as Evidence
from gaugefix.studies.framework import Setting as Setting
from gaugefix.studies.framework import Tolerance as Tolerance
from gaugefix.studies.registry import Paper as Paper
from gaugefix.studies.registry import Study as Study
from gaugefix.studies.registry import constructions as constructions
from gaugefix.studies.registry import find_paper as find_paper
from gaugefix.studies.registry import papers as papers
from gaugefix.studies.registry import study as study
from gaugefix.studies.results import StudyResult as StudyResult
from gaugefix.studies.runner import reproduce as reproduce
