"""`compare`: the same picture by several settings, side by side, with the time of each. No torch."""

from fewstep.comparison.cells import Cell
from fewstep.comparison.comparison import Comparison, compare
from fewstep.comparison.distance import rmse
from fewstep.comparison.table import Table

__all__ = ["Cell", "Comparison", "Table", "compare", "rmse"]
