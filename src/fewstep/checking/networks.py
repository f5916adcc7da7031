"""Are the pipeline's networks all there, SDXL's, fitting the mode, and in dtypes that work?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fewstep.catalog.models import ALIASES, FP16_VAE, TINY
from fewstep.checking.case import Case, Finding
from fewstep.checking.pipeline import NETWORKS, TOKENIZERS
from fewstep.files.config import check_latent_scaling

BASE = ALIASES["sdxl"].source
CLASSES = {
    "unet": "diffusers.UNet2DConditionModel",
    "vae": "diffusers.AutoencoderKL",
    "text_encoder": "transformers.CLIPTextModel",
    "text_encoder_2": "transformers.CLIPTextModelWithProjection",
    "tokenizer": "transformers.CLIPTokenizer",
    "tokenizer_2": "transformers.CLIPTokenizer",
    "scheduler": "diffusers.EulerDiscreteScheduler",
}
WIDTHS = [128, 256, 512, 512]  # of SDXL's VAE, and of SD 1.5's; other widths have scales of their own
SCALES = {"AutoencoderKL": (0.13025, 0.18215), "AutoencoderTiny": (1.0, 1.0)}  # right; where a file is silent
PADDING = "!"  # SDXL's second tokenizer_config.json; the first has the end's own sign


def check_whole(case: Case) -> Iterator[Finding]:
    """Yield what makes it no whole SDXL pipeline; then nothing else is looked at."""
    parts = case.pipeline.parts
    unet = parts.get("unet", {})
    if "unet" in parts and unet.get("addition_embed_type") != "text_time":
        yield Finding(
            what=f"{case.pipeline.kind} is not of SDXL's architecture, whose UNet has addition_embed_type="
            f"'text_time', and this one {unet.get('addition_embed_type')!r}: no mode here was made for it",
            mend=f"pipe = diffusers.StableDiffusionXLPipeline.from_pretrained({BASE!r})",
        )
        return
    for name, class_name in CLASSES.items():
        if name not in parts:
            yield Finding(
                what=f"{name} is missing: SDXL needs all of {', '.join(CLASSES)}",
                mend=f"pipe.register_modules({name}={_expression_to_fetch(class_name, BASE, name)})",
            )


def check_unet(case: Case) -> Iterator[Finding]:
    """Yield what is wrong with its guidance embedding and its channels."""
    unet = case.pipeline.parts["unet"]
    embedded, needed = bool(unet.get("time_cond_proj_dim")), case.recipe.guidance.kind == "embedded"
    if embedded != needed:
        state, requirement = ("has a", "none") if embedded else ("has no", "one, as an LCM's has")
        yield Finding(
            what=f"the UNet {state} guidance embedding (time_cond_proj_dim), and mode {case.mode!r} needs "
            f"{requirement}: pictures come out burnt or blurred",
            mend=f"pipe.unet = {_unet_of(case)}",
        )
    if case.weights is not None and case.weights.attach == "checkpoint" and _is_base(unet):
        yield Finding(
            what=f"the UNet is SDXL base's own by its name, and mode {case.mode!r} needs that of "
            f"{case.weights.source}: so few steps give a blur",
            mend=f"pipe.unet = {_unet_of(case)}",
        )
    if unet.get("in_channels", 4) != 4 and "Inpaint" not in case.pipeline.kind:
        yield Finding(
            what=f"the UNet takes {unet['in_channels']} channels, as an inpainting model's, and "
            f"{case.pipeline.kind} gives it 4: the first step fails",
            mend="pipe = diffusers.StableDiffusionXLInpaintPipeline.from_pipe(pipe)",
        )


def _is_base(unet: Mapping[str, Any]) -> bool:
    """Return whether it was loaded by a base model's name, or from where the hub's cache keeps that."""
    name = str(unet.get("_name_or_path", "")).replace("--", "/")
    return any(base_model.source in name for base_model in ALIASES.values())


def check_vae(case: Case) -> Iterator[Finding]:
    """Yield what is wrong with its latents, their scale, and fp16."""
    vae, dtype = case.pipeline.parts["vae"], case.pipeline.dtypes.get("vae", "")
    remedy = f"pipe.vae = {_expression_to_fetch(CLASSES['vae'], FP16_VAE)}"
    check_latent_scaling(vae, case.pipeline.source)
    channels = vae.get("latent_channels", 4)
    needed, default = SCALES.get(str(vae["_class_name"]), SCALES["AutoencoderKL"])
    scale = vae.get("scaling_factor", default)
    if channels != 4:
        message = f"the VAE has {channels} latent channels, and SDXL's has 4: decoding fails"
        yield Finding(what=message, mend=remedy)
    elif abs(scale - needed) > 1e-4 and (_of_sdxl(vae) or scale == 0.18215):
        hint = " (0.18215 is SD 1.5's VAE, or SDXL's loaded without its configuration)"
        yield Finding(
            what=f"the VAE has scaling_factor={scale}{hint * (scale == 0.18215)}, and for SDXL's latents "
            f"needs {needed}: pictures are pale, or garish",
            mend=remedy if scale == 0.18215 else f"pipe.vae.register_to_config(scaling_factor={needed})",
        )
    name = str(vae.get("_name_or_path", "")).lower()
    half = dtype == "float16" or case.pipeline.stored
    unsafe = vae["_class_name"] == "AutoencoderKL" and vae.get("force_upcast") is False
    if half and unsafe and _of_sdxl(vae) and "fp16" not in name:
        is_original = "stabilityai" in name or name.endswith("sdxl-vae")
        yield Finding(
            what="the VAE may run in float16 with force_upcast=False, and nothing says that it was made for "
            "it: SDXL's own overflows, and pictures are black",
            mend="pipe.vae.register_to_config(force_upcast=True)",
            severity="wrong" if is_original else "doubtful",
        )


def _of_sdxl(vae: Mapping[str, Any]) -> bool:
    """Return whether it is for SDXL's latents: by its widths, or a tiny one, all of which here are."""
    return vae["_class_name"] == "AutoencoderTiny" or list(vae.get("block_out_channels", ())) == WIDTHS


