"""Tiles that show no seam: what covers, how it is weighed, and that the average is one picture."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fewstep import Engine, tiles
from fewstep.tiles import anchored_denoiser, blend_tiles, tile_starts, tile_window, tiled_denoiser
from tests.seams import tile_edge_ratio

Load = Callable[..., Engine]


@pytest.mark.parametrize(
    ("whole", "tile"), [(16, 16), (12, 16), (17, 16), (30, 16), (48, 16), (129, 16), (9, 1)]
)
def test_tiles_cover_all_and_overlap(whole: int, tile: int) -> None:
    starts = tile_starts(whole, tile)
    covered = {place for start in starts for place in range(start, start + min(tile, whole))}
    assert covered == {*range(whole)}
    gaps = [b - a for a, b in pairwise(starts)]
    assert all(0 < gap <= max(1, tile * (1 - tiles.OVERLAP) + 1) for gap in gaps)


def test_a_tile_counts_least_at_its_edges() -> None:
    window = tile_window(8, 16, torch.zeros(1))
    assert window.shape == (8, 16)
    assert 0 < window.min() == window[0, 0] == window[-1, -1]
    assert window.max() == window[3:5, 7:9].min()


def test_what_is_the_same_in_every_tile_comes_out_as_it_is() -> None:
    x = torch.randn(2, 4, 40, 28, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(blend_tiles(lambda part: 2 * part, x, (16, 16)), 2 * x, atol=1e-6)
    enlarged = blend_tiles(lambda part: F.interpolate(part, scale_factor=2), x, (16, 16))
    assert torch.allclose(enlarged, F.interpolate(x, scale_factor=2), atol=1e-6)


def test_a_tiled_denoiser_is_one(engine: Load) -> None:
    calls: list[tuple[int, ...]] = []

    def denoise(x: Tensor, sigma: float | Sequence[float]) -> Tensor:
        calls.append(tuple(x.shape))
        assert isinstance(sigma, float)
        return x * sigma

    x = torch.randn(2, 4, 20, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(tiled_denoiser(denoise, (16, 16))(x, 0.5), 0.5 * x, atol=1e-6)
    assert calls == [(2, 4, 16, 16)] * 2


def test_large_structures_stay() -> None:
    picture = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    denoise = anchored_denoiser(lambda x, _sigma: x, picture, (16, 16))
    x0 = denoise(torch.zeros(1, 4, 32, 32), 1.0)
    pooled = [F.avg_pool2d(latents, 2) for latents in (x0, picture)]
    assert (pooled[0] - pooled[1]).abs().mean() < 0.35 * pooled[1].abs().mean()
    assert (x0 - picture).abs().mean() > 0.3  # what is small is not the picture's


def test_tiles_that_disagree_leave_no_line() -> None:
    """Each tile has a value of its own: side by side there is a step of 1, blended it is a slope."""
    values = iter(range(9))
    x = torch.zeros(1, 1, 1, 64)
    drawn = blend_tiles(lambda part: torch.full_like(part, next(values) % 2), x, (1, 16))[0, 0, 0]
    steps = drawn.diff().abs()
    assert (float(drawn.min()), float(drawn.max())) == (0, 1)
    assert steps.max() < 0.35
    assert steps.max() < 2.5 * steps[steps > 0].mean()


def test_no_edge_of_a_tile_shows(engine: Load, drawing: Image.Image) -> None:
    image = drawing.resize((272, 272), Image.Resampling.LANCZOS)
    drawn = engine("turbo").generate("a fox", 2, image=image, tiles=True, strength=0.6, seed=1)
    assert 0.8 < tile_edge_ratio(drawn[0], 96) < 1.2


UPSCALER = """
import sys, types
def module(name, **names):
    sys.modules[name] = found = types.ModuleType(name)
    vars(found).update(names)
    return found
# Two functions of torchvision are imported, for architectures that are not these. It may be missing, or not
# fit torch: the CPU's torch and PyPI's torchvision do not go together.
name = "torchvision.transforms.functional"
functional = module(name, InterpolationMode=None, rotate=None, normalize=0)
module("torchvision", transforms=module("torchvision.transforms", functional=functional))
import torch
from safetensors.torch import save_file
from spandrel.architectures.Compact import CompactArch
from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact
network = SRVGGNetCompact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=1, upscale=2)
torch.nn.init.zeros_(network.body[-1].weight); torch.nn.init.zeros_(network.body[-1].bias)
save_file(network.state_dict(), sys.argv[1])
from PIL import Image
from fewstep.upscaling import enlarge
picture = Image.linear_gradient("L").resize((300, 280)).convert("RGB")
large = enlarge(picture, sys.argv[1])
print(large.size, large.tobytes() == picture.resize((600, 560), Image.Resampling.NEAREST).tobytes())
"""


def test_an_upscaler_enlarges(tmp_path: Path) -> None:
    """A network whose own part is zero: what it adds to is the picture, each pixel four times."""
    pytest.importorskip("importlib.util").find_spec("spandrel") or pytest.skip("spandrel is not installed")
    done = subprocess.run(
        [sys.executable, "-c", UPSCALER, str(tmp_path / "x2.safetensors")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "(600, 560) True", done.stderr[-2000:]
