"""SDXL Turbo: adversarial diffusion distillation (ADD), a picture in one step."""

from fewstep.recipe import Guidance, Recipe, Steps, Weights

RECIPE = Recipe(
    mode="turbo",
    title="adversarial diffusion distillation (ADD): a checkpoint of its own, no guidance",
    # "turbo" is the other grid in use, that of the official demo; they agree at one step.
    schedulers=("trailing", "turbo"),
    samplers=("euler_ancestral", "euler"),
    steps=Steps(low=1, default=1, high=4),
    guidance=Guidance(kind="none"),
    licence="sai-nc-community",
    source="arXiv:2311.17042; stabilityai/sdxl-turbo model card",
    weights={
        "sdxl": Weights(
            attach="checkpoint",
            source="stabilityai/sdxl-turbo",
            names=("sd_xl_turbo_1.0.safetensors", "sd_xl_turbo_1.0_fp16.safetensors"),
            size=512,
        ),
        "sd-2.x": Weights(attach="checkpoint", source="stabilityai/sd-turbo", size=512),
        "tiny": Weights(attach="unet", source="unet_turbo"),
    },
    # SD Turbo's licence could not be confirmed.
    overrides={"tiny": {"licence": "Apache-2.0"}, "sd-2.x": {"licence": "unknown"}},
)
