"""ADVICE: from the numbers of an audit to a diagnosis, its evidence and the next step."""

from gaugefix.advice.collect import advise as advise
from gaugefix.advice.records import Advice as Advice
from gaugefix.advice.records import Severity as Severity
from gaugefix.advice.records import rank_advice as rank_advice
