"""TCD: trajectory consistency distillation, whose step rule chooses how much noise is fresh."""

from fewstep.recipe import Guidance, Recipe, Steps, Weights

RECIPE = Recipe(
    mode="tcd",
    title="trajectory consistency as an adapter: more steps give more detail",
    schedulers=("lcm",),
    # eta 0.3 "often yields good results"; "a higher eta when increasing the number of inference steps".
    samplers=("tcd",),
    # The card draws with 4 and 8; the paper goes on to 20 evaluations. Its inpainting is at strength 0.99.
    steps=Steps(low=4, default=4, high=20),
    guidance=Guidance(kind="none"),
    licence="MIT",
    source="arXiv:2402.19159; h1t/TCD-SDXL-LoRA model card",
    # Beside a style LoRA the card weighs both 1.0.
    weights={
        "sdxl": Weights(
            attach="adapter", source="h1t/TCD-SDXL-LoRA", file="pytorch_lora_weights.safetensors", scale=1.0
        ),
        "sd-1.x": Weights(
            attach="adapter", source="h1t/TCD-SD15-LoRA", file="pytorch_lora_weights.safetensors"
        ),
        "sd-2.x": Weights(
            attach="adapter", source="h1t/TCD-SD21-base-LoRA", file="pytorch_lora_weights.safetensors"
        ),
    },
    # The licence of the LoRAs for SD 1.5 and 2.1 could not be confirmed.
    overrides={"sd-1.x": {"licence": "unknown"}, "sd-2.x": {"licence": "unknown"}},
    style_scale=1.0,
)
