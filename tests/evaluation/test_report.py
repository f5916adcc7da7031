"""Rows written and read back, as a table, and as a plot; and the command."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
from PIL import Image

from fewstep import cli, evaluation
from fewstep.errors import FewstepError, OutputError, RequestError
from fewstep.evaluation import Row, report, run
from tests.evaluation.conftest import network_file

ROW = Row(
    model="tiny", mode="base", steps=50, guidance=3.0, pictures=1500, prompts=500, name_1=0.91, name_5=0.97,
    style_1=0.9, seen_1=0.92, held_out_1=0.6, frechet=0.0123, rmse=0.0, feature_distance=0.0, diversity=0.2,
    sharpness=0.01, milliseconds=900.0, milliseconds_low=880.0, milliseconds_high=990.0, device="cpu",
    precision="float32", processor="A, B", threads=2, torch="2", fewstep="1", loras="", key="a",
)  # fmt: skip
ROWS = [ROW, replace(ROW, steps=4, milliseconds=80.0, milliseconds_low=79.0, milliseconds_high=85.0, key="b")]
ROWS += [replace(row, mode="lcm", name_1=0.8, key=row.key * 2) for row in ROWS]


def test_rows_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.csv"
    for row in ROWS:
        report.append_row(row, path)
    assert evaluation.read(path) == ROWS
    assert path.read_text().splitlines()[0] == ",".join(f.name for f in fields(Row))
    report.append_row(replace(ROW, diversity=math.nan), path)
    assert math.isnan(evaluation.read(path)[-1].diversity)
    assert evaluation.read(tmp_path / "none.csv") == []


@pytest.mark.parametrize(
    "text", ["a,b\n1,2\n", "\x00", "", "{header}\n1,2\n", "{header}\n" + "x," * 24 + "x\n"]
)
def test_another_file_is_not_taken_for_rows(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text.replace("{header}", ",".join(f.name for f in fields(Row))))
    with pytest.raises(RequestError, match="give another --csv"):
        evaluation.read(path)


def test_a_table_has_a_line_for_each_and_a_note() -> None:
    head, *lines, empty, note = evaluation.table(ROWS).splitlines()
    assert len(lines) == len(ROWS)
    assert (empty, len({len(line) for line in (head, *lines)})) == ("", 1)
    assert all(word in note for word in ("tiny", "500 prompts", "1500 pictures", "A, B", "2 threads"))
    assert "91.0%" in lines[0]


def test_a_plot_is_a_png_of_800_pixels(tmp_path: Path) -> None:
    path = tmp_path / "curve.png"
    for rows in (ROWS, ROWS[:1]):  # the second replaces the first
        evaluation.plot(rows, path)
        with Image.open(path) as picture:
            assert (picture.format, picture.width) == ("PNG", 800)
    assert [each.name for each in tmp_path.iterdir()] == ["curve.png"]


def test_where_a_plot_cannot_go_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"type '.*curve\.png'"):
        report.check_plot(tmp_path / "curve.svg")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "find_spec", lambda _: None)
    with pytest.raises(FewstepError, match=r"pip install 'fewstep\[train\]'"):
        report.check_plot(tmp_path / "curve.png")


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    code = cli.main(["eval", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_measures_and_plots(
    capsys: pytest.CaptureFixture[str], work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "REFERENCE_CELL", ("base", 1))
    (tmp_path / "data").symlink_to(work / "data")
    code, out, err = command(
        capsys, "--work", str(tmp_path), "--modes", "lcm", "--steps", "1", "--prompts", "2", "--seeds", "1",
        "--guidance", "lcm=2", "--repeats", "1", "--features", str(network_file(work)),
        "--csv", str(tmp_path / "rows.csv"), "--plot", str(tmp_path / "curve.png"), "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    assert "lcm 1  picture 2 of 2" in err
    assert "name@1" in out
    assert (tmp_path / "curve.png").is_file()
    (row,) = evaluation.read(tmp_path / "rows.csv")
    assert (row.mode, row.guidance, row.pictures) == ("lcm", 2.0, 2)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((), 2, "type fewstep train data --work nowhere"),
        (("--steps", "many"), 2, "--steps 'many': give whole numbers, such as 1,2,4"),
        (("--guidance", "3"), 2, "give a mode and a number, such as lcm=3"),
        (("--prompts", "all"), 2, "give a whole number"),
        (("--plot", "curve.pdf"), 73, "curve.png"),
        (("--modes", "lmc"), 2, "did you mean mode='lcm'"),
    ],
)
def test_mistakes_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, told: str
) -> None:
    found, out, err = command(capsys, "--work", "nowhere", *words)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert told in err


def test_a_missing_package_of_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'accelerate'", name="accelerate")

    monkeypatch.setattr("fewstep.evaluation.watch", missing)
    code, _, err = command(capsys)
    assert (code, err) == (1, "fewstep: evaluation needs accelerate: pip install 'fewstep[train]'\n")
