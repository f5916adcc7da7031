"""`fewstep modes`: what each mode does, with how many steps, by which weights, under which licence."""

from __future__ import annotations

import argparse
import json
from typing import Any

from fewstep.cli.arguments import add_command
from fewstep.errors import BackendError


def add_modes(commands: Any) -> None:
    """Add the command."""
    modes = add_command(commands, "modes", _run_modes, "list the modes, and what is wrong with broken ones")
    modes.add_argument("--json", action="store_true", help="print JSON")


def _run_modes(arguments: argparse.Namespace) -> int:
    from fewstep.modes import mode_names

    listed = [_mode_facts(name) for name in mode_names()]
    if arguments.json:
        print(json.dumps(listed))
        return 0
    for mode in listed:
        print(f"{mode['mode']:15} {mode.get('title', 'broken')}")
        for line in [mode["broken"]] if "broken" in mode else _mode_lines(mode):
            print(f"{'':15} {line}")
    return 0


def _mode_facts(name: str) -> dict[str, Any]:
    """Return a mode as plain data, its defaults resolved, or what is wrong with it."""
    from fewstep.modes import find_recipe

    try:
        recipe = find_recipe(name)
        resolved = {"timesteps": recipe.timesteps(), "eta": recipe.sampler(recipe.samplers[0]).eta}
        return recipe.to_dict() | resolved
    except BackendError as error:
        return {"mode": name, "broken": str(error)}


def _mode_lines(mode: dict[str, Any]) -> list[str]:
    """Return steps and guidance; levels and step rule; weights and licence."""
    steps, guidance = mode["steps"], mode["guidance"]
    counts = _joined_by_or(steps["only"]) if steps["only"] else f"{steps['low']}-{steps['high']}"
    legal = f"{counts} ({steps['default']})" if steps["low"] < steps["high"] else f"{steps['high']}"
    scale = "" if guidance["kind"] == "none" else " {low:g}-{high:g} ({default:g})".format(**guidance)
    lines = [f"steps {legal}, guidance {guidance['kind']}{scale}"]
    levels = mode["timesteps"].get(steps["default"])
    levels_note = (
        f"; {steps['default']} are {', '.join(f'{round(t, 1):g}' for t in levels)}" if levels else ""
    )
    eta = f", eta {mode['eta']:g}" if mode["eta"] else ""
    lines.append(f"{mode['schedulers'][0]} levels, {mode['samplers'][0]}{eta}{levels_note}")
    places = dict.fromkeys(
        weights["source"] for weights in mode["weights"].values() if "/" in weights["source"]
    )
    style = f"; style LoRAs at {mode['style_scale']:g}" if mode["style_scale"] != 1 else ""
    return [*lines, f"{', '.join(places) or 'the model itself'}; licence: {mode['licence']}{style}"]


def _joined_by_or(counts: tuple[int, ...]) -> str:
    *rest, last = map(str, counts)
    return f"{', '.join(rest)} or {last}" if rest else last
