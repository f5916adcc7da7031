"""Pictures out: files that are whole or not there, and facts that come back as they were."""

from __future__ import annotations

import base64
import html
import io
import os
import stat
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path, PurePath
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import fewstep
from fewstep import Engine, OutputError, RequestError, Result, metadata
from fewstep.files.output import write_file
from fewstep.testing import fake
from tests.conftest import WIDTHS

Load = Callable[..., Engine]
PAYLOADS = [
    "", " ", "it's", 'say "fox"', "`fox`", "\\", "\\n", "\n", "a\r\nb", "\t\v\f", "\x00", "a\x00b",
    "\x1b[31mred\x1b[0m", "\x07\x08\x7f\x85", "\u2028\u2029", "\u202efox", "\ufeff", "é", "e\u0301",
    "狐狸", "🦊👨\u200d👩\u200d👧", "\U0010ffff", "<script>alert(1)</script>", "</div><!--", "&amp;&lt;",
    '"><img src=x onerror=alert(1)>', "{} %s {0} $x", '{"prompts": ["other"]}', "'; DROP TABLE foxes; --",
    "fox " * 5000, "--steps 9 --seed 1", "](javascript:x)",
]  # fmt: skip


@pytest.fixture(scope="module")
def result(engine: Load) -> Result:
    made: Result = engine("turbo").generate(["a red fox", "an owl", "a sun"], 2, seed=7)
    return made


@pytest.fixture(scope="module")
def single(engine: Load) -> Result:
    made: Result = engine("lcm").generate("a red fox", 2, seed=7, width=64)
    return made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_sequence_of_pictures(result: Result) -> None:
    assert len(result) == 3
    assert [*result] == [*result.images] == [result[0], result[1], result[2]]
    assert result[-1] is result.images[2]
    assert result[1:] == result.images[1:]
    assert result[::-1] == result.images[::-1]
    assert result[0] in result
    assert result.index(result[1]) == 1
    with pytest.raises(IndexError):
        result[3]


def test_it_knows_how_it_was_made(result: Result, sdxl_folder: Path) -> None:
    assert result.seeds == (7, 8, 9)
    assert result.prompts == ("a red fox", "an owl", "a sun")
    assert result.timesteps == (999, 499)
    assert (result.model, result.device, result.precision) == (str(sdxl_folder), "cpu", "float32")
    assert result.timings["total"] == pytest.approx(result.timings["steps"] + result.timings["decode"])
    assert "3 of 96x96, mode 'turbo', steps 2, seeds [7, 8, 9]" in repr(result)


# --- files


def test_one_picture_has_the_name_given(single: Result, tmp_path: Path) -> None:
    assert single.save(tmp_path / "fox.png") == [tmp_path / "fox.png"]
    assert names(tmp_path) == ["fox.png"]
    with Image.open(tmp_path / "fox.png") as image:
        assert image.tobytes() == single[0].tobytes()


def test_any_kind_of_path(single: Result, tmp_path: Path) -> None:
    single.save(PurePath(tmp_path) / "pure.png")
    assert metadata.read(PurePath(tmp_path) / "pure.png")["seeds"] == [7]


@pytest.mark.parametrize(
    "content", [None, b"", b"text", b"\x89PNG\r\n\x1a\n" + bytes(40)], ids=["none", "empty", "text", "cut"]
)
def test_where_no_picture_is_metadata_says_so(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(RequestError, match=r"x\.png'"):
        metadata.read(tmp_path / "x.png")


def test_pictures_of_others_say_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg")
    assert metadata.read(tmp_path / "x.jpg") == {}


def test_several_are_numbered(result: Result, tmp_path: Path) -> None:
    paths = result.save(str(tmp_path / "a.b.PNG"))
    assert [path.name for path in paths] == names(tmp_path) == ["a.b-0.PNG", "a.b-1.PNG", "a.b-2.PNG"]
    for path, image in zip(paths, result, strict=True):
        with Image.open(path) as saved:
            assert saved.tobytes() == image.tobytes()


def test_an_existing_file_stays(result: Result, tmp_path: Path) -> None:
    taken = tmp_path / "fox-1.png"
    taken.write_text("mine")
    with pytest.raises(OutputError, match=r"fox-1\.png' exists: choose another name, or overwrite=True"):
        result.save(tmp_path / "fox.png")
    assert names(tmp_path) == ["fox-1.png"]
    assert taken.read_text() == "mine"
    result.save(tmp_path / "fox.png", overwrite=True)
    assert names(tmp_path) == ["fox-0.png", "fox-1.png", "fox-2.png"]
    assert metadata.read(taken)["seeds"] == [8]


def test_a_name_taken_in_the_last_moment_stays(single: Result, tmp_path: Path) -> None:
    (tmp_path / "fox.png").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        write_file(tmp_path / "fox.png", b"png", overwrite=False)
    assert names(tmp_path) == ["fox.png"]
    assert (tmp_path / "fox.png").read_text() == "mine"


def test_a_link_is_not_followed(single: Result, tmp_path: Path) -> None:
    elsewhere, link = tmp_path / "elsewhere.txt", tmp_path / "fox.png"
    elsewhere.write_text("mine")
    link.symlink_to(elsewhere)
    single.save(link, overwrite=True)
    assert elsewhere.read_text() == "mine"
    assert stat.S_ISREG(os.lstat(link).st_mode)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(
    error: BaseException, overwrite: bool, single: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Half(io.BufferedWriter):
        def write(self, content: Any) -> int:
            super().write(content[:50])
            self.flush()
            raise error

    single.facts()  # what it looks up once, it has
    monkeypatch.setattr(Path, "open", lambda path, mode: Half(io.FileIO(path, mode.removesuffix("b"))))
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match=r"fox\.png' cannot be written: No space|^$"):
        single.save(tmp_path / "fox.png", overwrite=overwrite)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["fox", "fox.gif", "fox.png.exe", "", ".", "..", ".png", "folder/"])
