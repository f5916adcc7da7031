"""What job files may hold: each line is right, or reported with its number."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fewstep import RequestError
from fewstep.batch.rows import BadLine, Line, Row
from fewstep.batch.sources import MAX_LINE, open_source


def read(path: Path, content: bytes | str, **options: Any) -> list[Line]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(open_source(path, **options).lines())


def rows(lines: list[Line]) -> dict[int, Any]:
    return {line.line: dict(line.values) for line in lines if isinstance(line, Row)}


def faults(lines: list[Line]) -> dict[int, str]:
    return {line.line: line.reason for line in lines if isinstance(line, BadLine)}


def test_jsonl(tmp_path: Path) -> None:
    text = (
        '\ufeff{"prompt": "a fox", "seed": 1}\r\n\r\n'
        '{"prompt": "x", "num_inference_steps": 2, "guidance_scale": null}\n'
        '"an owl"\n{"prompt": "no end"'
    )
    lines = read(tmp_path / "a.jsonl", text)
    assert rows(lines) == {
        1: {"prompt": "a fox", "seed": 1},
        3: {"prompt": "x", "steps": 2},
        4: {"prompt": "an owl"},
    }
    assert list(faults(lines)) == [5]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "no JSON"),
        (b"[1]", "no object"),
        (b"3", "no object"),
        (b'{"prompt": "a", "prompt": "b"}', "'prompt' is there twice"),
        (b'{"prompt": "a", "seed": NaN}', "NaN is no number"),
        (b'{"prompt": "a", "guidance": Infinity}', "Infinity"),
        (b'{"prompt": "a", "steps": 1, "num_inference_steps": 2}', "'steps' is there twice"),
        (b'{"prompt": "a", "promptt": "b"}', "did you mean prompt?"),
        (b'{"prompt": "a", "qqq": 1}', "name it in keep"),
        (b'{"prompt": "a", "prompt_embeds": 1}', "is not an option"),
        (b'{"prompt": "caf\xe9"}', "UTF-8"),
        (b'{"prompt": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "no JSON"),
        (b'{"prompt": "' + b"x" * MAX_LINE + b'"}', "more than"),
        (b"\x00\x01", "no JSON"),
    ],
)
def test_bad_lines_of_jsonl(tmp_path: Path, line: bytes, reason: str) -> None:
    lines = read(tmp_path / "a.jsonl", b'{"prompt": "before"}\n' + line + b'\n{"prompt": "after"}\n')
    assert list(rows(lines)) == [1, 3]
    assert reason in faults(lines)[2]


def test_json_list(tmp_path: Path) -> None:
    assert rows(read(tmp_path / "a.json", '[{"prompt": "a"},\n "b"]')) == {
        1: {"prompt": "a"},
        2: {"prompt": "b"},
    }
    for text in ("{}", "[", "nonsense"):
        with pytest.raises(RequestError, match="no JSON"):
            read(tmp_path / "a.json", text)


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    text = (
        "\ufeffprompt;steps;seed\r\n"
        '"a fox; red";2;1\r\n"two\r\nlines";;\r\n;;\r\na;b;c;d\r\n"she said ""hi""";1;'
        "18446744073709551615\r\n"
    )
    lines = read(tmp_path / "a.csv", text)
    assert rows(lines) == {
        2: {"prompt": "a fox; red", "steps": 2, "seed": 1},
        3: {"prompt": "two\r\nlines"},
        7: {"prompt": 'she said "hi"', "steps": 1, "seed": 2**64 - 1},
    }
    assert "4 cells" in faults(lines)[6]


def test_cells_have_the_types_of_options(tmp_path: Path) -> None:
    text = (
        "prompt\tguidance\tcommercial\tloras\ttimesteps\tlabel\n"
        'a\t2.5\tyes\tfx:0.5\t999 499\tred\nb\tmuch\tmaybe\t"[""fx""]"\t"[999, 1]"\t\n'
    )
    lines = rows(read(tmp_path / "a.tsv", text, keep=("label",)))
    assert lines[2] == {
        "prompt": "a", "guidance": 2.5, "commercial": True, "loras": [("fx", 0.5)], "timesteps": [999, 499],
        "label": "red",
    }  # fmt: skip
    assert lines[3]["timesteps"] == [999, 1]
    assert (lines[3]["guidance"], lines[3]["commercial"]) == (
        "much",
        "maybe",
    )  # to be refused with what to type


@pytest.mark.parametrize("text", ["", "\n", "promt,seed\nx,1\n", "prompt,prompt\na,b\n", "prompt,,\na,b,c\n"])
def test_a_bad_first_line_of_csv_is_the_files_fault(tmp_path: Path, text: str) -> None:
    with pytest.raises(RequestError, match="line 1"):
        read(tmp_path / "a.csv", text)


def test_prompts_and_lines_of_a1111(tmp_path: Path) -> None:
    text = (
        "a fox (red:1.2) -- really\n\n"
        '--prompt "a cat" --steps 4 --seed 7 --cfg_scale 1.5 --width 512 --sampler_name "DPM++ 2M Karras"\n'
        "--prompt two words --batch_size 2 --n_iter 3 --seed -1\n"
        '--prompt "a" --tiling true\n--steps 4\n--prompt "no end\nx --steps\n'
    )
    source = open_source(tmp_path / "a.txt") if (tmp_path / "a.txt").write_text(text) else None
    assert source is not None
    lines = list(source.lines())
    assert rows(lines) == {
        1: {"prompt": "a fox (red:1.2) -- really"},
        3: {
            "prompt": "a cat", "steps": 4, "seed": 7, "guidance": 1.5, "width": 512, "sampler": "dpmpp_2m",
            "scheduler": "karras",
        },
        4: {"prompt": "two words", "count": 6},
        8: {"prompt": "x --steps"},
    }  # fmt: skip
    assert list(faults(lines)) == [5, 6, 7]
    assert "cfg_scale is read as guidance" in source.notes


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for content, prompts in (
        (b'{"prompt": "a"}\n', ["a"]),
        (b"a fox\nan owl", ["a fox", "an owl"]),
        (b"", []),
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        source = open_source("-")
        assert source.streamed
        assert [row["prompt"] for row in rows(list(source.lines())).values()] == prompts


def test_utf_16_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="UTF-16"):
        read(tmp_path / "a.jsonl", '{"prompt": "a"}'.encode("utf-16"))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no file"):
        open_source(tmp_path / "a.jsonl")
    (tmp_path / "a.xlsx").touch()
    with pytest.raises(RequestError, match="--read-as"):
        open_source(tmp_path / "a.xlsx")


def test_dicts_and_tables() -> None:
    table = pd.DataFrame({"prompt": ["a", "b"], "seed": [1, None], "guidance": [None, 2.0]})
    assert rows(list(open_source(table).lines())) == {
        1: {"prompt": "a", "seed": 1}, 2: {"prompt": "b", "guidance": 2.0},
    }  # fmt: skip
    assert rows(list(open_source([{"prompt": "a"}, "b"]).lines())) == {1: {"prompt": "a"}, 2: {"prompt": "b"}}
    assert open_source({"prompt": str(i)} for i in range(3)).streamed
    with pytest.raises(RequestError, match="give a file"):
        list(open_source(3).lines())
