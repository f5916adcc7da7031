"""`check`: what is wrong in somebody's diffusers pipeline, and the line that mends it. No torch, no weights.

What a mode needs is in its recipe; one table (`fewstep.checking.case`) says how diffusers says it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.checking.active_loras import check_loras
from fewstep.checking.call_arguments import call_line, check_call
from fewstep.checking.case import Check, Finding, PlannedCall, Report, case_of
from fewstep.checking.networks import check_dtypes, check_rest, check_unet, check_vae, check_whole
from fewstep.checking.pipeline import read_pipeline
from fewstep.checking.scheduler import check_scheduler
from fewstep.files.untrusted import raise_as_corrupt

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["Finding", "Report", "check"]

CHECKS: tuple[Check, ...] = (
    check_unet, check_scheduler, check_loras, check_vae, check_dtypes, check_rest, check_call,
)  # fmt: skip


def check(  # noqa: PLR0913  the words of a diffusers call
    pipe_or_path: DiffusionPipeline | str | Path,
    mode: str | None = None,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    negative_prompt: str = "",
    width: int | None = None,
    height: int | None = None,
    strength: float | None = None,
    timesteps: Sequence[int] | None = None,
    eta: float | None = None,
) -> Report:
    """What keeps a diffusers pipeline from the pictures of a few-step mode; nothing is run or changed.

    pipe_or_path: an SDXL pipeline, or the diffusers folder of one, of which JSON files and
        safetensors headers are read.
    mode: one of `fewstep modes`; None is what the pipeline shows.
    steps, guidance, negative_prompt, width, height, strength, timesteps, eta: how it is to be
        called, in diffusers' meaning; what is left out is not looked at.

    Each finding has the line that mends it, on `pipe`, with diffusers, torch and transformers
    imported. Raises `RequestError` where there is no pipeline to look at, and `ModelError` where
    a folder's files are damaged.
    """
    planned = PlannedCall(
        steps=steps, guidance=guidance, negative_prompt=negative_prompt, width=width, height=height,
        strength=strength, timesteps=timesteps, eta=eta,
    )  # fmt: skip
    with raise_as_corrupt(Path(pipe_or_path)) if isinstance(pipe_or_path, str | Path) else nullcontext():
        return _make_report(pipe_or_path, mode, planned)


def _make_report(
    pipe_or_path: DiffusionPipeline | str | Path, mode: str | None, planned: PlannedCall
) -> Report:
    case = case_of(read_pipeline(pipe_or_path), mode, planned)
    lacking = tuple(check_whole(case))
    doubts = (Finding(what=case.doubt, mend="", severity="doubtful"),) if case.doubt else ()
    findings = lacking or doubts + tuple(finding for rule in CHECKS for finding in rule(case))
    call = "" if lacking else call_line(case)
    return Report(
        source=case.pipeline.source, mode=case.mode, noise=case.noise.title, call=call, findings=findings
    )
