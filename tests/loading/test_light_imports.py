"""Importing what a call uses: stand-ins while diffusers is imported, and the real modules afterwards."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fewstep.loading import light_imports
from fewstep.loading.light_imports import COMPILER, HELD

HOST = """
    import sys

    import fewstep

    held = {held!r}
    first = fewstep.generate("a cat", steps=1, seed=1).images[0]
    there = [name for name in held if name in sys.modules]
    assert not there, there
    assert not [name for name, module in sys.modules.items() if type(module).__name__ == "_StandIn"]

    import diffusers.models.transformers
    import transformers
    from diffusers import FluxTransformer2DModel, StableDiffusionXLPipeline

    assert diffusers.models.transformers.FluxTransformer2DModel is FluxTransformer2DModel
    assert "FluxTransformer2DModel" in dir(diffusers.models.transformers)
    assert transformers.models.clip.CLIPTextModel is transformers.CLIPTextModel
    assert transformers.models.bert.BertModel.__module__ == "transformers.models.bert.modeling_bert"

    import scipy.optimize
    import torch
    from diffusers.hooks.first_block_cache import FBCSharedBlockState
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.loaders.lora_base import BaseTunerLayer

    assert not isinstance(torch.nn.Linear(1, 1), BaseTunerLayer)
    import torch._dynamo
    from torch._dynamo import trace_rules

    assert id(BasicTransformerBlock) in trace_rules._allowed_callable_ids
    disabled = [f for f in vars(sys.modules["diffusers.hooks.group_offloading"].ModuleGroup).values()
                if getattr(f, "_torchdynamo_disable", False)]
    assert len(disabled) == 2, disabled
    assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("fewstep")]
    compiled = torch.compile(BasicTransformerBlock(8, 1, 8), backend="eager")
    assert compiled(torch.zeros(1, 2, 8)).shape == (1, 2, 8)

    import peft

    layer = peft.tuners.lora.Linear(torch.nn.Linear(4, 4), "a", config=peft.LoraConfig(), r=2)
    assert isinstance(layer, BaseTunerLayer)
    assert fewstep.generate("a cat", steps=1, seed=1).images[0].tobytes() == first.tobytes()
    print("done")
"""


def test_a_host_gets_the_real_modules(tmp_path: Path) -> None:
    """A picture brings none of what is held back; whoever imports it afterwards has it, and it works."""
    script = tmp_path / "host.py"
    script.write_text(textwrap.dedent(HOST).replace("{held!r}", repr(HELD)))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=280)
    assert done.stdout == "done\n", done.stderr


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of that name, held back: its import leaves a mark."""
    package = tmp_path / "heldback"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '7'\nclass Layer: pass\n")
    (package / "inner.py").write_text("class Part: pass\ndef double(number): return 2 * number\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(light_imports, "HELD", ("heldback",))
    for name in ("heldback", "heldback.inner"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "heldback"


def test_nothing_is_imported_before_it_is_used(held: str) -> None:
    with light_imports.light_imports():
        from heldback import Layer  # type: ignore[import-not-found]
        from heldback.inner import Part, double  # type: ignore[import-not-found]
    assert held not in sys.modules
    assert not isinstance(3, Layer)
    assert held not in sys.modules
    assert double(4) == 8
    module = sys.modules["heldback.inner"]
    assert type(module) is ModuleType
    assert isinstance(module.Part(), Part)
    assert not isinstance(3, Part)
    assert Layer.__name__ == "Layer"


def test_what_is_used_inside_is_imported_inside(held: str) -> None:
    with light_imports.light_imports():
        import heldback

        assert heldback.__version__ == "7"
        assert type(sys.modules[held]) is ModuleType

        from heldback.inner import Part

        class Child(Part):  # type: ignore[misc]
            """Of a real class, not of a stand-in."""

        assert Child.__mro__[1] is Part


def test_a_stand_in_can_be_a_base(held: str) -> None:
    with light_imports.light_imports():
        from heldback.inner import Part

        class Child(Part):  # type: ignore[misc]
            """Of what was a stand-in when it was taken."""

    assert Child.__mro__[1] is sys.modules["heldback.inner"].Part


def test_what_is_there_already_stays(held: str) -> None:
    import heldback

    with light_imports.light_imports():
        assert sys.modules[held] is heldback
    assert sys.modules[held] is heldback


def test_a_failed_import_leaves_no_stand_in(held: str) -> None:
    finders = list(sys.meta_path)

    def fail() -> None:
        with light_imports.light_imports():
            import heldback.inner  # noqa: F401
            import no_such_module  # type: ignore[import-not-found]  # noqa: F401

    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        fail()
    assert sys.meta_path == finders
    assert held not in sys.modules


def test_a_compilers_decorators_do_nothing_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are said to the compiler when it is imported, in the order of the file."""
    monkeypatch.delitem(sys.modules, COMPILER, raising=False)
    monkeypatch.setattr(light_imports, "_unsaid", [])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    stand_in: Any = light_imports._StandIn(COMPILER, light_imports._Hold((COMPILER,)))

    @stand_in.disable()  # type: ignore[untyped-decorator]
    def double(number: int) -> int:
        """Twice."""
        return 2 * number

    triple = stand_in.allow_in_graph(lambda number: 3 * number)
    assert (double(2), triple(2), double.__doc__) == (4, 6, "Twice.")
    compiler = ModuleType("compiler")
    told: list[Any] = []
    vars(compiler).update(
        disable=lambda function, recursive: lambda number: function(number) + recursive,
        allow_in_graph=told.append,
    )
    for tell in light_imports._unsaid:
        tell(compiler)
    assert (double(2), told) == (5, [triple])
