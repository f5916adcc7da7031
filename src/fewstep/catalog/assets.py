"""Model files that fewstep knows by name: where they are, at which revision, under which licence, how large.

A revision stands here where at least two independent public projects name it for its repository (seen
2026); "" is not known. Sizes are those projects' too, or follow from the number of parameters, two bytes
each; 0 is not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from fewstep.catalog.architectures import SD, SDXL, ArchitectureInfo
from fewstep.catalog.licences import Licence, find_licence
from fewstep.files.safetensors import LORA_NAME


def model_files(architecture: ArchitectureInfo) -> tuple[str, ...]:
    """Return patterns for the files of a whole model, as diffusers writes it."""
    return (*(f"{part}/*" for part in (*architecture.parts, "scheduler")), "model_index.json")


MODEL_FILES = model_files(SDXL)
SD_FILES = model_files(SD)
NETWORK_FILES = ("config.json", "diffusion_pytorch_model*.safetensors")  # a network on its own
VAE_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
LORA_FILES = (LORA_NAME,)


@dataclass(frozen=True, kw_only=True)
class Asset:
    """Files of one hub repository, under a name of their own."""

    name: str
    title: str
    kind: Literal["base", "accelerator", "vae", "style", "controlnet", "ip-adapter"]
    repo: str  # "" is bundled
    files: tuple[str, ...]  # names or patterns; of what is bundled, in the bundled folder
    licence: str
    revision: str = ""  # 40 hex digits
    bytes: int = 0  # to download; of a model, its fp16 files; what is bundled with one is counted there
    memory: float = 0.0  # GB on a GPU in fp16, decoding in tiles (`fewstep.devices.memory`)
    size: int = 1024  # pixels: the side of its pictures
    modes: tuple[str, ...] = ()  # that it serves
    family: str = "sdxl"

    @property
    def terms(self) -> Licence:
        return find_licence(self.licence)


BASES = (
    Asset(
        name="tiny", title="a small model of SDXL's shape, bundled: smileys and simple things",
        kind="base", repo="", files=(), licence="Apache-2.0", bytes=47_000_000, memory=0.1, size=128,
        modes=("base", "turbo", "lcm", "lcm-lora"), family="tiny",
    ),
    Asset(
        name="sdxl", title="Stable Diffusion XL base 1.0", kind="base",
        repo="stabilityai/stable-diffusion-xl-base-1.0", files=MODEL_FILES, licence="openrail++",
        revision="462165984030d82259a11f4367a4eed129e94a7b", bytes=6_940_000_000, memory=8.1,
        modes=("base",),
    ),
    Asset(
        name="ssd-1b", title="Segmind's SSD-1B: SDXL with half the UNet", kind="base",
        repo="segmind/SSD-1B", files=MODEL_FILES, licence="Apache-2.0",
        revision="60987f37e94cd59c36b1cba832b9f97b57395a10", bytes=4_466_000_000, memory=5.5,
        modes=("base",), family="ssd-1b",
    ),
    Asset(
        name="sd15", title="Stable Diffusion 1.5: a third of SDXL's size", kind="base",
        repo="stable-diffusion-v1-5/stable-diffusion-v1-5", files=SD_FILES, licence="creativeml-openrail-m",
        bytes=2_133_000_000, memory=2.9, size=512, modes=("base",), family="sd-1.x",
    ),
)  # fmt: skip

_LIGHTNING = "c9a24f48e1c025556787b0c58dd67a091ece2e44"
_HYPER = "bc08d970a87c74c71209491d64e3525845698863"


def _lightning_assets() -> Iterator[Asset]:
    repo, terms = "ByteDance/SDXL-Lightning", "openrail++"
    for n in (2, 4, 8):
        yield Asset(
            name=f"lightning-{n}", title=f"SDXL-Lightning's UNet for {n} steps", kind="accelerator",
            repo=repo, files=(f"sdxl_lightning_{n}step_unet.safetensors",), licence=terms,
            revision=_LIGHTNING, bytes=5_135_000_000, modes=("lightning",),
        )  # fmt: skip
    for n in (2, 4, 8):
        yield Asset(
            name=f"lightning-lora-{n}", title=f"SDXL-Lightning's LoRA for {n} steps", kind="accelerator",
            repo=repo, files=(f"sdxl_lightning_{n}step_lora.safetensors",), licence=terms,
            revision=_LIGHTNING, bytes=393_854_592, modes=("lightning-lora",),
        )  # fmt: skip
    yield Asset(
        name="lightning-1step", title="SDXL-Lightning's UNet for one step", kind="accelerator", repo=repo,
        files=("sdxl_lightning_1step_unet_x0.safetensors",), licence=terms, revision=_LIGHTNING,
        bytes=5_135_000_000, modes=("lightning-1step",),
    )  # fmt: skip


# Files that Hyper-SD and PCM publish for each base, by the end of their names here: (file, mode, how many
# steps, whether with guidance).
_HYPER_LORAS = {
    **{f"{n}": (f"{n}steps-lora", "hyper", f"{n} steps", "") for n in (2, 4, 8)},
    "unified": ("1step-lora", "hyper-unified", "1 to 8 steps", ""),
    **{f"cfg-{n}": (f"{n}steps-CFG-lora", "hyper-cfg", f"{n} steps", " with guidance") for n in (8, 12)},
}
_PCM_LORAS = {
    **{f"{n}": (f"smallcfg_{n}step", "pcm", f"{n} steps", "") for n in (2, 4, 8, 16)},
    **{
        f"normal-{n}": (f"normalcfg_{n}step", "pcm-normal", f"{n} steps", " with guidance")
        for n in (4, 8, 16)
    },
}


def _hyper_loras(base: str, size: int, family: str) -> Iterator[Asset]:
    """Yield Hyper-SD's LoRAs for "SDXL" or "SD15"."""
    for end, (file, mode, steps, guided) in _HYPER_LORAS.items():
        yield Asset(
            name=_name_for("hyper", end, family), title=f"Hyper-SD's {_lora_title(steps, guided, family)}",
            kind="accelerator", repo="ByteDance/Hyper-SD", files=(f"Hyper-{base}-{file}.safetensors",),
            licence="hyper-sd", revision=_HYPER, bytes=size, modes=(mode,), family=family,
        )  # fmt: skip


