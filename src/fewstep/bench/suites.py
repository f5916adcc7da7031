"""The suites of `fewstep bench`: what each measures, and how. Each yields rows as they are there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fewstep.bench import children
from fewstep.bench.arms import SEED, Case, default_arms, open_arm, prompt_of
from fewstep.bench.floor import measure_against_floor
from fewstep.bench.random_weights import MODELS, write_model
from fewstep.bench.timing import Draw, Row, Timing, compare_times, time_call, time_in_turn
from fewstep.devices.probe import cores, free_ram
from fewstep.errors import RequestError
from fewstep.files.output import cache_root

MEMORY_OF_TWO = 40 * 2**30  # bytes: what two arms of SDXL's size take in fp32, with room to compute
MODES_CALLS = ("turbo", "lcm") * 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and how often."""

    model: str = "tiny"  # or a folder, or one of `random_weights.MODELS`, written into `work`
    runtimes: tuple[str, ...] = ("auto",)
    baselines: bool = True  # diffusers, and optimum-intel where it is installed
    repeats: int = 15
    threads: int = 0  # 0: the cores that this process may use
    side: int = 0
    device: str = "cpu"
    precision: str = "fp32"
    processes: bool = False  # an arm in processes of its own, which take turns; so with random-sdxl always
    pictures: int = 100  # of the suite "writing"

    @property
    def arms(self) -> list[str]:
        names = default_arms(self.runtimes)
        return names if self.baselines else [name for name in names if name.startswith("fewstep")]

    def case(self, mode: str, steps: int, **changes: Any) -> Case:
        """Return a case on this model."""
        return Case(
            model=self.model, mode=mode, steps=steps, side=self.side, device=self.device,
            precision=self.precision, **changes,
        )  # fmt: skip

    @property
    def tiny_vae(self) -> str:
        """Return the tiny VAE that the model brings; "" where it has none."""
        folder = Path(self.model) / "vae_tiny"
        return "tiny" if self.model == "tiny" else str(folder) if folder.is_dir() else ""

    @property
    def own_modes(self) -> tuple[tuple[str, int], ...]:
        """Return modes and steps that these files can be run in."""
        if self.model == "tiny":
            return ("turbo", 1), ("lcm", 4)
        return (("lcm", 4),) if "sd15" in Path(self.model).name else (("turbo", 1),)


def measure_quick(settings: Settings) -> Iterator[Row]:
    """One picture of each mode, with the full VAE and with the tiny one, against diffusers."""
    for mode, steps in settings.own_modes:
        yield _draw_row("quick", settings.case(mode, steps), settings)
    if settings.tiny_vae:
        mode, steps = settings.own_modes[0]
        yield _draw_row("quick", settings.case(mode, steps, vae=settings.tiny_vae), settings)


def measure_batch(settings: Settings) -> Iterator[Row]:
    """Eight pictures of one call, against diffusers' batch of eight."""
    mode, steps = settings.own_modes[-1]
    yield _draw_row("batch", settings.case(mode, steps, pictures=8), settings)


