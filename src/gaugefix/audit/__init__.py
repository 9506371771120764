"""AUDIT: find, measure and forecast one task, and say what to do about it."""

from gaugefix.audit.events import RunEvents as RunEvents
from gaugefix.audit.full import FullMeasurements as FullMeasurements
from gaugefix.audit.records import SCHEMA_VERSION as SCHEMA_VERSION
from gaugefix.audit.records import Audit as Audit
from gaugefix.audit.records import TaskSummary as TaskSummary
from gaugefix.audit.run import audit as audit