def _pcm_loras(base: str, family: str) -> Iterator[Asset]:
    """Yield PCM's LoRAs for "sdxl" or "sd15"."""
    for end, (file, mode, steps, guided) in _PCM_LORAS.items():
        yield Asset(
            name=_name_for("pcm", end, family),
            title=f"phased consistency {_lora_title(steps, guided, family)}", kind="accelerator",
            repo="wangfuyun/PCM_Weights", files=(f"{base}/pcm_{base}_{file}_converted.safetensors",),
            licence="unknown", modes=(mode,), family=family,
        )  # fmt: skip


def _name_for(of: str, end: str, family: str) -> str:
    return f"{of}-{end}" if family == "sdxl" else f"{of}-sd15-{end}"


def _lora_title(steps: str, guided: str, family: str) -> str:
    return f"LoRA{guided} for {steps}" if family == "sdxl" else f"LoRA for SD 1.5, for {steps}{guided}"


# Not here: dmd2-1step, whose weights are published as a pickle only.
ACCELERATORS = (
    Asset(
        name="turbo", title="SDXL Turbo, a whole model", kind="accelerator", repo="stabilityai/sdxl-turbo",
        files=MODEL_FILES, licence="sai-nc-community", revision="71153311d3dbb46851df1931d3ca6e939de83304",
        bytes=6_940_000_000, memory=7.7, size=512, modes=("turbo",),
    ),
    Asset(
        name="sd-turbo", title="SD Turbo, a whole model of SD 2.1's size", kind="accelerator",
        repo="stabilityai/sd-turbo", files=SD_FILES, licence="unknown", bytes=2_582_000_000, size=512,
        modes=("turbo",), family="sd-2.x",
    ),
    Asset(
        name="lcm-sd15", title="LCM Dreamshaper v7, a whole model", kind="accelerator",
        repo="SimianLuo/LCM_Dreamshaper_v7", files=SD_FILES, licence="unknown", bytes=2_133_000_000, size=512,
        modes=("lcm",), family="sd-1.x",
    ),
    Asset(
        name="lcm-lora-sd15", title="latent consistency LoRA for SD 1.5", kind="accelerator",
        repo="latent-consistency/lcm-lora-sdv1-5", files=LORA_FILES, licence="openrail++", bytes=134_621_556,
        modes=("lcm-lora",), family="sd-1.x",
    ),
    *_hyper_loras("SD15", 0, "sd-1.x"),
    Asset(
        name="tcd-sd15", title="trajectory consistency LoRA for SD 1.5", kind="accelerator",
        repo="h1t/TCD-SD15-LoRA", files=LORA_FILES, licence="unknown", modes=("tcd",), family="sd-1.x",
    ),
    Asset(
        name="tcd-sd21", title="trajectory consistency LoRA for SD 2.1 base", kind="accelerator",
        repo="h1t/TCD-SD21-base-LoRA", files=LORA_FILES, licence="unknown", modes=("tcd",), family="sd-2.x",
    ),
    *_pcm_loras("sd15", "sd-1.x"),
    Asset(
        name="lcm", title="latent consistency UNet", kind="accelerator", repo="latent-consistency/lcm-sdxl",
        files=NETWORK_FILES, licence="openrail++", bytes=5_135_000_000, modes=("lcm",),
    ),
    Asset(
        name="lcm-ssd-1b", title="latent consistency UNet for SSD-1B", kind="accelerator",
        repo="latent-consistency/lcm-ssd-1b", files=NETWORK_FILES, licence="unknown", bytes=2_660_000_000,
        modes=("lcm",), family="ssd-1b",
    ),
    Asset(
        name="lcm-lora", title="latent consistency LoRA", kind="accelerator",
        repo="latent-consistency/lcm-lora-sdxl", files=LORA_FILES, licence="openrail++",
        revision="a18548dd4956b174ec5b0d78d340c8dae0a129cd", bytes=393_855_224, modes=("lcm-lora",),
    ),
    Asset(
        name="lcm-lora-ssd-1b", title="latent consistency LoRA for SSD-1B", kind="accelerator",
        repo="latent-consistency/lcm-lora-ssd-1b", files=LORA_FILES, licence="openrail++", bytes=210_000_000,
        modes=("lcm-lora",), family="ssd-1b",
    ),
    *_lightning_assets(),
    *_hyper_loras("SDXL", 787_359_648, "sdxl"),
    Asset(
        name="hyper-1step", title="Hyper-SD's UNet for one step", kind="accelerator",
        repo="ByteDance/Hyper-SD", files=("Hyper-SDXL-1step-Unet.safetensors",), licence="hyper-sd",
        revision=_HYPER, modes=("hyper-1step",),
    ),
    Asset(
        name="dmd2", title="DMD2's LoRA for 4 steps", kind="accelerator", repo="tianweiy/DMD2",
        files=("dmd2_sdxl_4step_lora_fp16.safetensors",), licence="cc-by-nc-4.0",
        revision="be22767697a1f3ca656b73c776e15fa335c86c6c", bytes=394_000_000, modes=("dmd2",),
    ),
    Asset(
        name="tcd", title="trajectory consistency LoRA", kind="accelerator", repo="h1t/TCD-SDXL-LoRA",
        files=LORA_FILES, licence="MIT", modes=("tcd",),
    ),
    *_pcm_loras("sdxl", "sdxl"),
    Asset(
        name="pcm-lcm", title="phased consistency LoRA in LCM's manner", kind="accelerator",
        repo="wangfuyun/PCM_Weights", files=("sdxl/pcm_sdxl_lcmlike_lora_converted.safetensors",),
        licence="unknown", modes=("pcm-lcm",),
    ),
    Asset(
        name="flash", title="Flash Diffusion's LoRA", kind="accelerator", repo="jasperai/flash-sdxl",
        files=LORA_FILES, licence="cc-by-nc-nd-4.0", modes=("flash",),
    ),
)  # fmt: skip

