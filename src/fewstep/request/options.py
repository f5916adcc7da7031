"""THE table of options: a line each for its type, default, bounds, help and scope. All doors come from it.

Keywords of `fewstep.generate` and `load` are held against it by a test; command-line flags, error
messages, defaults and the names of other tools are made from it. To add an option: a line here, its
name in the signature (a test says which), the code that uses it, and a line in docs/reference.md. One
that a record of the call shall show stands in `Result` too, beside `prediction`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, BinaryIO, Literal, TypeAlias, TypedDict, get_args, get_type_hints

from PIL.Image import Image

from fewstep import values
from fewstep.catalog import runtimes
from fewstep.images import Array
from fewstep.noise_process import PREDICTIONS
from fewstep.prompts import Embedding

Prompts: TypeAlias = str | Embedding | Sequence[str | Embedding]
File: TypeAlias = str | Path
Picture: TypeAlias = File | bytes | BinaryIO | Image | Array  # a file, PIL's image, numpy's array, a tensor
Pictures: TypeAlias = Picture | Sequence[Picture]  # a list, or a `Result`, has one for each picture
Guide: TypeAlias = tuple[File, Picture, float]  # a ControlNet or an IP-Adapter, its picture, its scale

DEVICES = ("auto", "cuda", "mps", "cpu")  # and "cuda:1", one of several
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
OFFLOADS = ("auto", "none", "model", "sequential")  # from the fastest to the one that takes least memory
LONG_PROMPTS = ("chunk", "refuse", "cut")
SWITCH = "give True or False"
NAMED = "give a name; `fewstep modes` lists each mode's"


@dataclass(frozen=True, kw_only=True)
class Option:
    """A line of the table. `name`, `type` and `scope` are filled in from where it stands."""

    help: str  # as the command line shows it
    default: Any = None
    low: float | None = None
    high: float | None = None
    above: bool = False  # whether `low` itself is too low
    choices: tuple[str, ...] = ()
    allowed: str = ""  # what to type, for errors; "" is made from bounds or choices
    flag: str = ""  # on the command line, where not the name itself
    aliases: tuple[str, ...] = ()  # diffusers' names for it
    name: str = ""
    type: Any = None
    scope: Literal["picture", "engine", "choice"] = "picture"

    def plain(self, value: Any) -> Any:
        """Return a value of this option's type in plain Python; any other as it is, to be refused."""
        kinds = (self.type, *get_args(self.type))
        convert = values.real if float in kinds else values.whole if int in kinds else values.text
        return convert(value)

    @property
    def advice(self) -> str:
        """Return what to type, for error messages."""
        if self.allowed:
            return self.allowed
        if self.choices:
            return f"choose one of {', '.join(self.choices)}"
        is_whole = int in get_args(self.type)
        start = f"above {self.low:g}, up to" if self.above else f"from {self.low:g} to"
        return f"give a {'whole ' if is_whole else ''}number {start} {self.high:g}"


_SIDE = Option(
    help="pixels, a multiple of 8", low=8, high=8192, allowed="give a whole number of pixels from 8 to 8192"
)


class PictureOptions(TypedDict, total=False):
    """What a call may ask of a loaded engine; `fewstep.generate` says what each is."""

    prompt_2: Annotated[str | Sequence[str] | None, Option(help="another prompt for the second text encoder")]
    negative_prompt: Annotated[
        str | Embedding,
        Option(help="what to keep away from", default="", aliases=("negative_prompt_embeds",)),
    ]
    long_prompt: Annotated[
        str, Option(help="over 77 tokens: chunk, refuse or cut", default="chunk", choices=LONG_PROMPTS)
    ]
    guidance: Annotated[
        float | None,
        Option(help="how closely to follow the prompt", low=0, high=100, aliases=("guidance_scale",)),
    ]
    guidance_rescale: Annotated[
        float, Option(help="in [0, 1], against overexposure", default=0.0, low=0, high=1)
    ]
    seed: Annotated[
        int | Sequence[int] | None,
        Option(help="picture i uses seed + i; drawn where left out", aliases=("generator",)),
    ]
    count: Annotated[int, Option(help="pictures per prompt", default=1, aliases=("num_images_per_prompt",))]
    width: Annotated[int | None, _SIDE]
    height: Annotated[int | None, _SIDE]
    image: Annotated[Pictures | None, Option(help="picture to start from")]
    mask: Annotated[
        Pictures | None,
        Option(help="white where the picture is to be made anew", aliases=("mask_image",)),
    ]
    only_masked: Annotated[
        bool,
        Option(help="draw the masked area alone, at the model's full size", default=False, allowed=SWITCH),
    ]
    padding: Annotated[
        int,
        Option(help="pixels around the masked area that only_masked takes in", default=32, low=0, high=1024),
    ]
    tiles: Annotated[
        bool,
        Option(help="draw over an image of any size, in overlapping tiles", default=False, allowed=SWITCH),
    ]
    strength: Annotated[
        float | Sequence[float] | None,
        Option(help="noise level to start from, in (0, 1]", low=0, high=1, above=True),
    ]
    scheduler: Annotated[str | None, Option(help="which noise levels", allowed=NAMED)]
    sampler: Annotated[str | None, Option(help="which step rule", allowed=NAMED)]
    eta: Annotated[float | None, Option(help="the sampler's share of fresh noise", low=0, high=1)]
    timesteps: Annotated[
        Sequence[int] | None,
        Option(
            help="exactly these levels, falling",
            allowed="give whole numbers, for example [999, 749, 499, 249]",
        ),
    ]
    reproducible: Annotated[
        bool,
        Option(
            help="the same bits in any batch: pictures are drawn one by one", default=False,
            allowed="give True or False",
        ),
    ]  # fmt: skip
    loras: Annotated[
        Sequence[File | tuple[File, float]],
        Option(help="a LoRA beside the model; may be given several times", default=(), flag="lora"),
    ]
    control: Annotated[
        Sequence[Guide],
        Option(
            help="a ControlNet, its picture and its scale; several times",
            default=(),
            aliases=("control_image",),
        ),
    ]
    reference: Annotated[
        Sequence[Guide],
        Option(
            help="an IP-Adapter, its picture and its scale; several times", default=(),
            aliases=("ip_adapter_image",),
        ),
    ]  # fmt: skip


