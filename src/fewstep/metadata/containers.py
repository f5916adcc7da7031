"""Texts and bytes beside the pixels of a PNG, a JPEG or a WebP: put in, and taken out of untrusted files.

What is said           PNG                     JPEG                          WebP
the facts, our JSON    iTXt "fewstep"          XMP, where it must extended   XMP
the web UIs' text      tEXt/iTXt "parameters"  EXIF UserComment              EXIF UserComment
source type            iTXt XMP                APP1 XMP                      XMP
given pictures         chunk "fwSt"            APP15 segments "fewstep"      chunk "FWST"

Sources: PNG 1.2, 3 and 4.2.3; JPEG B.1.1.4; Adobe's XMP part 3, 1.1.3; the WebP container specification.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fewstep.metadata import exif, xmp
from fewstep.metadata.formats import LOSSLESS, QUALITIES, Encoding

KEY = "fewstep"  # of our text in a PNG
PARAMETERS = "parameters"
XMP_KEY = "XML:com.adobe.xmp"
MAX_TEXT = 2**24  # characters of one text that are read
_PNG_CHUNK, _WEBP_CHUNK = b"fwSt", b"FWST"
_SEGMENT = 65533  # bytes of a JPEG segment's content, its length taken off
_OWN_SEGMENT = b"fewstep\0"  # then where the piece begins, 4 bytes
_XMP_SEGMENT, _EXTENDED = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_PIECE = 65000  # bytes of an extended XMP's piece: with its header it fits a segment


@dataclass(frozen=True, kw_only=True)
class Payload:
    """What a picture's file says beside its pixels."""

    facts: str = ""  # our JSON
    parameters: str = ""  # as web UIs write them
    edited: bool = False
    embedded: bytes = b""  # given pictures, as `pack_pictures` has them
    texts: Mapping[str, str] = field(default_factory=dict)  # of a PNG by others: workflow, prompt, …
    packet: str = ""  # XMP, where it was read


def write_container(image: Image.Image, payload: Payload, encoding: Encoding) -> bytes:
    """Return a picture's file with all of this in it."""
    match encoding.format:
        case "png":
            return _write_png(image, payload)
        case "jpeg":
            return _write_jpeg(image, payload, encoding.quality or QUALITIES["jpeg"])
    return _write_webp(image, payload, encoding.quality or QUALITIES["webp"])


def read_container(data: bytes) -> Payload:
    """Return what a file says; nothing of what is broken, or of another format."""
    try:
        if data.startswith(b"\x89PNG"):
            return _read_png(data)
        if data.startswith(b"\xff\xd8"):
            return _read_jpeg(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _read_webp(data)
    except (ValueError, struct.error, zlib.error):  # a stranger's file: what is before the fault is lost too
        pass
    return Payload()


# --- PNG


def _write_png(image: Image.Image, payload: Payload) -> bytes:
    info = PngInfo()
    if payload.parameters:
        info.add_text(PARAMETERS, payload.parameters)  # tEXt where it is Latin-1, else iTXt, uncompressed
    if payload.facts:
        info.add_itxt(KEY, payload.facts)
    info.add_itxt(XMP_KEY, xmp.make_packet(edited=payload.edited))
    if payload.embedded:
        info.add(_PNG_CHUNK, payload.embedded)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, compress_level=1)  # six times faster than 6, hardly larger
    return buffer.getvalue()


def _read_png(data: bytes) -> Payload:
    texts, embedded = dict[str, str](), b""
    for kind, content in _png_chunks(data):
        if kind == _PNG_CHUNK:
            embedded = content
        elif kind in (b"tEXt", b"zTXt", b"iTXt") and len(content) <= MAX_TEXT:
            key, _, rest = content.partition(b"\0")
            name = key.decode("latin-1")
            if name not in texts:  # the first counts
                texts[name] = _png_text(kind, rest)
    ours = (KEY, PARAMETERS, XMP_KEY)
    return Payload(
        facts=texts.get(KEY, ""),
        parameters=texts.get(PARAMETERS, ""),
        packet=texts.get(XMP_KEY, ""),
        embedded=embedded,
        texts={name: text for name, text in texts.items() if name not in ours},
    )


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 8
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IEND" or place + 12 + length > len(data):
            return
        yield kind, data[place + 8 : place + 8 + length]
        place += 12 + length


