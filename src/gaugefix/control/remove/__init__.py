"""Remove symmetries, so that no mirror plane can trap a run, and the alternatives to compare with."""

from gaugefix.control.remove.anchors import AnchoredDecay as AnchoredDecay
from gaugefix.control.remove.baselines import L2Init as L2Init
from gaugefix.control.remove.baselines import WFix as WFix
from gaugefix.control.remove.baselines import shrink_and_perturb_ as shrink_and_perturb_
from gaugefix.control.remove.syre import Displacement as Displacement
from gaugefix.control.remove.syre import SyreDecay as SyreDecay
