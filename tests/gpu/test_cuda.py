"""On a CUDA GPU: the CPU's pictures, with less memory where asked, and no harm from running out of it.

Skipped without one. Sockets are blocked here as everywhere: CUDA needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import fewstep
from fewstep import Engine
from fewstep.devices import ModelSize, place, probe
from fewstep.devices.memory import footprint
from fewstep.errors import DeviceMemoryError
from tests.devices.activations import networks
from tests.devices.machines import SDXL, TINY

DEVICE = "cuda"
PROMPTS = ["an orange cat, 3d style", "a red heart, flat style", "an owl", "a bright sun"]
# Of 255. Kernels differ between devices and batch sizes, and TF32 rounds fp32 to 10 bits; steps add it up.
SAME, CLOSE, ALIKE = 0.05, 1.5, 8.0
Load = Callable[..., Engine]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def apart(some: Sequence[Image.Image], others: Sequence[Image.Image]) -> float:
    """The mean difference of the worst pair of pictures, of 255."""
    pairs = zip(some, others, strict=True)
    return max(float((tensor(a) - tensor(b)).abs().mean()) for a, b in pairs)


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float()


@pytest.fixture
def load(sdxl_folder: Path, lcm_unet_folder: Path, lora_file: Path) -> Iterator[Load]:
    """`load(mode)` on the GPU, of the test model unless `model` is given; closed after the test."""
    accelerators = {"lcm": lcm_unet_folder, "lcm-lora": lora_file}
    engines: list[Engine] = []

    def loaded(mode: str, model: Path | str = sdxl_folder, **options: Any) -> Engine:
        accelerator = accelerators.get(mode, "") if model == sdxl_folder else ""
        asked = {"device": DEVICE, "precision": "fp32", **options}
        engines.append(fewstep.load(model, mode, accelerator=accelerator, **asked))
        return engines[-1]

    yield loaded
    for engine in engines:
        engine.close()


# --- what is there


def test_the_gpu_is_seen_and_taken() -> None:
    seen = probe()
    assert len(seen.cuda) == torch.cuda.device_count()
    for gpu in seen.cuda:
        assert 0 < gpu.free <= gpu.total
        assert gpu.capability == torch.cuda.get_device_capability(gpu.index)
    assert place(seen, TINY).device.type == "cuda"


def test_what_torch_keeps_counts_as_free() -> None:
    before = probe().cuda[0].free
    kept = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda:0")
    assert probe().cuda[0].free <= before - 200 * 2**20
    del kept  # into torch's cache
    assert probe().cuda[0].free >= before - 64 * 2**20
    torch.cuda.empty_cache()


# --- the same pictures


@pytest.mark.parametrize("mode", ["base", "lcm"])
def test_the_bundled_model_draws_what_it_draws_on_the_cpu(mode: str, load: Load) -> None:
    asked: dict[str, Any] = {"steps": 4, "seed": 3}
    with fewstep.load("tiny", mode, device="cpu", precision="fp32") as cpu:
        wanted = cpu.generate(PROMPTS, **asked)
    assert apart(load(mode, "tiny").generate(PROMPTS, **asked), wanted) < CLOSE


@pytest.mark.parametrize("mode", ["base", "turbo", "lcm", "lcm-lora"])
@pytest.mark.parametrize("edit", [False, True])
def test_each_mode_draws_what_it_draws_on_the_cpu(
    mode: str, edit: bool, load: Load, engine: Load, drawing: Image.Image
) -> None:
    asked: dict[str, Any] = {"steps": 3, "seed": 3, "image": drawing if edit else None}
    assert apart(load(mode).generate(PROMPTS, **asked), engine(mode).generate(PROMPTS, **asked)) < CLOSE


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_halves_are_like_the_whole(precision: str, load: Load) -> None:
    if precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bf16")
    half, whole = (load("lcm", "tiny", precision=p) for p in (precision, "fp32"))
    made = half.generate(PROMPTS, 4, seed=3)
    assert next(half.parts.unet.parameters()).dtype == half.placement.dtype
    assert apart(made, whole.generate(PROMPTS, 4, seed=3)) < ALIKE


def test_a_batch_is_close_to_its_singles(load: Load) -> None:
    loaded = load("lcm", "tiny")
    assert loaded.placement.batch == 0
    singles = [loaded.generate(prompt, 4, seed=5 + i)[0] for i, prompt in enumerate(PROMPTS)]
    assert apart(loaded.generate(PROMPTS, 4, seed=5), singles) < CLOSE


def test_a_call_again_is_the_same(load: Load) -> None:
    loaded = load("lcm", "tiny")
    one, two = (loaded.generate(PROMPTS, 4, seed=5) for _ in range(2))
    assert [image.tobytes() for image in one] == [image.tobytes() for image in two]


# --- less memory


@pytest.mark.parametrize("how", ["model", "sequential"])
@pytest.mark.parametrize("mode", ["base", "lcm", "lcm-lora"])
def test_offloaded_weights_draw_the_same(mode: str, how: str, load: Load, drawing: Image.Image) -> None:
    waiting, staying = load(mode, offload=how), load(mode, offload="none")
    for asked in ({"seed": 1}, {"seed": 2, "image": drawing}):
        assert apart(waiting.generate(PROMPTS, 2, **asked), staying.generate(PROMPTS, 2, **asked)) < SAME
    shown = [list(engine.stream("an owl", 2, seed=1)) for engine in (waiting, staying)]
    assert apart(*([step.preview() for step in steps] for steps in shown)) < SAME


@pytest.mark.parametrize("how", ["model", "sequential"])
def test_offloaded_weights_are_not_on_the_gpu(how: str, load: Load) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    waiting = load("base", "tiny", offload=how)
    unet = sum(weight.nbytes for weight in waiting.parts.unet.parameters())
    assert torch.cuda.memory_allocated() - before < unet / 2
    list(waiting.stream("an owl", 2, seed=1))
    left = {weight.device.type for weight in waiting.parts.unet.parameters()}
    assert left == {"cuda" if how == "model" else "cpu"}
    assert all(weight.device.type == "cpu" for e in waiting.parts.text.encoders for weight in e.parameters())


def test_closing_gives_memory_back(sdxl_folder: Path) -> None:
    def left() -> int:
        with fewstep.load(sdxl_folder, "turbo", device=DEVICE, precision="fp32") as engine:
            engine.generate("an owl", 1, seed=1)
        return torch.cuda.memory_allocated()

    first = left()
    assert left() <= first + 2**20


# --- the estimate


def test_the_estimate_is_not_below_the_truth(load: Load) -> None:
    loaded = load("base", "tiny")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    loaded.generate("an owl", 2, seed=1)
    peak = torch.cuda.max_memory_allocated()
    assert peak <= footprint(TINY, torch.float32, torch.float32, rows=2).on_device("none", False)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_sdxls_activations_are_within_the_estimate(part: str) -> None:
    """Of SDXL's own architecture, at 1024 pixels."""
    if probe().cuda[0].free < 12 * 2**30:
        pytest.skip("needs 12 GiB")
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    network = (
        networks()[part == "vae"].to(dtype).to_empty(device=DEVICE).to(memory_format=torch.channels_last)
    )
    with torch.no_grad():
        for weight in network.parameters():
            weight.fill_(0.01)
    x = torch.zeros(1 if part == "vae" else 2, 4, 128, 128, dtype=dtype, device=DEVICE)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        _run(part, network, x.contiguous(memory_format=torch.channels_last))
    taken = torch.cuda.max_memory_allocated() - before
    size = footprint(SDXL, dtype, dtype, rows=2)
    assert taken <= (size.decode if part == "vae" else size.step)


