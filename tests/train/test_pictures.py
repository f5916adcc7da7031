"""Reading a user's pictures: every layout, and what must be refused."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from fewstep.errors import RequestError
from fewstep.train import pictures

COLOURS = ("red", "green", "blue")


def png(colour: str = "red", size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            file.addfile(about, io.BytesIO(data))
    return path


def sidecars(root: Path) -> Path:
    for number, colour in enumerate(COLOURS):
        (root / "in").mkdir(exist_ok=True)
        (root / "in" / f"{number}.png").write_bytes(png(colour))
        (root / "in" / f"{number}.txt").write_text(f"a {colour}\n picture ")
    return root


def jsonl(root: Path) -> Path:
    rows = []
    for number, colour in enumerate(COLOURS):
        (root / f"{number}.jpg").write_bytes(png(colour, kind="JPEG"))
        rows.append(json.dumps({"file_name": f"{number}.jpg", "text": f"a {colour} picture", "other": 1}))
    (root / "metadata.jsonl").write_text("\n".join(rows) + "\n\n")
    return root


def table(root: Path) -> Path:
    for number, colour in enumerate(COLOURS):
        (root / f"{number}.webp").write_bytes(png(colour, kind="WEBP"))
    rows = "".join(f'{number}.webp,"a {colour} picture"\n' for number, colour in enumerate(COLOURS))
    (root / "metadata.csv").write_text(f"file_name,text\n{rows}")
    return root


def shards(root: Path) -> Path:
    tar(root / "0.tar", {"a/1.png": png("red"), "a/1.json": b'{"caption": "a red picture", "width": 1}'})
    tar(
        root / "1.tar",
        {
            "a/1.txt": b"a green picture", "a/1.png": png("green"), "a/1.cls": b"7",
            "b.txt": b"a blue picture", "b.json": b'{"text": "no"}', "b.PNG": png("blue"),
        },
    )  # fmt: skip
    return root


def shard(root: Path) -> Path:
    members = {f"{n}.{kind}": data for n, c in enumerate(COLOURS) for kind, data in
               (("png", png(c)), ("txt", f"a {c} picture".encode()))}  # fmt: skip
    return tar(root / "all.tar", members)


@pytest.mark.parametrize("layout", [sidecars, jsonl, table, shards, shard])
def test_every_layout(layout: Callable[[Path], Path], tmp_path: Path) -> None:
    found = pictures.find_pictures(layout(tmp_path))
    assert [picture.caption for picture in found] == [f"a {colour} picture" for colour in COLOURS]
    wanted = [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    for picture, colour in zip(found, wanted, strict=True):
        seen = picture.tensor(16)
        assert seen.shape == (1, 3, 16, 16)
        pixels = (seen.mean(dim=(0, 2, 3)) + 1) * 127.5
        assert float((pixels - torch.tensor(colour)).abs().max()) < 4  # JPEG and WEBP are lossy


def test_the_middle_is_cropped_and_transparency_is_white(tmp_path: Path) -> None:
    wide = Image.new("RGB", (60, 20), "red")
    wide.paste("blue", (20, 0, 40, 20))
    wide.save(tmp_path / "wide.png")
    (tmp_path / "wide.txt").write_text("stripes")
    [picture] = pictures.find_pictures(tmp_path)
    assert picture.fitted(20).getcolors() == [(400, (0, 0, 255))]
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "wide.png")
    [picture] = pictures.find_pictures(tmp_path)
    assert picture.fitted(8).getcolors() == [(64, (255, 255, 255))]


def test_it_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture = Image.new("RGB", (32, 32), "white")
    picture.paste("black", (0, 0, 32, 16))
    picture.save(tmp_path / "a.png", exif=exif)
    (tmp_path / "a.txt").write_text("a bar")
    [found] = pictures.find_pictures(tmp_path)
    turned = found.fitted(32)
    assert turned.getpixel((2, 16)) == (255, 255, 255)
    assert turned.getpixel((30, 16)) == (0, 0, 0)


def test_missing_captions_are_counted(tmp_path: Path) -> None:
    sidecars(tmp_path)
    (tmp_path / "in" / "1.txt").unlink()
    (tmp_path / "in" / "2.txt").write_text("  ")
    with pytest.raises(RequestError, match=r"2 of 3 pictures have no caption, the first is .*1\.png"):
        pictures.find_pictures(tmp_path)


def test_missing_captions_of_a_table_name_the_line(tmp_path: Path) -> None:
    jsonl(tmp_path)
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "0.jpg"}\n')
    with pytest.raises(RequestError, match=r"1 of 4 .* metadata\.jsonl line 5|metadata\.jsonl line 5"):
        pictures.find_pictures(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{broken", "line 1 is no JSON"),
        ("[1]", "line 1 is no JSON object"),
        ("[" * 5000, "line 1 is no JSON"),
        ('{"text": "a"}', "there is no file_name"),
        ('{"file_name": 7, "text": "a"}', "there is no file_name"),
        ('{"file_name": "../a.png", "text": "a"}', "leads out of the folder"),
        ('{"file_name": "/etc/a.png", "text": "a"}', "leads out of the folder"),
        ('{"file_name": "C:\\\\a.png", "text": "a"}', "leads out of the folder"),
        ('{"file_name": "..\\\\a.png", "text": "a"}', "leads out of the folder"),
        ('{"file_name": "a.png\\u0000", "text": "a"}', "leads out of the folder"),
        ('{"file_name": "a.heic", "text": "a"}', "is none of .png"),
        ('{"file_name": "none.png", "text": "a"}', "there is no file"),
        ('{"file_name": "a.png", "text": "' + "x" * 70_000 + '"}', "more than 65536 bytes"),
        ('{"file_name": "a.png", "text": "\\ud800"}', "half a character"),
    ],
)
def test_hostile_lines(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(RequestError, match=said):
        pictures.find_pictures(tmp_path)


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "x/../../a.png", "C:/a.png"])
def test_names_in_a_shard_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="leads out of the folder"):
        pictures.find_pictures(tar(tmp_path / "a.tar", {name: png()}))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_shard(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        about = tarfile.TarInfo("a.png")
        about.type, about.linkname = kind, "/etc/passwd"
        file.addfile(about)
    with pytest.raises(RequestError, match="is a link or a device"):
        pictures.find_pictures(tmp_path / "a.tar")


def test_what_is_no_plain_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(os.urandom(2048))
    with tarfile.open(tmp_path / "b.tar", "w:gz") as file:
        file.addfile(tarfile.TarInfo("a.txt"))
    for name in ("a.tar", "b.tar"):
        with pytest.raises(RequestError, match="cannot be read as an uncompressed tar"):
            pictures.find_pictures(tmp_path / name)


def test_links_out_of_the_folder_and_pipes(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (inside / "a.png").symlink_to(tmp_path / "secret.png")
    (inside / "a.txt").write_text("a")
    with pytest.raises(RequestError, match="a link that leads out"):
        pictures.find_pictures(inside)
    (inside / "a.png").unlink()
    os.mkfifo(inside / "a.png")
    with pytest.raises(RequestError, match="is no file"):
        pictures.find_pictures(inside)


@pytest.mark.parametrize("data", [b"", b"GIF89a" + bytes(50), b"no picture", png()[:60]])
def test_broken_pictures_are_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(data)
    (tmp_path / "a.txt").write_text("a")
    [picture] = pictures.find_pictures(tmp_path)
    with pytest.raises(RequestError, match=r"a\.png cannot be read"):
        picture.tensor(8)


def test_a_bomb_is_not_decoded(tmp_path: Path) -> None:
    Image.new("1", (9000, 8000)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a")
    [picture] = pictures.find_pictures(tmp_path)
    with pytest.raises(RequestError, match=r"a\.png"):
        picture.tensor(8)


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sidecars(tmp_path)
    monkeypatch.setattr(pictures, "MAX_FILE", 10)
    with pytest.raises(RequestError, match="at most 10"):
        pictures.find_pictures(tmp_path)
    monkeypatch.setattr(pictures, "MAX_TEXT", 3)
    with pytest.raises(RequestError, match="at most 3"):
        pictures.find_pictures(tmp_path)


def test_nothing_and_too_much(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has no pictures"):
        pictures.find_pictures(tmp_path)
    table(tmp_path)
    (tmp_path / "metadata.jsonl").touch()
    with pytest.raises(RequestError, match="leave one way"):
        pictures.find_pictures(tmp_path)


def test_the_fingerprint_is_of_files_and_captions(tmp_path: Path) -> None:
    first = pictures.fingerprint(pictures.find_pictures(sidecars(tmp_path)))
    assert first == pictures.fingerprint(pictures.find_pictures(tmp_path))
    (tmp_path / "in" / "0.txt").write_text("another")
    second = pictures.fingerprint(pictures.find_pictures(tmp_path))
    (tmp_path / "in" / "0.png").write_bytes(png("white"))
    third = pictures.fingerprint(pictures.find_pictures(tmp_path))
    assert len({first, second, third}) == 3


LEFTOVERS = ("._0.png", "._0.txt", "in/._1.png", "Thumbs.db", "desktop.ini", ".DS_Store",
             "__MACOSX/in/._0.png", "__MACOSX/x.png")  # fmt: skip


def test_what_macos_and_windows_leave_is_no_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In a folder, between shards and in one."""
    for name in "ab":
        (tmp_path / name).mkdir()
    sidecars(tmp_path / "a")
    shards(tmp_path / "b")
    for name in LEFTOVERS:
        for root in (tmp_path / "a", tmp_path / "b" / "__MACOSX"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"Mac OS X")
    (tmp_path / "b" / "._0.tar").write_bytes(b"Mac OS X")
    members = dict.fromkeys(LEFTOVERS, b"Mac OS X")
    tar(tmp_path / "b" / "2.tar", members)
    for root in (tmp_path / "a", tmp_path / "b"):
        assert len(pictures.find_pictures(root)) == 3
    assert not caplog.records