VAES = (
    # SDXL's VAE with weights scaled to stay within fp16's range (its model card).
    Asset(
        name="vae-fp16", title="SDXL's VAE, corrected for fp16", kind="vae",
        repo="madebyollin/sdxl-vae-fp16-fix", files=VAE_FILES, licence="MIT",
        revision="207b116dae70ace3637169f1ddd2434b91b3a8cd", bytes=334_643_238,
    ),
    Asset(
        name="taesdxl", title="a tiny VAE for SDXL: fast and rough", kind="vae", repo="madebyollin/taesdxl",
        files=VAE_FILES, licence="MIT", revision="b20258aaef75ef61e659c1e0f14f251cf0ad153e", bytes=9_793_292,
    ),
    Asset(
        name="taesd", title="a tiny VAE for SD 1.x and 2.x: fast and rough", kind="vae",
        repo="madebyollin/taesd", files=VAE_FILES, licence="MIT", family="sd-1.x", bytes=9_793_292,
    ),
    Asset(
        name="vae-tiny", title="a tiny VAE for the bundled model", kind="vae", repo="", files=("vae_tiny/*",),
        licence="Apache-2.0", family="tiny",
    ),
)  # fmt: skip
# What vae="tiny" is: model family → name. SSD-1B's latents are SDXL's.
TINY_VAES: MappingProxyType[str, str] = MappingProxyType(
    {
        "tiny": "vae-tiny",
        "sdxl": "taesdxl",
        "ssd-1b": "taesdxl",
        "sd-1.x": "taesd",
        "sd-2.x": "taesd",
    }
)

