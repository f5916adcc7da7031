"""DMD2: improved distribution matching distillation, on the levels it was trained at.

Facts from arXiv:2405.14867 and the model card of tianweiy/DMD2: "LCMScheduler's default timesteps are
different from the one we used for training".
"""

from dataclasses import replace

from fewstep.recipe import Guidance, Recipe, Steps, Weights
from fewstep.schedulers import scaled

HUB = "tianweiy/DMD2"

RECIPE = Recipe(
    mode="dmd2",
    title="distribution matching distillation: an adapter for exactly 4 steps",
    schedulers=("fixed",),
    own_schedulers={"fixed": scaled([999, 749, 499, 249])},
    samplers=("lcm",),
    steps=Steps(low=4, default=4, high=4),
    guidance=Guidance(kind="none"),
    licence="cc-by-nc-4.0",
    source="arXiv:2405.14867; tianweiy/DMD2 model card",
    # "We might want to make the scale smaller for community models."
    weights={
        "sdxl": Weights(attach="adapter", source=HUB, file="dmd2_sdxl_4step_lora_fp16.safetensors", scale=1.0)
    },
)

# Published as a pickle only, which fewstep never reads: somebody has to convert it, and name the
# safetensors file as accelerator=. `fewstep.catalog.mode_weights` says so.
ONE_STEP = replace(
    RECIPE,
    mode="dmd2-1step",
    title="distribution matching distillation in one step, from level 399: a UNet of its own",
    own_schedulers={"fixed": scaled([399])},
    steps=Steps(low=1, default=1, high=1),
    weights={"sdxl": Weights(attach="unet", source=HUB, file="dmd2_sdxl_1step_unet_fp16.bin")},
    as_adapter="dmd2",
)
