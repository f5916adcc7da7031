"""Stopping: at the next step, leaving the engine as new."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

import fewstep
from fewstep import CancelToken, Engine, GenerationCancelledError
from fewstep.loop import Step

STEPS = 4
Load = Callable[..., Engine]
Stop = Callable[[Engine, int], None]


def draw(engine: Engine, **how: Any) -> Any:
    return engine.generate("a red fox", STEPS, seed=2, count=2, **how)


def leave_the_stream(engine: Engine, after: int) -> None:
    for step in engine.stream("a red fox", STEPS, seed=2, count=2):
        if step.index + 1 == after:
            break


def token_in_a_stream(engine: Engine, after: int) -> None:
    token = CancelToken()
    steps = engine.stream("a red fox", STEPS, seed=2, count=2, cancel=token)
    for _ in range(after):
        next(steps)
    token.cancel()
    if after < STEPS:
        with pytest.raises(GenerationCancelledError, match="give a new token"):
            next(steps)


def token_from_another_thread(engine: Engine, after: int) -> None:
    token = CancelToken()

    def watch(step: Step) -> None:
        if step.index + 1 == after:
            canceller = threading.Thread(target=token.cancel)
            canceller.start()
            canceller.join()

    with pytest.raises(GenerationCancelledError):
        draw(engine, cancel=token, progress=watch)


def ctrl_c(engine: Engine, after: int) -> None:
    def watch(step: Step) -> None:
        if step.index + 1 == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(engine, progress=watch)


def task_cancelled(engine: Engine, after: int) -> None:
    async def main() -> None:
        reached, loop = asyncio.Event(), asyncio.get_running_loop()
        held = threading.Event()

        def watch(step: Step) -> None:
            if step.index + 1 == after:
                loop.call_soon_threadsafe(reached.set)
                held.wait()  # until the task has been cancelled

        task = asyncio.ensure_future(engine.agenerate("a red fox", STEPS, seed=2, count=2, progress=watch))
        await reached.wait()
        task.cancel()
        loop.call_later(0.05, held.set)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def timed_out(engine: Engine, after: int) -> None:
    async def main() -> None:
        loop, held = asyncio.get_running_loop(), threading.Event()

        def end_now() -> None:
            clock.reschedule(loop.time())
            loop.call_later(0.05, held.set)

        def watch(step: Step) -> None:
            if step.index + 1 == after:
                loop.call_soon_threadsafe(end_now)
                held.wait()

        async with asyncio.timeout(60) as clock:
            await engine.agenerate("a red fox", STEPS, seed=2, count=2, progress=watch)

    with pytest.raises(TimeoutError):
        asyncio.run(main())


WAYS: list[Stop] = [
    leave_the_stream, token_in_a_stream, token_from_another_thread, ctrl_c, task_cancelled, timed_out,
]  # fmt: skip


@pytest.mark.parametrize("after", [1, 2, STEPS], ids=["first step", "middle", "before decoding"])
@pytest.mark.parametrize("stop", WAYS, ids=lambda way: way.__name__)
def test_it_stops_and_leaves_the_engine_as_new(
    stop: Stop, after: int, engine: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """18: six ways at three points."""
    loaded = engine("turbo")
    expected = [image.tobytes() for image in draw(loaded)]
    threads = threading.active_count()
    unet_calls: list[int] = []
    decoded: list[int] = []
    unet = loaded.parts.unet.register_forward_pre_hook(lambda *_: unet_calls.append(1))
    vae = loaded.parts.vae.decoder.register_forward_pre_hook(lambda *_: decoded.append(1))
    try:
        stop(loaded, after)
    finally:
        unet.remove()
        vae.remove()
    assert len(unet_calls) == after  # both pictures together
    assert decoded == []
    assert [image.tobytes() for image in draw(loaded)] == expected
    assert threading.active_count() <= threads + 1  # asyncio's pool ends with its loop


def test_a_cancelled_token_starts_nothing(engine: Load) -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(GenerationCancelledError):
        draw(engine("turbo"), cancel=token)
    with pytest.raises(GenerationCancelledError):
        next(engine("turbo").stream("a red fox", 1, cancel=token))


def test_a_token_made_of_others() -> None:
    one, other = CancelToken(), CancelToken()
    both = CancelToken(one, other)
    both.check()
    other.cancel()
    assert both.cancelled
    assert not one.cancelled


def test_cancelling_a_task_leaves_the_token_alone(engine: Load) -> None:
    """A token may be shared by many calls; one task that is cancelled is not all of them."""
    token = CancelToken()

    async def main() -> None:
        task = asyncio.ensure_future(engine("turbo").agenerate("a red fox", STEPS, cancel=token))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert not token.cancelled


def test_tasks_get_the_pictures_of_one_after_the_other(engine: Load) -> None:
    loaded = engine("turbo")

    async def main() -> list[fewstep.Result]:
        calls = (loaded.agenerate("an owl", 2, seed=seed, reproducible=True) for seed in range(4))
        return await asyncio.gather(*calls)

    together = asyncio.run(main())
    alone = [loaded.generate("an owl", 2, seed=seed) for seed in range(4)]
    assert [r[0].tobytes() for r in together] == [r[0].tobytes() for r in alone]


def test_a_bad_request_is_refused_before_a_thread_starts(engine: Load) -> None:
    async def main() -> None:
        with pytest.raises(fewstep.RequestError, match="steps=99"):
            await engine("turbo").agenerate("a fox", 99)

    asyncio.run(main())