# LoRAs for `loras=`, by name.
STYLES = (
    Asset(
        name="fx", title="a style LoRA for the bundled model: write “fx style”", kind="style", repo="",
        files=("style_fx/*",), licence="Apache-2.0", family="tiny",
    ),
)  # fmt: skip

_CONTROL = 2_500_000_000  # bytes
CONTROLNETS = tuple(
    Asset(
        name=name, title=title, kind="controlnet", repo=repo, files=NETWORK_FILES, licence=terms, bytes=size
    )
    for name, title, repo, terms, size in (
        ("canny", "ControlNet for edges", "diffusers/controlnet-canny-sdxl-1.0", "openrail++", _CONTROL),
        ("depth", "ControlNet for depths", "diffusers/controlnet-depth-sdxl-1.0", "openrail++", _CONTROL),
        (
            "union", "ControlNet for twelve kinds of picture", "xinsir/controlnet-union-sdxl-1.0",
            "Apache-2.0", _CONTROL,
        ),
    )
)  # fmt: skip
# Each with the image encoder it reads: ViT-H, but for the last.
IP_ADAPTERS = tuple(
    Asset(
        name=name, title=title, kind="ip-adapter", repo="h94/IP-Adapter", licence="Apache-2.0", bytes=size,
        files=(f"sdxl_models/{file}.safetensors", f"{encoder}/image_encoder/*"),
    )
    for name, title, file, encoder, size in (
        ("ip-adapter", "IP-Adapter", "ip-adapter_sdxl_vit-h", "models", 3_230_000_000),
        ("ip-adapter-plus", "IP-Adapter plus", "ip-adapter-plus_sdxl_vit-h", "models", 3_380_000_000),
        (
            "ip-adapter-plus-face", "IP-Adapter plus, for faces", "ip-adapter-plus-face_sdxl_vit-h",
            "models", 3_380_000_000,
        ),
        ("ip-adapter-bigg", "IP-Adapter of ViT-bigG", "ip-adapter_sdxl", "sdxl_models", 4_390_000_000),
    )
)  # fmt: skip

ASSETS = {asset.name: asset for asset in (*BASES, *ACCELERATORS, *VAES, *STYLES, *CONTROLNETS, *IP_ADAPTERS)}


def pinned_revision(repo: str) -> str:
    """The revision that stands here for a hub repository, or ""."""
    return next((asset.revision for asset in ASSETS.values() if asset.repo == repo), "")


def asset_for(repo: str, file: str = "") -> Asset | None:
    """The files of a repository that fewstep has a name for; with `file`, those it is one of."""
    assets_of_repo = [asset for asset in ASSETS.values() if asset.repo == repo]
    exact = [asset for asset in assets_of_repo if file in asset.files]
    return next(iter(exact or (assets_of_repo if len(assets_of_repo) == 1 else [])), None)


def vae_asset(name: str, family: str) -> Asset | None:
    """The VAE that fewstep has a name for; "tiny" is that of the model's family."""
    asset_name = TINY_VAES.get(family, "") if name == "tiny" else name
    return next((asset for asset in VAES if asset.name == asset_name), None)


def style_asset(name: str) -> Asset | None:
    """The LoRA that fewstep has a name for."""
    return next((asset for asset in STYLES if asset.name == name), None)


def has_several_assets(repo: str) -> bool:
    """Return whether fewstep has names for more than one file of a repository."""
    return sum(asset.repo == repo for asset in ASSETS.values()) > 1


def modes_for(family: str) -> tuple[str, ...]:
    """Fewstep's own modes that have weights for a family of models."""
    return tuple(dict.fromkeys(mode for a in ASSETS.values() if a.family == family for mode in a.modes))
