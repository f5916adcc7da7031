"""`fewstep modes` and `fewstep env`: what is there, and why."""

from __future__ import annotations

import argparse
import json
from typing import Any

from fewstep.arguments import command
from fewstep.errors import BackendError


def add(commands: Any) -> None:
    """Both commands."""
    modes = command(commands, "modes", _modes, "list the modes, and what is wrong with broken ones")
    env = command(commands, "env", _env, "show this machine, where models would run on it, and why")
    for each in (modes, env):
        each.add_argument("--json", action="store_true", help="print JSON")


def _modes(asked: argparse.Namespace) -> int:
    from fewstep import backends

    listed = [_mode(name) for name in backends.modes()]
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
    from fewstep import backends

    try:
        recipe = backends.recipe(name)
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
    from fewstep.devices import probe
    from fewstep.devices.report import as_text, report
    from fewstep.models.catalog import describe
    from fewstep.models.need import need_of

    found = report(probe(), {name: need_of(describe(name)) for name in ("tiny", "sdxl")})
    print(json.dumps(found) if asked.json else as_text(found))
    return 0
