"""Odd and hostile job files: each line is planned, or reported with its number; or the file is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep import RequestError, batch

GOOD = b'{"prompt": "a"}\n'
DEEP = b'{"prompt": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001
# Name, content, lines that are drawn, lines that are wrong. None: the whole file is refused.
FILES: tuple[tuple[str, bytes, int, list[int] | None], ...] = (
    ("empty.jsonl", b"", 0, []),
    ("blank.jsonl", b"\n\n \t\r\n", 0, []),
    ("bom.jsonl", b"\xef\xbb\xbf" + GOOD, 1, []),
    ("two boms.jsonl", b"\xef\xbb\xbf\xef\xbb\xbf" + GOOD, 0, [1]),
    ("crlf.jsonl", GOOD.replace(b"\n", b"\r\n") * 2 + b'{"prompt": "a", "seed": 1}\r\n', 3, []),
    ("no end.jsonl", GOOD[:-1], 1, []),
    ("cut.jsonl", GOOD + b'{"prompt": "b', 1, [2]),
    ("utf-16.jsonl", '{"prompt": "a"}'.encode("utf-16"), 0, None),
    ("utf-16-be.jsonl", b"\xfe\xff\x00{", 0, None),
    ("latin-1.jsonl", b'{"prompt": "caf\xe9"}\n' + GOOD, 1, [1]),
    ("nul.jsonl", b"\x00" * 100 + b"\n" + GOOD, 1, [1]),
    ("zip.jsonl", b"PK\x03\x04\x14\x00\x00\x00" + bytes(range(256)), 0, [1, 2]),
    ("half a character.jsonl", b'{"prompt": "\\ud83d"}\n', 0, [1]),
    ("emoji.jsonl", '{"prompt": "🦊"}'.encode(), 1, []),
    ("deep.jsonl", DEEP, 0, [1]),
    ("deep list.jsonl", b"[" * 100_000, 0, [1]),
    ("long.jsonl", b'{"prompt": "' + b"a" * (1 << 20) + b'"}\n' + GOOD, 1, [1]),
    ("longer.jsonl", b"x" * (3 << 20) + b"\n" + GOOD, 1, [1]),
    ("long prompt.jsonl", b'{"prompt": "' + b"a" * 100_001 + b'"}', 0, [1]),
    ("number.jsonl", b"7\n", 0, [1]),
    ("list.jsonl", b'["a"]\n', 0, [1]),
    ("null.jsonl", b"null\n", 0, [1]),
    ("text.jsonl", b'"a fox"\n', 1, []),
    ("no prompt.jsonl", b'{"steps": 1}\n{}\n', 0, [1, 2]),
    ("null prompt.jsonl", b'{"prompt": null}\n', 0, [1]),
    ("empty prompt.jsonl", b'{"prompt": ""}\n', 1, []),
    ("list prompt.jsonl", b'{"prompt": ["a", "b"]}\n', 0, [1]),
    ("object prompt.jsonl", b'{"prompt": {"a": 1}}\n', 0, [1]),
    ("nan.jsonl", b'{"prompt": "a", "guidance": NaN}\n', 0, [1]),
    ("infinity.jsonl", b'{"prompt": "a", "guidance": -Infinity}\n', 0, [1]),
    ("huge float.jsonl", b'{"prompt": "a", "guidance": 1e999}\n', 0, [1]),
    ("huge whole.jsonl", b'{"prompt": "a", "seed": ' + b"9" * 4000 + b"}\n", 0, [1]),
    ("huger whole.jsonl", b'{"prompt": "a", "seed": ' + b"9" * 400_000 + b"}\n", 0, [1]),
    ("negative seed.jsonl", b'{"prompt": "a", "seed": -1}\n', 0, [1]),
    ("boolean seed.jsonl", b'{"prompt": "a", "seed": true}\n', 0, [1]),
    ("text seed.jsonl", b'{"prompt": "a", "seed": "7"}\n', 0, [1]),
    ("zero steps.jsonl", b'{"prompt": "a", "steps": 0}\n', 0, [1]),
    ("half steps.jsonl", b'{"prompt": "a", "steps": 1.5}\n', 0, [1]),
    ("count.jsonl", b'{"prompt": "a", "count": 1000000000}\n{"prompt": "b", "count": 3}\n', 3, [1]),
    ("size.jsonl", b'{"prompt": "a", "width": 100000, "height": 100000}\n', 0, [1]),
    ("mode.jsonl", b'{"prompt": "a", "mode": "os.system"}\n{"prompt": "a", "mode": 3}\n', 0, [1, 2]),
    (
        "model.jsonl",
        b'{"prompt": "a", "model": "../../etc/passwd"}\n{"prompt": "a", "model": ["x"]}\n',
        0,
        [1, 2],
    ),
    ("device.jsonl", b'{"prompt": "a", "device": "toaster"}\n', 0, [1]),
    (
        "image.jsonl",
        b'{"prompt": "a", "image": "/etc/passwd"}\n{"prompt": "a", "image": "/dev/zero"}\n',
        0,
        [1, 2],
    ),
    ("address.jsonl", b'{"prompt": "a", "image": "http://localhost/x.png"}\n', 0, [1]),
    ("loras.jsonl", b'{"prompt": "a", "loras": ["/dev/stdin"]}\n{"prompt": "a", "loras": 3}\n', 0, [1, 2]),
    ("twice.jsonl", b'{"prompt": "a", "prompt": "b"}\n', 0, [1]),
    ("two names.jsonl", b'{"prompt": "a", "text": "b"}\n', 0, [1]),
    ("unknown.jsonl", b'{"prompt": "a", "__class__": "b"}\n', 0, [1]),
    ("no name.jsonl", b'{"prompt": "a", "": "b"}\n', 0, [1]),
    (
        "ids.jsonl",
        b'{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}\n{"prompt": "c", "id": "../x"}\n',
        1,
        [2, 3],
    ),
    (
        "id.jsonl",
        b'{"prompt": "a", "id": {}}\n{"prompt": "a", "id": ""}\n{"prompt": "a", "id": 7}\n',
        1,
        [1, 2],
    ),
    ("name.jsonl", b'{"prompt": "a", "file_name": "../x.png"}\n{"prompt": "a", "file_name": 3}\n', 0, [1, 2]),
    ("list.json", b'[{"prompt": "a"}, 3, "b"]', 2, [2]),
    ("object.json", b'{"prompt": "a"}', 0, None),
    ("cut.json", b'[{"prompt": "a"}', 0, None),
    ("deep.json", b"[" * 100_000, 0, None),
    ("prompts.txt", b"a\n\n# no comment\n  b  \n", 3, []),
    ("binary.txt", bytes(range(128, 256)) + b"\na\n", 1, [1]),
    ("quotes.txt", b"--prompt \"a\n--prompt 'b'\n--prompt\n--\n", 1, [1, 3, 4]),
    ("shell.txt", b"--prompt $(rm -rf /) --steps 1\n--prompt `id` --steps `id`\n", 1, [2]),
    ("unknown.txt", b"--prompt a --outpath_samples /etc\n--prompt a --xyz 1\n", 0, [1, 2]),
    ("empty.csv", b"", 0, None),
    ("header.csv", b"prompt,seed\n", 0, []),
    ("semicolons.csv", b"prompt;seed\na;1\nb;x\n", 1, [3]),
    ("quote.csv", b'prompt,seed\n"a,1\nb,2\n', 0, [2]),
    ("cells.csv", b"prompt,seed\na,b,c\nd\n,,\n", 1, [2]),
    ("names.csv", b"prompt,prompt\na,b\n", 0, None),
    ("nul.csv", b"prompt\n\x00\na\n", 2, []),
    ("no prompt.csv", b"seed,steps\n1,2\n", 0, [2]),
    ("huge cell.csv", b"prompt\n" + b"a" * 200_000 + b"\nb\n", 1, [2]),
)


@pytest.mark.parametrize(("name", "content", "drawn", "wrong"), FILES, ids=[case[0] for case in FILES])
def test_each_line_is_right_or_reported(
    tmp_path: Path, name: str, content: bytes, drawn: int, wrong: list[int] | None
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    if wrong is None:
        with pytest.raises(RequestError) as refused:
            batch.plan(path)
        assert "\n" not in str(refused.value)
        return
    planned = batch.plan(path)
    assert ([fault.line for fault in planned.faults], planned.pictures) == (wrong, drawn)
    assert all(
        fault.reason and "\n" not in fault.reason and len(fault.reason) < 2000 for fault in planned.faults
    )


def test_there_are_sixty() -> None:
    assert len(FILES) >= 60
