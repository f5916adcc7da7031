"""Webdataset shards: pictures are kept as parts until all of a shard are there, then packed, once.

A shard is the same bytes however often it was cut off: members are in the order of drawing, and no time,
user or run is in it. Names up to their first dot are one sample: picture, `.json` with all of it, `.txt` with
the prompt.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.batch import points
from fewstep.batch.folder import OutputFolder
from fewstep.batch.manifest import STATE
from fewstep.errors import OutputError, describe_error

PARTS = f"{STATE}/parts"


class Member(NamedTuple):
    """A picture of a shard."""

    key: str
    request: str
    name: str  # in the shard


class Shard(NamedTuple):
    """A shard whose pictures are drawn, as far as they could be."""

    number: int
    members: Sequence[Member]

    @property
    def file(self) -> str:
        """Return its name in the output folder."""
        return f"shard-{self.number:06}.tar"


def member_name(name: str) -> str:
    """Return a picture's name in a shard: only its ending begins with a dot."""
    stem, dot, ending = name.rpartition(".")
    return stem.replace(".", "_") + dot + ending


def part_name(key: str, request: str) -> str:
    """Return where a picture waits until its shard is packed, without an ending."""
    return f"{PARTS}/{hashlib.sha256(f'{key} {request}'.encode()).hexdigest()[:40]}"


def has_part(folder: OutputFolder, key: str, request: str) -> bool:
    """Return whether a picture waits for its shard to be packed."""
    return folder.size(f"{part_name(key, request)}.picture") >= 0


def write_part(folder: OutputFolder, record: Mapping[str, Any], content: bytes) -> None:
    """Keep a picture, on disk when this returns; raises `OutputError`."""
    part = part_name(record["key"], record["request"])
    folder.write(f"{part}.json", json.dumps(dict(record)).encode(), replace=True)
    folder.write(f"{part}.picture", content, replace=True)  # with it, the part is there
    folder.sync([part])


def pack_shard(folder: OutputFolder, shard: Shard) -> list[dict[str, Any]]:
    """Write a shard, with what an earlier run packed into it; returns the records of its pictures.

    Raises `OutputError`.
    """
    records, earlier = list[dict[str, Any]](), folder.path / shard.file
    scratch = folder.path / STATE / f"{shard.file}.partial"
    try:
        with ExitStack() as stack:
            packed = stack.enter_context(tarfile.open(earlier)) if earlier.is_file() else None
            _check_members(packed, shard)
            file = stack.enter_context(scratch.open("wb"))
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as target:
                for member in shard.members:
                    record, content = _read_picture(folder.path, packed, member)
                    if record is None:
                        continue
                    record |= {"file": shard.file, "member": member.name}
                    _add_sample(target, member.name, record, content)
                    records.append(record)
            file.flush()
            points.reached("tar written")
            os.fsync(file.fileno())
        if records:
            scratch.replace(earlier)
        else:
            scratch.unlink()
    except OutputError:
        raise
    except tarfile.TarError as error:
        message = f"{str(earlier)!r} is no shard of this batch: move it away ({describe_error(error)})"
        raise OutputError(message) from error
    except OSError as error:
        raise OutputError(f"{str(earlier)!r} cannot be written: {error.strerror or error}") from error
    points.reached("tar in place")
    return records


def _check_members(packed: tarfile.TarFile | None, shard: Shard) -> None:
    """Check that a shard that is there has no pictures but those of this one; raises `OutputError`."""
    names = {member.name.rpartition(".")[0] for member in shard.members}
    for name in () if packed is None else packed.getnames():
        if name.rpartition(".")[0] not in names:
            raise OutputError(
                f"{shard.file!r} is there with {name!r}, which these jobs do not have: give another folder"
            )


def remove_parts(folder: OutputFolder, shard: Shard) -> None:
    """Remove the parts of a shard that is packed and recorded."""
    for member in shard.members:
        remove_part(folder, member.key, member.request)


def remove_part(folder: OutputFolder, key: str, request: str) -> None:
    """Remove what a picture's shard, which is recorded, was made from."""
    part = folder.path / part_name(key, request)
    for ending in (".picture", ".json"):
        part.with_name(part.name + ending).unlink(missing_ok=True)


def _read_picture(
    out: Path, packed: tarfile.TarFile | None, member: Member
) -> tuple[dict[str, Any] | None, bytes]:
    """Return a picture's record and file: of its part, or of the shard as it is; None where there is none."""
    part = out / part_name(member.key, member.request)
    picture, facts = part.with_name(part.name + ".picture"), part.with_name(part.name + ".json")
    if picture.is_file():
        return json.loads(facts.read_bytes()), picture.read_bytes()
    if packed is None:
        return None, b""
    stem = member.name.rpartition(".")[0]
    contents = list(_extract(packed, (f"{stem}.json", member.name)))
    if len(contents) < 2:
        return None, b""
    record = json.loads(contents[0])
    return record if record["key"] == member.key else None, contents[1]


def _extract(packed: tarfile.TarFile, names: Sequence[str]) -> Iterator[bytes]:
    """Yield the members of these names that there are."""
    for name in names:
        try:
            file = packed.extractfile(name)
        except KeyError:
            continue
        if file is not None:
            yield file.read()


def _add_sample(target: tarfile.TarFile, name: str, record: dict[str, Any], content: bytes) -> None:
    """Add a picture, what is known of it, and its prompt, the time and user left out."""
    stem = name.rpartition(".")[0]
    facts = {name: value for name, value in record.items() if name not in ("seconds", "file", "member")}
    for member_name, data in (
        (f"{stem}.json", json.dumps(facts, sort_keys=True).encode()),
        (name, content),
        (f"{stem}.txt", record["options"]["prompt"].encode()),
    ):
        info = tarfile.TarInfo(member_name)
        info.size = len(data)
        target.addfile(info, io.BytesIO(data))
