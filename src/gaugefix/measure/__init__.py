"""MEASURE: numbers of a live network, gradient moments, curvature, charges, collapse."""

from gaugefix.measure.charges import ChargeLaw as ChargeLaw
from gaugefix.measure.charges import ChargeReport as ChargeReport
from gaugefix.measure.charges import UnitBalance as UnitBalance
from gaugefix.measure.charges import balance as balance
from gaugefix.measure.charges import check_charge_law as check_charge_law
from gaugefix.measure.collapse import CollapseReport as CollapseReport
from gaugefix.measure.collapse import UnitCollapse as UnitCollapse
from gaugefix.measure.collapse import collapse_report as collapse_report
from gaugefix.measure.noise import GradientNoise as GradientNoise
from gaugefix.measure.noise import NoiseGroup as NoiseGroup
from gaugefix.measure.noise import gradient_noise as gradient_noise
from gaugefix.measure.records import Record as Record
