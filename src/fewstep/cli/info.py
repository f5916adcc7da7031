"""`fewstep modes`, `env`, `inspect` and `check`: what is there, what a file is, what mars a folder."""

from __future__ import annotations

import argparse
import json
from typing import Any

from fewstep.cli.arguments import add_command, number, whole_number
from fewstep.errors import BackendError


def add_listings(commands: Any) -> None:
    """Both commands."""
    modes = add_command(commands, "modes", _modes, "list the modes, and what is wrong with broken ones")
    env = add_command(commands, "env", _env, "show this machine, where models would run on it, and why")
    for each in (modes, env):
        each.add_argument("--json", action="store_true", help="print JSON")


def _modes(asked: argparse.Namespace) -> int:
    from fewstep.modes import mode_names

    listed = [_mode(name) for name in mode_names()]
    if asked.json:
        print(json.dumps(listed))
        return 0
    for mode in listed:
        print(f"{mode['mode']:15} {mode.get('title', 'broken')}")
        for line in [mode["broken"]] if "broken" in mode else _lines(mode):
            print(f"{'':15} {line}")
    return 0


def _mode(name: str) -> dict[str, Any]:
    """A mode as plain data, its defaults resolved, or what is wrong with it."""
    from fewstep.modes import find_recipe

    try:
        recipe = find_recipe(name)
        resolved = {"timesteps": recipe.timesteps(), "eta": recipe.sampler(recipe.samplers[0]).eta}
        return recipe.to_dict() | resolved
    except BackendError as error:
        return {"mode": name, "broken": str(error)}


def _lines(mode: dict[str, Any]) -> list[str]:
    """Steps and guidance; levels and step rule; weights and licence."""
    steps, guidance = mode["steps"], mode["guidance"]
    counts = _either(steps["only"]) if steps["only"] else f"{steps['low']}-{steps['high']}"
    legal = f"{counts} ({steps['default']})" if steps["low"] < steps["high"] else f"{steps['high']}"
    scale = "" if guidance["kind"] == "none" else " {low:g}-{high:g} ({default:g})".format(**guidance)
    lines = [f"steps {legal}, guidance {guidance['kind']}{scale}"]
    levels = mode["timesteps"].get(steps["default"])
    shown = f"; {steps['default']} are {', '.join(f'{round(t, 1):g}' for t in levels)}" if levels else ""
    eta = f", eta {mode['eta']:g}" if mode["eta"] else ""
    lines.append(f"{mode['schedulers'][0]} levels, {mode['samplers'][0]}{eta}{shown}")
    places = dict.fromkeys(one["source"] for one in mode["weights"].values() if "/" in one["source"])
    style = f"; style LoRAs at {mode['style_scale']:g}" if mode["style_scale"] != 1 else ""
    return [*lines, f"{', '.join(places) or 'the model itself'}; licence: {mode['licence']}{style}"]


def _either(counts: tuple[int, ...]) -> str:
    *rest, last = map(str, counts)
    return f"{', '.join(rest)} or {last}" if rest else last


def _env(asked: argparse.Namespace) -> int:
    from fewstep.catalog.models import describe_model
    from fewstep.devices import probe
    from fewstep.devices.report import device_report, report_as_text
    from fewstep.loading.footprint import measure_model

    found = device_report(probe(), {name: measure_model(describe_model(name)) for name in ("tiny", "sdxl")})
    print(json.dumps(found) if asked.json else report_as_text(found))
    return 0


def add_inspect(commands: Any) -> None:
    """The command."""
    inspect = add_command(commands, "inspect", _inspect, "say what a model file is; reads no weights")
    inspect.add_argument("path", help="a .safetensors file, or a folder")
    check = add_command(
        commands, "check", _check, "say what in a diffusers folder is wrong for a mode; mend it"
    )
    check.add_argument("folder", help="a diffusers folder")
    check.add_argument("--mode", help="the mode it is to run in; the folder's own where left out")
    check.add_argument("--steps", type=whole_number, help="as it would be called")
    check.add_argument("--guidance", type=number, help="as it would be called")
    for each in (inspect, check):
        each.add_argument("--json", action="store_true", help="print JSON")


def _inspect(asked: argparse.Namespace) -> int:
    from fewstep.inspection import inspect

    found = inspect(asked.path)
    print(json.dumps(found.to_dict()) if asked.json else found)
    return 0


def _check(asked: argparse.Namespace) -> int:
    from fewstep.checking import check

    report = check(asked.folder, asked.mode, steps=asked.steps, guidance=asked.guidance)
    print(json.dumps(report.to_dict()) if asked.json else report)
    return 0 if report.ok else 1
