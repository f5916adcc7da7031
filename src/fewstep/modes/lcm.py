"""Latent consistency model: a whole UNet that answers in 1 to 8 steps, guidance embedded."""

from fewstep.recipe import Guidance, Recipe, Steps, Weights

RECIPE = Recipe(
    mode="lcm",
    title="latent consistency model: a UNet of its own, guidance is one of its inputs",
    schedulers=("lcm", "trailing"),
    samplers=("lcm",),
    steps=Steps(low=1, default=4, high=8),
    guidance=Guidance(kind="embedded", low=3.0, default=8.0, high=13.0),
    licence="openrail++",
    source="arXiv:2310.04378; latent-consistency/lcm-sdxl model card",
    weights={
        "sdxl": Weights(attach="unet", source="latent-consistency/lcm-sdxl"),
        # Its licence could not be confirmed; the hub's page of lcm-sdxl says openrail++.
        "ssd-1b": Weights(attach="unet", source="latent-consistency/lcm-ssd-1b"),
        # A whole model, with its own UNet's guidance embedding; its licence could not be confirmed.
        "sd-1.x": Weights(attach="checkpoint", source="SimianLuo/LCM_Dreamshaper_v7", size=512),
        "tiny": Weights(attach="unet", source="unet_lcm"),
    },
    as_adapter="lcm-lora",
    overrides={
        "tiny": {
            "guidance": Guidance(kind="embedded", low=1.0, default=3.0, high=6.0),
            "licence": "Apache-2.0",
        },
        "sd-1.x": {"licence": "unknown"},
    },
)
