"""Headers made to harm whoever reads them, by class."""

from __future__ import annotations

import struct
import time
from pathlib import Path

from fewstep.errors import CorruptModelError
from fewstep.files.safetensors import MAX_NAME, read_header
from fewstep.files.untrusted import MAX_HEADER, MAX_TENSORS
from tests.files.headers import packed

F16 = '"dtype": "F16"'


def of(*tensors: str, data: int = 4) -> bytes:
    """A file with these lines in its header."""
    return packed("{" + ", ".join(tensors) + "}") + bytes(data)


def tensor(name: str = "a", shape: str = "[2]", offsets: str = "[0, 4]", dtype: str = '"F16"') -> str:
    return f'"{name}": {{"dtype": {dtype}, "shape": {shape}, "data_offsets": {offsets}}}'


SOUND = of(tensor())
# Class → files of it. What the class is called says what is wrong.
HOSTILE: dict[str, list[bytes]] = {
    "empty": [b"", b"\0", b"\0" * 7, b"\0" * 8, b"\0" * 100],
    "a huge length": [struct.pack("<Q", n) + b"{}" for n in (MAX_HEADER + 1, 2**31, 2**63, 2**64 - 1)],
    "a header too long": [packed("{}".ljust(MAX_HEADER + 8))],
    "a length beyond the file": [struct.pack("<Q", 1000) + b"{}", struct.pack("<Q", MAX_HEADER) + b"{}"],
    "cut off inside the header": [SOUND[:20], SOUND[:-5]],
    "cut off inside the data": [SOUND[:-1]],
    "padded": [SOUND + b"\0", SOUND + bytes(4096), packed("{}") + b"\0"],
    "no JSON": [packed(text) for text in ("hello", "{", '{"a": ', "{]", '{"a" "b"}', "{}{}")],
    "no object": [packed(text) for text in ("[]", "7", '"a"', "null", "   ")],
    "leading space": [packed(" {}"), packed("\ufeff{}")],
    "deep": [packed("[" * 100_000), packed('{"a":' * 100_000), packed('{"a": ' + "[" * 9 + "]" * 9 + "}")],
    "bad UTF-8": [packed(b'{"\xff": 1}'), packed(b"{\xc3\x28}"), packed('{"a": 1}'.encode("utf-16"))],
    "half a surrogate pair": [of(tensor("\\ud800"))],
    "control characters": [packed(b'{"a\0": 1}'), packed(b'{"a\nb": 1}')],
    "twice the same tensor": [of(tensor(), tensor()), of(tensor(), tensor(offsets="[4, 8]"), data=8)],
    "twice the same key": [of(tensor().replace("}", ', "shape": [2]}'))],
    "twice the metadata": [of('"__metadata__": {}', '"__metadata__": {}', tensor())],
    "an overlap": [
        of(tensor(), tensor("b", offsets="[2, 6]"), data=6), of(tensor(), tensor("b"), data=4),
        of(tensor(), tensor("b", offsets="[0, 4]"), data=8),
    ],
    "a hole": [of(tensor(), tensor("b", offsets="[6, 10]"), data=10), of(tensor(offsets="[2, 6]"), data=6)],
    "offsets backwards": [of(tensor(offsets="[4, 0]"))],
    "offsets below zero": [of(tensor(offsets="[-4, 0]")), of(tensor(offsets="[-8, -4]"))],
    "offsets that are none": [
        of(tensor(offsets=text)) for text in (
            "[]", "[0]", "[0, 4, 4]", "{}", "null", '"04"', "[0.0, 4.0]", "[false, true]", "[0, 1e1]",
            '["0", "4"]',
        )
    ],
    "offsets beyond the file": [
        of(tensor(shape="[2000]", offsets="[0, 4000]")), of(tensor(offsets=f"[0, {2**70}]")),
    ],
    "an impossible shape": [
        of(tensor(shape=text)) for text in (
            "[-2]", "[-1, -2]", "[2.0]", "[true, 2]", '["2"]', "{}", "null", "2", "[[2]]", "[1e0]",
            "[" + 5000 * "9" + "]",
        )
    ],
    "a shape of too many sides": [of(tensor(shape=f"[2{', 1' * sides}]")) for sides in (8, 1000)],
    "a shape too large": [
        of(tensor(shape=f"[{2**41}, 0]", offsets="[0, 0]"), data=0), of(tensor(shape=f"[{2**64}]")),
    ],
    "a shape that does not fill its bytes": [of(tensor(shape=text)) for text in ("[3]", "[]", "[0]")],
    "half a byte": [of(tensor(shape="[7]", dtype='"F4"'))],
    "an unknown dtype": [
        of(tensor(dtype=text)) for text in
        ('"F128"', '"f16"', '""', "null", "16", "[]", "{}", '"O"', '"BFLOAT16"')
    ],
    "no dtype, shape or offsets": [
        of('"a": {}'), of('"a": 7'), of('"a": null'), of('"a": []'), of('"a": "F16"'),
        of(f'"a": {{{F16}, "shape": [2]}}'), of(f'"a": {{{F16}, "data_offsets": [0, 4]}}'),
    ],
    "one field more": [of(tensor().replace("}", ', "code": "import os"}'))],
    "metadata that is no text": [
        of(f'"__metadata__": {text}', tensor()) for text in
        ('{"a": 1}', '{"a": {}}', '{"a": null}', "[]", '"a"', "7", '{"a": "\\udc00"}')
    ],
    "no number": [
        of(tensor(shape=f"[{text}]")) for text in ("NaN", "Infinity", "-Infinity", "1e999", "0x2", "02")
    ],
    "too many tensors": [
        of(*(tensor(str(i), "[0]", "[0, 0]") for i in range(MAX_TENSORS + 1)), data=0),
        of(*(tensor(str(i), "[0]", "[0, 0]") for i in range(100_000)), data=0),
    ],
    "a name too long": [of(tensor("a" * (MAX_NAME + 1))), of(tensor("a" * 10**7))],
    "too many values": [
        packed('{"a": [' + "[]," * 5_000_000 + "[]]}"), packed('{"a": [' + "1," * 8_000_000 + "1]}"),
        packed("{" + '"":"",' * 2_000_000 + '"a":""}'), packed('{"' * 5_000_000),
    ],
    "backslashes": [
        packed('{"' + "\\" * 16_000_001), packed('{"a": "' + '\\"' * 8_000_000), packed("{\\" * 10**6),
    ],
    "a zip archive": [b"PK\3\4" + bytes(60), b"PK\5\6" + bytes(18)],
    "no model": [
        b"<!DOCTYPE html>" + bytes(9), b"version https://git-lfs.github.com/spec/v1\n", b"GGUF\3\0\0\0\0",
    ],
}  # fmt: skip


# What some are told, so that none is refused for another's reason, or by luck.
TOLD = {
    "deep": "nested", "too many values": "more than 640000", "a name too long": "the most is 500",
    "a huge length": "fewstep reads safetensors alone", "padded": "belong to no tensor",
    "cut off inside the data": "1 bytes of its data are missing",
    "an overlap": "has an overlap at 'b'", "a hole": "has a hole before",
    "twice the same tensor": "names 'a' twice", "a zip archive": "is a zip archive",
}  # fmt: skip


def refused(path: Path) -> str:
    """The one error that may come, of one line, naming the file, within two seconds; "" is read."""
    start, said = time.perf_counter(), ""
    try:
        read_header(path)
    except CorruptModelError as error:
        said = str(error)
    assert time.perf_counter() - start < 2.0
    assert "\n" not in said
    assert not said or path.name in said
    return said
