"""Every code block in README and docs runs: the python of a page in one namespace, commands as typed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep import cli, metadata

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def blocks(page: Path, language: str) -> list[str]:
    return [body for info, body in FENCE.findall(page.read_text(encoding="utf-8")) if info == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "docs"}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in "".join(blocks(page, "sh")).splitlines():
        words = shlex.split(line)
        assert words[0] == "fewstep"
        assert cli.main(words[1:]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_package_of_a_page_works(tmp_path: Path) -> None:
    """Blocks of the kind "package": files, each named in its first line, and commands typed among them."""
    page, folder, installed = (
        ROOT / "docs" / "write-a-backend.md",
        tmp_path / "package",
        tmp_path / "installed",
    )
    folder.mkdir()
    for block in (*blocks(page, "toml package"), *blocks(page, "python package")):
        (folder / block.splitlines()[0].removeprefix("# ")).write_text(block, encoding="utf-8")
    offline = f"--no-index --no-deps --no-build-isolation --disable-pip-version-check --target {installed}"
    said = ""
    for line in "".join(blocks(page, "sh package")).splitlines():
        words = shlex.split(line.replace("pip install", f"pip install {offline}").removeprefix("python -m "))
        ran = subprocess.run(
            [sys.executable, "-m", *words], cwd=folder, env={**os.environ, "PYTHONPATH": str(installed)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout + ran.stderr
        said += ran.stdout
    assert all(
        words in said for words in ("Successfully installed", "golden          LCM on levels", "2 passed")
    )
    facts = metadata.read(folder / "sun.png")
    assert (facts["mode"], facts["sampler"], facts["eta"]) == ("golden", "mix", 0.8)
    assert facts["schedule"]["timesteps"] == [999, 617, 381, 235, 145]


def test_every_block_is_of_a_known_kind() -> None:
    kinds = {info for page in PAGES for info, _ in FENCE.findall(page.read_text(encoding="utf-8"))}
    packages = {"toml package", "python package", "sh package", "python gunicorn", "python celery"}
    assert kinds <= {"python", "sh", "sh setup", "sh test", "text", *packages}
