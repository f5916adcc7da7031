"""A time → the best (mode, steps, vae) that fits it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fewstep import values
from fewstep.budget.costs import Cost, CostStore, cost_key, decoder_key, measure
from fewstep.budget.quality import Candidate, local_modes, quality, rule_of, step_counts, tiny_vae_is_here
from fewstep.catalog.models import describe_model
from fewstep.errors import FewstepError, RequestError
from fewstep.request import Job
from fewstep.request.engine_choice import (
    EngineChoice,
    choose_engine,
    count_steps,
    resolve_call,
    split_options,
)
from fewstep.request.options import OPTIONS

NAME = "budget_ms"
Load = Callable[[EngineChoice], Any]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a budget came to."""

    mode: str
    steps: int
    vae: str
    milliseconds: float  # of one picture, as measured
    reason: str  # for the plan's warnings


@dataclass(frozen=True, kw_only=True)
class _Way:
    """An engine that can do what is asked, and the job in its usual number of steps."""

    choice: EngineChoice
    job: Job


class _Call:
    """A call that has a budget in the place of a mode, of steps, of a VAE, or of all three."""

    def __init__(self, prompt: Any, steps: Any, mode: str | None, options: Mapping[str, Any]):
        self.engine_options, self.picture_options = split_options(options)
        self.prompt, self.mode = prompt, mode
        if values.members(steps) is not None:
            raise RequestError(f"{NAME} chooses one number of steps: leave steps={values.shown(steps)} out")
        self.steps = count_steps(values.whole(steps), self.picture_options)
        self.model = describe_model(options.get("model", OPTIONS["model"].default))

    def ways(self) -> dict[tuple[str, str], _Way]:
        """Return by mode and VAE what could draw it; raises the first reason where nothing can."""
        modes = [self.mode] if self.mode is not None else local_modes(self.model)
        vae = str(self.engine_options.get("vae", ""))
        vaes = [vae] if vae or not tiny_vae_is_here(self.model) else ["", "tiny"]
        ways, refusal = dict[tuple[str, str], _Way](), list[FewstepError]()
        for mode in modes:
            for vae in vaes:
                try:
                    ways[mode, vae] = self._way(mode, vae)
                except FewstepError as error:
                    refusal.append(error)
        if not ways:
            raise refusal[0]
        return ways

    def _way(self, mode: str, vae: str) -> _Way:
        engine_options: Any = {**self.engine_options, "vae": vae}
        choice = choose_engine(mode, self.steps, engine_options)
        commercial = engine_options.get("commercial", False)
        jobs = resolve_call(choice, self.prompt, self.steps, self.picture_options, commercial)
        return _Way(choice=choice, job=jobs[0])

    def cost(self, way: _Way, costs: CostStore, load: Load | None) -> Cost:
        """Return what a way costs, measured now where it never was; `RequestError` where it may not be."""
        key = cost_key(way.choice, way.job)
        cost = costs.get(key)
        if cost is None:
            if load is None:
                raise RequestError(
                    f"what mode={way.choice.key.mode!r} costs on this machine is not measured yet, and a "
                    f"plan loads nothing: fewstep.generate(..., {NAME}=...) measures it once"
                )
            cost = measure(way.choice, lambda prompt, steps: self._measured_job(way, prompt, steps), load)
            costs.keep(key, cost)
            costs.keep(decoder_key(way.choice, way.job), cost)
        return cost

    def _decode_cost(self, way: _Way, costs: CostStore, load: Load | None) -> float:
        """Return the milliseconds of decoding, which are the same in every mode."""
        cost = costs.get(decoder_key(way.choice, way.job))
        return (self.cost(way, costs, load) if cost is None else cost).decode

    def _measured_job(self, way: _Way, prompt: str, steps: int) -> Job:
        """Return the job of one picture with these options, in so many steps."""
        left_out = ("count", "seed", "prompt_2", "timesteps", "image", "mask", "strength")
        options: Any = {k: v for k, v in self.picture_options.items() if k not in left_out} | {"seed": 0}
        if way.job.images:
            options |= {"image": way.job.images[0], "strength": way.job.request.strength}
        if way.job.masks:
            options["mask"] = way.job.masks[0]
        return resolve_call(way.choice, prompt, steps, options, commercial=False)[0]

    def candidates(self, costs: CostStore, load: Load | None) -> dict[Candidate, float]:
        """Return all there is to choose from, with its milliseconds."""
        ways = self.ways()
        milliseconds = dict[Candidate, float]()
        for (mode, vae), way in ways.items():
            usual = ways.get((mode, ""), way)  # a mode is measured with its own VAE where both are asked for
            cost = self.cost(usual, costs, load)
            if usual is not way:
                cost = replace(cost, decode=self._decode_cost(way, costs, load))
            recipe = way.choice.recipe
            for steps in (self.steps,) if self.steps is not None else step_counts(recipe, self.model):
                milliseconds[Candidate(recipe=recipe, steps=steps, vae=vae)] = cost.total(steps)
        return milliseconds


def choose(
    budget: object, call: tuple[Any, Any, str | None], options: Mapping[str, Any], costs: CostStore,
    load: Load | None,
) -> Choice:  # fmt: skip
    """Return the best mode, steps and VAE whose measured time is within the budget; what is given is kept.

    call: prompt, steps, mode, as given. load: loads an engine to measure; None refuses to. Raises
    `RequestError` where nothing fits, with the fastest there is and its time.
    """
    option = OPTIONS[NAME]
    milliseconds = option.plain(budget)
    if not isinstance(milliseconds, float) or not 0 < milliseconds <= (option.high or 0):
        raise RequestError(f"{NAME}={values.shown(budget)}: {option.advice}")
    if options.get("control") or options.get("reference"):
        raise RequestError(
            f"{NAME} knows no costs of control= and reference=: choose mode and steps yourself"
        )
    budgeted = _Call(*call, options)
    candidates = budgeted.candidates(costs, load)
    fitting = {candidate: ms for candidate, ms in candidates.items() if ms <= milliseconds}
    if not fitting:
        fastest = min(candidates, key=lambda candidate: candidates[candidate])
        raise RequestError(
            f"{NAME}={milliseconds:g}: nothing here is so fast; the fastest is {fastest}, "
            f"measured at {candidates[fastest]:.0f} ms a picture"
        )
    best = max(fitting, key=lambda candidate: (*quality(candidate, budgeted.model), -fitting[candidate]))
    reason = (
        f"{NAME}={milliseconds:g}: {best}, measured at {fitting[best]:.0f} ms a picture here, is the "
        f"best of {len(fitting)} choices that fit, of {len(candidates)}, by {rule_of(budgeted.model)}"
    )
    return Choice(
        mode=best.recipe.mode, steps=best.steps, vae=best.vae, milliseconds=fitting[best], reason=reason
    )
