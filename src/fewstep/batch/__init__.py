"""A file of jobs becomes pictures, each exactly once; no torch before the first is drawn.

    for outcome in fewstep.batch.run("jobs.jsonl", "pictures"):
        print(outcome.line, outcome.state, outcome.file or outcome.reason)

Killed at any point and started again, it goes on; `fewstep batch` is the same at a shell.
"""

from fewstep.batch.estimate import Estimate, plan
from fewstep.batch.outcome import Outcome
from fewstep.batch.runner import run
from fewstep.batch.settings import BatchOptions, Settings
from fewstep.batch.status import Status, status

__all__ = ["BatchOptions", "Estimate", "Outcome", "Settings", "Status", "plan", "run", "status"]
