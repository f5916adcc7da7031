"""DMD2: improved distribution matching distillation, on the levels it was trained at.

Facts from arXiv:2405.14867 and the model card of tianweiy/DMD2: "LCMScheduler's default timesteps are
different from the one we used for training". On community models it is run at 4 to 8 steps, with guidance
up to 1.8: beyond the four levels of training, at as many that are as far apart.
"""

from dataclasses import replace

from fewstep.noise_process import SDXL_NOISE, NoiseProcess
from fewstep.recipe import Guidance, Recipe, Steps, Weights
from fewstep.schedulers import Schedule, explicit, scaled

HUB = "tianweiy/DMD2"


def spread(steps: int, strength: float = 1.0, process: NoiseProcess = SDXL_NOISE) -> Schedule:
    """Four steps are those of training, 999, 749, 499, 249; others divide the same way."""
    heights = (round(1000 * (steps - i) / steps) for i in range(steps))
    return explicit([round(height * strength) - 1 for height in heights], process)


RECIPE = Recipe(
    mode="dmd2",
    title="distribution matching distillation: an adapter for 4 steps, run at up to 8",
    schedulers=("fixed",),
    own_schedulers={"fixed": spread},
    samplers=("lcm",),
    steps=Steps(low=4, default=4, high=8),
    guidance=Guidance(kind="cfg", low=1.0, default=1.0, high=1.8),  # off as published
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
    guidance=Guidance(kind="none"),
    weights={"sdxl": Weights(attach="unet", source=HUB, file="dmd2_sdxl_1step_unet_fp16.bin")},
    as_adapter="dmd2",
)
