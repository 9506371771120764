"""gaugefix: find the symmetries of a network, see what they did, predict what they will do, use or remove them."""

from gaugefix.audit import Audit as Audit
from gaugefix.audit import audit as audit
from gaugefix.errors import ConvergenceWarning as ConvergenceWarning
from gaugefix.errors import GaugefixError as GaugefixError
from gaugefix.errors import ValidityWarning as ValidityWarning
from gaugefix.symmetry import Mirror as Mirror
from gaugefix.symmetry import Symmetries as Symmetries
from gaugefix.symmetry import Symmetry as Symmetry
from gaugefix.symmetry import Units as Units
from gaugefix.symmetry import find_symmetries as find_symmetries
from gaugefix.task import Task as Task
from gaugefix.task import load_task as load_task
from gaugefix.training import train as train

__version__ = "0.1.0"