def _png_text(kind: bytes, rest: bytes) -> str:
    """Return the text of a chunk, inflated to `MAX_TEXT` at most."""
    if kind == b"tEXt":
        return rest.decode("latin-1")
    if kind == b"zTXt":
        return _inflate(rest[1:]).decode("latin-1")
    text = rest[2:].split(b"\0", 2)[-1]  # behind language and translated key
    return (_inflate(text) if rest[:1] == b"\1" else text).decode("utf-8", "replace")


def _inflate(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, MAX_TEXT)


# --- JPEG


def _write_jpeg(image: Image.Image, payload: Payload, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    data = buffer.getvalue()
    start = 4 + int.from_bytes(data[4:6], "big")  # behind SOI and APP0, which Pillow writes first
    return data[:start] + b"".join(_jpeg_segments(payload)) + data[start:]


def _jpeg_segments(payload: Payload) -> Iterator[bytes]:
    """Yield EXIF, XMP with its extension where the facts need one, and given pictures in pieces."""
    if payload.parameters:
        room = _SEGMENT - len(exif.HEADER) - exif.OVERHEAD
        yield _segment(0xE1, exif.HEADER + exif.make_exif(payload.parameters, room))
    packet = xmp.make_packet(edited=payload.edited, facts=payload.facts).encode()
    if len(_XMP_SEGMENT) + len(packet) <= _SEGMENT:
        yield _segment(0xE1, _XMP_SEGMENT + packet)
    else:
        name = hashlib.md5(packet, usedforsecurity=False).hexdigest().upper()  # the standard's choice
        short = xmp.make_packet(edited=payload.edited, extension=name).encode()
        yield _segment(0xE1, _XMP_SEGMENT + short)
        for begin in range(0, len(packet), _PIECE):
            head = _EXTENDED + name.encode() + struct.pack(">II", len(packet), begin)
            yield _segment(0xE1, head + packet[begin : begin + _PIECE])
    for begin in range(0, len(payload.embedded), _PIECE):
        yield _segment(
            0xEF, _OWN_SEGMENT + struct.pack(">I", begin) + payload.embedded[begin : begin + _PIECE]
        )


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _read_jpeg(data: bytes) -> Payload:
    parameters, packet, extended, embedded = "", "", b"", b""
    for marker, content in _jpeg_parts(data):
        if marker == 0xEF and content.startswith(_OWN_SEGMENT):
            embedded += content[len(_OWN_SEGMENT) + 4 :]
        elif marker == 0xE1 and content.startswith(exif.HEADER):
            parameters = parameters or exif.user_comment(content[len(exif.HEADER) :])
        elif marker == 0xE1 and content.startswith(_XMP_SEGMENT):
            packet = packet or content[len(_XMP_SEGMENT) :].decode("utf-8", "replace")
        elif marker == 0xE1 and content.startswith(_EXTENDED) and len(extended) <= MAX_TEXT:
            name = content[len(_EXTENDED) : len(_EXTENDED) + 32].decode("latin-1")
            if name in packet:
                extended += content[len(_EXTENDED) + 40 :]
    facts = xmp.facts_in(packet) or xmp.facts_in(extended.decode("utf-8", "replace"))
    return Payload(facts=facts, parameters=parameters, packet=packet, embedded=embedded)


def _jpeg_parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the segments before the pixels."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xDA or length < 2:
            return
        yield marker, data[place + 4 : place + 2 + length]
        place += 2 + length


# --- WebP


def _write_webp(image: Image.Image, payload: Payload, quality: int) -> bytes:
    packet = xmp.make_packet(edited=payload.edited, facts=payload.facts).encode()
    comment = exif.make_exif(payload.parameters) if payload.parameters else b""
    buffer = io.BytesIO()
    image.save(
        buffer, "WEBP", quality=quality, lossless=quality == LOSSLESS, method=4, exif=comment, xmp=packet
    )
    data = buffer.getvalue()
    if payload.embedded:
        chunk = _WEBP_CHUNK + struct.pack("<I", len(payload.embedded)) + payload.embedded
        data += chunk + bytes(len(chunk) % 2)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def _read_webp(data: bytes) -> Payload:
    chunks, place = dict[bytes, bytes](), 12
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        if kind in (b"EXIF", b"XMP ", _WEBP_CHUNK):
            chunks.setdefault(kind, data[place + 8 : place + 8 + length])
        place += 8 + length + length % 2
    packet = chunks.get(b"XMP ", b"")[:MAX_TEXT].decode("utf-8", "replace")
    return Payload(
        facts=xmp.facts_in(packet),
        parameters=exif.user_comment(chunks.get(b"EXIF", b"").removeprefix(exif.HEADER)),
        packet=packet,
        embedded=chunks.get(_WEBP_CHUNK, b""),
    )
