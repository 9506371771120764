"""MEASURE: numbers of a live network, gradient moments, curvature, charges, collapse."""

from gaugefix.measure.charges import ChargeLaw as ChargeLaw
from gaugefix.measure.charges import ChargeReport as ChargeReport
from gaugefix.measure.charges import UnitBalance as UnitBalance
from gaugefix.measure.charges import balance as balance
from gaugefix.measure.charges import charge_decomposition as charge_decomposition
from gaugefix.measure.charges import check_charge_law as check_charge_law
from gaugefix.measure.collapse import CollapseReport as CollapseReport
from gaugefix.measure.collapse import UnitCollapse as UnitCollapse
from gaugefix.measure.collapse import collapse_report as collapse_report
from gaugefix.measure.collapse import effective_rank as effective_rank
from gaugefix.measure.collapse import live_units as live_units
from gaugefix.measure.collapse import unit_sizes as unit_sizes
from gaugefix.measure.curvature import HessianOperator as HessianOperator
from gaugefix.measure.curvature import OHessian as OHessian
from gaugefix.measure.curvature import hvp as hvp
from gaugefix.measure.curvature import lambda_min as lambda_min
from gaugefix.measure.curvature import o_hessian as o_hessian
from gaugefix.measure.noise import GradientNoise as GradientNoise
from gaugefix.measure.noise import NoiseGroup as NoiseGroup
from gaugefix.measure.noise import gradient_noise as gradient_noise
from gaugefix.measure.records import Record as Record
from gaugefix.theory import predict_charge_step as predict_charge_step
from gaugefix.theory import predict_layerwise_charge_step as predict_layerwise_charge_step
from gaugefix.theory import predict_momentum_charge_step as predict_momentum_charge_step
