"""An engine in an app: many threads, many calls, and a process that forks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from fewstep import Engine
from tests import endurance

Load = Callable[..., Engine]


def test_eight_threads_draw_what_one_draws(engine: Load, drawing: Image.Image) -> None:
    together, alone = endurance.draw_together_and_alone(engine("turbo"), drawing, 10)
    assert together == alone
    assert len(set(alone)) == 80


def test_streams_and_calls_in_threads(engine: Load) -> None:
    loaded = engine("lcm")
    expected = loaded.generate("an owl", 3, seed=5)[0].tobytes()

    def streamed() -> bytes:
        *_, last = loaded.stream("an owl", 3, seed=5)
        return last.codec.decode(last.latents).numpy().tobytes()

    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(streamed) for _ in range(4)]
        calls = [pool.submit(lambda: loaded.generate("an owl", 3, seed=5)[0].tobytes()) for _ in range(4)]
        assert {done.result() for done in work + calls} == {expected}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux' /proc")
def test_nothing_leaks(engine: Load) -> None:
    """Memory, descriptors and threads stay as they were once prompts fill their cache."""
    before, after = endurance.resources_after(engine("turbo"), 80, 240, 64)
    assert after[0] < 1.05 * before[0]
    assert after[1:] == before[1:]


APP = """
import asyncio, multiprocessing, os, signal, fewstep

async def draw(mode):
    return await fewstep.agenerate("a sun", 1, mode, seed=1)

def draw_in_child(seed):
    return fewstep.generate("a fox", 1, "lcm", seed=seed)[0].tobytes()

def refused_in_forks():
    asyncio.run(draw("lcm"))  # by a thread, of which a child has none
    engine = fewstep.load("tiny", "turbo")
    stream = engine.stream("a sun", 2, seed=1)
    next(stream)
    fewstep.api._engines.lock.acquire()  # as a thread that loads would hold it
    ways = {
        "generate": lambda: fewstep.generate("a sun", 1, "lcm", seed=1),
        "generate, another": lambda: fewstep.generate("a sun", 1, "base", seed=1),
        "agenerate": lambda: asyncio.run(draw("lcm")),
        "agenerate, another": lambda: asyncio.run(draw("base")),
        "load": lambda: fewstep.load("tiny", "turbo"),
        "engine.generate": lambda: engine.generate("a sun", 1),
        "engine.agenerate": lambda: asyncio.run(engine.agenerate("a sun", 1)),
        "engine.stream": lambda: next(engine.stream("a sun", 1)),
        "a stream that runs": lambda: next(stream),
        "engine.embed": lambda: engine.embed("a sun"),
    }
    for way, call in ways.items():
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            try:
                call()
            except fewstep.FewstepError as error:
                os._exit(0 if "before a fork" in str(error) and "spawn" in str(error) else 1)
            os._exit(2)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended == 0, (way, ended)
    stream.close()
    fewstep.api._engines.lock.release()

if __name__ == "__main__":
    if hasattr(os, "fork"):
        refused_in_forks()
    mine = draw_in_child(3)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(draw_in_child, (3,)) == mine
"""


def test_forked_children_are_told_and_spawned_ones_draw_the_same(tmp_path: Path) -> None:
    """In every way of calling; without, torch's threads, or ours, are waited for in the fork for ever."""
    (tmp_path / "app.py").write_text(APP)
    subprocess.run([sys.executable, tmp_path / "app.py"], timeout=240, check=True)


GLOBALS = """
import gc, locale, logging, os, random, signal, socket, sys, threading, warnings
import numpy, torch
from PIL import Image, ImageFile

loaded = set(sys.modules)

def look():
    root = logging.getLogger()
    return {
        "root logger": (root.level, list(root.handlers), list(root.filters), root.disabled),
        "warning filters": list(warnings.filters),
        "torch dtype": torch.get_default_dtype(),
        "torch seed": (torch.initial_seed(), torch.get_rng_state().tolist()),
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch determinism": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
                              torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()),
        "gradients": torch.is_grad_enabled(),
        "Pillow": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES),
        "environment": dict(os.environ),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "folder": os.getcwd(),
        "random state": (random.getstate(), numpy.random.get_state()[1].tolist()),
        "hooks": (sys.excepthook, sys.displayhook, threading.excepthook, sys.stdout, sys.stderr),
        "path": (list(sys.path), list(sys.meta_path), sys.getrecursionlimit()),
        "locale": locale.setlocale(locale.LC_ALL),
        "sockets": socket.getdefaulttimeout(),
        "garbage collector": gc.get_threshold(),
    }

def equal(before, after, when):
    for name in before:
        assert after[name] == before[name], (when, name, before[name], after[name])

before = look()
import fewstep
import fewstep.cli
fewstep.plan("a fox")
assert not {"torch.jit", "diffusers"} & set(sys.modules) - loaded
equal(before, look(), "importing fewstep")

# What the libraries below change when they are imported is theirs.
import accelerate, accelerate.hooks, diffusers.loaders, peft, pydantic
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from importlib import import_module
from pathlib import Path
before = look()
root = Path(fewstep.__file__).parent
for path in sorted(root.rglob("*.py")):
    name = ".".join(("fewstep", *path.relative_to(root).with_suffix("").parts))
    if path.stem not in ("__main__", "__init__") and ".train" not in name:
        import_module(name)
equal(before, look(), "importing all of it")
fewstep.generate("a fox", 1, seed=1)
equal(before, look(), "drawing a picture")
print(len(before))
"""


def test_importing_changes_no_global() -> None:
    """17 of the interpreter's, torch's and Pillow's, after `import fewstep`, every module, and a picture."""
    done = subprocess.run([sys.executable, "-c", GLOBALS], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "17"
    assert done.stderr == ""
