"""LCM-LoRA: an adapter that gives any fine-tune the few steps of an LCM."""

from fewstep.recipe import Guidance, Recipe, Steps, Weights

RECIPE = Recipe(
    mode="lcm-lora",
    title="latent consistency as an adapter beside the model's own UNet",
    schedulers=("lcm", "trailing"),
    samplers=("lcm",),
    steps=Steps(low=2, default=4, high=8),
    # Off, or a little; negative prompts act only above 1.
    guidance=Guidance(kind="cfg", low=1.0, default=1.0, high=2.0),
    licence="openrail++",
    source="arXiv:2311.05556; latent-consistency/lcm-lora-sdxl model card",
    weights={
        "sdxl": Weights(
            attach="adapter",
            source="latent-consistency/lcm-lora-sdxl",
            file="pytorch_lora_weights.safetensors",
        ),
        "ssd-1b": Weights(
            attach="adapter",
            source="latent-consistency/lcm-lora-ssd-1b",
            file="pytorch_lora_weights.safetensors",
        ),
        "sd-1.x": Weights(
            attach="adapter",
            source="latent-consistency/lcm-lora-sdv1-5",
            file="pytorch_lora_weights.safetensors",
        ),
        "tiny": Weights(attach="adapter", source="lcm_lora", file="pytorch_lora_weights.safetensors"),
    },
    style_scale=0.8,  # beside 1.0 of this one: the card's "Combine with styled LoRAs"
    overrides={"tiny": {"licence": "Apache-2.0"}},
)
