"""SDXL-Lightning: progressive adversarial distillation, one set of weights for each number of steps.

Facts from arXiv:2402.13929 and the model card of ByteDance/SDXL-Lightning, which asks for Euler's
method on trailing levels, guidance 0, and "the correct checkpoint for the corresponding inference steps".
"""

from dataclasses import replace

from fewstep.recipe import Guidance, Recipe, Steps, Weights

HUB = "ByteDance/SDXL-Lightning"

RECIPE = Recipe(
    mode="lightning",
    title="progressive adversarial distillation: a UNet of its own for 2, 4 and 8 steps",
    schedulers=("trailing",),
    samplers=("euler",),
    steps=Steps(low=2, default=4, high=8, only=(2, 4, 8)),
    guidance=Guidance(kind="none"),
    licence="openrail++",
    source="arXiv:2402.13929; ByteDance/SDXL-Lightning model card",
    weights={"sdxl": Weights(attach="unet", source=HUB, file="sdxl_lightning_{steps}step_unet.safetensors")},
    as_adapter="lightning-lora",
)

# "The full UNet models have the best quality while the LoRA models can be applied to other base models."
LORA = replace(
    RECIPE,
    mode="lightning-lora",
    title="lightning as an adapter beside the model's own UNet: 2, 4 and 8 steps",
    weights={
        "sdxl": Weights(attach="adapter", source=HUB, file="sdxl_lightning_{steps}step_lora.safetensors")
    },
    as_adapter="",
)

# "More experimental", says the card; its UNet answers with the picture itself, not with the noise.
ONE_STEP = replace(
    RECIPE,
    mode="lightning-1step",
    title="lightning in one step, experimental: a UNet that predicts the picture itself",
    steps=Steps(low=1, default=1, high=1),
    prediction="sample",
    weights={"sdxl": Weights(attach="unet", source=HUB, file="sdxl_lightning_1step_unet_x0.safetensors")},
)
