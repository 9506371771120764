"""Impose a constraint with an artificial symmetry: factors, on which weight decay is a sparse penalty."""

from gaugefix.control.impose.collapse import CollapsedTensor as CollapsedTensor
from gaugefix.control.impose.collapse import NoiseFloor as NoiseFloor
from gaugefix.control.impose.collapse import collapse_ as collapse_
from gaugefix.control.impose.collapse import noise_floor as noise_floor
from gaugefix.control.impose.decay import Ramp as Ramp
from gaugefix.control.impose.decay import check_optimizer as check_optimizer
from gaugefix.control.impose.decay import factors as factors
from gaugefix.control.impose.decay import optimizer as optimizer
from gaugefix.control.impose.decay import parameter_groups as parameter_groups
from gaugefix.control.impose.decay import penalty as penalty
from gaugefix.control.impose.steps import StepsForecast as StepsForecast
from gaugefix.control.impose.steps import predict_steps as predict_steps
from gaugefix.control.impose.tensors import constraint as constraint
from gaugefix.control.impose.tensors import group_sparse as group_sparse
from gaugefix.control.impose.tensors import low_rank as low_rank
from gaugefix.control.impose.tensors import sparse as sparse
from gaugefix.control.impose.tensors import tied as tied
from gaugefix.control.impose.thin import Thin as Thin
from gaugefix.control.impose.units import prune_units as prune_units
from gaugefix.control.impose.units import rank as rank
