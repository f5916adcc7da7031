"""Hyper-SD: trajectory segmented consistency distillation, in four forms.

Facts from arXiv:2404.13686 and the model card of ByteDance/Hyper-SD, each at its line.
"""

from dataclasses import replace

from fewstep.recipe import Guidance, Recipe, Steps, Weights
from fewstep.samplers import SAMPLERS
from fewstep.schedulers import scaled

HUB = "ByteDance/Hyper-SD"

# "Ensure ddim scheduler timestep spacing set as trailing !!!"; guidance 0; the file for the steps.
RECIPE = Recipe(
    mode="hyper",
    title="trajectory segmented consistency: an adapter for each of 2, 4 and 8 steps",
    schedulers=("trailing",),
    samplers=("ddim",),
    steps=Steps(low=2, default=4, high=8, only=(2, 4, 8)),
    guidance=Guidance(kind="none"),
    # Not confirmed: the hub's tag was taken away in 2024-08; see `fewstep.catalog.licences`.
    licence="hyper-sd",
    source="arXiv:2404.13686; ByteDance/Hyper-SD model card",
    # Users turn the adapter down to 0.75 or 0.8 on fine-tunes; the card fuses it whole.
    weights={
        "sdxl": Weights(attach="adapter", source=HUB, file="Hyper-SDXL-{steps}steps-lora.safetensors"),
        "sd-1.x": Weights(attach="adapter", source=HUB, file="Hyper-SD15-{steps}steps-lora.safetensors"),
    },
)

# "Unified LoRA (support 1 to 8 steps inference)", on TCD's rule and levels with eta 1.0:
# "lower eta results in more detail for multi-steps inference".
UNIFIED = replace(
    RECIPE,
    mode="hyper-unified",
    title="trajectory segmented consistency: one adapter for 1 to 8 steps",
    schedulers=("lcm",),
    samplers=("tcd",),
    own_samplers={"tcd": replace(SAMPLERS["tcd"], eta=1.0)},
    steps=Steps(low=1, default=4, high=8),
    weights={
        "sdxl": Weights(attach="adapter", source=HUB, file="Hyper-SDXL-1step-lora.safetensors"),
        "sd-1.x": Weights(attach="adapter", source=HUB, file="Hyper-SD15-1step-lora.safetensors"),
    },
)

# "Set start timesteps to 800 in the one-step inference to get better results", with LCM's rule.
ONE_STEP = replace(
    RECIPE,
    mode="hyper-1step",
    title="trajectory segmented consistency in one step, from level 800: a UNet of its own",
    schedulers=("fixed",),
    own_schedulers={"fixed": scaled([800])},
    samplers=("lcm",),
    steps=Steps(low=1, default=1, high=1),
    weights={"sdxl": Weights(attach="unet", source=HUB, file="Hyper-SDXL-1step-Unet.safetensors")},
    as_adapter="hyper-unified",
)

# "CFG-preserved": guidance 5 to 8 on the card, and negative prompts work. That 1 (off) is no choice
# follows from it; the default is the card's lowest.
CFG = replace(
    RECIPE,
    mode="hyper-cfg",
    title="trajectory segmented consistency that keeps guidance: an adapter for 8 and 12 steps",
    steps=Steps(low=8, default=8, high=12, only=(8, 12)),
    guidance=Guidance(kind="cfg", low=5.0, default=5.0, high=8.0),
    weights={
        "sdxl": Weights(attach="adapter", source=HUB, file="Hyper-SDXL-{steps}steps-CFG-lora.safetensors"),
        "sd-1.x": Weights(attach="adapter", source=HUB, file="Hyper-SD15-{steps}steps-CFG-lora.safetensors"),
    },
)
