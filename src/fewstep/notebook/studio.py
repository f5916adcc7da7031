"""`Studio`: a widget to type, look, pick and improve in; what it did is a `Result`, and code."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anywidget
import traitlets as t

from fewstep import api
from fewstep.cancel import CancelToken
from fewstep.errors import (
    FewstepError,
    GenerationCancelledError,
    GenerationError,
    RequestError,
    describe_error,
)
from fewstep.notebook import view
from fewstep.notebook.background import Background
from fewstep.notebook.story import Move, black_and_white, check_plain, write_code
from fewstep.result import Result

_log = logging.getLogger("fewstep")

MOST_PICTURES = 16  # of one draft
KEPT = 8  # results that the trail leads back to
NEW_STEPS = 4  # of what is improved, to begin with
PREVIEW_SHARE = 3  # times as long as previews took, nothing is previewed
PREVIEW_PAUSE = 0.12  # seconds between previews, at least
SETTINGS = (
    "prompt", "mode", "steps", "count", "seed", "live", "picked", "strength", "new_mode", "new_steps",
    "new_prompt", "scale", "mask_strength", "mask_prompt", "only_masked",
)  # fmt: skip
IDLE = {"state": "idle", "text": "", "done": 0, "steps": 0}


def _setting(trait: Any) -> Any:
    """Return a trait that both sides may change; the browser hears nothing back of what it said."""
    return trait.tag(sync=True, echo_update=False)


class Studio(anywidget.AnyWidget):
    """Type a prompt, look at drafts, pick, and refine, vary or inpaint what was picked.

    `result` has the pictures that are shown, `picked` the numbers of those picked, `code()` the calls that
    draw them. Settings are attributes, and may be changed from Python too. Drawing runs in a thread: the
    kernel stays free, and a newer prompt stops an older one.
    """

    _esm = Path(__file__).parent / "studio.js"
    _css = Path(__file__).parent / "studio.css"

    prompt = _setting(t.Unicode())
    mode = _setting(t.Unicode())
    steps = _setting(t.Int())
    count = _setting(t.Int())
    seed = _setting(t.Int())
    live = _setting(t.Bool())  # draft while typing
    picked = _setting(t.List(t.Int()))
    strength = _setting(t.Float(0.5))  # of refine and vary, in (0, 1]
    new_steps = _setting(t.Int())  # of refine, vary and inpaint
    new_mode = _setting(t.Unicode())  # of refine; "" is the pictures' own
    new_prompt = _setting(t.Unicode())  # of refine; "" is the pictures' own
    scale = _setting(t.Float(1.0))  # of refine, from 1
    mask_strength = _setting(t.Float(1.0))  # of inpaint, in (0, 1]
    mask_prompt = _setting(t.Unicode())  # of inpaint; "" is the picture's own
    only_masked = _setting(t.Bool(False))  # of inpaint

    modes = t.List(t.Dict()).tag(sync=True)
    most = t.Int(MOST_PICTURES).tag(sync=True)
    cells = t.List(t.Dict()).tag(sync=True)  # the gallery
    shown = t.Dict().tag(sync=True)  # one picture in full
    trail = t.List(t.Dict()).tag(sync=True)
    here = t.Int(-1).tag(sync=True)  # where on the trail
    status = t.Dict(IDLE).tag(sync=True)
    problem = t.Unicode().tag(sync=True)
    notes = t.List(t.Unicode()).tag(sync=True)
    story = t.Unicode().tag(sync=True)  # `code()`

    def __init__(
        self,
        prompt: str = "",
        steps: int | None = None,
        mode: str | None = None,
        *,
        count: int = 8,
        seed: int | None = None,
        live: bool = True,
        **options: Any,
    ):
        """Return a studio; a prompt given here is drafted at once.

        live: whether drafts follow while one types. The others are `fewstep.generate`'s; `options` go into
        every draft. Raises `RequestError` for what cannot be done.
        """
        self._turn = threading.RLock()  # one thread at a time changes what is shown
        self._drawing, self._encoding = Background("fewstep-studio"), Background("fewstep-studio-png")
        self._moves: list[Move] = []
        self._results: OrderedDict[int, Result] = OrderedDict()  # by the move's place in `_moves`
        check_plain(options)
        if type(count) is not int or not 1 <= count <= MOST_PICTURES:
            raise RequestError(f"count={count!r}: give a whole number from 1 to {MOST_PICTURES}")
        request = api.plan(prompt, steps, mode, count=count, seed=seed, **options).request
        self._options: dict[str, Any] = dict(options)
        self._preview_after = 0.0  # of time.perf_counter
        first_seed = secrets.randbelow(2**32) if seed is None else request.seeds[0]
        super().__init__(
            prompt=prompt, mode=request.mode, steps=request.steps, count=count, seed=first_seed, live=live,
            modes=view.list_modes(options),
        )  # fmt: skip
        legal = next((entry["steps"] for entry in self.modes if entry["name"] == self.mode), [self.steps])
        self.new_steps = min(legal, key=lambda steps: abs(steps - NEW_STEPS))
        self.on_msg(self._receive)
        if prompt:
            self._draft()

    def __repr__(self) -> str:
        shown = f"{len(self.cells)} {self._moves[self.here].noun}" if self.here >= 0 else "nothing drawn"
        return f"<fewstep.notebook.Studio: {shown}, {len(self.picked)} picked>"

    @property
    def result(self) -> Result | None:
        """The pictures that are shown, as fewstep drew them; None before the first."""
        return self._results.get(self.here)

    def code(self, *, everything: bool = False) -> str:
        """Return the program that draws the pictures of `result`, or everything that was drawn here."""
        if self.here < 0:
            return ""
        return write_code(self._moves if everything else list(self._moves[self.here].line()))

    def stop(self) -> None:
        """Stop drawing, at the next step; what was shown before comes back."""
        self._drawing.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is drawn any more; returns whether that came within `timeout` seconds."""
        return self._drawing.wait(timeout) and self._encoding.wait(timeout)

    def close(self) -> None:
        """Stop, and let go of all pictures."""
        self.stop()
        self.here = -1
        self._moves.clear()
        self._results.clear()
        super().close()

    # What the browser asks for.

    def notify_change(self, change: Any) -> None:
        """Send a change, one thread at a time."""
        with self._turn:
            super().notify_change(change)

    def _receive(self, _: Any, message: dict[str, Any], buffers: list[Any]) -> None:
        """Do what was clicked or typed; whatever is wrong with it is shown."""
        actions: dict[str, Callable[[], None]] = {
            "set": lambda: None,  # the settings, which come with every message
            "draft": lambda: self._draft(bool(message.get("passing"))),
            "refine": self._refine,
            "vary": self._vary,
            "inpaint": lambda: self._inpaint(message["number"], bytes(buffers[0])),
            "stop": self.stop,
            "show": lambda: self._enlarge(message["number"]),
            "back": lambda: self._go_back(message["number"]),
        }
        try:
            settings = message.get("settings", {})
            with self._turn:
                sent = {name: settings[name] for name in SETTINGS if name in settings}
                self.set_state(sent)
            actions[message["do"]]()
        except FewstepError as error:
            self._show(problem=str(error))
        except Exception as error:
            _log.exception("the studio could not do what it was asked")
            self._show(problem=describe_error(error))

    def _draft(self, passing: bool = False) -> None:
        if not self.prompt.strip():
            self.stop()
            return
        options = {"steps": self.steps, "mode": self.mode, "count": self.count, "seed": self.seed}
        options |= self._options
        self._submit(Move(method="generate", arguments=(self.prompt,), options=options, passing=passing))

    def _refine(self) -> None:
        options: dict[str, Any] = {"steps": self.new_steps, "strength": self.strength}
        if self.new_mode:
            options["mode"] = self.new_mode
        if self.scale != 1:
            options["scale"] = self.scale
        if self.new_prompt.strip():
            options["prompt"] = self.new_prompt
        self._improve("refine", options, self.picked)

    def _vary(self) -> None:
        options = {
            "strength": self.strength,
            "count": self.count,
            "steps": self.new_steps,
            "seed": _new_seed(),
        }
        self._improve("vary", options, self.picked)

    def _inpaint(self, number: int, mask: bytes) -> None:
        options = {"steps": self.new_steps, "strength": self.mask_strength, "seed": _new_seed()}
        if self.only_masked:
            options["only_masked"] = True
        prompts = (self.mask_prompt,) if self.mask_prompt.strip() else ()
        self._improve("inpaint", options, [number], prompts, black_and_white(mask))

    def _improve(
        self,
        method: str,
        options: dict[str, Any],
        numbers: list[int],
        prompts: tuple[str, ...] = (),
        mask: bytes = b"",
    ) -> None:
        """Do something to some pictures of the result that is shown."""
        result = self.result
        if result is None:
            raise RequestError("nothing is drawn yet: type a prompt first")
        if not numbers or not all(0 <= number < len(result) for number in numbers):
            raise RequestError(f"picked {numbers}: pick among 0 to {len(result) - 1} first")
        move = Move(
            method=method, arguments=prompts, options=options, parent=self._moves[self.here],
            picked=tuple(numbers), mask=mask,
        )  # fmt: skip
        self._submit(move)

    def _go_back(self, number: int) -> None:
        """Show an earlier result again."""
        if number not in self._results:
            raise RequestError(f"the studio keeps {KEPT} results, and this one is gone: draw it again")
        self._drawing.stop()
        self._show_result(number)

    def _enlarge(self, number: int) -> None:
        result = self.result
        if result is not None and 0 <= number < len(result):
            self._encoding.submit(partial(self._show_full, result, number))

    # Drawing, in a thread.

    def _submit(self, move: Move) -> None:
        self._drawing.submit(partial(self._draw, move, self.result if move.parent is not None else None))

    def _draw(self, move: Move, parent: Result | None, token: CancelToken) -> None:
        """Draw, and show how it goes."""
        if token.cancelled:
            return
        self._show(status={**IDLE, "state": "preparing", "pictures": move.pictures}, problem="", notes=[])
        try:
            result = move.draw(parent, cancel=token, progress=partial(self._show_step, move))
        except GenerationCancelledError:
            if not self._drawing.waiting:
                self._show_again("Stopped")
        except GenerationError as error:
            self._keep_survivors(move, error)
        except FewstepError as error:
            self._show_again(problem=str(error))
        except Exception as error:
            _log.exception("the studio could not draw")
            self._show_again(problem=describe_error(error))
        else:
            self._keep(move, result)

    def _show_step(self, move: Move, step: Any) -> None:
        """Show a step's previews, unless the last ones came just now or the picture itself is next."""
        done = step.index + 1
        status = {**IDLE, "state": "drawing", "done": done, "steps": step.steps, "pictures": move.pictures}
        started = time.perf_counter()
        if done == step.steps or started < self._preview_after:
            self._show(status=status)
            return
        cells = view.preview_cells(step, move.pictures)
        ended = time.perf_counter()
        self._preview_after = ended + max(PREVIEW_PAUSE, PREVIEW_SHARE * (ended - started))
        self._show(status=status, cells=cells)

    def _keep_survivors(self, move: Move, error: GenerationError) -> None:
        """Show what came out where some of the pictures did not, and why."""
        failures = {failure.picture for failure in error.failures}
        survived = None if error.survivors is None else move.without(failures, error.survivors)
        if survived is None:
            self._show_again(problem=str(error))
        else:
            self._keep(survived, error.survivors, problem=str(error))

    def _keep(self, move: Move, result: Result, problem: str = "") -> None:
        """Add a result to the trail, and show it; the oldest leaves."""
        with self._turn, self.hold_sync():
            number = len(self._moves)
            if move.method == "generate" and self._moves and self._is_passing(self._moves[-1]):
                number -= 1
                self._moves.pop()
            self._moves.append(move)
            self._results.pop(number, None)
            self._results[number] = result
            while len(self._results) > KEPT:
                self._results.popitem(last=False)
            kept = [old for old in self.trail if old["number"] in self._results and old["number"] != number]
            self.trail = [*kept, view.trail_entry(number, move, result)]
            self._show_result(number, problem)

    def _is_passing(self, move: Move) -> bool:
        """Whether a draft was made while typing, and nothing was made of it."""
        return move.passing and not any(later.parent is move for later in self._moves)

    # Showing.

    def _show(self, **changes: Any) -> None:
        """Change what the browser shows, all at once; from any thread."""
        with self._turn, self.hold_sync():
            for name, value in changes.items():
                setattr(self, name, value)

    def _show_result(self, number: int, problem: str = "") -> None:
        """Show a result that is kept."""
        result = self._results[number]
        with self._turn, self.hold_sync():
            self.here, self.picked, self.shown = number, [], {}
            self.cells = view.result_cells(result)
            self.problem, self.notes, self.story = problem, list(result.warnings), self.code()
            self.status = {**IDLE, "text": _timing(result)}

    def _show_again(self, text: str = "", problem: str = "") -> None:
        """Show what was there before something that came to nothing."""
        result = self.result
        cells = [] if result is None else view.result_cells(result)
        self._show(cells=cells, status={**IDLE, "text": text}, problem=problem)

    def _show_full(self, result: Result, number: int, token: CancelToken) -> None:
        full = view.full_picture(result, number)
        if not token.cancelled and result is self.result:
            self._show(shown=full)


def _new_seed() -> int:
    return secrets.randbelow(2**32)


def _timing(result: Result) -> str:
    """Return how long the pictures took, for the status line."""
    seconds, count = result.timings["total"], len(result)
    return f"{count} {'picture' if count == 1 else 'pictures'} in {seconds:.2f} s"
