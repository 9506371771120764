"""PREDICT: closed forms of solvable models, arrays in and arrays out."""

from gaugefix.theory.anchored_decay import collapsed_columns as collapsed_columns
from gaugefix.theory.anchored_decay import relearning_ceiling as relearning_ceiling
from gaugefix.theory.balance import predict_charge_step as predict_charge_step
from gaugefix.theory.balance import predict_layerwise_charge_step as predict_layerwise_charge_step
from gaugefix.theory.balance import predict_momentum_charge_step as predict_momentum_charge_step
from gaugefix.theory.collapsed_layer import Ascent as Ascent
from gaugefix.theory.collapsed_layer import homogeneous_pull as homogeneous_pull
from gaugefix.theory.collapsed_layer import homogeneous_threshold as homogeneous_threshold
from gaugefix.theory.collapsed_layer import predicted_rank as predicted_rank
from gaugefix.theory.collapsed_layer import signal_matrix as signal_matrix
from gaugefix.theory.collapsed_layer import smooth_threshold as smooth_threshold
from gaugefix.theory.matrix_factorization import gram_rank as gram_rank
from gaugefix.theory.matrix_factorization import gram_spectrum as gram_spectrum
from gaugefix.theory.mirror_plane import critical_decay as critical_decay
from gaugefix.theory.mirror_plane import growth_rates as growth_rates
from gaugefix.theory.multiplicative_noise import critical_lr as critical_lr
from gaugefix.theory.multiplicative_noise import critical_lr_estimate as critical_lr_estimate
from gaugefix.theory.multiplicative_noise import gaussian_regression_exponent as gaussian_regression_exponent
from gaugefix.theory.multiplicative_noise import lyapunov_exponent as lyapunov_exponent
from gaugefix.theory.product_regression import product_growth as product_growth
from gaugefix.theory.product_regression import product_minimum as product_minimum
from gaugefix.theory.product_regression import relearning_slope as relearning_slope
from gaugefix.theory.redundant_factors import factor_decay as factor_decay
from gaugefix.theory.redundant_factors import steps_to_zero as steps_to_zero
