"""EXIF with a UserComment, where web UIs keep a picture's text in a JPEG or a WebP (EXIF 2.32, 4.6.5)."""

from __future__ import annotations

import struct

from fewstep import __version__

HEADER = b"Exif\0\0"  # before the TIFF structure, in a JPEG
OVERHEAD = 128  # bytes at most of all but the comment
_UNICODE = b"UNICODE\0"  # then UTF-16; web UIs write it big end first, without a mark
_SOFTWARE, _EXIF_IFD, _EXIF_VERSION, _USER_COMMENT = 0x0131, 0x8769, 0x9000, 0x9286
_ASCII, _LONG, _UNDEFINED = 2, 4, 7  # types of a field
_CUT = " […]"  # at the end of a text that had to be cut


def make_exif(comment: str, room: int = 2**31) -> bytes:
    """Return a TIFF structure that names this program, and has the comment.

    A text of more than `room` bytes is cut before its end, which holds what programs read.
    """
    text = comment.encode("utf-16-be")
    if len(text) > room:
        prompt, _, last = comment.rpartition("\nNegative prompt:")
        last = f"\nNegative prompt:{last}"
        if len(last.encode("utf-16-be")) > room // 2:
            last = "\nNegative prompt: \n" + last.rpartition("\n")[2]
        kept = room - len((_CUT + last).encode("utf-16-be"))
        text = prompt.encode("utf-16-be")[: kept // 2 * 2].decode("utf-16-be", "ignore").encode("utf-16-be")
        text += (_CUT + last).encode("utf-16-be")
    software = f"fewstep {__version__}".encode() + b"\0"
    software += bytes(len(software) % 2)
    value = _UNICODE + text
    # Byte order, 42, where the first directory is; then two directories of two fields, 30 bytes each.
    first, second = 8, 8 + 30 + len(software)
    entries = _directory(
        (_SOFTWARE, _ASCII, len(software), struct.pack(">I", first + 30)),
        (_EXIF_IFD, _LONG, 1, struct.pack(">I", second)),
    )
    exif = _directory(
        (_EXIF_VERSION, _UNDEFINED, 4, b"0232"),
        (_USER_COMMENT, _UNDEFINED, len(value), struct.pack(">I", second + 30)),
    )
    return b"MM\0*" + struct.pack(">I", first) + entries + software + exif + value


def _directory(*fields: tuple[int, int, int, bytes]) -> bytes:
    """Return a directory of fields (tag, type, count, value or where it is) with none behind it."""
    rows = b"".join(struct.pack(">HHI", tag, kind, count) + value for tag, kind, count, value in fields)
    return struct.pack(">H", len(fields)) + rows + bytes(4)


def user_comment(tiff: bytes) -> str:
    """Return the comment in a TIFF structure of either byte order; "" where there is none to read."""
    order = {b"MM": ">", b"II": "<"}.get(tiff[:2])
    if order is None:
        return ""
    try:
        first = struct.unpack_from(f"{order}I", tiff, 4)[0]
        pointer = _find_field(tiff, order, first, _EXIF_IFD)
        if pointer is None:
            return ""
        value = _find_field(tiff, order, struct.unpack_from(f"{order}I", tiff, pointer + 8)[0], _USER_COMMENT)
        if value is None:
            return ""
        count, place = struct.unpack_from(f"{order}II", tiff, value + 4)
    except struct.error:
        return ""
    return _decode(tiff[place : place + count])


def _find_field(tiff: bytes, order: str, directory: int, tag: int) -> int | None:
    """Return where a directory's field of this tag is."""
    for index in range(struct.unpack_from(f"{order}H", tiff, directory)[0]):
        place = directory + 2 + 12 * index
        if struct.unpack_from(f"{order}H", tiff, place)[0] == tag:
            return place
    return None


def _decode(value: bytes) -> str:
    """Return a comment's text. UTF-16's big end is first, as web UIs write it, unless that reads badly."""
    code, text = value[:8], value[8:]
    if code != _UNICODE:
        return text.decode("utf-8", "replace").strip("\0 ")
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return text.decode("utf-16", "replace")
    big, little = (text.decode(f"utf-16-{end}", "replace") for end in ("be", "le"))
    return little if "Steps:" in little and "Steps:" not in big else big
