"""Pictures with captions, from a folder or tar files of the user's. Nothing in them is trusted.

Four layouts are read:

    metadata.jsonl   a line {"file_name": "a.png", "text": "a red fox"} for each (the hub's imagefolder)
    metadata.csv     the same as columns
    a.png  a.txt     a caption beside each picture, in the folder or below it
    shards.tar       pictures, each with a .txt, or a .json with "caption" or "text" (webdataset)
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor

from fewstep.errors import RequestError
from fewstep.images import SUFFIXES, OpenedImage, image_to_tensor, open_image
from fewstep.request.limits import check_prompt

MAX_FILE = 64 * 2**20  # bytes: the most of a picture's file
MAX_TEXT = 64 * 2**10  # bytes: the most of a caption's file, or of a line
MAX_PICTURES = 1_000_000  # pictures
_CAPTION = ("text", "caption")  # names of the caption in a line, a row or a JSON file
# What macOS and Windows leave in folders and archives, in small letters: no pictures of the user's.
_LEFTOVERS = (".ds_store", "thumbs.db", "desktop.ini", "__macosx")
_log = logging.getLogger("fewstep")


@dataclass(frozen=True, kw_only=True)
class TrainingPicture:
    """One captioned picture, not read yet: `length` bytes of a file from `start`."""

    name: str  # for errors
    caption: str
    path: Path = field(repr=False)
    start: int = 0
    length: int = 0

    def read(self) -> bytes:
        """Its file's bytes."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                return file.read(self.length)
        except OSError as error:
            raise RequestError(f"{self.name} cannot be read: {error.strerror}") from None

    def open(self) -> OpenedImage:
        """Return it as RGB, upright, over white where it is transparent, and what has to be said of it."""
        return open_image(self.read(), self.name)

    def fitted(self, side: int, noted: set[str] | None = None) -> Image.Image:
        """Return upright RGB, over white where it is transparent, resized to cover and cropped to a square.

        noted: what has been said of others, which is not said again.
        """
        image, notes = self.open()
        if noted is not None:
            for note in notes:
                if note not in noted:
                    _log.warning("%s %s; of others this is not said again", self.name, note)
            noted.update(notes)
        return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)

    def tensor(self, side: int, noted: set[str] | None = None) -> Tensor:
        """Return it as (1, 3, side, side) in [-1, 1]; `noted` as in `fitted`."""
        return image_to_tensor(self.fitted(side, noted))


def find_pictures(images: Path) -> list[TrainingPicture]:
    """Every picture of a folder or a tar file, in an order that is always the same.

    Raises:
        RequestError: there are none, one has no caption, or a name leads out of the folder.
    """
    pictures = _pictures_of_tar(images) if images.is_file() else _pictures_of_folder(images)
    if not pictures:
        raise RequestError(
            f"images={str(images)!r} has no pictures: give a folder of {', '.join(SUFFIXES)} files with "
            "captions (metadata.jsonl, metadata.csv, or a .txt beside each), or webdataset .tar files"
        )
    if len(pictures) > MAX_PICTURES:
        raise RequestError(f"images={str(images)!r} has {len(pictures)} pictures: the most is {MAX_PICTURES}")
    for picture in pictures:
        try:
            check_prompt(picture.caption)
        except RequestError as error:
            raise RequestError(f"{picture.name}: {error}") from None
    return pictures


