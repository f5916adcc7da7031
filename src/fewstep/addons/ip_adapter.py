"""IP-Adapters (Ye et al. 2023, arXiv:2308.06721): pictures whose content or style is taken up.

A CLIP encoder sees the picture, a projection makes tokens of it, and beside each cross-attention to the
text there is another to these tokens, by keys and values of its own: text + scale * picture (eq. 5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from PIL.Image import Image, Resampling
from torch import Tensor, nn

from fewstep.catalog import addons, hub
from fewstep.denoiser import Conditioning, Network
from fewstep.devices import Placement
from fewstep.errors import CorruptModelError, ModelNotFoundError
from fewstep.files import identify, safetensors
from fewstep.files.untrusted import raise_as_corrupt, read_config
from fewstep.images import image_to_tensor
from fewstep.loading.build import build_network
from fewstep.loading.folder import read_network
from fewstep.torch_state import OnMeta

# OpenAI's CLIP, `clip.py`: mean and standard deviation of its pictures, in [0, 1].
CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# A tensor that tells a projection's kind, the one that reads the encoder, and what of it that reads.
PROJECTIONS = (
    ("proj.weight", "proj.weight", "projection_dim"),  # the summary of the picture
    ("proj.3.weight", "proj.0.weight", "hidden_size"),  # "full": the last layer but one
    ("proj_in.weight", "proj_in.weight", "hidden_size"),  # "plus": the same
)


class IpAdapterLayer(NamedTuple):
    """One cross-attention of the UNet, and the adapter's own keys and values for it."""

    attention: Any
    key: nn.Linear
    value: nn.Linear


@dataclass(frozen=True, kw_only=True)
class IpAdapter:
    """An IP-Adapter, loaded."""

    encoder: Any  # CLIPVisionModelWithProjection
    projection: Any  # ImageProjection, IPAdapterPlusImageProjection or IPAdapterFullImageProjection
    layers: tuple[IpAdapterLayer, ...]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An IP-Adapter in a call; its pictures are looked at together."""

    adapter: IpAdapter
    pictures: tuple[Image, ...]
    scale: float

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Return what guidance's two sides are shown, (n, tokens, C) each: nothing, and the pictures.

        Nothing is zeros in place of summaries, and a grey picture where a layer is read, both as in
        diffusers' pipelines (`encode_image`).
        """
        from diffusers.models.embeddings import ImageProjection

        encoder, project = self.adapter.encoder, self.adapter.projection
        side = encoder.config.image_size
        pixels = torch.cat([_clip_pixels(picture, side) for picture in self.pictures]).to(
            encoder.device, encoder.dtype
        )
        if isinstance(project, ImageProjection):
            features = encoder(pixels).image_embeds
            return project(torch.zeros_like(features)), project(features)
        blank, features = (
            encoder(batch, output_hidden_states=True).hidden_states[-2]
            for batch in (torch.zeros_like(pixels), pixels)
        )
        return project(blank), project(features)


def with_ip_adapters(unet: Network, references: Sequence[Reference]) -> Network:
    """Return `unet` with these adapters beside its cross-attention while it runs, and as it was after."""
    layers_by_attention = zip(*(reference.adapter.layers for reference in references), strict=True)
    processors = [
        (layers[0].attention, _make_attention_processor(layers, references)) for layers in layers_by_attention
    ]

    def call(x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None) -> Tensor:
        with _with_processors(processors):
            return unet(x, timestep, conditioning, embedding)

    return call


def load_ip_adapter(unet: Any, placement: Placement, source: str) -> IpAdapter:
    """Return the IP-Adapter of a file and its image encoder; `CorruptModelError` if not for this UNet."""
    location = addons.locate_ip_adapter(source)
    path = hub.fetch_file(location.root, location.file, location.revision)
    shapes = {name: entry.shape for name, entry in safetensors.read_header(path).tensors.items()}
    width_field, width = _encoder_output(shapes, path)
    encoder = _find_image_encoder(location, width_field, width, placement)
    attentions = _cross_attentions(unet, shapes, path)
    tensors = _read_tensors(path)
    projection = _make_image_projection(unet, tensors, path).to(placement.device, placement.dtype)
    layers = tuple(
        IpAdapterLayer(attention, *(_make_linear(tensors[name], placement) for name in names))
        for attention, names in attentions
    )
    return IpAdapter(encoder=encoder, projection=projection, layers=layers)


