"""Plug-ins: sound ones are modes like any other, broken ones harm nobody who does not name them.

Each package here is real: a module and a dist-info folder on `sys.path`, as pip leaves them.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fewstep
from fewstep import cli
from fewstep.errors import BackendError, RequestError
from fewstep.modes import GROUP, _warn_hidden, find_recipe, mode_names

BUILT_IN = [
    "base", "dmd2", "dmd2-1step", "flash", "hyper", "hyper-1step", "hyper-cfg", "hyper-unified", "lcm",
    "lcm-lora", "lightning", "lightning-1step", "lightning-lora", "merge", "pcm", "pcm-lcm", "pcm-normal",
    "tcd", "turbo",
]  # fmt: skip
SOUND = """
from fewstep import Guidance, Recipe, Steps, Weights
from fewstep.samplers import SAMPLERS
from fewstep.schedulers import SCHEDULERS, scaled

RECIPE = Recipe(
    mode="{mode}", title="three steps", licence="MIT", source="tests/modes/test_plugins.py",
    schedulers=("thirds", "trailing"), samplers=("mine", "lcm"),
    own_schedulers={{"thirds": scaled([999, 666, 333])}}, own_samplers={{"mine": SAMPLERS["lcm"]}},
    steps=Steps(low=1, default=3, high=8), guidance=Guidance(kind="embedded", default=3.0, high=6.0),
    weights={{"tiny": Weights(attach="unet", source="unet_lcm")}},
)
"""
RECIPE = SOUND.format(mode="odd")
# What is wrong → the module, and words of the message.
BROKEN = {
    "import": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "crash": ("raise ValueError('first line\\nsecond')", "ValueError: first line;"),
    "exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "missing": ("RECIPES = []", "has no attribute 'RECIPE'"),
    "type": ("RECIPE = {'mode': 'odd'}", "{'mode': 'odd'} is not a fewstep.Recipe"),
    "name": (SOUND.format(mode="even"), "calls itself mode='even'"),
    "sampler": (RECIPE.replace('"mine", "lcm"', '"mine", "heunn"'), "sampler 'heunn' is unknown"),
    "scheduler": (RECIPE.replace('"trailing"', '"trialing"'), "scheduler 'trialing' is unknown"),
    "steps": (RECIPE.replace("default=3, high=8", "default=9, high=8"), "low <= default <= high"),
    "whole": (RECIPE.replace("low=1", "low=0.5"), "whole numbers"),
    "guidance": (RECIPE.replace("default=3.0", "default=7.0"), "1 is off"),
    "off": (RECIPE.replace("default=3.0", "low=0, default=3.0"), "1 is off"),
    "nan": (RECIPE.replace("high=6.0", "high=float('nan')"), "1 is off"),
    "kind": (RECIPE.replace('"embedded"', '"embeded"'), "none, embedded, cfg"),
    "string": (RECIPE.replace('("mine", "lcm")', '("lcm")'), "samplers='lcm' should be a tuple"),
    "empty": (RECIPE.replace('("mine", "lcm")', "()"), "samplers is empty"),
    "override": (RECIPE.replace("weights=", 'overrides={"tiny": {"stepz": 4}}, weights='), "'stepz'"),
    "there": (
        RECIPE.replace("weights=", 'overrides={"tiny": {"samplers": ("eulr",)}}, weights='),
        "on tiny: sampler 'eulr' is unknown",
    ),
    "attach": (RECIPE.replace('"unet"', '"unit"'), "attach 'unit'"),
    "rule": (RECIPE.replace('SAMPLERS["lcm"]', "print"), "own_samplers['mine']"),
    "prediction": (RECIPE.replace('title="', 'prediction="eps", title="'), "prediction='eps'"),
    "only": (RECIPE.replace("high=8)", "high=8, only=(1, 2, 3))"), "rise from low to high"),
    "default": (RECIPE.replace("high=8)", "high=8, only=(1, 8))"), "with the default in it"),
    "file": (RECIPE.replace("high=8)", "high=8, only=(1, 3, 8))"), "should hold {steps}"),
    "counts": (RECIPE.replace('"unet_lcm"', '"unet_lcm", file="{steps}"'), "should hold {steps}"),
    "scale": (RECIPE.replace('"unet_lcm"', '"unet_lcm", scale=0'), "a number above 0"),
    "style": (RECIPE.replace('title="', 'style_scale=-1, title="'), "style_scale=-1"),
    "twin": (RECIPE.replace('title="', 'as_adapter=None, title="'), "as_adapter=None should be a str"),
    "source": (RECIPE.replace('"unet_lcm"', '""'), "need a source"),
    "deep": (RECIPE.replace("(low=1, default=3, high=8)", "(low=1, default=3, high=None)"), "whole numbers"),
}

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(package, source, *modes)`: a package of one module that offers these modes."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def installed(package: str, source: str, *modes: str) -> None:
        module = package.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        offers = "".join(f"{mode} = {module}:RECIPE\n" for mode in modes or ("odd",))
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{offers}")

    yield installed
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) == str(tmp_path / f"{name}.py"):
            del sys.modules[name]


def message(mode: str) -> str:
    """What naming a broken mode says: one line, and which package to look at."""
    with pytest.raises(BackendError) as caught:
        find_recipe(mode)
    said = str(caught.value)
    assert "\n" not in said
    assert f"mode={mode!r}" in said
    return said


# --- sound ones


def test_a_plugin_is_a_mode(install: Install) -> None:
    install("third-party", RECIPE)
    plan = fewstep.plan("a fox", mode="odd")
    assert plan.schedule.timesteps == (999, 666, 333)
    assert (plan.request.scheduler, plan.request.sampler) == ("thirds", "mine")
    assert fewstep.plan("a fox", 2, mode="odd", scheduler="trailing").schedule.timesteps == (999, 499)


def test_it_draws(install: Install) -> None:
    install("third-party", RECIPE)
    with fewstep.load(mode="odd", device="cpu") as engine, fewstep.load(device="cpu") as usual:
        own = engine.generate("a sun", seed=1)
        assert own.timesteps == (999, 666, 333)
        same = usual.generate("a sun", seed=1, timesteps=[999, 666, 333])
    assert own[0].tobytes() == same[0].tobytes()


def test_own_rules_and_levels_are_validated(install: Install) -> None:
    install("third-party", RECIPE)
    with pytest.raises(RequestError, match="run exactly 3"):
        fewstep.plan("a fox", 4, mode="odd")
    with pytest.raises(RequestError, match="choose one of mine, lcm"):
        fewstep.plan("a fox", mode="odd", sampler="euler")
    with pytest.raises(RequestError, match="sampler 'mine' has none; leave eta out"):
        fewstep.plan("a fox", mode="odd", eta=0.5)


def test_an_own_name_comes_before_fewsteps(install: Install) -> None:
    install("third-party", RECIPE.replace("thirds", "karras"))
    assert fewstep.plan("a fox", mode="odd").schedule.timesteps == (999, 666, 333)


@pytest.mark.parametrize(
    ("levels", "says"),
    [
        ("lambda steps, strength: 1 / 0", "ZeroDivisionError: division by zero"),
        ("lambda steps, strength: SCHEDULERS['trailing'](steps + 1, strength)", "4 steps came out"),
        ("lambda steps, strength: None", "AttributeError"),
    ],
)
def test_a_scheduler_that_fails(install: Install, levels: str, says: str) -> None:
    install("third-party", RECIPE.replace("scaled([999, 666, 333])", levels))
    with pytest.raises(BackendError) as caught:
        fewstep.plan("a fox", mode="odd")
    assert says in str(caught.value)
    assert "scheduler='thirds' of mode='odd' failed at steps=3, strength=1" in str(caught.value)


def test_naming_modes_imports_none(install: Install) -> None:
    install("third-party", RECIPE)
    assert mode_names() == sorted([*BUILT_IN, "odd"])
    fewstep.plan("a fox", mode="lcm")
    assert "third_party" not in sys.modules


def test_recipes_are_plain_data(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("third-party", RECIPE)
    assert cli.main(["modes", "--json"]) == 0
    listed = {mode["mode"]: mode for mode in json.loads(capsys.readouterr().out)}
    assert sorted(listed) == mode_names()
    assert (listed["odd"]["own_schedulers"], listed["odd"]["own_samplers"]) == (["thirds"], ["mine"])
    assert listed["base"]["overrides"]["tiny"]["steps"] == {
        "low": 1, "default": 25, "high": 200, "only": [], "also": [],
    }  # fmt: skip
    assert listed["lcm"]["weights"]["tiny"]["source"] == "unet_lcm"


# --- broken ones


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_says_what_is_wrong(install: Install, fault: str) -> None:
    source, says = BROKEN[fault]
    install("third-party", source)
    said = message("odd")
    assert "package third-party 1.2 is broken: " in said
    assert says in said
    assert said.endswith(f"or choose another mode: {', '.join(BUILT_IN)}")


def test_a_value_that_names_no_object(install: Install, tmp_path: Path) -> None:
    install("third-party", RECIPE)
    listed = tmp_path / "third_party-1.2.dist-info" / "entry_points.txt"
    listed.write_text(f"[{GROUP}]\nodd = no such thing\n")
    assert "package third-party 1.2 is broken" in message("odd")


def test_an_interrupt_at_import_is_the_users(install: Install) -> None:
    install("third-party", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        find_recipe("odd")


def test_broken_ones_harm_nobody_else(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (source, _) in enumerate(BROKEN.values()):
        install(f"broken-{number}", source, f"odd-{number}")
    install("clash-a", RECIPE, "twice")
    install("clash-b", RECIPE, "twice")
    install("third-party", RECIPE)
    for mode in set(BUILT_IN) - {"dmd2-1step", "merge"}:  # these need weights of the user's
        fewstep.plan("a fox", mode=mode, model="sdxl")
    fewstep.plan("a fox", mode="odd")

    assert cli.main(["modes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [mode["mode"] for mode in listed] == mode_names()
    broken = {mode["mode"]: mode["broken"] for mode in listed if "broken" in mode}
    assert len(broken) == len(BROKEN) + 1
    assert set(mode_names()) - set(broken) == {*BUILT_IN, "odd"}
    assert all("package" in said or "offered by" in said for said in broken.values())

    assert cli.main(["modes"]) == 0
    out = capsys.readouterr().out
    assert out.count(" broken\n") == len(broken)
    assert "ModuleNotFoundError: No module named 'no_such_module'" in out


def test_a_broken_one_is_one_line_at_the_command(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("third-party", "raise SystemExit('bye')")
    assert cli.main(["plan", "a fox", "--mode", "odd"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("fewstep: mode='odd' of package third-party 1.2 is broken: ")
    assert err.count("\n") == 1


# --- who may offer what


def test_two_packages_for_one_mode(install: Install) -> None:
    install("first", RECIPE)
    install("second", RECIPE)
    fewstep.plan("a fox", mode="lcm")  # nobody is harmed
    assert "offered by first 1.2 and second 1.2: pip uninstall" in message("odd")


def test_a_built_in_is_never_replaced(
    install: Install, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    install("usurper", SOUND.format(mode="lcm"), "lcm")
    _warn_hidden.cache_clear()
    with caplog.at_level(logging.WARNING, "fewstep"):
        for _ in range(2):
            assert find_recipe("lcm").title.startswith("latent consistency model")
    assert [record.getMessage() for record in caplog.records] == [
        "mode='lcm' of package usurper 1.2 is not used: the name is fewstep's own"
    ]
    assert "usurper" not in sys.modules
    _warn_hidden.cache_clear()
    assert cli.main(["plan", "a fox"]) == 0
    assert capsys.readouterr().err.startswith("fewstep: warning: mode='lcm' of package usurper 1.2")


@pytest.mark.parametrize(("value", "there"), [("1", False), ("yes", False), ("0", True), ("", True)])
def test_the_switch_leaves_the_built_ins(
    install: Install, monkeypatch: pytest.MonkeyPatch, value: str, there: bool
) -> None:
    install("third-party", RECIPE)
    monkeypatch.setenv("FEWSTEP_DISABLE_PLUGINS", value)
    assert ("odd" in mode_names()) is there
    assert set(mode_names()) >= set(BUILT_IN)
    if not there:
        with pytest.raises(RequestError, match="FEWSTEP_DISABLE_PLUGINS is set"):
            find_recipe("odd")
        assert "third_party" not in sys.modules
