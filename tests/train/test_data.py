"""The pictures: npm packages as they are laid out → sprites and captions, without network."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fewstep.train.bundled import data

SQUARE = '<path fill="#f00" d="M0 0h{side}v{side}H0z"/>'
HALF = '<path fill="#00f" fill-opacity=".5" d="M0 0h{side}v{side}H0z"/>'
LEFT = '<path fill="#0f0" d="M0 0h{half}v{side}H0z"/>'


def pack(path: Path, files: dict[str, bytes]) -> None:
    """A tarball as `npm pack` writes it: everything under package/."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def iconify(side: int, chars: dict[str, str]) -> dict[str, bytes]:
    drawn = {"face": SQUARE, "heart": HALF, "left": LEFT}
    icons: dict[str, Any] = {
        "prefix": "set",
        "icons": {name: {"body": svg.format(side=side, half=side // 2)} for name, svg in drawn.items()},
        "aliases": {"smiley": {"parent": "grin"}, "grin": {"parent": "face"}},
        "width": side,
        "height": side,
    }
    # One wider than the set's own size, as a few real ones are; it is squeezed to a square.
    icons["icons"]["wide"] = {"body": SQUARE.format(side=side), "width": 2 * side}
    return {"icons.json": json.dumps(icons).encode(), "chars.json": json.dumps(chars).encode()}


def webp(colour: tuple[int, int, int, int]) -> bytes:
    """256 px with a transparent left half."""
    picture = Image.new("RGBA", (256, 256))
    picture.paste(colour, (128, 0, 256, 256))
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=True)
    return file.getvalue()


EMOJIBASE = [
    {"hexcode": "1F600", "label": "Grinning Face", "tags": ["Smile", "happy"], "group": 0, "order": 1},
    {"hexcode": "2764-FE0F", "label": "red heart", "tags": ["love"], "group": 8, "order": 2},
    {"hexcode": "0023-FE0F-20E3", "label": "keycap: #", "group": 8, "order": 3},
    {
        "hexcode": "1F44B", "label": "waving hand", "tags": [], "group": 1, "order": 4,
        "skins": [{"hexcode": "1F44B-1F3FB", "label": "waving hand: light skin tone", "group": 1, "tone": 1}],
    },
    {"hexcode": "1F1E6", "label": "regional indicator A"},
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All packages, each with a few pictures; the last names its icons, and has no code points."""
    words, noto, flat, three, apart = (tmp_path / package.tarball for package in data.PACKAGES)
    pack(words, {"en/data.json": json.dumps(EMOJIBASE).encode(), "de/data.json": b"[]"})
    chars = {"1f600": "smiley", "2764": "heart", "2764-fe0f": "face", "1f1e6": "face", "1f44b-1f3fb": "face"}
    pack(noto, iconify(128, chars))
    pack(flat, iconify(32, {"1f600": "left", "1f44b": "wide", "23-fe0f-20e3": "face", "e50a": "face"}))
    pictures = {"1f600": (0, 255, 0, 255), "2764-fe0f": (200, 100, 0, 128)}
    files = {f"assets/{code}.webp": webp(colour) for code, colour in pictures.items()}
    pack(three, files | {"README.md": b"no picture"})
    named = json.loads(iconify(512, {})["icons.json"])
    drawn = named["icons"]["face"]
    # By label, by Unicode's own name (of U+2764), and by a name that nobody knows.
    named["icons"] = {"wavinghand": drawn, "heavyblackheart": drawn, "nobodyknows": drawn}
    pack(apart, {"icons.json": json.dumps(named).encode(), "chars.json": b"[]"})
    return tmp_path


def built(folder: Path) -> dict[tuple[str, str], torch.Tensor]:
    data.build_sprites(folder)
    sprites, captions = data.load_sprites(folder)
    assert len(sprites) == len(captions)
    return {(c.hexcode, c.style): sprite for c, sprite in zip(captions, sprites, strict=True)}


def test_tarball_names_are_npms() -> None:
    assert [package.tarball for package in data.PACKAGES] == [
        "emojibase-data-17.0.0.tgz",
        "iconify-json-noto-1.2.9.tgz",
        "iconify-json-fluent-emoji-flat-1.2.6.tgz",
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "iconify-json-fxemoji-1.2.2.tgz",
    ]


def test_no_share_alike_sets() -> None:
    assert {package.licence for package in data.PACKAGES} == {"MIT", "Apache-2.0"}


def test_fetch_with_the_files_there_runs_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", refuse)
    hashes = data.fetch_packages(folder)
    assert hashes == {package.tarball: data.sha256(folder / package.tarball) for package in data.PACKAGES}
    assert all(len(digest) == 64 for digest in hashes.values())


def test_fetch_asks_npm_for_exactly_what_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], Path]] = []

    def npm(command: list[str], *, cwd: Path, check: bool) -> None:
        assert check
        asked.append((command, cwd))
        (cwd / data.PACKAGES[1].tarball).write_bytes(b"tar")

    (folder / data.PACKAGES[1].tarball).unlink()
    monkeypatch.setattr(subprocess, "run", npm)
    data.fetch_packages(folder)
    assert asked == [(["npm", "pack", "--silent", "@iconify-json/noto@1.2.9"], folder)]


def test_sprites_and_captions(folder: Path) -> None:
    path = data.build_sprites(folder)
    sprites, captions = data.load_sprites(folder)
    assert path == folder / "sprites.safetensors"
    assert sprites.shape == (len(captions), 4, 128, 128)
    assert sprites.dtype == torch.uint8
    assert [(c.hexcode, c.style) for c in captions] == [
        ("1f600", "noto"), ("2764", "noto"),
        ("1f600", "flat"), ("1f44b", "flat"), ("0023-20e3", "flat"),
        ("1f600", "3d"), ("2764", "3d"),
    ]  # fmt: skip
    assert captions[0] == data.Caption(
        label="grinning face", style="noto", tags=("smile", "happy"), hexcode="1f600"
    )
    assert captions[4].tags == ()


def test_what_is_apart_is_kept_apart_and_found_by_name(folder: Path) -> None:
    data.build_sprites(folder)
    sprites, captions = data.load_sprites(folder, "fx")
    assert [(c.label, c.style) for c in captions] == [("waving hand", "fx"), ("red heart", "fx")]
    assert sprites.shape == (2, 4, 128, 128)
    assert all(caption.style != "fx" for caption in data.load_sprites(folder)[1])


def test_build_is_done_once(folder: Path) -> None:
    data.build_sprites(folder)
    for package in data.PACKAGES:
        (folder / package.tarball).unlink()
    assert data.build_sprites(folder) == folder / "sprites.safetensors"


def test_aliases_are_followed_and_sizes_are_the_sets(folder: Path) -> None:
    sprites = built(folder)
    red = torch.tensor([255, 0, 0, 255], dtype=torch.uint8).view(4, 1, 1).expand(4, 128, 128)
    assert torch.equal(sprites["1f600", "noto"], red)  # smiley → grin → face
    left = sprites["1f600", "flat"]
    assert torch.equal(left[:, :, :60].float().mean(dim=(1, 2)), torch.tensor([0.0, 255.0, 0.0, 255.0]))
    assert not left[:, :, 68:].any()


def test_sprites_are_premultiplied(folder: Path) -> None:
    sprites = built(folder)
    blue = sprites["2764", "noto"].float().mean(dim=(1, 2))
    torch.testing.assert_close(blue, torch.tensor([0.0, 0.0, 128.0, 128.0]), atol=1, rtol=0)
    webp_right = sprites["2764", "3d"][:, :, 100].float().mean(dim=1)
    torch.testing.assert_close(webp_right, torch.tensor([100.0, 50.0, 0.0, 128.0]), atol=1, rtol=0)
    for sprite in sprites.values():
        assert bool((sprite[:3] <= sprite[3:]).all())  # no colour without alpha


@pytest.mark.parametrize(
    ("hexcode", "code"),
    [("2764-FE0F", "2764"), ("23-fe0f-20e3", "0023-20e3"), ("1F468-200D-2764-FE0F-200D-1F468",
      "1f468-200d-2764-200d-1f468"), ("1f600", "1f600")],
)  # fmt: skip
def test_codes_have_no_variation_selector(hexcode: str, code: str) -> None:
    assert data._code_points(hexcode) == code


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    pack(tmp_path / "empty.tgz", {})
    with pytest.raises(KeyError, match=r"package/icons\.json"):
        data._read_member(tmp_path / "empty.tgz", "package/icons.json")
