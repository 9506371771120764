"""SHOW: an audit as tables for a terminal, as JSON, as one self-contained page.

Everything here is a function of the plain data of `gaugefix.audit.Audit.to_dict`, the layout of audit.json.
"""

from gaugefix.report.console import console_report as console_report
from gaugefix.report.html_page import html_page as html_page
from gaugefix.report.run_console import run_view as run_view
from gaugefix.report.run_figures import events_figure as events_figure
from gaugefix.report.schema import audit_schema as audit_schema
