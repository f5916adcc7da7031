"""The training pictures: emoji sets from npm packages, rendered once to sprites.

Nothing here is committed: the packages are fetched with npm's own client, and their
sha256 goes into the record of every run that used them. Sources and licences are in
`PACKAGES`; sets under CC-BY-SA are left out, so that the weights can be Apache-2.0.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fewstep.errors import FewstepError

SIZE = 128  # pixels, both sides


@dataclass(frozen=True, kw_only=True)
class Package:
    """An npm package that holds pictures or captions."""

    name: str
    version: str
    licence: str
    style: str | None  # the word in captions; None for the captions themselves

    @property
    def tarball(self) -> str:
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES = (
    Package(name="emojibase-data", version="17.0.0", licence="MIT", style=None),
    Package(name="@iconify-json/noto", version="1.2.9", licence="Apache-2.0", style="noto"),
    Package(name="@iconify-json/fluent-emoji-flat", version="1.2.6", licence="MIT", style="flat"),
    Package(name="@lobehub/fluent-emoji-3d", version="1.1.0", licence="MIT", style="3d"),
)


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What is known of one sprite."""

    label: str  # "grinning face"
    style: str  # "noto", "flat" or "3d"
    tags: tuple[str, ...]  # synonyms: "smile", "happy"
    hexcode: str  # code points, lower case, joined by "-"


def fetch(folder: Path) -> dict[str, str]:
    """Download every package into `folder` with `npm pack`; return file name → sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if not (folder / package.tarball).exists():
            spec = f"{package.name}@{package.version}"
            try:
                subprocess.run(["npm", "pack", "--silent", spec], cwd=folder, check=True)
            except (FileNotFoundError, subprocess.CalledProcessError) as error:
                raise FewstepError(f"{spec} could not be fetched, which needs npm: {error}") from error
    return {p.tarball: sha256(folder / p.tarball) for p in PACKAGES}


def sha256(path: Path) -> str:
    """The sha256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build(folder: Path) -> Path:
    """Render everything to `sprites.safetensors` and `captions.jsonl`; return the former.

    Sprites are RGBA, premultiplied by alpha, uint8, (N, 4, 128, 128).
    """
    sprites_path, captions_path = folder / "sprites.safetensors", folder / "captions.jsonl"
    if sprites_path.exists() and captions_path.exists():
        return sprites_path
    captions: list[Caption] = []
    sprites: list[torch.Tensor] = []
    labels = _labels(folder)
    for package in PACKAGES:
        for code, picture in _pictures(folder, package):
            if code in labels and package.style is not None:
                label, tags = labels[code]
                captions.append(Caption(label=label, style=package.style, tags=tags, hexcode=code))
                sprites.append(_premultiplied(picture))
    save_file({"sprites": torch.stack(sprites)}, sprites_path)
    captions_path.write_text("".join(json.dumps(asdict(c)) + "\n" for c in captions))
    return sprites_path


def load(folder: Path) -> tuple[torch.Tensor, list[Caption]]:
    """Read what `build` wrote: uint8 sprites (N, 4, 128, 128) and their captions."""
    sprites = load_file(folder / "sprites.safetensors")["sprites"]
    rows = (json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines())
    return sprites, [Caption(**{**row, "tags": tuple(row["tags"])}) for row in rows]


def _labels(folder: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Code points → label and tags, from emojibase; bare regional letters are left out."""
    rows = _member(folder / PACKAGES[0].tarball, "package/en/data.json")
    return {
        _code(row["hexcode"]): (row["label"].lower(), tuple(t.lower() for t in row.get("tags", [])))
        for row in json.loads(rows)
        if "group" in row
    }


def _pictures(folder: Path, package: Package) -> Iterator[tuple[str, Image.Image]]:
    """Every picture of a package with its code points, skin-tone variants included."""
    tarball = folder / package.tarball
    if package.style is None:
        return
    if package.style == "3d":
        with tarfile.open(tarball) as tar:
            for member in tar:
                if member.name.endswith(".webp"):
                    file = tar.extractfile(member)
                    assert file is not None
                    yield _code(Path(member.name).stem), Image.open(io.BytesIO(file.read()))
        return
    icons = json.loads(_member(tarball, "package/icons.json"))
    chars = json.loads(_member(tarball, "package/chars.json"))
    seen: set[str] = set()
    for code, name in chars.items():
        if _code(code) not in seen:
            seen.add(_code(code))
            yield _code(code), _rendered(icons, name)


def _rendered(icons: dict[str, Any], name: str) -> Image.Image:
    """One iconify icon, aliases followed, as a picture."""
    import resvg_py

    while name in icons.get("aliases", {}):
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    width, height = (icon.get(k, icons.get(k, 16)) for k in ("width", "height"))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">{icon["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE)
    return Image.open(io.BytesIO(bytes(png)))


def _premultiplied(picture: Image.Image) -> torch.Tensor:
    """RGBA premultiplied by alpha, uint8, (4, 128, 128)."""
    rgba = picture.convert("RGBa").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    flat = torch.frombuffer(bytearray(rgba.tobytes()), dtype=torch.uint8)
    return flat.view(SIZE, SIZE, 4).permute(2, 0, 1).contiguous()


def _code(hexcode: str) -> str:
    """Code points without variation selectors, the form that all sets share."""
    parts = hexcode.lower().split("-")
    return "-".join(p.zfill(4) for p in parts if p != "fe0f")


def _member(tarball: Path, name: str) -> bytes:
    with tarfile.open(tarball) as tar:
        file = tar.extractfile(name)
        if file is None:
            raise FileNotFoundError(f"{tarball} holds no {name}")
        return file.read()
