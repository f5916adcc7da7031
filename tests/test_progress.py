"""A bar where somebody looks; silence elsewhere."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from fewstep import Engine, progress
from fewstep.loop import Step

Load = Callable[..., Engine]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch, patience: float = 0.0) -> Terminal:
    """Put stderr on a screen; called in the test itself, as pytest renews stderr before that."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "BAR_DELAY", patience)
    return screen


def test_a_terminal_gets_a_bar(engine: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    engine("turbo").generate("a fox", 4, seed=1)
    assert "fewstep" in screen.getvalue()
    assert "/4" in screen.getvalue()


def test_quick_calls_show_none(engine: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch, patience=60.0)
    engine("turbo").generate("a fox", 4, seed=1)
    assert screen.getvalue() == ""


def test_false_shows_none(engine: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    engine("turbo").generate("a fox", 2, seed=1, progress=False)
    assert screen.getvalue() == ""


def test_elsewhere_nothing_is_said(engine: Load, capsys: pytest.CaptureFixture[str]) -> None:
    engine("turbo").generate("a fox", 2, seed=1)
    assert capsys.readouterr() == ("", "")


def test_true_insists(
    engine: Load, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "BAR_DELAY", 0.0)
    engine("turbo").generate("a fox", 2, seed=1, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "/2" in err


def test_a_notebook_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = SimpleNamespace(get_ipython=lambda: SimpleNamespace(config={"IPKernelApp": {}}))
    monkeypatch.setitem(sys.modules, "IPython", shell)
    assert progress._is_watched()
    shell.get_ipython = lambda: None
    assert not progress._is_watched()


def test_a_function_gets_each_step(engine: Load) -> None:
    seen: list[Step] = []
    result = engine("turbo").generate("a fox", 3, seed=1, progress=seen.append)
    assert [step.index for step in seen] == [0, 1, 2]
    assert seen[-1].preview().size == result[0].size


def test_no_stderr_at_all(engine: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """pythonw and some services have none."""
    monkeypatch.setattr(sys, "stderr", None)
    assert len(engine("turbo").generate("a fox", 1, seed=1)) == 1