def fingerprint(pictures: list[TrainingPicture]) -> str:
    """64 hex digits of all files and captions."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(hashlib.sha256(picture.read()).digest())
        digest.update(hashlib.sha256(picture.caption.encode()).digest())
    return digest.hexdigest()


def _pictures_of_folder(root: Path) -> list[TrainingPicture]:
    tables = [root / name for name in ("metadata.jsonl", "metadata.csv") if (root / name).is_file()]
    shards = sorted(path for path in root.glob("*.tar") if path.is_file() and not _is_leftover(path.name))
    files = sorted(p for p in root.rglob("*") if not _is_leftover(str(p.relative_to(root))))
    beside = [path for path in files if path.suffix.lower() in SUFFIXES]
    if len(tables) > 1 or (shards and (tables or beside)):
        raise RequestError(
            f"images={str(root)!r} has more than one of metadata.jsonl, metadata.csv and .tar files or "
            "pictures of its own: leave one way to say what there is"
        )
    if tables:
        return _pictures_of_table(root, tables[0])
    if shards:
        return [picture for shard in shards for picture in _pictures_of_tar(shard)]
    _log_unread((path.relative_to(root).as_posix() for path in files), [".txt"], str(root))
    return _require_captions([_picture_with_caption_beside(root, path) for path in beside])


def _is_leftover(name: str) -> bool:
    """Return whether a system left this file, by its name in a folder or an archive: "._a.png" on macOS."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return any(part.startswith("._") or part.lower() in _LEFTOVERS for part in parts)


def _log_unread(names: Iterable[str], captions: Sequence[str], where: str) -> None:
    """Say which files have a caption beside them, one of these endings, and are not read for their own."""
    samples: dict[str, set[str]] = {}
    for name in names:
        stem, suffix = _split_sample_name(name)
        samples.setdefault(stem, set()).add(suffix)
    unread = [
        stem + min(others)
        for stem, suffixes in samples.items()
        if suffixes.intersection(captions) and not suffixes.intersection(SUFFIXES)
        if (others := suffixes.difference(captions))
    ]
    if unread:
        _log.warning(
            "%d files of %s have captions but are not read, the first is %s: save them as one of %s",
            len(unread), where, unread[0], ", ".join(SUFFIXES),
        )  # fmt: skip


def _require_captions(pictures: list[TrainingPicture | str]) -> list[TrainingPicture]:
    """Return all of them; the names of those without a caption are an error."""
    bare = [picture for picture in pictures if isinstance(picture, str)]
    if bare:
        raise RequestError(
            f"{len(bare)} of {len(pictures)} pictures have no caption, the first is {bare[0]}: write one "
            "into a .txt file of its name beside it, or move it away"
        )
    return [picture for picture in pictures if isinstance(picture, TrainingPicture)]


def _picture_with_caption_beside(root: Path, path: Path) -> TrainingPicture | str:
    text = path.with_suffix(".txt")
    if not text.exists():
        return str(path)
    caption = _read_caption_file(_require_plain_file(root, text, MAX_TEXT).read_bytes(), str(text))
    return str(path) if caption is None else _picture_of_file(root, path, caption)


def _pictures_of_table(root: Path, table: Path) -> list[TrainingPicture]:
    """Rows of metadata.jsonl or metadata.csv."""
    _require_plain_file(root, table, MAX_FILE * 16)
    pictures: list[TrainingPicture | str] = []
    rows = _json_rows(table) if table.suffix == ".jsonl" else _csv_rows(table)
    for where, row in rows:
        name, caption = row.get("file_name"), _caption_in_object(row)
        if not isinstance(name, str) or not name:
            raise RequestError(f"{where}: there is no file_name")
        _require_inside(name, where)
        pictures.append(where if caption is None else _picture_of_file(root, root / name, caption, where))
    return _require_captions(pictures)


def _json_rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with table.open("rb") as file:
        number = 0
        while line := file.readline(MAX_TEXT + 1):
            number += 1
            where = f"{table} line {number}"
            if len(line) > MAX_TEXT:
                raise RequestError(f"{where} has more than {MAX_TEXT} bytes")
            if line.strip():
                yield where, _parse_object(line, where)


def _csv_rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                yield f"{table} line {reader.line_num}", row
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{table} cannot be read as CSV in UTF-8: {error}") from None


