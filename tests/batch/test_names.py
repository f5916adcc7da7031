"""Names of files: none leads outside, none is another file on Windows."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep import RequestError, batch, testing
from fewstep.batch.names import check_name, check_template, fill_template, fold_name

HOSTILE = (
    "../a.png",
    "../../etc/a.png",
    "a/../../b.png",
    "/etc/a.png",
    "//server/share/a.png",
    "a//b.png",
    "./a.png",
    "a/./b.png",
    "a/",
    "",
    ".",
    "..",
    "/",
    "C:a.png",
    "C:/a.png",
    "C:\\a.png",
    "\\\\server\\a.png",
    "..\\a.png",
    "a\\b.png",
    "a\0.png",
    "a\n.png",
    "a\x1b[31m.png",
    "a\x7f.png",
    "a\x85.png",
    "con.png",
    "CON.png",
    "a/nul.png",
    "nul",
    "aux.png/b.png",
    "COM1.png",
    "lpt9.png",
    "com¹.png",
    "CONIN$.png",
    "con .png",
    "prn.tar.png",
    "a.png.",
    "a.png ",
    " a.png",
    "a /b.png",
    "a./b.png",
    "a<b.png",
    "a>b.png",
    'a"b.png',
    "a|b.png",
    "a?b.png",
    "a*b.png",
    "a:b.png",
    "a.png:stream",
    ".batch/manifest-1-of-1.jsonl",
    ".hidden.png",
    "a/.git/b.png",
    "a.exe",
    "a",
    "a.png/",
    "gnp.\u202egpj.png",
    "a\u200f.png",
    "a\ud800.png",
    "x" * 161 + ".png",
    "d/" * 130 + "a.png",
    "ä" * 100 + ".png",
    "metadata.jsonl",
    "index.html",
    "~/a.svg",
    "$(touch x)|.png",
    "%00?.png",
)
BENIGN = (
    "a.png",
    "a.PNG",
    "a.jpg",
    "a.jpeg",
    "a.webp",
    "a b.png",
    "a-b_c.png",
    "cats/1.png",
    "train/cats/0001.png",
    "ä.png",
    "猫.png",
    "🦊.png",
    "👩\u200d🚀.png",
    "a.b.c.png",
    "a..b.png",
    "console.png",
    "auxiliary.png",
    "com10.png",
    "nullable/a.png",
    "a,b.png",
    "a;b.png",
    "a+b=c.png",
    "a@b.png",
    "a#b.png",
    "a&b.png",
    "a'b.png",
    "a(1).png",
    "a[1].png",
    "a{1}.png",
    "a!b.png",
    "a%20b.png",
    "a$b.png",
    "~a.png",
    "a~1.png",
    "-a.png",
    "--help.png",
    "_.png",
    "0.png",
    "x" * 150 + ".png",
    "a/b/c/d/e/f/g.png",
    "Ω.webp",
    "a^b.png",
    "a`b.png",
    "con-1.png",
)


def test_hostile_names_are_refused_and_nothing_is_written_outside(tmp_path: Path) -> None:
    assert len(HOSTILE) >= 60
    accepted = []
    for name in HOSTILE:
        try:
            accepted.append(check_name(name))
        except RequestError:
            continue
    assert accepted == []
    inside = tmp_path / "deep" / "out"
    with testing.fake():
        outcomes = list(batch.run([{"prompt": "a", "file_name": name} for name in HOSTILE], inside))
    assert {outcome.state for outcome in outcomes} == {"failed"}
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in inside.parent.iterdir()] == ["out"]
    assert not list(inside.rglob("*.png"))


def test_benign_names_are_written(tmp_path: Path) -> None:
    assert len(BENIGN) >= 40
    names = [name for name in BENIGN if name.lower().endswith(".png")]
    distinct = {fold_name(name): name for name in names}
    with testing.fake():
        outcomes = list(
            batch.run(
                [
                    {"prompt": "a", "seed": 1, "id": str(i), "file_name": name}
                    for i, name in enumerate(distinct.values())
                ],
                tmp_path,
            )
        )
    assert {outcome.state for outcome in outcomes} == {"drawn"}
    assert all((tmp_path / name).is_file() for name in distinct.values())
    assert [check_name(name) for name in BENIGN] == list(BENIGN)


def test_templates() -> None:
    check_template("{mode}/{id}-{seed:06}.jpg")
    fields = {"prompt": "../A cat: “big”\n<b>/x\u202e", "seed": 7, "id": "CON", "mode": "lcm"}
    assert fill_template("{prompt}.png", fields) == "A-cat-big-b-x.png"
    assert fill_template("{id}/{seed:04}-{seed}.png", fields) == "CON-/0007-7.png"
    assert fill_template("{prompt}.png", {"prompt": "///"}) == "empty.png"
    assert len(fill_template("{prompt}.png", {"prompt": "猫" * 200}).encode()) < 160


@pytest.mark.parametrize(
    "template",
    [
        "{id}",
        "{id}.gif",
        "{who}.png",
        "{id!r}.png",
        "{id.__class__}.png",
        "{id[0]}.png",
        "{seed:999999999}.png",
        "{}.png",
        "{id.png",
        "../{id}.png",
        "/{id}.png",
        ".{id}.png",
        "{seed:,}.png",
        "con.png",
    ],
)
def test_bad_templates(template: str) -> None:
    with pytest.raises(RequestError):
        check_template(template)


def test_names_that_are_one_file_elsewhere(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a", "seed": seed, "file_name": name}
        for seed, name in enumerate(("É.png", "e\u0301.png", "é.PNG"))
    ]
    with testing.fake():
        outcomes = list(batch.run(lines, tmp_path))
    assert sorted(outcome.state for outcome in outcomes) == ["drawn", "failed", "failed"]
    assert "that of line 1" in outcomes[0].reason


def test_links_lead_nowhere(tmp_path: Path) -> None:
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    out.mkdir()
    (out / "folder").symlink_to(outside)
    (out / "file.png").symlink_to(outside / "file.png")
    (out / "mine.png").write_bytes(b"mine")
    lines = [
        {"prompt": "a", "file_name": name} for name in ("folder/a.png", "file.png", "mine.png", "ok.png")
    ]
    with testing.fake():
        outcomes = list(batch.run(lines, out))
    assert sorted(outcome.state for outcome in outcomes) == ["drawn", "failed", "failed", "failed"]
    assert list(outside.iterdir()) == []
    assert (out / "mine.png").read_bytes() == b"mine"
