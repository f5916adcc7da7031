"""Are the LoRAs on the pipeline's UNet those that the mode needs: one accelerator, at its weight?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fewstep.checking.case import Case, Finding
from fewstep.checking.pipeline import ActiveAdapter
from fewstep.inspection import mode_in_text


def check_loras(case: Case) -> Iterator[Finding]:
    """Yield what is wrong with the LoRAs; an accelerator is known by name, or by being the only one."""
    active = [adapter for adapter in case.pipeline.adapters if adapter.active]
    accelerators = [adapter for adapter in active if mode_in_text(adapter.name)]
    if case.weights is None or case.weights.attach != "adapter":
        yield from _surplus_loras(case, accelerators)
        return
    mode_lora = _lora_of_mode(case, accelerators or active)
    if mode_lora is None:
        yield _missing_lora(case)
        return
    yield from _surplus_loras(case, [adapter for adapter in accelerators if adapter is not mode_lora])
    needed_scale = case.weights.scale
    if mode_lora.weight is not None and mode_lora.weight != needed_scale and not mode_lora.fused:
        names = [adapter.name for adapter in active]
        scales = [needed_scale if adapter is mode_lora else adapter.weight for adapter in active]
        yield Finding(
            what=f"the LoRA {mode_lora.name!r} is on with weight {mode_lora.weight:g}, and mode "
            f"{case.mode!r} was made with {needed_scale:g}: less leaves the picture unfinished, "
            "more burns it",
            mend=f"pipe.set_adapters({names!r}, {scales!r})",
            severity="doubtful",
        )


def _lora_of_mode(case: Case, candidates: Sequence[ActiveAdapter]) -> ActiveAdapter | None:
    """Return the mode's own among them: by its name, or the first."""
    family = case.mode.split("-")[0]
    return next((lora for lora in candidates if family in lora.name.lower()), next(iter(candidates), None))


def _surplus_loras(case: Case, surplus: Sequence[ActiveAdapter]) -> Iterator[Finding]:
    if surplus:
        names = [adapter.name for adapter in surplus]
        unfuse = "pipe.unfuse_lora(); " if any(adapter.fused for adapter in surplus) else ""
        yield Finding(
            what=f"the LoRA {', '.join(map(repr, names))} is a few-step accelerator by its name, and mode "
            f"{case.mode!r} runs without: two at once burn the picture",
            mend=f"{unfuse}pipe.delete_adapters({names!r})",
        )


def _missing_lora(case: Case) -> Finding:
    """Return the finding where none is on; it may be off, or merged into the weights and not to be seen."""
    weights, inactive = case.weights, [adapter.name for adapter in case.pipeline.adapters]
    assert weights is not None
    if inactive:
        mend = f"pipe.enable_lora(); pipe.set_adapters({inactive[:1]!r}, [{weights.scale}])"
        state = f"the LoRA {inactive[0]!r} is loaded but switched off"
    else:
        mend = f"pipe.load_lora_weights({weights.source!r}, weight_name={weights.file!r})"
        state = "no LoRA is loaded on the UNet, or merged where it could be seen"
    return Finding(
        what=f"{state}, and mode {case.mode!r} needs its accelerator: without, so few steps give a blur",
        mend=mend,
        severity="doubtful" if case.pipeline.stored else "wrong",
    )
