"""Sixty mistakes, from Python and at the command line, and what each is told.

Every answer is a `FewstepError` of one line that says what was given and what to give instead, and
none needs torch: the whole table runs once more where importing it fails.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fewstep
from fewstep import cli
from fewstep.errors import FewstepError
from fewstep.testing import FakeEngine

# Call → exit code, what was given, what to give.
CALLS: dict[str, tuple[int, str, str]] = {
    'generate("a fox", steps="4")': (2, "steps='4'", "give a whole number"),
    'generate("a fox", steps=True)': (2, "steps=True", "give a whole number"),
    'generate("a fox", steps=2.5)': (2, "steps=2.5", "give a whole number"),
    'generate("a fox", steps=0)': (2, "steps=0", "whole number from 1 to 1000"),
    'generate("a fox", 9)': (2, "steps=9", "1 to 8; type steps=4"),
    "generate(None)": (2, "prompt=None", "give a string"),
    'generate(b"x")': (2, "prompt=b'x'", "give a string"),
    "generate([])": (2, "prompt=[]", "give a string"),
    'generate("a fox", seed=-1)': (2, "seed=-1", "from 0 to 2**64 - 1"),
    'generate("a fox", seed=1.5)': (2, "seed=1.5", "from 0 to 2**64 - 1"),
    'generate("a fox", seed="a")': (2, "seed='a'", "from 0 to 2**64 - 1"),
    'generate("a fox", seed=[1, 2])': (2, "2 seeds for 1 pictures", "give one seed, or 1"),
    'generate("a fox", count=0)': (2, "count=0", "from 1 to 1024"),
    'generate("a fox", width=100)': (2, "width=100", "multiples of 8"),
    'generate("a fox", width="wide")': (2, "width='wide'", "give a whole number"),
    'generate("a fox", mode=3)': (2, "mode=3", "choose one of base, dmd2"),
    'generate("a fox", mode="trubo")': (2, "mode='trubo'", "did you mean mode='turbo'?"),
    'generate("a fox", mode="flash")': (2, "mode='flash'", "choose one of base, turbo, lcm, lcm-lora"),
    'generate("a fox", model=None)': (2, "model=None", "tiny, sdxl"),
    'generate("a fox", model="")': (2, "model=''", "tiny, sdxl"),
    'generate("a fox", model="nowhere")': (1, "model='nowhere'", "tiny, sdxl"),
    'generate("a fox", model="~nobody/" + 300 * "x")': (1, "model='~nobody/", "tiny, sdxl"),
    'generate("a fox", model="folder")': (1, "model_index.json is missing", "a complete diffusers folder"),
    'generate("a fox", image=5)': (2, "image=5", "a path or a PIL image"),
    'generate("a fox", image="nowhere.png")': (2, "image='nowhere.png'", "there is no such file"),
    'generate("a fox", image="folder")': (2, "image='folder'", "PNG, JPEG, WEBP"),
    'generate("a fox", image="words.txt")': (2, "image='words.txt'", "PNG, JPEG, WEBP"),
    'generate("a fox", image=[[0, 1]])': (2, "image is a list of 2", "give one, image[0]"),
    'generate("a fox", image="https://a.org/b.png")': (2, "image='https://a.org/b", "give its bytes or path"),
    'generate("a fox", mask="taken.png")': (2, "mask", "give the picture to inpaint as image="),
    'generate("a fox", image="taken.png", strength=0)': (2, "strength=0", "above 0, up to 1"),
    'generate("a fox", strength=0.5)': (2, "strength=0.5", "give image="),
    'generate("a fox", guidance=20)': (2, "guidance=20", "1 to 6"),
    'generate("a fox", guidance=float("nan"))': (2, "guidance=nan", "number from 0 to 100"),
    'generate("a fox", guidance="high")': (2, "guidance='high'", "give a number"),
    'generate("a fox", negative_prompt="sun")': (2, "negative_prompt", "use mode='base'"),
    'generate("a fox", timesteps=[1, 2])': (2, "timesteps=[1, 2]", "timesteps=[999, 749, 499, 249]"),
    'generate("a fox", sampler="heun")': (2, "sampler='heun'", "choose one of lcm"),
    'generate("a fox", eta=0.5)': (2, "eta=0.5", "leave eta out"),
    'generate("a fox", mode="base", accelerator="x")': (2, "accelerator='x'", "leave accelerator out"),
    'generate("a fox", accelerator=None)': (2, "accelerator=None", "a file, a folder, or a hub id"),
    'generate("a fox", accelerator="./x")': (1, "accelerator='./x'", "a hub id such as 'owner/name'"),
    'generate("a fox", accelerator="folder")': (1, "accelerator='folder'", "config.json and safetensors"),
    'generate("a fox", device=5)': (2, "device=5", "auto, cuda, mps, cpu"),
    'generate("a fox", precision="fp8")': (2, "precision='fp8'", "auto, fp32, fp16, bf16"),
    'generate("a fox", offload="disk")': (2, "offload='disk'", "auto, none, model, sequential"),
    'load("sdxl", "lightning", steps=3)': (2, "steps=3", "weights for 2, 4 or 8 steps; type steps=4"),
    'load("sdxl", "dmd2-1step")': (1, "dmd2_sdxl_1step_unet_fp16.bin", "accelerator="),
    'load("sdxl", "merge")': (2, "mode='merge'", "as model="),
    'load("tiny", "hyper", steps=4)': (2, "mode='hyper'", "choose one of base, turbo, lcm, lcm-lora"),
    'generate("a fox", mode="turbo", guidance=3)': (2, "guidance=3", "leave guidance out"),
    'generate("a fox", mode="lcm-lora", guidance=3)': (2, "guidance=3", "1 to 2 (1 is off)"),
    'generate("a fox", vae=None)': (2, "vae=None", "'tiny', a folder, a .safetensors file, or a hub id"),
    'generate("a fox", vae="nowhere")': (1, "vae='nowhere'", "tiny, vae-fp16, taesdxl, taesd, vae-tiny"),
    'generate("a fox", vae="folder")': (1, "vae='folder'", "config.json and safetensors are needed"),
    'generate("a fox", vae="words.txt")': (1, "words.txt", "fewstep reads safetensors alone"),
    'generate("a fox", vae="taesdxl")': (2, "vae='taesdxl'", "type vae='tiny'"),
    'load("sdxl", vae="vae-tiny")': (2, "vae='vae-tiny'", "type vae='tiny'"),
    'plan("a fox", vae="owner/name", commercial=True)': (2, "vae='owner/name'", "its licence is not known"),
    'plan("a fox", model="sdxl", loras=["fx"])': (1, "style_fx", "made for tiny, and the model is sdxl"),
    'load("sdxl", "lcm-lora", accelerator="./x.safetensors")': (1, "accelerator='./x.", "a file or folder"),
    'plan("a fox", stepz=4)': (2, "stepz=", "choose from"),
    'plan("a fox", wdith=64)': (2, "wdith=", "did you mean width?"),
    'made.save("fox.gif")': (73, "'fox.gif'", "type 'fox.png'"),
    'made.save("fox.png", quality=90)': (73, "quality=90", "leave quality out"),
    'made.save("fox.jpg", quality=900)': (73, "quality=900", "from 1 to 100"),
    'made.save("fox.jpg", format="png")': (73, "'fox.jpg' ends as jpeg", "leave one of them out"),
    'made.bytes(0, "gif")': (73, "format='gif'", "choose one of png, jpeg, webp"),
    'made.save("taken.png")': (73, "'taken.png' exists", "overwrite=True"),
    'made.save("nowhere/fox.png")': (73, "'nowhere/fox.png'", "make it, or choose another"),
    'made.save(300 * "x" + ".png")': (73, "xxx.png' cannot be written", "File name too long"),
    'made.save("a\\0.png")': (73, "'a\\x00.png' is no path", "type 'picture.png'"),
    "made.save(5)": (73, "5 is no path", "type 'picture.png'"),
}  # fmt: skip

# Words after `fewstep` → exit code, what was given, what to give.
WORDS: dict[tuple[str, ...], tuple[int, str, str]] = {
    ("genrate", "a fox"): (2, "'genrate'", "did you mean generate?"),
    ("a red fox",): (2, "'a red fox'", "choose one of generate, plan, batch, refine, inpaint"),
    ("--steps", "4"): (2, "--steps", "goes after a command"),
    ("--versoin",): (2, "'--versoin'", "did you mean --version?"),
    ("generate",): (2, "the prompt is missing", 'type fewstep generate "a red fox"'),
    ("generate", "a fox", "--stepz", "4"): (2, "'--stepz'", "did you mean --steps?; see fewstep"),
    ("generate", "a fox", "--stepz=4"): (2, "'--stepz'", "did you mean --steps?"),
    ("generate", "a fox", "--st", "4"): (2, "'--st'", "did you mean --steps?"),
    ("generate", "a fox", "--tile"): (2, "'--tile'", "did you mean --tiles?"),
    ("generate", "a fox", "--zzz"): (2, "'--zzz'", "choose one of -h, --help, --steps"),
    ("generate", "a fox", "--steps"): (2, "--steps", "expected one argument; see fewstep generate --help"),
    ("generate", "a fox", "--steps", "abc"): (2, "--steps 'abc'", "give a whole number; see fewstep"),
    ("generate", "a fox", "--steps", "2.5"): (2, "--steps '2.5'", "give a whole number"),
    ("generate", "a fox", "--guidance", "high"): (2, "--guidance 'high'", "give a number"),
    ("generate", "a fox", "--guidance", "nan"): (2, "guidance=nan", "number from 0 to 100"),
    ("generate", "a fox", "--timesteps", "999", "x"): (2, "--timesteps 'x'", "give a whole number"),
    ("generate", "a fox", "--timesteps", "5", "10"): (2, "timesteps=[5, 10]", "999 down to 0"),
    ("generate", "a fox", "--steps", "4", "an owl"): (2, "'an owl'", "give them together"),
    ("generate", "a fox", "--steps", "0"): (2, "steps=0", "whole number from 1 to 1000"),
    ("generate", "a fox", "--mode", "lmc"): (2, "mode='lmc'", "did you mean mode='lcm'?"),
    ("generate", "a fox", "--model", "nowhere"): (1, "model='nowhere'", "tiny, sdxl"),
    ("generate", "a fox", "--seed", "-1"): (2, "seed=-1", "from 0 to 2**64 - 1"),
    ("generate", "a fox", "--count", "1000000000"): (2, "count=1000000000", "from 1 to 1024"),
    ("generate", "a fox", "--width", "1024"): (2, "width=1024", "multiples of 8 from 64 to 256"),
    ("generate", "a fox", "--image", "nowhere.png"): (2, "image='nowhere.png'", "there is no such file"),
    ("generate", "a fox", "--vae", "nowhere"): (1, "vae='nowhere'", "a hub id such as 'owner/name'"),
    ("generate", "a fox", "--vea", "tiny"): (2, "'--vea'", "did you mean --vae?"),
    ("generate", "a fox", "--device", "tpu"): (2, "device='tpu'", "auto, cuda, mps, cpu"),
    ("generate", "a fox", "--precision", "int3"): (2, "precision='int3'", "auto, fp32, fp16, bf16"),
    ("generate", "a fox", "--json=yes"): (2, "--json", "'yes'"),
    ("generate", "a fox", "-o", "fox.gif"): (73, "'fox.gif'", "type 'fox.png'"),
    ("generate", "a fox", "-o", "taken.png"): (73, "'taken.png' exists", "--overwrite"),
    ("generate", "a fox", "-o", "nowhere/fox.png"): (73, "'nowhere/fox.png'", "make it, or choose another"),
    ("plan", "a fox", "--output", "x"): (2, "'--output'", "see fewstep plan --help"),
    ("modes", "lcm"): (2, "'lcm' is a word too many", "see fewstep modes --help"),
    ("models", "sdlx"): (2, "'sdlx'", "did you mean sdxl?"),
    ("models", "pull"): (2, "the name is missing", "type fewstep models pull sdxl"),
    ("models", "pull", "./folder"): (2, "'./folder'", "see fewstep models"),
    ("inspect",): (2, "path", "see fewstep inspect --help"),
    ("train",): (2, "STAGE", "see fewstep train --help"),
    ("train", "lcm_lora"): (2, "stage='lcm_lora'", "did you mean lcm-lora?"),
}  # fmt: skip


def surroundings(folder: Path) -> None:
    """What the table speaks of."""
    (folder / "folder").mkdir()
    (folder / "words.txt").write_text("no picture")
    Image.new("RGB", (128, 128)).save(folder / "taken.png")


def answer(case: str | tuple[str, ...]) -> tuple[int, str]:
    """Exit code and message."""
    if isinstance(case, str):
        names: dict[str, Any] = {name: getattr(fewstep, name) for name in ("generate", "load", "plan")}
        try:
            eval(case, {**names, "made": FakeEngine().generate("a fox")})
        except FewstepError as error:
            return error.exit_code, str(error)
        return 0, ""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(case)
    said = err.getvalue()
    assert (out.getvalue(), said[:9], said[-1:]) == ("", "fewstep: ", "\n")
    return code, said[9:-1]


def wrong(case: str | tuple[str, ...]) -> str:
    """What is wrong with the answer to a mistake; "" is nothing."""
    code, given, instead = CALLS[case] if isinstance(case, str) else WORDS[case]
    ended, said = answer(case)
    fine = ended == code and given in said and instead in said and "\n" not in said
    return "" if fine else f"{case} ended with {ended}: {said!r}"


@pytest.mark.parametrize("case", [*CALLS, *WORDS], ids=str)
def test_a_mistake_is_answered(
    case: str | tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    surroundings(tmp_path)
    assert wrong(case) == ""
    assert sorted(os.listdir()) == ["folder", "taken.png", "words.txt"]


def test_no_mistake_needs_torch(tmp_path: Path) -> None:
    """In one process, where importing torch raises."""
    surroundings(tmp_path)
    code = (
        f"import sys; sys.modules['torch'] = None; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_mistakes import CALLS, WORDS, wrong\n"
        "print(*filter(None, map(wrong, [*CALLS, *WORDS])), len(CALLS) + len(WORDS), sep='\\n')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert ran.stdout.split("\n") == [str(len(CALLS) + len(WORDS)), ""], ran.stdout + ran.stderr
