"""The way of a warm call: which of our functions run, how deep the network lies, what is opened.

    python -m tests.call_path [--functions]

prints the figures as JSON for the second of two equal calls on the bundled model. Functions are code
objects of the package in every thread; a comprehension or a lambda counts as the function around it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

import fewstep

PACKAGE = str(Path(fewstep.__file__).parent) + os.sep
CALL: dict[str, Any] = {"prompt": "a cat", "steps": 4, "mode": "lcm", "seed": 7, "device": "cpu"}


class Watch:
    """What happens between `start` and `stop`."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()  # (file, function) → how often
        self.frames: list[int] = []  # of ours above the network, a number for each of its calls
        self.opened: list[str] = []
        self.network_calls = 0
        self._on = False
        sys.addaudithook(self._audit)  # cannot be taken away; it is quiet while nothing is watched

    def start(self) -> None:
        self._hook = register_module_forward_pre_hook(self._network)
        self._on = True
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def stop(self) -> None:
        sys.setprofile(None)
        threading.setprofile(None)
        self._on = False
        self._hook.remove()

    def _profile(self, frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            self.calls[frame.f_code.co_filename.removeprefix(PACKAGE), _function(frame.f_code)] += 1

    def _network(self, module: torch.nn.Module, _inputs: Any) -> None:
        if type(module).__name__ != "UNet2DConditionModel":
            return
        frame, depth = sys._getframe(), 0
        while frame is not None:
            depth += frame.f_code.co_filename.startswith(PACKAGE)
            frame = frame.f_back  # type: ignore[assignment]
        self.frames.append(depth)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._on and event in ("open", "os.listdir", "os.scandir"):
            self.opened.append(str(arguments[0]))

    def figures(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return {
            "functions": len(self.calls),
            "files": len({file for file, _ in self.calls}),
            "calls": sum(self.calls.values()),
            "network calls": len(self.frames),
            "frames above the network": max(self.frames, default=0),
            "opened": len(self.opened),
        }


def _function(code: CodeType) -> str:
    """Return the qualified name, without what stands inside a function."""
    return code.co_qualname.split(".<locals>.<")[0]


def watch_call(**call: Any) -> Watch:
    """Return what the last of three equal calls did."""
    for _ in range(2):
        fewstep.generate(**call)
    watch = Watch()
    watch.start()
    try:
        fewstep.generate(**call)
    finally:
        watch.stop()
    return watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--functions", action="store_true", help="list them too")
    watch = watch_call(**CALL)
    print(json.dumps(watch.figures(), indent=1))
    if parser.parse_args().functions:
        for (file, function), count in watch.calls.items():
            print(f"{count:5} {file} {function}")
        print(*watch.opened, sep="\n")


if __name__ == "__main__":
    main()
