"""What is asked (`Options`), completed and checked (`Request`), and what it means (`Plan`, `Job`).

Defaults are filled once, here; below this door there is no None. Nothing the user gave is
changed: what cannot be done is a `RequestError` that says what can.
"""

from fewstep.request.door import complete, plan, resolve
from fewstep.request.options import File, Options, Prompts
from fewstep.request.schema import PICTURES, Job, Plan, Request

__all__ = ["PICTURES", "File", "Job", "Options", "Plan", "Prompts", "Request", "complete", "plan", "resolve"]
