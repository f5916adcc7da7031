"""fewstep inside an app: one engine, many requests at once, each with progress and a way to stop.

python examples/app.py    draws three pictures and stops the fourth
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import fewstep


@dataclass
class Order:
    """What a user of the app asked for."""

    prompt: str
    steps: int = 4
    stop: fewstep.CancelToken = field(default_factory=fewstep.CancelToken)
    done: float = 0.0  # in [0, 1]

    def tell(self, step: fewstep.Step) -> None:
        """Called after each step, in the engine's thread."""
        self.done = (step.index + 1) / step.steps
        if "boring" in self.prompt:
            self.stop.cancel()  # as a click on a button would, from any thread


async def serve(engine: fewstep.Engine, order: Order) -> str:
    """One order → what to tell its user."""
    try:
        result = await engine.agenerate(
            order.prompt, order.steps, seed=7, cancel=order.stop, progress=order.tell
        )
    except fewstep.GenerationCancelledError:
        return f"{order.prompt}: stopped at {order.done:.0%}"
    except fewstep.RequestError as error:
        return f"{order.prompt}: {error}"
    return f"{order.prompt}: {result[0].width}x{result[0].height}, seed {result.seeds[0]}"


async def main() -> list[str]:
    orders = [
        Order("red heart, flat style"),
        Order("an owl, noto style", steps=99),
        Order("grinning face, 3d style", steps=2),
        Order("a boring picture", steps=8),
    ]
    with fewstep.load("tiny", mode="lcm") as engine:
        return await asyncio.gather(*(serve(engine, order) for order in orders))


if __name__ == "__main__":
    print(*asyncio.run(main()), sep="\n")
