"""Flash Diffusion: an adapter distilled with adversarial and distribution matching losses."""

from fewstep.recipe import Guidance, Recipe, Steps, Weights

RECIPE = Recipe(
    mode="flash",
    title="flash diffusion: an adapter for exactly 4 steps",
    schedulers=("trailing",),
    samplers=("lcm",),
    steps=Steps(low=4, default=4, high=4),
    guidance=Guidance(kind="none"),
    licence="cc-by-nc-nd-4.0",
    source="arXiv:2406.02347; jasperai/flash-sdxl model card",
    # Beside a style LoRA the card weighs both 1.0.
    weights={
        "sdxl": Weights(
            attach="adapter", source="jasperai/flash-sdxl", file="pytorch_lora_weights.safetensors", scale=1.0
        )
    },
    style_scale=1.0,
)
