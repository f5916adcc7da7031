"""Community checkpoints with Turbo or Lightning merged in: no weights beside the model's own.

Pages of such models (DreamShaper XL, Juggernaut, RealVisXL in their Turbo and Lightning versions) agree
on DPM++ SDE with Karras' levels, 3 to 8 steps and guidance 1 to 2; the page of the model in hand goes first.
"""

from fewstep.recipe import Guidance, Recipe, Steps, Weights

RECIPE = Recipe(
    mode="merge",
    title="a checkpoint with turbo or lightning merged in, as Civitai has them",
    schedulers=("karras", "trailing"),
    samplers=("dpmpp_sde", "euler", "euler_ancestral"),
    steps=Steps(low=3, default=5, high=8),
    guidance=Guidance(kind="cfg", low=1.0, default=1.5, high=2.0),
    licence="the model's own",
    source="model pages of community merges; not confirmed for any one of them",
    weights={"sdxl": Weights(attach="checkpoint", source="")},  # none is usual: the user's model is one
)