def measure_threads(settings: Settings) -> Iterator[Row]:
    """8 threads that ask one engine for 10 pictures each, against the same 80 one after another."""
    mode, steps = settings.own_modes[0]
    turns = [range(thread * 10, thread * 10 + 10) for thread in range(8)]
    for runtime in settings.runtimes:
        ten = partial(_draw_all, open_arm(f"fewstep {runtime}", settings.case(mode, steps)))
        with ThreadPoolExecutor(8) as pool:
            arms: dict[str, Callable[[int], Any]] = {
                "one after another": partial(_draw_each, map, ten, turns),
                "8 threads": partial(_draw_each, pool.map, ten, turns),
            }
            timings, _ = time_in_turn(arms, max(3, settings.repeats // 5), warm_up=1)
        yield compare_times("threads", f"{mode} {steps}, 80 pictures, {runtime}", timings)


def _draw_all(draw: Draw, turns: Sequence[int]) -> None:
    """Draw these, one after another."""
    for turn in turns:
        draw(turn)


def _draw_each(over: Callable[..., Iterable[Any]], draw: Any, turns: Sequence[Any], _turn: int) -> None:
    """Have a map, of a pool or the plain one, draw all."""
    for _ in over(draw, turns):
        pass


def measure_busy(settings: Settings) -> Iterator[Row]:
    """The same picture while another process burns a core, against a quiet machine."""
    mode, steps = settings.own_modes[-1]
    for arm in settings.arms:
        case = settings.case(mode, steps)
        draw = open_arm(arm, case)

        def beside(turn: int, draw: Any = draw) -> Any:
            with children.busy_neighbour():
                return time_call(draw, turn)[0]

        quiet, busy = [], []
        for turn in range(-2, settings.repeats):
            times = (time_call(draw, max(turn, 0))[0], beside(max(turn, 0)))
            if turn >= 0:
                quiet.append(times[0])
                busy.append(times[1])
        timings = [Timing(arm="quiet", seconds=tuple(quiet)), Timing(arm="busy", seconds=tuple(busy))]
        yield compare_times("busy", f"{case.title}, {arm}", timings, figure="time")


def measure_modes(settings: Settings) -> Iterator[Row]:
    """`generate` with modes in turn, 8 calls, against the same calls on two loaded engines."""
    import fewstep

    options = settings.case("turbo", 1).engine_options | {"model": settings.model}
    engines = {mode: fewstep.load(mode=mode, **options) for mode in ("turbo", "lcm")}

    def in_turn(_: int) -> None:
        for turn, mode in enumerate(MODES_CALLS):
            fewstep.generate(prompt_of(turn), mode=mode, seed=SEED, progress=False, **options)

    def loaded(_: int) -> None:
        for turn, mode in enumerate(MODES_CALLS):
            engines[mode].generate(prompt_of(turn), seed=SEED, progress=False)

    timings, _ = time_in_turn({"two engines": loaded, "generate": in_turn}, max(3, settings.repeats // 5))
    fewstep.unload()
    yield compare_times("modes", "turbo, lcm, turbo ... 8 calls", timings)


def measure_text(settings: Settings) -> Iterator[Row]:
    """What the text costs in a call: of a new prompt, and of one that was drawn before."""
    import fewstep

    mode, steps = settings.own_modes[0]
    with fewstep.load(
        settings.model, mode, steps=steps, runtime=settings.runtimes[0],
        **settings.case(mode, steps).engine_options,
    ) as engine:  # fmt: skip
        engine.embed("a fox")
        arms: dict[str, Callable[[int], Any]] = {
            "new prompt": lambda turn: engine.embed(f"a red fox, number {turn}"),
            "repeated prompt": lambda _: engine.embed("a fox"),
        }
        timings, _ = time_in_turn(arms, settings.repeats, warm_up=0)
    yield compare_times("text", "both encoders", timings)


def measure_writing(settings: Settings) -> Iterator[Row]:
    """Pictures drawn and written as PNG: the share of the writing that is hidden behind drawing."""
    import fewstep

    mode, steps = settings.own_modes[0]
    count = settings.pictures
    options = settings.case(mode, steps).engine_options
    with fewstep.load(settings.model, mode, steps=steps, runtime=settings.runtimes[0], **options) as engine:

        def draw(turn: int) -> Any:
            return engine.generate(prompt_of(turn), steps, seed=SEED + turn, progress=False)

        results = [draw(turn) for turn in range(count)]
        with TemporaryDirectory() as folder:
            path = Path(folder) / "picture.png"
            arms: dict[str, Callable[[int], Any]] = {
                "drawn": lambda _: [draw(turn) for turn in range(count)],
                "written": lambda _: [result.save(path, overwrite=True) for result in results],
                "drawn and written": lambda _: [
                    draw(turn).save(path, overwrite=True) for turn in range(count)
                ],
            }
            timings, _ = time_in_turn(arms, max(3, settings.repeats // 5), warm_up=0)
    drawn, written, both = (t.median for t in timings)
    hidden = min(1.0, max(0.0, 1 - (both - drawn) / written))
    yield replace(
        compare_times("writing", f"{count} pictures to PNG", timings), figure="share",
        figures={"drawn and written": hidden},
    )  # fmt: skip


def measure_start(settings: Settings) -> Iterator[Row]:
    """Import, load and the first picture, in new processes, files in the system's cache."""
    mode, steps = settings.own_modes[0]
    case = settings.case(mode, steps)
    rounds = max(2, settings.repeats // 5) if settings.model == "tiny" else 2
    children.run_child(settings.arms[-1], case, draws=0, threads=settings.threads)  # brings files into it
    runs = children.alternate(settings.arms, case, rounds=rounds, draws=0, threads=settings.threads)
    yield compare_times("start", f"{case.title}: import, load, first picture", children.start_timings(runs))
    loading = [Timing(arm=arm, seconds=tuple(run.loading for run in done)) for arm, done in runs.items()]
    yield compare_times("start", f"{case.title}: loading, with the imports it needs", loading)


def measure_shell(settings: Settings) -> Iterator[Row]:
    """`fewstep generate` as typed, against an import of diffusers' pipeline alone."""
    words = [sys.executable, "-m", "fewstep", "generate", prompt_of(0), "-o", "a.png", "--overwrite", "-q"]
    mode, steps = settings.own_modes[0]
    words += ["--model", settings.model, "--mode", mode, "--steps", str(steps)]
    imports = [sys.executable, "-c", "from diffusers import StableDiffusionXLPipeline"]
    with TemporaryDirectory() as folder:
        commands = {"import of diffusers' pipeline": imports, "fewstep generate": words}
        arms: dict[str, Callable[[int], Any]] = {
            name: partial(_run_typed, tuple(command), folder) for name, command in commands.items()
        }
        timings, _ = time_in_turn(arms, max(3, settings.repeats // 3), warm_up=1)
    yield compare_times("shell", f"{Path(settings.model).name}, {mode} {steps}", timings)


def _run_typed(command: Sequence[str], folder: str, _turn: int) -> None:
    children.run_command(command, folder)


def measure_floor(settings: Settings) -> Iterator[Row]:
    """One picture's time against its multiply-adds at the measured peak of a large matrix product."""
    mode, steps = settings.own_modes[0]
    rounds = settings.repeats if settings.model == "tiny" else min(3, settings.repeats)
    yield measure_against_floor(
        settings.case(mode, steps, vae=settings.tiny_vae), settings.runtimes[0], rounds
    )


def _draw_row(suite: str, case: Case, settings: Settings) -> Row:
    """Return a row of pictures by all arms: in this process, or in processes that take turns."""
    arms = settings.arms
    if settings.processes:
        runs = children.alternate(
            arms, case, rounds=2, draws=-(-settings.repeats // 2), threads=settings.threads
        )
        pictures = {arm: done[0].pictures for arm, done in runs.items()}
        return compare_times(suite, case.title, children.draw_timings(runs), pictures=pictures)
    timings, pictures = time_in_turn({arm: open_arm(arm, case) for arm in arms}, settings.repeats)
    return compare_times(suite, case.title, timings, pictures=pictures)


SUITES: Mapping[str, Callable[[Settings], Iterator[Row]]] = {
    "quick": measure_quick,
    "batch": measure_batch,
    "threads": measure_threads,
    "busy": measure_busy,
    "modes": measure_modes,
    "text": measure_text,
    "writing": measure_writing,
    "start": measure_start,
    "shell": measure_shell,
    "floor": measure_floor,
}


def measure(suites: Sequence[str], settings: Settings, work: Path | None = None) -> Iterator[Row]:
    """Yield the rows of these suites as they are measured; raises `RequestError` before anything is.

    work: where random models are written (the cache's folder). torch's threads are as before afterwards.
    """
    unknown = [name for name in suites if name not in SUITES]
    if unknown:
        raise RequestError(f"suite {unknown[0]!r} is not known: choose from {', '.join(SUITES)}")
    if settings.repeats < 1 or settings.threads < 0:
        raise RequestError("bench takes repeats from 1, and threads from 0, which is one for each core")
    settings = replace(settings, threads=settings.threads or min(cores(Path("/")), torch.get_num_threads()))
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        settings = _with_model_written(settings, work)
        for name in suites:
            yield from SUITES[name](settings)
    finally:
        torch.set_num_threads(threads)


def _with_model_written(settings: Settings, work: Path | None) -> Settings:
    """Return settings whose model is there; of SDXL's size the arms take turns where memory holds one."""
    if settings.model not in MODELS:
        return settings
    folder = write_model(settings.model, (work or cache_root() / "models") / settings.model)
    large = settings.model == "random-sdxl" and free_ram(Path("/")) < MEMORY_OF_TWO
    side = settings.side or 512
    return replace(settings, model=str(folder), side=side, processes=settings.processes or large)
