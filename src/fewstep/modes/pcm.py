"""PCM: phased consistency models, which fall from phase to phase without fresh noise.

Facts from arXiv:2405.18407 and the weights' demo, the hub's space radames/Phased-Consistency-Model-PCM.
It asks diffusers' TCDScheduler for trailing levels. That class never reads the option (0.42.1):
its own pictures stand on the "lcm" levels, which may be chosen here.
"""

from dataclasses import replace

from fewstep.recipe import Guidance, Recipe, Steps, Weights
from fewstep.samplers import SAMPLERS

HUB = "wangfuyun/PCM_Weights"

RECIPE = Recipe(
    mode="pcm",
    title="phased consistency without guidance: an adapter for each of 2, 4, 8 and 16 steps",
    schedulers=("trailing", "lcm"),
    samplers=("tcd",),
    # The demo names no eta, and diffusers' SDXL pipeline then gives 0.
    own_samplers={"tcd": replace(SAMPLERS["tcd"], eta=0.0)},
    steps=Steps(low=2, default=4, high=16, only=(2, 4, 8, 16)),
    guidance=Guidance(kind="none"),
    licence="unknown",  # the weights carry no tag; the code is Apache-2.0
    source="arXiv:2405.18407; wangfuyun/PCM_Weights and its demo",
    weights={
        "sdxl": Weights(
            attach="adapter", source=HUB, file="sdxl/pcm_sdxl_smallcfg_{steps}step_converted.safetensors"
        ),
        "sd-1.x": Weights(
            attach="adapter", source=HUB, file="sd15/pcm_sd15_smallcfg_{steps}step_converted.safetensors"
        ),
    },
)

# 7.5 in the demo. The range around it is ours: from off to what SDXL itself bears in few steps.
NORMAL = replace(
    RECIPE,
    mode="pcm-normal",
    title="phased consistency that keeps guidance: an adapter for each of 4, 8 and 16 steps",
    steps=Steps(low=4, default=4, high=16, only=(4, 8, 16)),
    guidance=Guidance(kind="cfg", low=1.0, default=7.5, high=10.0),
    weights={
        "sdxl": Weights(
            attach="adapter", source=HUB, file="sdxl/pcm_sdxl_normalcfg_{steps}step_converted.safetensors"
        ),
        "sd-1.x": Weights(
            attach="adapter", source=HUB, file="sd15/pcm_sd15_normalcfg_{steps}step_converted.safetensors"
        ),
    },
)

# Its demo runs 16 steps, its card 4; between them the adapter is one and the same.
LCM = replace(
    RECIPE,
    mode="pcm-lcm",
    title="phased consistency in LCM's manner: one adapter for 4 to 16 steps",
    schedulers=("lcm",),
    samplers=("lcm",),
    own_samplers={},
    steps=Steps(low=4, default=4, high=16),
    weights={
        "sdxl": Weights(attach="adapter", source=HUB, file="sdxl/pcm_sdxl_lcmlike_lora_converted.safetensors")
    },
)