def test_only_three_formats(
    name: str, single: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=r"saved as PNG, JPEG or WebP; type '.+\.png'"):
        single.save(name)
    assert names(tmp_path) == []


def test_a_missing_directory(single: Result, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"nowhere/fox\.png' cannot be written: there is no folder"):
        single.save(tmp_path / "nowhere" / "fox.png")
    assert names(tmp_path) == []


def test_a_directory_of_that_name(single: Result, tmp_path: Path) -> None:
    (tmp_path / "fox.png").mkdir()
    with pytest.raises(OutputError, match=r"fox\.png' cannot be written"):
        single.save(tmp_path / "fox.png", overwrite=True)
    assert names(tmp_path) == ["fox.png"]


# --- facts


def test_there_are_thirty_payloads() -> None:
    assert len(set(PAYLOADS)) >= 30


def test_prompts_come_back_as_they_were(engine: Load, tmp_path: Path) -> None:
    made = engine("base").generate(
        PAYLOADS, 1, seed=0, negative_prompt="".join(PAYLOADS), width=48, height=48
    )
    for path, prompt in zip(made.save(tmp_path / "x.png"), PAYLOADS, strict=True):
        facts = metadata.read(path)
        assert facts["prompts"] == [prompt]
        assert facts["negative_prompt"] == "".join(PAYLOADS)


def test_half_a_surrogate_is_no_text(engine: Load) -> None:
    with pytest.raises(RequestError, match="whole Unicode text"):
        engine("turbo").generate("a \ud800 fox")


def test_facts_are_the_plan_and_the_place(result: Result, tmp_path: Path) -> None:
    facts = metadata.read(result.save(tmp_path / "fox.png")[1])
    assert (facts["prompts"], facts["seeds"], facts["mode"]) == (["an owl"], [8], "turbo")
    assert (facts["width"], facts["height"], facts["steps"]) == (96, 96, 2)
    assert facts["schedule"]["timesteps"] == [999, 499]
    assert (facts["device"], facts["precision"]) == ("cpu", "float32")
    assert facts["licence"] == result.licence
    assert (facts["accelerator"], facts["vae"], facts["embeddings"]) == ("", "", [])


