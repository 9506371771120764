"""FIND: the symmetries of a module, from its structure alone."""

from gaugefix.symmetry.dense_mirror import DenseMirror as DenseMirror
from gaugefix.symmetry.dense_mirror import mirror_from_matrix as mirror_from_matrix
from gaugefix.symmetry.find import find_symmetries as find_symmetries
from gaugefix.symmetry.groups import Symmetry as Symmetry
from gaugefix.symmetry.lowering import Lowering as Lowering
from gaugefix.symmetry.lowering import register_rule as register_rule
from gaugefix.symmetry.mirrors import Mirror as Mirror
from gaugefix.symmetry.symmetries import OpaqueOp as OpaqueOp
from gaugefix.symmetry.symmetries import Symmetries as Symmetries
from gaugefix.symmetry.symmetries import Verification as Verification
from gaugefix.symmetry.units import Slice as Slice
from gaugefix.symmetry.units import Units as Units