def _pictures_of_tar(path: Path) -> list[TrainingPicture]:
    """A webdataset shard: only its headers and captions are read now. Compressed ones are refused."""
    sizes: dict[str, tuple[int, int]] = {}
    captions: dict[str, str] = {}
    names: list[str] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                where = f"{member.name!r:.200} in {path}"
                if member.isdir() or _is_leftover(member.name):
                    continue
                names.append(member.name)
                _require_inside(member.name, where)
                if not member.isreg() or member.issparse():
                    raise RequestError(f"{where} is a link or a device: a shard holds plain files only")
                stem, suffix = _split_sample_name(member.name)
                if suffix in SUFFIXES:
                    _require_small(member.size, MAX_FILE, where)
                    sizes[member.name] = (member.offset_data, member.size)
                elif suffix in (".txt", ".json"):
                    _require_small(member.size, MAX_TEXT, where)
                    _note_caption(captions, stem, suffix, _read_member(tar, member), where)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{path} cannot be read as an uncompressed tar: {error}") from None
    _log_unread(names, (".txt", ".json"), str(path))
    return _require_captions([_in_tar(path, name, place, captions) for name, place in sizes.items()])


def _in_tar(path: Path, name: str, place: tuple[int, int], captions: dict[str, str]) -> TrainingPicture | str:
    where, caption = f"{name!r:.200} in {path}", captions.get(_split_sample_name(name)[0])
    if caption is None:
        return where
    return TrainingPicture(name=where, caption=caption, path=path, start=place[0], length=place[1])


def _note_caption(captions: dict[str, str], stem: str, suffix: str, data: bytes, where: str) -> None:
    """Remember a caption; one in a .txt file counts before one in JSON."""
    caption = (
        _read_caption_file(data, where)
        if suffix == ".txt"
        else _caption_in_object(_parse_object(data, where))
    )
    if caption is not None and (suffix == ".txt" or stem not in captions):
        captions[stem] = caption


def _split_sample_name(name: str) -> tuple[str, str]:
    """(what the files of one sample share, suffix): "a/0001.txt" → ("a/0001", ".txt")."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")), path.suffix.lower()


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


def _picture_of_file(root: Path, path: Path, caption: str, where: str = "") -> TrainingPicture:
    """A picture that is a file of its own."""
    if path.suffix.lower() not in SUFFIXES:
        raise RequestError(f"{where}: {path.name!r} is none of {', '.join(SUFFIXES)}")
    if not path.exists():
        raise RequestError(f"{where}: there is no file {path}")
    _require_plain_file(root, path, MAX_FILE)
    return TrainingPicture(name=str(path), caption=caption, path=path, length=path.stat().st_size)


def _require_plain_file(root: Path, path: Path, limit: int) -> Path:
    """A file that lies in the folder, is no pipe, and not too large."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise RequestError(f"{path} is a link that leads out of {root}: copy the file itself")
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise RequestError(f"{path} is no file")
    _require_small(info.st_size, limit, str(path))
    return path


def _require_inside(name: str, where: str) -> None:
    """A relative name without "..", by the rules of POSIX and of Windows."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    outside = posix.is_absolute() or windows.drive or windows.root or ".." in (*posix.parts, *windows.parts)
    if outside or "\0" in name:
        raise RequestError(f"{where}: the name {name!r:.200} leads out of the folder: give a relative one")


def _require_small(size: int, limit: int, where: str) -> None:
    if size > limit:
        raise RequestError(f"{where} has {size} bytes: at most {limit}")


def _parse_object(data: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where} is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise RequestError(f'{where} is no JSON object such as {{"file_name": "a.png", "text": "a fox"}}')
    return row


def _caption_in_object(row: dict[str, Any]) -> str | None:
    """The caption, on one line; None where there is none."""
    caption = next((row[name] for name in _CAPTION if isinstance(row.get(name), str)), "")
    return " ".join(caption.split()) or None


def _read_caption_file(data: bytes, where: str) -> str | None:
    """A caption's file as one line; None where it is empty."""
    try:
        return " ".join(data.decode("utf-8-sig").split()) or None
    except UnicodeDecodeError as error:
        raise RequestError(f"{where} is not in UTF-8: {error.reason} at byte {error.start}") from None
