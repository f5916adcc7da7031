"""ControlNets (Zhang et al. 2023, arXiv:2302.05543): pictures of edges, depths or poses to follow.

One reads the noisy latents and such a picture, and adds a residual to each of the UNet's down blocks
and to its middle. Guidance's two sides see the same picture, as in diffusers' pipelines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from fewstep.catalog import addons, hub
from fewstep.catalog.assets import NETWORK_FILES
from fewstep.denoiser import Conditioning, Network
from fewstep.devices import Placement
from fewstep.errors import CorruptModelError, RequestError
from fewstep.files import identify, safetensors
from fewstep.images import image_to_tensor
from fewstep.loading import folder
from fewstep.loading.build import Blueprint, build_network, network_config
from fewstep.loading.lazy_tensors import list_tensors

CONTROLNET_CLASSES = ("ControlNetModel", "ControlNetUnionModel")
# Where residuals would not fit, or what they are made from is another model's.
SAME_FIELDS = (
    "cross_attention_dim", "addition_embed_type", "addition_time_embed_dim",
    "projection_class_embeddings_input_dim", "in_channels", "block_out_channels", "layers_per_block",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Control:
    """A ControlNet in a call."""

    net: Any  # ControlNetModel or ControlNetUnionModel
    picture: Tensor  # (1, 3, H, W) in [0, 1], the same for every row
    scale: float
    view: int = -1  # of a union: what the picture shows

    def residuals(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> tuple[Tensor, ...]:
        """Return what the UNet adds to each down block's output, and to the middle's."""
        down, middle = self.net(
            x, timestep, conditioning.tokens,
            conditioning_scale=self.scale, added_cond_kwargs=dict(conditioning.added) or None,
            return_dict=False, **self._summary_of_config(len(x)),
        )  # fmt: skip
        return (*down, middle)

    def _summary_of_config(self, rows: int) -> Mapping[str, Any]:
        if self.view < 0:
            return {"controlnet_cond": self.picture}
        views = self.picture.new_zeros(rows, self.net.config.num_control_type)
        views[:, self.view] = 1
        picture = self.picture.expand(rows, -1, -1, -1)
        return {"controlnet_cond": [picture], "control_type": views, "control_type_idx": [self.view]}


def with_controlnets(unet: Network, controls: Sequence[Control]) -> Network:
    """Return `unet` with the residuals of these ControlNets, added up."""

    def call(x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None) -> Tensor:
        residuals = [control.residuals(x, timestep, conditioning) for control in controls]
        added = tuple(reduce(torch.add, terms) for terms in zip(*residuals, strict=True))
        return unet(x, timestep, replace(conditioning, residuals=added), embedding)

    return call


def make_control(net: Any, image: Image, scale: float, name_and_view: tuple[str, str]) -> Control:
    """Return a ControlNet and what a call shows it; `name_and_view` as `split_controlnet_view` gives it."""
    picture = ((image_to_tensor(image) + 1) / 2).to(net.device, net.dtype)
    return Control(net=net, picture=picture, scale=scale, view=_view_number(net, *name_and_view))


def load_controlnet(unet: Any, placement: Placement, source: str) -> Any:
    """Return the ControlNet of a folder, file or hub id; raises `CorruptModelError` if not for this UNet."""
    blueprint = _blueprint(unet, addons.locate_controlnet(source))
    _require_made_for(unet.config, network_config(blueprint), source)
    return build_network(blueprint, placement, placement.dtype, home=False)


def _blueprint(unet: Any, location: addons.AddonPlace) -> Blueprint:
    """Return that of a folder in diffusers' layout, or of one file with the UNet's own configuration."""
    if not location.file:
        return folder.read_network(
            hub.fetch_folder(location.root, NETWORK_FILES, location.revision), CONTROLNET_CLASSES
        )
    path = hub.fetch_file(location.root, location.file, location.revision)
    kind = identify.identify(safetensors.read_header(path))
    if (kind.what, kind.layout) != ("controlnet", "diffusers"):
        raise CorruptModelError(
            f"{path} is no ControlNet in diffusers' layout, but {kind.layout or 'another'} {kind.what}: "
            "give the folder of one"
        )
    weights = list_tensors([path])
    views = weights.get("task_embedding")
    union_config = {"num_control_type": views.shape[0]} if views is not None else {}
    class_name = CONTROLNET_CLASSES[views is not None]
    return Blueprint(
        kind=class_name, config={**unet.config, **union_config}, weights=weights, source=str(path)
    )


def _require_made_for(unet: Mapping[str, Any], config: Mapping[str, Any], source: str) -> None:
    """Check that a ControlNet's configuration is for such a UNet; raises `CorruptModelError`."""
    width, model_width = config["cross_attention_dim"], unet["cross_attention_dim"]
    if width != model_width:
        family = (
            identify.CONTEXT_FAMILIES.get(width, "another model")
            if isinstance(width, int)
            else "another model"
        )
        raise CorruptModelError(
            f"control has {source!r}, which was made for {family}: it reads prompts of width {width!r:.80}, "
            f"and this model's have {model_width}; give one made for it"
        )
    for name in SAME_FIELDS:
        if _as_lists(config[name]) != _as_lists(unet[name]):
            raise CorruptModelError(
                f"control has {source!r}, which was made for another base: its {name} is {config[name]!r}, "
                f"and this model's {unet[name]!r}"
            )
    if config["global_pool_conditions"] or config["conditioning_channels"] != 3:
        raise CorruptModelError(f"control has {source!r}, which does not follow an RGB picture's shapes")


def _as_lists(value: Any) -> Any:
    """Return a tuple as a list: a class has the one where a file has the other."""
    return list(value) if isinstance(value, tuple) else value


def _view_number(net: Any, name: str, view: str) -> int:
    """Return the number of what the picture shows, for a union; -1 for other ControlNets."""
    most = net.config.get("num_control_type", 0)
    fitting = [name for name, number in addons.VIEWS.items() if number < most]
    if most and view not in fitting:
        raise RequestError(
            f"control has {name!r}, a union of ControlNets: say what the picture shows, for example "
            f"'{name}:depth'; it may be {', '.join(fitting)}"
        )
    if view and not most:
        raise RequestError(f"control has '{name}:{view}', which is no union of ControlNets: type {name!r}")
    return addons.VIEWS[view] if view else -1