def test_all_that_was_used_is_told(lora_file: Path, sdxl_folder: Path, tmp_path: Path) -> None:
    """And the licence of each, which is not known of somebody's own files."""
    word = tmp_path / "word.safetensors"
    save_file({"clip_l": torch.zeros(1, WIDTHS[0]), "clip_g": torch.zeros(1, WIDTHS[1])}, word)
    place: dict[str, Any] = {"accelerator": lora_file, "embeddings": [word], "device": "cpu"}
    with fewstep.load(sdxl_folder, "lcm-lora", **place) as loaded:
        facts = loaded.generate("word", 2, seed=7).facts()
    assert (facts["accelerator"], facts["embeddings"]) == (str(lora_file), [str(word)])
    picture = Image.new("RGB", (1024, 1024))
    with fake():
        plain = fewstep.generate("a fox", model="sdxl")
        assert (plain.licence, plain.facts()["accelerator"]) == ("openrail++", "")
        for order, licence in (
            ({"control": [("union:depth", picture, 1.0)]}, "openrail++, Apache-2.0"),
            ({"reference": [("ip-adapter", picture, 1.0)]}, "openrail++, Apache-2.0"),
            ({"loras": ["owner/style"]}, "openrail++, unknown"),
            ({"loras": ["latent-consistency/lcm-lora-sdxl"]}, "openrail++"),
            ({"embeddings": ["owner/word"]}, "openrail++, unknown"),
            ({"vae": "tiny"}, "openrail++, MIT"),
            ({"vae": "owner/vae"}, "openrail++, unknown"),
        ):
            given: dict[str, Any] = order
            made = fewstep.generate("a fox", model="sdxl", **given)
            assert made.licence == licence
            assert made.facts()["embeddings"] == given.get("embeddings", [])


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("turbo", {"count": 3, "seed": 2**64 - 3}),
        ("lcm", {"guidance": 4, "width": 64, "count": 2}),
        (
            "base",
            {
                "negative_prompt": "sun",
                "guidance_rescale": 0.4,
                "scheduler": "karras",
                "sampler": "dpmpp_sde",
            },
        ),
        ("base", {"timesteps": [900, 400], "sampler": "ddim", "eta": 0.5}),
    ],
)
def test_a_picture_can_be_made_again(
    mode: str, options: dict[str, Any], engine: Load, tmp_path: Path
) -> None:
    result = engine(mode).generate("a red fox", 2, **options)
    for path, image in zip(result.save(tmp_path / "fox.png"), result, strict=True):
        replayed = fewstep.replay(path, engine=engine(mode))
        assert replayed.compared.same_bits
        assert replayed[0].tobytes() == image.tobytes()


def test_pictures_say_that_a_model_made_them(
    single: Result, engine: Load, drawing: Image.Image, tmp_path: Path
) -> None:
    edited = engine("turbo").generate("a fox", image=drawing, seed=1)
    for made, kind in (
        (single, "/trainedAlgorithmicMedia"),
        (edited, "/compositeWithTrainedAlgorithmicMedia"),
    ):
        with Image.open(made.save(tmp_path / "fox.png", overwrite=True)[0]) as image:
            xmp = image.info["xmp"].decode()
        assert f'DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype{kind}"' in xmp


@pytest.mark.parametrize("text", [None, "[1, 2]", '"fox"', "{not json", "[" * 100_000, "NaN"])
def test_foreign_pictures_have_no_facts(text: str | None, single: Result, tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if text is not None:
        info.add_itxt(metadata.KEY, text)
    single[0].save(tmp_path / "other.png", pnginfo=info)
    assert metadata.read(tmp_path / "other.png") == {}


# --- notebooks


class Images(HTMLParser):
    """Every tag that a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_notebooks_see_pictures_and_nothing_else(engine: Load) -> None:
    made = engine("turbo").generate(PAYLOADS, 1, seed=3, width=48, height=48)
    page = Images()
    page.feed(made._repr_html_())
    outer, *cells = page.tags
    assert outer[0] == "div"
    assert [tag for tag, _ in cells] == ["figure", "figcaption", "img"] * len(PAYLOADS)
    images = cells[2::3]
    for (_, attributes), prompt, seed, image in zip(images, PAYLOADS, made.seeds, made, strict=True):
        assert attributes.keys() == {"title", "alt", "src"}
        title = attributes["title"]
        assert title == attributes["alt"] == html.unescape(html.escape(f"{prompt} (seed {seed})"))
        head, _, data = (attributes["src"] or "").partition(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
            assert shown.tobytes() == image.tobytes()


@pytest.mark.parametrize(("columns", "size"), [(None, (288, 96)), (2, (192, 192)), (1, (96, 288))])
def test_grid(columns: int | None, size: tuple[int, int], result: Result) -> None:
    sheet = result.grid(columns)
    assert sheet.size == size
    across = size[0] // 96
    for index, image in enumerate(result):
        left, top = 96 * (index % across), 96 * (index // across)
        assert sheet.crop((left, top, left + 96, top + 96)).tobytes() == image.tobytes()


def test_facts_are_of_one_picture(engine: Load) -> None:
    result = engine("turbo").generate(["a fox", "an owl"], 1, prompt_2=["red", "blue"], seed=4)
    assert [result.facts(i)["prompts"] for i in range(2)] == [["a fox"], ["an owl"]]
    assert [result.facts(i)["prompts_2"] for i in range(2)] == [["red"], ["blue"]]
    assert [result.facts(i)["seeds"] for i in range(2)] == [[4], [5]]
