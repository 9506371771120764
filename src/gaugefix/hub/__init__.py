"""Models of the transformers library as tasks: ``hf:NAME`` from a small table, or ``hf:FOLDER`` with safetensors."""

from gaugefix.hub.architectures import ARCHITECTURES as ARCHITECTURES
from gaugefix.hub.architectures import Architecture as Architecture
from gaugefix.hub.models import HubModel as HubModel
from gaugefix.hub.models import hub_model as hub_model
from gaugefix.hub.tasks import hub_task as hub_task
