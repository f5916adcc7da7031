"""How well the modes draw, and how fast: `evaluate` measures them on real pictures, a row for each.

    for row in fewstep.evaluation.evaluate(Path("fewstep-train")):
        print(row.mode, row.steps, row.name_1, row.milliseconds)

The real pictures are those of `fewstep train data`. Nothing below imports this.
"""

from fewstep.evaluation.asking import DEFAULT, MODES, STEPS, Asked, Settings, prompts
from fewstep.evaluation.drawing import Drawn
from fewstep.evaluation.report import Row, plot, read, table
from fewstep.evaluation.run import evaluate, watch

__all__ = [
    "DEFAULT",
    "MODES",
    "STEPS",
    "Asked",
    "Drawn",
    "Row",
    "Settings",
    "evaluate",
    "plot",
    "prompts",
    "read",
    "table",
    "watch",
]
