"""Are the LoRAs on the pipeline's UNet those that the mode needs: one accelerator, at its weight?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fewstep.checking.case import Case, Finding
from fewstep.checking.pipeline import ActiveAdapter
from fewstep.inspection import mode_in_text


def check_loras(case: Case) -> Iterator[Finding]:
    """An accelerator is told by its name, or by being alone in a mode that needs one."""
    active = [adapter for adapter in case.pipeline.adapters if adapter.active]
    named = [adapter for adapter in active if mode_in_text(adapter.name)]
    if case.weights is None or case.weights.attach != "adapter":
        yield from _surplus_loras(case, named)
        return
    own = _lora_of_mode(case, named or active)
    if own is None:
        yield _missing_lora(case)
        return
    yield from _surplus_loras(case, [adapter for adapter in named if adapter is not own])
    right = case.weights.scale
    if own.weight is not None and own.weight != right and not own.fused:
        names = [adapter.name for adapter in active]
        scales = [right if adapter is own else adapter.weight for adapter in active]
        yield Finding(
            what=f"the LoRA {own.name!r} is on with weight {own.weight:g}, and mode {case.mode!r} was made "
            f"with {right:g}: less leaves the picture unfinished, more burns it",
            mend=f"pipe.set_adapters({names!r}, {scales!r})",
            severity="doubtful",
        )


def _lora_of_mode(case: Case, candidates: Sequence[ActiveAdapter]) -> ActiveAdapter | None:
    """The mode's own among them: by its name, or the first."""
    family = case.mode.split("-")[0]
    return next((one for one in candidates if family in one.name.lower()), next(iter(candidates), None))


def _surplus_loras(case: Case, others: Sequence[ActiveAdapter]) -> Iterator[Finding]:
    if others:
        names = [adapter.name for adapter in others]
        unfuse = "pipe.unfuse_lora(); " if any(adapter.fused for adapter in others) else ""
        yield Finding(
            what=f"the LoRA {', '.join(map(repr, names))} is a few-step accelerator by its name, and mode "
            f"{case.mode!r} runs without: two at once burn the picture",
            mend=f"{unfuse}pipe.delete_adapters({names!r})",
        )


def _missing_lora(case: Case) -> Finding:
    """Nothing is on; it may be loaded but off, or merged into the weights and not to be seen."""
    weights, off = case.weights, [adapter.name for adapter in case.pipeline.adapters]
    assert weights is not None
    if off:
        mend = f"pipe.enable_lora(); pipe.set_adapters({off[:1]!r}, [{weights.scale}])"
        what = f"the LoRA {off[0]!r} is loaded but switched off"
    else:
        mend = f"pipe.load_lora_weights({weights.source!r}, weight_name={weights.file!r})"
        what = "no LoRA is loaded on the UNet, or merged where it could be seen"
    return Finding(
        what=f"{what}, and mode {case.mode!r} needs its accelerator: without, so few steps give a blur",
        mend=mend,
        severity="doubtful" if case.pipeline.stored else "wrong",
    )
