"""One file per family of operations; importing this package registers them all."""

from gaugefix.symmetry.rules import attention as attention
from gaugefix.symmetry.rules import conv as conv
from gaugefix.symmetry.rules import elementwise as elementwise
from gaugefix.symmetry.rules import embedding as embedding
from gaugefix.symmetry.rules import linear as linear
from gaugefix.symmetry.rules import loss as loss
from gaugefix.symmetry.rules import norm as norm
from gaugefix.symmetry.rules import recurrent as recurrent
from gaugefix.symmetry.rules import routing as routing
from gaugefix.symmetry.rules import shape as shape