@pytest.mark.parametrize("packed", [False, True])
def test_a_captioned_file_that_is_not_read_is_said(
    tmp_path: Path, packed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    files = {"a.png": png(), "a.txt": b"a", "a.npz": b"latents", "b.heic": b"x", "b.txt": b"b", "c.jxl": b"x",
             "c.txt": b"c", "readme.txt": b"about"}  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    where = tar(tmp_path / "x.tar", files) if packed else tmp_path
    assert len(pictures.find_pictures(where)) == 1
    [message] = [record.getMessage() for record in caplog.records]
    assert "2 files of" in message
    assert "the first is b.heic: save them as one of .png" in message


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "GIF", "AVIF"])
def test_other_formats_are_read(kind: str, tmp_path: Path) -> None:
    (tmp_path / f"a.{kind.lower()}").write_bytes(png(kind=kind))
    (tmp_path / "a.txt").write_text("a")
    [picture] = pictures.find_pictures(tmp_path)
    assert picture.fitted(8).getpixel((4, 4))[0] > 240  # type: ignore[index]


def test_what_pictures_lose_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noted: set[str] = set()
    for name in ("a", "b"):
        Image.new("RGBA", (8, 8), (255, 0, 0, 9)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("a")
    for picture in pictures.find_pictures(tmp_path):
        picture.tensor(8, noted)
    [message] = [record.getMessage() for record in caplog.records]
    assert "a.png has transparent parts, which are laid on white" in message
