"""Streams: steps as they happen, then the result of `generate`; read by `for` and by `async for`."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, nullcontext
from typing import Any

import pytest

import fewstep
from fewstep import CancelToken, Engine, FewstepError, GenerationCancelledError, GenerationError, Result
from fewstep.request import Job
from fewstep.streaming import Stream
from fewstep.testing import FakeEngine, FakeStep, fake

STEPS = 4
CALL: dict[str, Any] = {"steps": STEPS, "seed": 2, "count": 2}
Load = Callable[..., Engine]


class CountingEngine(FakeEngine):
    """Counts the steps that were drawn, whoever reads them."""

    drawn = 0

    def stream_job(self, job: Job, cancel: CancelToken | None = None) -> Generator[FakeStep, None, Result]:
        for step in (steps := Stream(super().stream_job(job, cancel))):
            self.drawn += 1
            yield step
        return steps.result


def bits(result: Result) -> list[bytes]:
    return [image.tobytes() for image in result]


async def events_of(stream: AsyncGenerator[Any, None]) -> list[Any]:
    return [event async for event in stream]


@pytest.mark.parametrize("mode", ["turbo", "lcm", "base"])
def test_a_stream_ends_with_what_generate_gives(mode: str, engine: Load) -> None:
    loaded = engine(mode)
    expected, stream = loaded.generate("a red fox", **CALL), loaded.stream("a red fox", **CALL)
    with pytest.raises(FewstepError, match="once all its steps have been read"):
        stream.result  # noqa: B018
    assert [step.index for step in stream] == [0, 1, 2, 3]
    assert bits(stream.result) == bits(expected)
    assert stream.result.facts() == expected.facts()
    assert [*stream] == []
    assert stream.result is stream.result


def test_the_time_of_who_reads_is_not_the_calls(engine: Load) -> None:
    stream = engine("turbo").stream("a red fox", 1)
    for _ in stream:
        time.sleep(0.5)
    assert stream.result.timings["total"] < 0.5


def test_astream_gives_steps_then_the_result(engine: Load) -> None:
    loaded = engine("turbo")
    *steps, result = asyncio.run(events_of(loaded.astream("a red fox", **CALL)))
    assert all(isinstance(step, fewstep.Step) for step in steps)
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert bits(result) == bits(loaded.generate("a red fox", **CALL))


def test_requests_are_checked_at_once(engine: Load) -> None:
    for call in (engine("turbo").stream, engine("turbo").astream):
        with pytest.raises(fewstep.RequestError, match="steps=99"):
            call("a fox", 99)
    for door in (fewstep.stream, fewstep.astream):
        with pytest.raises(fewstep.RequestError, match="steps=99"):
            door("a fox", 99, "turbo")


async def break_off(engine: FakeEngine, after: int) -> None:
    """Leave the loop; asyncio closes a generator that nobody holds."""
    async for event in engine.astream("a fox", 8):
        if is_step(event, after):
            break
    gc.collect()
    await asyncio.sleep(0.05)


async def leave_inside_aclosing(engine: FakeEngine, after: int) -> None:
    async with aclosing(engine.astream("a fox", 8)) as events:
        async for event in events:
            if is_step(event, after):
                raise ZeroDivisionError


async def cancel_the_task(engine: FakeEngine, after: int) -> None:
    reached = asyncio.Event()

    async def read() -> None:
        async for event in engine.astream("a fox", 8):
            if is_step(event, after):
                reached.set()

    task = asyncio.ensure_future(read())
    await reached.wait()
    task.cancel()
    await task


async def cancel_the_token(engine: FakeEngine, after: int) -> None:
    token = CancelToken()
    async for event in engine.astream("a fox", 8, cancel=token):
        if is_step(event, after):
            token.cancel()


async def time_out(engine: FakeEngine, after: int) -> None:
    async with asyncio.timeout(None) as clock:
        async for event in engine.astream("a fox", 8):
            if is_step(event, after):
                clock.reschedule(asyncio.get_running_loop().time())


def is_step(event: FakeStep | Result, number: int) -> bool:
    return isinstance(event, FakeStep) and event.index + 1 == number


@pytest.mark.parametrize(
    ("stop", "error"),
    [
        (break_off, None),
        (leave_inside_aclosing, ZeroDivisionError),
        (cancel_the_task, asyncio.CancelledError),
        (cancel_the_token, GenerationCancelledError),
        (time_out, TimeoutError),
    ],
)
def test_an_astream_that_is_left_stops_at_its_next_step(stop: Any, error: Any) -> None:
    engine, threads = CountingEngine(delay=0.05), threading.active_count()
    with pytest.raises(error) if error else nullcontext():
        asyncio.run(stop(engine, 2))
    assert 2 <= engine.drawn < 8
    drawn = engine.drawn
    time.sleep(0.1)
    assert engine.drawn == drawn
    assert threading.active_count() <= threads + 1  # fewstep's pool keeps its threads


def test_nothing_runs_once_an_astream_is_closed(engine: Load) -> None:
    loaded, calls = engine("turbo"), list[int]()
    expected = bits(loaded.generate("a red fox", **CALL))

    def count_slowly(*_: Any) -> None:
        calls.append(1)
        time.sleep(0.05)

    hook = loaded.parts.unet.register_forward_pre_hook(count_slowly)

    async def main() -> int:
        async with aclosing(loaded.astream("a red fox", **CALL)) as events:
            await anext(events)
        return len(calls)

    try:
        after = asyncio.run(main())
        assert after < 2 * STEPS  # two pictures, one by one
        time.sleep(0.15)
        assert len(calls) == after
    finally:
        hook.remove()
    assert bits(loaded.generate("a red fox", **CALL)) == expected


def test_an_astream_that_nobody_reads_starts_nothing() -> None:
    engine = FakeEngine()

    async def main() -> None:
        await engine.astream("a fox").aclose()

    asyncio.run(main())
    assert engine.requests == []


def test_errors_come_where_the_step_would() -> None:
    engine = FakeEngine(error=GenerationError("no luck"))
    stream = engine.stream("a fox")
    with pytest.raises(GenerationError, match="no luck"):
        next(stream)
    with pytest.raises(FewstepError, match="no result"):
        stream.result  # noqa: B018
    with pytest.raises(GenerationError, match="no luck"):
        asyncio.run(events_of(engine.astream("a fox")))


def test_an_error_that_nobody_waits_for_is_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """The reader had left when the thread failed."""
    token = CancelToken()

    async def main() -> None:
        events = FakeEngine(delay=0.02).astream("a fox", 2, cancel=token)
        await anext(events)
        token.cancel()
        await asyncio.sleep(0.1)
        await events.aclose()

    asyncio.run(main())
    gc.collect()
    assert caplog.records == []


def test_a_closed_stream_has_no_result() -> None:
    stream = FakeEngine().stream("a fox")
    next(stream)
    stream.close()
    assert [*stream] == []
    with pytest.raises(FewstepError, match="no result"):
        stream.result  # noqa: B018


def test_a_closed_engine_streams_no_more() -> None:
    engine = FakeEngine()
    engine.close()
    with pytest.raises(FewstepError, match="closed"):
        engine.stream("a fox")
    with pytest.raises(FewstepError, match="closed"):
        asyncio.run(events_of(engine.astream("a fox")))


def test_the_functions_stream_on_the_engine_of_generate() -> None:
    with fake() as engine:
        expected = fewstep.generate("a fox", 3, "lcm", seed=1)
        stream = fewstep.stream("a fox", 3, "lcm", seed=1)
        assert [step.index for step in stream] == [0, 1, 2]
        *steps, result = asyncio.run(events_of(fewstep.astream("a fox", 3, "lcm", seed=1)))
        assert [type(step) for step in steps] == [FakeStep] * 3
        assert bits(stream.result) == bits(result) == bits(expected)
        assert len(engine.requests) == 3
        *_, other = asyncio.run(events_of(fewstep.astream("a fox", 1, "turbo")))
        stream = fewstep.stream("a fox", 1, "lcm")
        assert len([*stream]) == 1
    told = [[note for note in r.warnings if "fewstep.load" in note] for r in (other, stream.result)]
    assert [len(notes) for notes in told] == [0, 1]


def test_warnings_are_in_the_result_and_logged(caplog: pytest.LogCaptureFixture, engine: Load) -> None:
    stream = engine("base").stream("a fox <lora:x:1>", 1, scheduler="leading")
    said = [record.getMessage() for record in caplog.records]
    assert len([*stream]) == 1
    assert list(stream.result.warnings) == said
    assert said