def _make_attention_processor(layers: Sequence[IpAdapterLayer], references: Sequence[Reference]) -> Any:
    """Return diffusers' attention to text and pictures, with the weights of these adapters."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    width, context = layers[0].key.out_features, layers[0].key.in_features
    scales = [reference.scale for reference in references]
    with OnMeta():
        processor: Any = IPAdapterAttnProcessor2_0(width, context, num_tokens=[0] * len(scales), scale=scales)
    processor.to_k_ip = nn.ModuleList(layer.key for layer in layers)
    processor.to_v_ip = nn.ModuleList(layer.value for layer in layers)
    return processor.__call__  # a module would be taken in among the UNet's own


@contextmanager
def _with_processors(processors: Sequence[tuple[Any, Any]]) -> Iterator[None]:
    """Have these processors on their attentions."""
    originals = [(attention, attention.get_processor()) for attention, _ in processors]
    try:
        for attention, processor in processors:
            attention.set_processor(processor)
        yield
    finally:
        for attention, processor in originals:
            attention.set_processor(processor)


def _clip_pixels(image: Image, side: int) -> Tensor:
    """Return what CLIP sees, (1, 3, side, side): the picture's middle, its shorter side made `side`.

    As transformers' `CLIPImageProcessor`, which resizes all of it first; only what is kept is made here.
    """
    short = min(image.size)
    sizes = [int(side * length / short) for length in image.size]
    steps = [length / size for length, size in zip(image.size, sizes, strict=True)]
    left, top = ((size - side) // 2 for size in sizes)
    box = (left * steps[0], top * steps[1], (left + side) * steps[0], (top + side) * steps[1])
    cropped = image.convert("RGB").resize((side, side), Resampling.BICUBIC, box)
    pixels = (image_to_tensor(cropped) + 1) / 2
    mean, deviation = (
        pixels.new_tensor(channels).view(1, 3, 1, 1) for channels in (CLIP_MEAN, CLIP_DEVIATION)
    )
    return (pixels - mean) / deviation


def _encoder_output(shapes: Mapping[str, tuple[int, ...]], path: Path) -> tuple[str, int]:
    """Return the field of an image encoder that says how wide its output is, and the width that is read."""
    for sign, input_weight, width_field in PROJECTIONS:
        if {f"image_proj.{sign}", f"image_proj.{input_weight}"} <= shapes.keys():
            return width_field, shapes[f"image_proj.{input_weight}"][-1]
    if any(name.startswith("image_proj.") for name in shapes):
        raise CorruptModelError(
            f"{path} reads faces by another network (FaceID), which fewstep does not have: give an adapter "
            "such as ip-adapter_sdxl or ip-adapter-plus_sdxl_vit-h"
        )
    raise CorruptModelError(f"{path} is no IP-Adapter: it has no image_proj")


def _cross_attentions(
    unet: Any, shapes: Mapping[str, tuple[int, ...]], path: Path
) -> list[tuple[Any, tuple[str, str]]]:
    """Return the UNet's cross-attentions, each with the names of its key and value in the file.

    They are numbered with the self-attentions between them, in the order of `unet.attn_processors`.
    """
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    attentions = [
        (unet.get_submodule(name), (f"ip_adapter.{n}.to_k_ip.weight", f"ip_adapter.{n}.to_v_ip.weight"))
        for n, name in enumerate(names)
        if name.endswith("attn2")
    ]
    widths = {shape[-1] for name, shape in shapes.items() if name.endswith("to_k_ip.weight")}
    model_width = unet.config.cross_attention_dim
    if widths != {model_width}:
        width = max(widths, default=0)
        family = identify.CONTEXT_FAMILIES.get(width, "another model")
        raise CorruptModelError(
            f"{path} was made for {family}: its tokens have width {width}, and this model reads "
            f"{model_width}; give one made for it"
        )
    fitting = {name: (attention.inner_dim, model_width) for attention, names in attentions for name in names}
    file_shapes = {name: shape for name, shape in shapes.items() if name.startswith("ip_adapter.")}
    if fitting != file_shapes:
        raise CorruptModelError(
            f"{path} was made for another base: it has {len(file_shapes)} keys and values, and this model "
            f"takes {len(fitting)}, of other shapes"
        )
    return attentions


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    with raise_as_corrupt(path):
        return load_file(path)


def _make_linear(weight: Tensor, placement: Placement) -> nn.Linear:
    with OnMeta():
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.to(placement.device, placement.dtype), requires_grad=False)
    return linear


def _make_image_projection(unet: Any, tensors: Mapping[str, Tensor], path: Path) -> Any:
    """Return the network between encoder and UNet, by diffusers' own table of names."""
    prefix = "image_proj."
    weights = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    # It draws random weights first, which must not be seen in the draws of whoever calls.
    with raise_as_corrupt(path), torch.random.fork_rng(devices=[]):
        projection = unet._convert_ip_adapter_image_proj_to_diffusers(weights, low_cpu_mem_usage=False)
    return projection.requires_grad_(False).eval()


def _find_image_encoder(
    location: addons.AddonPlace, width_field: str, width: int, placement: Placement
) -> Any:
    """Return the first CLIP encoder of that width: beside the adapter, or where h94/IP-Adapter has ViT-H."""
    subfolders = (str(PurePosixPath(location.file).parent / "image_encoder"), "models/image_encoder")
    for subfolder in subfolders:
        try:
            config = read_config(hub.fetch_file(location.root, f"{subfolder}/config.json", location.revision))
        except ModelNotFoundError:
            continue
        if config.get(width_field) != width:
            continue
        files = (f"{subfolder}/config.json", f"{subfolder}/model.safetensors")
        folder = hub.fetch_folder(location.root, files, location.revision) / subfolder
        blueprint = read_network(folder, ("CLIPVisionModelWithProjection",))
        return build_network(blueprint, placement, placement.dtype, home=False)
    raise ModelNotFoundError(
        f"reference has {location.file!r}, which needs a CLIP image encoder with {width_field}={width}: "
        "put its folder beside the file, as image_encoder"
    )
