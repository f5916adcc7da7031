"""`Result`: the pictures of one call and how they were made."""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, overload

from PIL import Image

from fewstep.errors import OutputError
from fewstep.files.checksums import UsedWeights
from fewstep.files.output import write_file
from fewstep.images import FACTS_KEY, PATH_KEY
from fewstep.images.sheet import html_sheet
from fewstep.metadata import MAX_EMBEDDED, encode, make_encoding, output_paths, pack_pictures
from fewstep.request import Job, Plan
from fewstep.request.call import call_keywords, parent_facts
from fewstep.request.schema import EngineKey, fingerprint
from fewstep.workflow import Workflow

COMPUTING = ("fewstep", "torch", "diffusers", "transformers")  # packages whose releases may change a picture


@dataclass(frozen=True, kw_only=True)
class Result(Workflow["Result"]):
    """A sequence of PIL images that knows its own making."""

    images: tuple[Image.Image, ...]
    jobs: tuple[Job, ...]  # what was drawn, in the order of `images`: one, but for lists of options
    engine_key: EngineKey  # what was loaded for it
    redraw: Callable[..., Result] = field(
        repr=False
    )  # (prompt, steps, mode, **options), as `fewstep.generate`
    timings: Mapping[str, float]  # seconds: steps, decode, total
    warnings: tuple[str, ...]
    model: str  # where the weights came from
    licence: str  # of all that was used
    device: str
    precision: str
    runtime: str = "eager"  # how the networks were run
    processor: str = ""  # what computed
    threads: int = 0  # that torch had on the CPU
    weights: tuple[UsedWeights, ...] = ()  # the files that were read; hashed when facts are asked for
    revision: str = ""  # the commit on the hub that the model came from; "" for what is not from there
    places: tuple[int, ...] = ()  # of these pictures in their call, where others of it failed

    @property
    def job(self) -> Job:
        """What was drawn; of the first pictures, where lists of options make several jobs."""
        return self.jobs[0]

    @property
    def plan(self) -> Plan:
        """How it was drawn: the job's."""
        return self.jobs[0].plan

    @property
    def plans(self) -> tuple[Plan, ...]:
        """How each picture was drawn."""
        return tuple(job.plan.only([i]) for job in self.jobs for i in range(len(job.prompts)))

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(seed for job in self.jobs for seed in job.request.seeds)

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(prompt for job in self.jobs for prompt in job.request.prompts)

    @property
    def edited(self) -> bool:
        """Whether they were made from given pictures."""
        return bool(self.jobs[0].images)

    @property
    def parents(self) -> tuple[Result, ...]:
        """For each picture that was made from one of another result that result, of this one picture."""
        return tuple(parent for job in self.jobs for parent in job.parents if parent is not None)

    @property
    def accelerator(self) -> str:
        """Given in the place of the mode's own weights."""
        return self.engine_key.file("accelerator")

    @property
    def vae(self) -> str:
        """Given in the place of the model's own."""
        return self.engine_key.file("vae")

    @property
    def embeddings(self) -> tuple[str, ...]:
        """Files of learned words."""
        return self.engine_key.embeddings

    @property
    def sources(self) -> Mapping[str, Sequence[str]]:
        """What the first picture was made from, by option, each as its SHA-256."""
        return self.jobs[0].source_hashes()

    @property
    def timesteps(self) -> tuple[float, ...]:
        return self.plan.schedule.timesteps

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Image.Image, ...]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | tuple[Image.Image, ...]:
        """Return a picture, or some; what is taken out has its facts in `.info["fewstep"]`."""
        if isinstance(index, slice):
            return tuple(self._with_info(i) for i in range(len(self))[index])
        return self._with_info(range(len(self))[index])

    def __iter__(self) -> Iterator[Image.Image]:
        return map(self._with_info, range(len(self)))

    def _with_info(self, index: int) -> Image.Image:
        """Return a picture with its facts in `.info`, as JSON: written when it is first taken out."""
        image = self.images[index]
        if FACTS_KEY not in image.info:
            image.info[FACTS_KEY] = json.dumps(self.facts(index, weights=False), ensure_ascii=False)
        return image

    def __repr__(self) -> str:
        request = self.plan.request
        return (
            f"<fewstep.Result: {len(self)} of {request.width}x{request.height}, mode {request.mode!r}, "
            f"steps {request.steps}, seeds {list(self.seeds)}, {self.timings['total']:.2f} s>"
        )

    def save(  # noqa: PLR0913  the public call names every choice
        self,
        path: str | os.PathLike[str] | BinaryIO,
        *,
        overwrite: bool = False,
        format: str | None = None,
        quality: int | None = None,
        metadata: bool = True,
        prompts: bool = True,
        embed: bool | None = None,
    ) -> list[Path]:
        """Write the pictures as PNG, JPEG or WebP, by the ending or `format`; returns the paths.

        One picture goes to `path`, those of a call of several to `path` with their place, -0, -1, ...,
        before its ending. How each was made is written into it. A file appears whole or not at all; one that
        exists stays, with `OutputError`, unless `overwrite`. An open binary file takes one picture.

        The other options are those of `bytes`.
        """
        saving: dict[str, Any] = {
            "quality": quality, "metadata": metadata, "prompts": prompts, "embed": embed,
        }  # fmt: skip
        if not isinstance(path, str | os.PathLike):
            self._write_to(path, format, saving)
            return []
        places = self.places or (range(len(self)) if len(self) > 1 else ())
        paths = output_paths(path, places, overwrite=overwrite, format=format)
        chosen = make_encoding(format, quality, path=paths[0]).format
        for index, target in enumerate(paths):
            write_file(target, self.bytes(index, chosen, **saving), overwrite=overwrite)
        return paths

    def _write_to(self, file: BinaryIO, format: str | None, saving: Mapping[str, Any]) -> None:
        """Write the only picture to an open file."""
        if not hasattr(file, "write"):
            raise OutputError(f"{file!r:.80} is no path: type 'picture.png'")
        if len(self) != 1:
            raise OutputError(f"an open file takes one picture, not {len(self)}: write result.bytes(0), ...")
        content = self.bytes(0, format, **saving)
        try:
            file.write(content)
        except TypeError:
            raise OutputError(f"{file!r:.80} takes text: open it as binary, 'wb'") from None
        except (OSError, ValueError) as error:
            raise OutputError(f"{file!r:.80} cannot be written: {error}") from error

    def png(self, index: int = 0) -> builtins.bytes:
        """Return picture `index` as a PNG file, with how it was made: what `save` writes."""
        return self.bytes(index)

    def bytes(
        self,
        index: int = 0,
        format: str | None = "png",
        *,
        quality: int | None = None,
        metadata: bool = True,
        prompts: bool = True,
        embed: bool | None = None,
    ) -> builtins.bytes:
        """Return picture `index` as a file's bytes: "png", "jpeg" or "webp", with how it was made.

        quality: of JPEG (95 where not given) and WebP (90; at 100 it keeps every bit), from 1 to 100.
        metadata: False leaves out how it was made; the mark that a model made it stays.
        prompts: False leaves the prompts out of that.
        embed: whether given pictures are put into the file, without loss, so that it can be drawn again from
            it alone; None puts those in that came from memory, up to 4 MiB.
        """
        encoding = make_encoding(format, quality, metadata, prompts)
        facts = self.facts(index) if encoding.metadata else {}
        embedded = self._given(index, embed) if encoding.metadata else b""
        return encode(self.images[index], facts, edited=self.edited, encoding=encoding, embedded=embedded)

    def _given(self, index: int, embed: bool | None) -> builtins.bytes:
        """Return the pictures to put into a file: all, none or, where `embed` is None, those from memory."""
        pictures = self.job_of(index).given_pictures() if embed is not False else {}
        if embed is None:
            pictures = {
                name: images
                for name, images in pictures.items()
                if not all(image.info.get(PATH_KEY) for image in images)
            }
        return pack_pictures(pictures, MAX_EMBEDDED if embed is None else None)

    def facts(self, index: int = 0, *, weights: bool = True) -> dict[str, object]:
        """Return how picture `index` was made, as plain data that equals its own JSON.

        All that was typed is in it, LoRAs with their weights too; of given pictures (`sources`) the SHA-256,
        which tells whether one in hand is the same, and where they were (`pictures`); of files their places,
        and the SHA-256 of `weights`, a second for a gigabyte where nobody asked before; `versions`,
        `processor`, `threads` and `batch` of what computed; of the picture itself (`pixels`) the SHA-256.

        weights: False leaves them out, so that nothing is hashed.
        """
        job, options = self.job_of(index), self.engine_key.options
        return {
            **job.plan.to_dict(),
            "accelerator": self.accelerator,
            "accelerator_weight": options["accelerator_weight"],
            "vae": self.vae,
            "embeddings": list(self.embeddings),
            "licence": self.licence,
            "prediction": options["prediction"],
            "revision": self.revision,
            "device": self.device,
            "precision": self.precision,
            "runtime": self.runtime,
            "sources": job.source_hashes(),
            "parents": parent_facts(job),
            "pictures": _picture_paths(job),
            **({"weights": [used.to_dict() for used in self.weights]} if weights else {}),
            "pixels": fingerprint(self.images[index]),
            "batch": {"pictures": job.batch, "row": job.rows[0]} if job.rows else {},
            "processor": self.processor,
            "threads": self.threads,
            "versions": installed_versions(COMPUTING),
        }

    def job_of(self, index: int) -> Job:
        """Return the job of picture `index` alone."""
        place = range(len(self))[index]
        for job in self.jobs:
            if place < len(job.prompts):
                return job.only([place])
            place -= len(job.prompts)
        raise IndexError(index)

    def only(self, pictures: Sequence[int]) -> Result:
        """Return the result of some of its pictures, by their places in it, in this order."""
        several = len(self.jobs) > 1
        jobs = tuple(map(self.job_of, pictures)) if several else (self.jobs[0].only(pictures),)
        return replace(self, images=tuple(self.images[i] for i in pictures), jobs=jobs, places=())

    def call(self, index: int | None = None) -> dict[str, Any]:
        """Return the keywords of `fewstep.generate` that draw these pictures again, or picture `index` alone.

        What has its usual value is left out. Given pictures are in it as they were used.
        """
        jobs = self.jobs if index is None else (self.job_of(index),)
        return call_keywords(jobs, self.engine_key)

    def grid(self, columns: int | None = None) -> Image.Image:
        """Return all pictures on one sheet."""
        across = columns or min(len(self), 4)
        down = -(-len(self) // across)
        width, height = self.images[0].size
        sheet = Image.new("RGB", (across * width, down * height), "white")
        for index, image in enumerate(self.images):
            sheet.paste(image, (index % across * width, index // across * height))
        return sheet

    def _repr_html_(self) -> str:
        """Return the notebook's view: the sheet, prompt and seed on hover."""
        files = [self.bytes(index, metadata=False) for index in range(len(self))]
        titles = [f"{prompt} (seed {seed})" for prompt, seed in zip(self.prompts, self.seeds, strict=True)]
        return html_sheet(files, self.labels, titles)


def join_results(results: Sequence[Result]) -> Result:
    """Return the pictures of the jobs of one call as one result, in the order of the call."""
    jobs = tuple(job for result in results for job in result.jobs)
    places = [place for job in jobs for place in job.places]
    joined = replace(
        results[0],
        images=tuple(image for result in results for image in result.images),
        jobs=jobs,
        timings={
            name: sum(result.timings[name] for result in results) for name in ("steps", "decode", "total")
        },
        warnings=tuple(dict.fromkeys(sentence for result in results for sentence in result.warnings)),
    )
    return joined.only(sorted(range(len(places)), key=places.__getitem__))


def _picture_paths(job: Job) -> dict[str, list[str]]:
    """Return where given pictures came from, by option, "" for one from memory; without those options."""
    paths = {
        name: [str(image.info.get(PATH_KEY, "")) for image in images]
        for name, images in job.given_pictures().items()
    }
    return {name: listed for name, listed in paths.items() if any(listed)}


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the version of each package; those not installed are left out."""
    return {name: installed for name in names if (installed := installed_version(name))}


@cache
def installed_version(name: str) -> str:
    """Return a package's version, "" where it is not installed; looked for once."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