class EngineOptions(TypedDict, total=False):
    """Which engine serves a call; `fewstep.generate` says what each is."""

    model: Annotated[
        File,
        Option(
            help='whose pictures: "tiny", "sdxl", a hub id, a folder or a file; `fewstep models`',
            default="tiny",
        ),
    ]
    accelerator: Annotated[File, Option(help="the mode's own weights, where not the usual ones", default="")]
    accelerator_weight: Annotated[
        float | None,
        Option(
            help="of the mode's own LoRA; as its authors have it where left out", low=0, high=2, above=True
        ),
    ]
    vae: Annotated[
        File, Option(help='what decodes: "tiny" is fast; a folder, a file or a hub id', default="")
    ]
    embeddings: Annotated[
        Sequence[File],
        Option(help="a textual inversion; may be given several times", default=(), flag="embedding"),
    ]
    prediction: Annotated[
        str,
        Option(
            help="what the network was trained to predict, where its files do not say", default="",
            allowed=f"choose one of {', '.join(PREDICTIONS)}, or leave it out",
        ),
    ]  # fmt: skip
    revision: Annotated[str, Option(help="of a model on the hub, 40 hex digits", default="")]
    commercial: Annotated[
        bool, Option(help="refuse weights that may not be used commercially", default=False)
    ]
    device: Annotated[str, Option(help="auto, cuda, cuda:1, mps or cpu", default="auto", choices=DEVICES)]
    precision: Annotated[str, Option(help="auto, fp32, fp16 or bf16", default="auto", choices=PRECISIONS)]
    offload: Annotated[
        str,
        Option(help="auto, none, model or sequential: weights wait in RAM", default="auto", choices=OFFLOADS),
    ]
    runtime: Annotated[
        str, Option(help="how networks are run: auto or eager", default="auto", choices=runtimes.NAMES)
    ]


class ChoiceOptions(TypedDict, total=False):
    """What chooses in the caller's place, before there is an engine."""

    budget_ms: Annotated[
        float | None,
        Option(
            help="milliseconds for a picture: the best mode, steps and VAE that fit", low=0, high=86_400_000,
            above=True, allowed="give a number of milliseconds above 0, up to a day",
        ),
    ]  # fmt: skip


class GenerateOptions(PictureOptions, EngineOptions, ChoiceOptions, total=False):
    """All keywords of `fewstep.generate` that choose pictures or the engine."""


def _make_table() -> Mapping[str, Option]:
    """Return every option by name, those of pictures first."""
    rows: dict[str, Option] = {}
    scopes = (("picture", PictureOptions), ("engine", EngineOptions), ("choice", ChoiceOptions))
    for scope, options in scopes:
        for name, hint in get_type_hints(options, include_extras=True).items():
            annotated = get_args(hint)  # (type, Option)
            rows[name] = replace(annotated[1], name=name, type=annotated[0], scope=scope)
    return MappingProxyType(rows)


OPTIONS = _make_table()
ALIASES: Mapping[str, str] = MappingProxyType(
    {"num_inference_steps": "steps", "prompt_embeds": "prompt"}
    | {alias: option.name for option in OPTIONS.values() for alias in option.aliases}
)


def scoped(scope: str) -> dict[str, Option]:
    """Return the options of one scope by name: "picture", "engine" or "choice"."""
    return {name: option for name, option in OPTIONS.items() if option.scope == scope}


def with_defaults(options: EngineOptions) -> EngineOptions:
    """Return engine options with every default filled in."""
    filled: Any = {name: option.default for name, option in scoped("engine").items()} | options
    return filled  # type: ignore[no-any-return]
