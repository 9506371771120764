"""FORECAST: theory and measurement together, for each class of units and each mirror."""

from gaugefix.forecast.certificates import certificate as certificate
from gaugefix.forecast.certificates import certify as certify
from gaugefix.forecast.network import NetworkThreshold as NetworkThreshold
from gaugefix.forecast.network import whole_network_threshold as whole_network_threshold
from gaugefix.forecast.noise import NoiseLimits as NoiseLimits
from gaugefix.forecast.noise import noise_limits as noise_limits
from gaugefix.forecast.planes import critical_weight_decay as critical_weight_decay
from gaugefix.forecast.results import Certificate as Certificate
from gaugefix.forecast.results import ClassForecast as ClassForecast
from gaugefix.forecast.results import CollapseThreshold as CollapseThreshold
from gaugefix.forecast.results import Forecast as Forecast
from gaugefix.forecast.results import MirrorForecast as MirrorForecast
from gaugefix.forecast.widths import forecast as forecast