def check_dtypes(case: Case) -> Iterator[Finding]:
    """Yield what a pipeline in memory cannot run, or only slowly; a folder's dtypes are chosen on loading."""
    pipeline = case.pipeline
    if pipeline.stored:
        return
    unet = pipeline.dtypes["unet"]
    for name in NETWORKS[1:]:
        if pipeline.dtypes[name] not in (unet, *_dtype_diffusers_upcasts(case, name)):
            yield Finding(
                what=f"{name} is {pipeline.dtypes[name]} beside a UNet of {unet}: diffusers' pipeline stops "
                "at the first layer that is given the other's numbers",
                mend=f"pipe.{name}.to(pipe.unet.dtype)",
            )
    if unet == "float16" and pipeline.device == "cpu":
        yield Finding(
            what="the pipeline is in float16 on the CPU, where that is slow and incomplete (diffusers#3432)",
            mend="pipe.to('cuda')" if pipeline.gpu else "pipe.to(torch.float32)",
            severity="doubtful",
        )


def _dtype_diffusers_upcasts(case: Case, name: str) -> tuple[str, ...]:
    """Return the dtype that diffusers decodes in fp32: that of a VAE that says so."""
    forced = name == "vae" and case.pipeline.parts[name].get("force_upcast", True)
    return ("float16",) if forced else ()


def check_rest(case: Case) -> Iterator[Finding]:
    """Yield what is wrong with padding and watermark."""
    padding = case.pipeline.padding
    if padding and padding != PADDING and not case.bundled:
        yield Finding(
            what=f"the second tokenizer fills prompts up with {padding!r}, and SDXL was trained with "
            f"{PADDING!r}: short prompts are read otherwise",
            mend=f"pipe.tokenizer_2.pad_token = {PADDING!r}",
            severity="doubtful",
        )
    if case.pipeline.watermark:
        yield Finding(
            what="an invisible watermark is drawn into every picture (add_watermarker), which changes pixels "
            "and, where steps are few, takes a good part of the time",
            mend="pipe.watermark = None",
            severity="doubtful",
        )


def _unet_of(case: Case) -> str:
    """Return the UNet of the mode's weights where it has a folder, else SDXL's own, as an expression."""
    weights = case.weights
    if weights is not None and weights.attach == "unet" and not weights.file:
        return _expression_to_fetch(
            CLASSES["unet"], str(TINY / weights.source) if case.bundled else weights.source
        )
    checkpoint = weights is not None and weights.attach == "checkpoint"
    return _expression_to_fetch(CLASSES["unet"], weights.source if weights and checkpoint else BASE, "unet")


def _expression_to_fetch(class_name: str, source: str, folder: str = "") -> str:
    """Return the expression that loads a part from the hub, as the pipeline's UNet is."""
    subfolder = f", subfolder={folder!r}" if folder else ""
    expression = f"{class_name}.from_pretrained({source!r}{subfolder})"
    if folder in (*TOKENIZERS, "scheduler"):
        return expression
    neighbour = "text_encoder_2" if class_name == CLASSES["unet"] else "unet"
    return f"{expression}.to(pipe.{neighbour}.device, pipe.{neighbour}.dtype)"
