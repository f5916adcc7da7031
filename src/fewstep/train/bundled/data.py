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
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fewstep.errors import FewstepError

PICTURE_SIZE = 128  # pixels, both sides
Label = tuple[str, tuple[str, ...]]  # with its tags


@dataclass(frozen=True, kw_only=True)
class Package:
    """An npm package that holds pictures or captions."""

    name: str
    version: str
    licence: str
    style: str | None  # the word in captions; None for the captions themselves
    apart: bool = False  # kept from everything but a style LoRA

    @property
    def tarball(self) -> str:
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES = (
    Package(name="emojibase-data", version="17.0.0", licence="MIT", style=None),
    Package(name="@iconify-json/noto", version="1.2.9", licence="Apache-2.0", style="noto"),
    Package(name="@iconify-json/fluent-emoji-flat", version="1.2.6", licence="MIT", style="flat"),
    Package(name="@lobehub/fluent-emoji-3d", version="1.1.0", licence="MIT", style="3d"),
    Package(name="@iconify-json/fxemoji", version="1.2.2", licence="Apache-2.0", style="fx", apart=True),
)


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What is known of one sprite."""

    label: str  # "grinning face"
    style: str  # "noto", "flat" or "3d"; of what is apart "fx"
    tags: tuple[str, ...]  # synonyms: "smile", "happy"
    hexcode: str  # code points, lower case, joined by "-"


def fetch_packages(folder: Path) -> dict[str, str]:
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


def build_sprites(folder: Path) -> Path:
    """Render everything; return the file of the pictures to train on. What is apart has files of its own.

    Sprites are RGBA, premultiplied by alpha, uint8, (N, 4, 128, 128).
    """
    for style in ("", *(package.style or "" for package in PACKAGES if package.apart)):
        sprites_path, captions_path = sprite_files(folder, style)
        if not (sprites_path.exists() and captions_path.exists()):
            packages = [p for p in PACKAGES if p.style and p.apart == bool(style) and style in ("", p.style)]
            captions, sprites = _rendered_sets(folder, packages)
            save_file({"sprites": torch.stack(sprites)}, sprites_path)
            captions_path.write_text("".join(json.dumps(asdict(c)) + "\n" for c in captions))
    return sprite_files(folder, "")[0]


def load_sprites(folder: Path, style: str = "") -> tuple[torch.Tensor, list[Caption]]:
    """Read what `build` wrote, or of it the pictures of a style that is apart.

    uint8 sprites (N, 4, 128, 128) and their captions.
    """
    return load_file(sprite_files(folder, style)[0])["sprites"], load_captions(folder, style)


def load_captions(folder: Path, style: str = "") -> list[Caption]:
    """What is known of each sprite."""
    rows = (json.loads(line) for line in sprite_files(folder, style)[1].read_text().splitlines())
    return [Caption(**{**row, "tags": tuple(row["tags"])}) for row in rows]


def sprite_files(folder: Path, style: str = "") -> tuple[Path, Path]:
    """Where `build` writes sprites and captions, or those of a style that is apart."""
    end = f"-{style}" if style else ""
    return folder / f"sprites{end}.safetensors", folder / f"captions{end}.jsonl"


def _rendered_sets(folder: Path, packages: Sequence[Package]) -> tuple[list[Caption], list[torch.Tensor]]:
    """Every picture that has a label, and what is known of it."""
    captions: list[Caption] = []
    sprites: list[torch.Tensor] = []
    labels = _read_labels(folder)
    for package in packages:
        for code, picture in _read_pictures(folder, package, labels):
            if code in labels and package.style is not None:
                label, tags = labels[code]
                captions.append(Caption(label=label, style=package.style, tags=tags, hexcode=code))
                sprites.append(_premultiplied(picture))
    return captions, sprites


def _read_labels(folder: Path) -> dict[str, Label]:
    """Code points → label and tags, from emojibase; bare regional letters are left out."""
    rows = _read_member(folder / PACKAGES[0].tarball, "package/en/data.json")
    return {
        _code_points(row["hexcode"]): (row["label"].lower(), tuple(t.lower() for t in row.get("tags", [])))
        for row in json.loads(rows)
        if "group" in row
    }


def _read_pictures(
    folder: Path, package: Package, labels: Mapping[str, Label]
) -> Iterator[tuple[str, Image.Image]]:
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
                    yield _code_points(Path(member.name).stem), Image.open(io.BytesIO(file.read()))
        return
    icons = json.loads(_read_member(tarball, "package/icons.json"))
    chars = json.loads(_read_member(tarball, "package/chars.json")) or _codes_by_name(icons["icons"], labels)
    seen_codes: set[str] = set()
    for code, name in chars.items():
        if _code_points(code) not in seen_codes:
            seen_codes.add(_code_points(code))
            yield _code_points(code), _render_icon(icons, name)


def _codes_by_name(names: Iterable[str], labels: Mapping[str, Label]) -> dict[str, str]:
    """Code points → icon, of a set that names its icons "alarmclock": by label, or by Unicode's own name."""
    codes: dict[str, str] = {}
    for code, (label, _) in labels.items():
        formal = unicodedata.name(chr(int(code, 16)), "") if "-" not in code else ""
        codes |= {_letters(formal): code, _letters(label): code}
    return {codes[name]: name for name in names if name in codes}


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _render_icon(icons: dict[str, Any], name: str) -> Image.Image:
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
    png = resvg_py.svg_to_bytes(svg_string=svg, width=PICTURE_SIZE, height=PICTURE_SIZE)
    return Image.open(io.BytesIO(bytes(png)))


def _premultiplied(picture: Image.Image) -> torch.Tensor:
    """RGBA premultiplied by alpha, uint8, (4, 128, 128)."""
    rgba = picture.convert("RGBa").resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.LANCZOS)
    flat = torch.frombuffer(bytearray(rgba.tobytes()), dtype=torch.uint8)
    return flat.view(PICTURE_SIZE, PICTURE_SIZE, 4).permute(2, 0, 1).contiguous()


def _code_points(hexcode: str) -> str:
    """Code points without variation selectors, the form that all sets share."""
    parts = hexcode.lower().split("-")
    return "-".join(p.zfill(4) for p in parts if p != "fe0f")


def _read_member(tarball: Path, name: str) -> bytes:
    with tarfile.open(tarball) as tar:
        file = tar.extractfile(name)
        if file is None:
            raise FileNotFoundError(f"{tarball} holds no {name}")
        return file.read()
