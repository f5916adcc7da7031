"""Weights that come and go give the bits of weights that stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fewstep import Engine, modes
from fewstep.devices import Placement, place
from fewstep.loading.parts import Parts, load_parts
from fewstep.request.engine_choice import choose_engine
from fewstep.request.schema import EngineKey
from fewstep.runtimes import offload
from tests.devices.machines import TINY, machine

KEY = EngineKey.of("")  # with nothing of its own
CPU, META = torch.device("cpu"), torch.device("meta")
WAYS = ["model", "sequential"]


def placed(how: str, device: torch.device = CPU) -> Placement:
    """On a device that is no GPU, which offloading does not need."""
    return replace(place(machine(), TINY), offload=how, device=device)


def loaded(folder: Path, mode: str, accelerator: Path | str, placement: Placement) -> Engine:
    choice = choose_engine(mode, None, {"model": folder, "accelerator": accelerator})
    return Engine(choice, placement, load_parts(choice.model, choice.recipe, choice.key, placement))


@pytest.fixture(params=WAYS)
def waiting(request: pytest.FixtureRequest, sdxl_folder: Path) -> Parts:
    """A model whose weights visit torch's meta device: nothing there may meet a weight that stayed in RAM."""
    about, recipe = modes.choose_mode(str(sdxl_folder), "turbo")
    return load_parts(about, recipe, KEY, placed(request.param, META))


def weights(*networks: nn.Module) -> list[Tensor]:
    return [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]


def places(*networks: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in weights(*networks)}


def step(unet: Any) -> Tensor:
    """A UNet's answer on the meta device, its inputs still in RAM."""
    extra = {"text_embeds": torch.zeros(1, 48), "time_ids": torch.zeros(1, 6)}
    answer: Tensor = unet(
        torch.zeros(1, 4, 12, 12), torch.zeros(1), torch.zeros(1, 77, 80),
        added_cond_kwargs=extra, return_dict=False,
    )[0]  # fmt: skip
    return answer


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("mode", ["turbo", "lcm", "lcm-lora"])
def test_pictures_are_the_same(
    mode: str, how: str, sdxl_folder: Path, lcm_unet_folder: Path, lora_file: Path, drawing: Image.Image
) -> None:
    accelerator = {"lcm": lcm_unet_folder, "lcm-lora": lora_file}.get(mode, "")

    def bits(how: str) -> list[bytes]:
        with loaded(sdxl_folder, mode, accelerator, placed(how)) as engine:
            made = [*engine.generate(["a red fox", "an owl"], 2, seed=1)]
            made += engine.generate("a sun", 2, seed=2, image=drawing, mask=drawing.convert("L"))
            made += [shown.preview() for shown in engine.stream("a red fox", 2, seed=1)]
        return [image.tobytes() for image in made]

    assert bits(how) == bits("none")


def test_every_weight_is_fetched_in_time(waiting: Parts) -> None:
    """On the meta device torch refuses an operator that finds a weight elsewhere."""
    first, second = waiting.text.encoders
    for encoder in (first, second):
        answer: Any = encoder(torch.zeros(1, 77, dtype=torch.long), output_hidden_states=True)
        assert {tensor.device for tensor in answer.hidden_states} == {META}
    assert step(waiting.unet).device == META
    x = torch.zeros(1, 4, 12, 12, device=META)
    assert waiting.vae.decode(x, return_dict=False)[0].device == META
    assert waiting.vae.encode(torch.zeros(1, 3, 96, 96, device=META)).latent_dist.mean.device == META


def test_one_network_at_a_time(sdxl_folder: Path) -> None:
    about, recipe = modes.choose_mode(str(sdxl_folder), "turbo")
    parts = load_parts(about, recipe, KEY, placed("model", META))
    networks: Sequence[Any] = (*parts.text.encoders, parts.unet, parts.vae)
    before = [weight.clone() for weight in weights(*networks)]
    ids = torch.zeros(1, 77, dtype=torch.long)
    x, picture = torch.zeros(1, 4, 12, 12, device=META), torch.zeros(1, 3, 96, 96, device=META)
    uses: list[tuple[int, Any]] = [
        (0, lambda: networks[0](ids)),
        (1, lambda: networks[1](ids)),
        (2, lambda: step(parts.unet)),
        (3, lambda: parts.vae.decode(x)),
        (2, lambda: step(parts.unet)),
        (3, lambda: parts.vae.encode(picture)),
    ]
    assert places(*networks) == {"cpu"}
    for which, use in uses:
        use()
        assert [places(network) for network in networks] == [
            {"meta" if index == which else "cpu"} for index in range(4)
        ]
    networks[0](ids)
    step(parts.unet)
    assert all(
        torch.equal(now, then)
        for now, then in zip(weights(*networks), before, strict=True)
        if now.device == CPU
    )


def test_one_layer_at_a_time(sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[tuple[int, ...]] = []
    fetch = offload._Waiting.fetch

    def counted(self: Any, device: torch.device, *_: Any) -> None:
        fetch(self, device)
        on_device = [weight for weight in weights(parts.unet) if weight.device == META]
        alive.append((len(on_device), sum(weight.numel() for weight in on_device)))

    monkeypatch.setattr(offload._Waiting, "fetch", counted)
    about, recipe = modes.choose_mode(str(sdxl_folder), "turbo")
    parts = load_parts(about, recipe, KEY, placed("sequential", META))
    step(parts.unet)
    largest = max(sum(p.numel() for p in m.parameters(recurse=False)) for m in parts.unet.modules())
    assert max(alive) <= (2, largest)  # weight and bias
    assert max(numbers for _, numbers in alive) == largest
    assert places(parts.unet, *parts.text.encoders) == {"cpu"}
    assert places(parts.vae) == {"meta"}  # it stays on the device


def test_a_layer_that_fails_leaves_too(sdxl_folder: Path) -> None:
    about, recipe = modes.choose_mode(str(sdxl_folder), "turbo")
    parts = load_parts(about, recipe, KEY, placed("sequential", META))
    with pytest.raises(RuntimeError):
        parts.unet.conv_in(torch.zeros(1, 5, 8, 8, device=META))
    assert places(parts.unet) == {"cpu"}


def test_without_offload_nothing_is_hooked(sdxl_folder: Path) -> None:
    about, recipe = modes.choose_mode(str(sdxl_folder), "turbo")
    parts = load_parts(about, recipe, KEY, placed("none"))
    networks = (parts.unet, parts.vae, *parts.text.encoders)
    assert not any(m._forward_pre_hooks or hasattr(m, "_hf_hook") for n in networks for m in n.modules())