def _run(part: str, network: Any, x: torch.Tensor) -> None:
    if part == "vae":
        network.decode(x, return_dict=False)
        return
    extra = {"text_embeds": x.new_zeros(2, 1280), "time_ids": x.new_zeros(2, 6)}
    tokens, timestep = x.new_zeros(2, 77, 2048), x.new_zeros(2)
    network(x, timestep, tokens, added_cond_kwargs=extra, return_dict=False)


# --- too little memory, and calls that are left


@pytest.fixture
def little() -> Iterator[Callable[[float], None]]:
    """`little(gib)`: torch may take no more than this above what it has now."""

    def limit(gib: float) -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + gib * 2**30) / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.parametrize("gib", [0.02, 0.2])
def test_running_out_of_memory_is_survived(gib: float, little: Callable[[float], None], load: Load) -> None:
    """Done by smaller batches and tiles, and said so; or refused. Either way the engine goes on."""
    loaded = load("lcm", "tiny")
    before = loaded.generate(PROMPTS, 2, seed=1)
    little(gib)
    try:  # some 3 GiB, if at once
        said = " ".join(loaded.generate("an owl", 2, seed=2, count=256, width=192, height=192).warnings)
    except DeviceMemoryError as error:
        said = str(error)
    assert "memory ran out" in said
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert apart(loaded.generate(PROMPTS, 2, seed=1), before) < SAME


def test_a_stream_that_is_left_leaves_nothing(load: Load) -> None:
    loaded = load("base", "tiny")
    before = [image.tobytes() for image in loaded.generate("an owl", 4, seed=1)]
    torch.cuda.synchronize()
    taken = torch.cuda.memory_allocated()
    for _ in range(3):
        for step in loaded.stream("a red fox", 8, seed=2):
            if step.index == 1:
                break
        del step
    assert torch.cuda.memory_allocated() <= taken + 2**20
    assert [image.tobytes() for image in loaded.generate("an owl", 4, seed=1)] == before


def test_what_is_too_large_is_refused_before_loading() -> None:
    giant = ModelSize(unet=10**12, text=10**9, vae=10**8, side=1024, vae_fp16_safe=True)
    with pytest.raises(fewstep.RequestError, match=r"GiB on cuda:\d+ with offload='none'"):
        place(probe(), giant, DEVICE, offload="none")
