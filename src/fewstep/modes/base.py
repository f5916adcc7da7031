"""The undistilled model: the reference that every few-step mode is measured against."""

from fewstep.recipe import Guidance, Recipe, Steps

RECIPE = Recipe(
    mode="base",
    title="no step reduction: the model as it was trained",
    # A diffusers folder names its own. SDXL's says "leading", which starts far from pure noise when steps are
    # few; trailing is the repair (Lin et al. 2023, arXiv:2305.08891), and is run where files are silent.
    schedulers=("trailing", "leading", "karras", "exponential", "ays", "linspace"),
    own_spacing=True,
    samplers=("euler", "dpmpp_2m", "dpmpp_sde", "ddim", "euler_ancestral"),
    steps=Steps(low=1, default=30, high=200),
    guidance=Guidance(kind="cfg", low=1.0, default=5.0, high=20.0),
    licence="the model's own",
    source="SDXL, arXiv:2307.01952; stabilityai/stable-diffusion-xl-base-1.0 model card",
    # Measured on the bundled model: see its model card.
    overrides={
        "tiny": {
            "steps": Steps(low=1, default=25, high=200),
            "guidance": Guidance(kind="cfg", low=1.0, default=3.0, high=20.0),
        },
        # The model cards of SD 1.5 and 2.1 and diffusers' StableDiffusionPipeline.
        "sd-1.x": {"guidance": Guidance(kind="cfg", low=1.0, default=7.5, high=20.0)},
        "sd-2.x": {"guidance": Guidance(kind="cfg", low=1.0, default=7.5, high=20.0)},
    },
)
