"""What is asked (`PictureOptions`), completed and checked (`Request`), and what it means (`Plan`, `Job`).

Defaults are filled once, here; below this door there is no None. Nothing the user gave is
changed: what cannot be done is a `RequestError` that says what can.
"""

from fewstep.request.options import File, PictureOptions, Prompts
from fewstep.request.resolve import complete_request, make_plan, resolve_job
from fewstep.request.schema import MAX_PICTURES, Job, Plan, Request

__all__ = [
    "MAX_PICTURES", "File", "Job", "PictureOptions", "Plan", "Prompts", "Request", "complete_request",
    "make_plan", "resolve_job",
]  # fmt: skip
