"""PREDICT: closed forms of solvable models, arrays in and arrays out."""

from gaugefix.theory.balance import predict_charge_step as predict_charge_step
from gaugefix.theory.balance import predict_layerwise_charge_step as predict_layerwise_charge_step
from gaugefix.theory.balance import predict_momentum_charge_step as predict_momentum_charge_step
from gaugefix.theory.collapsed_layer import Ascent as Ascent
from gaugefix.theory.collapsed_layer import homogeneous_pull as homogeneous_pull
from gaugefix.theory.collapsed_layer import homogeneous_threshold as homogeneous_threshold
from gaugefix.theory.collapsed_layer import predicted_rank as predicted_rank
from gaugefix.theory.collapsed_layer import signal_matrix as signal_matrix
from gaugefix.theory.collapsed_layer import smooth_threshold as smooth_threshold
from gaugefix.theory.mirror_plane import critical_decay as critical_decay
from gaugefix.theory.mirror_plane import growth_rates as growth_rates
