"""The seam for runtimes: what one cannot run is refused when planned, "auto" takes one that can."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
import torch

import fewstep
from fewstep import RequestError
from fewstep.catalog import runtimes
from fewstep.catalog.runtimes import RUNTIMES, RuntimeInfo, choose_runtime
from fewstep.runtimes import eager, load_runtime


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A faster runtime that can run none of the features, before eager."""
    info = RuntimeInfo(name="bare", title="for tests", module="fewstep.runtimes.eager")
    monkeypatch.setattr(runtimes, "RUNTIMES", MappingProxyType({"bare": info, **RUNTIMES}))


@pytest.mark.usefixtures("bare")
def test_auto_takes_the_first_that_can() -> None:
    assert choose_runtime("auto").name == "bare"
    assert choose_runtime("auto", ["loras"]).name == "eager"


@pytest.mark.usefixtures("bare")
def test_a_named_one_that_cannot_is_refused() -> None:
    with pytest.raises(
        RequestError, match=r"runtime='bare' cannot run loras=: leave loras out, or choose .* eager"
    ):
        choose_runtime("bare", ["loras"])


@pytest.mark.usefixtures("bare")
def test_a_call_that_the_usual_one_cannot_run_takes_another_and_says_so() -> None:
    with fewstep.load("tiny", "turbo", device="cpu", precision="fp32") as engine:
        plain, styled = engine.generate("a fox", seed=1), engine.generate("a fox", seed=1, loras=["fx"])
        again = engine.generate("a fox", seed=1)
    assert (plain.runtime, styled.runtime, again.runtime) == ("bare", "eager", "bare")
    assert "the bare runtime cannot run loras: this call ran on eager" in styled.warnings
    assert again[0].tobytes() == plain[0].tobytes() != styled[0].tobytes()


@pytest.mark.parametrize("name", RUNTIMES)
def test_each_can_be_loaded(name: str) -> None:
    runtime = load_runtime(RUNTIMES[name])
    assert callable(runtime.network)
    assert callable(runtime.decoder)


def test_the_modes_adapter_is_on_before_a_runtime_sees_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = eager.Eager.network

    def network(self: eager.Eager, module: Any, /) -> Any:
        seen.append({name: weight.detach().clone() for name, weight in module.named_parameters()})
        return real(self, module)

    monkeypatch.setattr(eager.Eager, "network", network)
    with fewstep.load("tiny", "lcm-lora", device="cpu", precision="fp32") as engine:
        now = dict(engine.parts.unet.named_parameters())
        assert all(torch.equal(weight, now[name]) for name, weight in seen[0].items())
    with fewstep.load("tiny", "base", device="cpu", precision="fp32"):
        assert any(not torch.equal(weight, seen[0][name]) for name, weight in seen[1].items())


def test_eager_is_the_module_itself() -> None:
    with fewstep.load("tiny", "turbo", device="cpu", precision="fp32") as engine, torch.no_grad():
        runtime, parts = load_runtime(RUNTIMES["eager"]), engine.parts
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        told = parts.text.encode(["a fox"], (128, 128))
        extra: Any = dict(told.added)
        answer = parts.unet(latents, torch.tensor([999.0]), told.tokens, added_cond_kwargs=extra).sample
        assert torch.equal(runtime.network(parts.unet)(latents, torch.tensor([999.0]), told, None), answer)
        assert torch.equal(runtime.decoder(parts.vae)(latents), parts.vae.decode(latents).sample)
        assert engine.generate("a fox", 1, seed=1).runtime == "eager"
