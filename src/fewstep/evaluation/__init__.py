"""How well the modes draw, and how fast: `evaluate` measures them on real pictures, a row for each.

    for row in fewstep.evaluation.evaluate(Path("fewstep-train")):
        print(row.mode, row.steps, row.name_1, row.milliseconds)

The real pictures are those of `fewstep train data`. Nothing below imports this.
"""

from fewstep.evaluation.drawing import DrawingProgress
from fewstep.evaluation.report import Row, plot, read, table
from fewstep.evaluation.run import evaluate, watch
from fewstep.evaluation.settings import DEFAULT_SETTINGS, MODES, STEPS, EvalPrompt, Settings, prompts
from fewstep.evaluation.workflow import Way, WorkflowRow, measure_workflow, workflow_table

__all__ = [
    "DEFAULT_SETTINGS",
    "MODES",
    "STEPS",
    "DrawingProgress",
    "EvalPrompt",
    "Row",
    "Settings",
    "Way",
    "WorkflowRow",
    "evaluate",
    "measure_workflow",
    "plot",
    "prompts",
    "read",
    "table",
    "watch",
    "workflow_table",
]
