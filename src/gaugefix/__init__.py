"""gaugefix: find the symmetries of a network, see what they did, predict what they will do, use or remove them.

The names below are the public face; everything else is in the rooms: `gaugefix.symmetry`, `gaugefix.theory`,
`gaugefix.measure`, `gaugefix.forecast`, `gaugefix.monitor`, `gaugefix.report`, `gaugefix.studies`. Two verbs share
their name with the room they live in. On the package the verb wins, ``gaugefix.audit(task)`` and
``gaugefix.forecast(task, symmetries)`` are functions; the rest of the room is reached by
``from gaugefix.forecast import ClassForecast``.
"""

from typing import TYPE_CHECKING, Any

from gaugefix.audit import Audit as Audit
from gaugefix.audit import audit as audit
from gaugefix.errors import ConvergenceWarning as ConvergenceWarning
from gaugefix.errors import GaugefixError as GaugefixError
from gaugefix.errors import ValidityWarning as ValidityWarning
from gaugefix.forecast import Forecast as Forecast
from gaugefix.forecast import certificate as certificate
from gaugefix.forecast import critical_weight_decay as critical_weight_decay
from gaugefix.forecast import forecast as forecast
from gaugefix.symmetry import Mirror as Mirror
from gaugefix.symmetry import Symmetries as Symmetries
from gaugefix.symmetry import Symmetry as Symmetry
from gaugefix.symmetry import Units as Units
from gaugefix.symmetry import find_symmetries as find_symmetries
from gaugefix.task import Task as Task
from gaugefix.task import load_task as load_task
from gaugefix.training import train as train

if TYPE_CHECKING:  # loaded at first use, see `__getattr__`
    from gaugefix.monitor import Monitor as Monitor
    from gaugefix.studies import cite as cite
    from gaugefix.studies import papers as papers
    from gaugefix.studies import reproduce as reproduce

__version__ = "0.1.0"

_LATE = {"Monitor": "monitor", "cite": "studies", "papers": "studies", "reproduce": "studies"}


def __getattr__(name: str) -> Any:
    """Names whose rooms would make the import slower."""
    if name not in _LATE:
        raise AttributeError(f"module 'gaugefix' has no attribute {name!r}")
    from importlib import import_module

    globals()[name] = value = getattr(import_module(f"gaugefix.{_LATE[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
