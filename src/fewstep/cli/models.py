"""`fewstep models`: the model files that have a name, their licences, and the way to get them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.arguments import add_command
from fewstep.cli.streams import report_of_work, tell
from fewstep.errors import RequestError

if TYPE_CHECKING:
    from fewstep.catalog.assets import Asset


def add_models(commands: Any) -> None:
    """Add `fewstep models`, `fewstep models NAME...`, `fewstep models pull NAME...`"""
    models = add_command(
        commands, "models", _run_models, "list model files and licences; `models pull NAME` gets them"
    )
    models.add_argument("names", nargs="*", metavar="[pull] NAME", help="tell more of these, or get them")
    models.add_argument("--json", action="store_true", help="print JSON")


def _run_models(arguments: argparse.Namespace) -> int:
    from fewstep.catalog.assets import ASSETS

    pull = arguments.names[:1] == ["pull"]
    names = arguments.names[1:] if pull else arguments.names
    if pull and not names:
        raise RequestError("the name is missing: type fewstep models pull sdxl")
    assets = [_asset(name) for name in names] or [*ASSETS.values()]
    if pull:
        return _run_pull(assets)
    facts = [_facts(asset) for asset in assets]
    if arguments.json:
        print(json.dumps(facts))
    else:
        print("\n\n".join(map(_details, facts)) if names else _table(facts))
    return 0


def _asset(name: str) -> Asset:
    from fewstep.catalog.assets import ASSETS

    if name not in ASSETS:
        matches = get_close_matches(name, ASSETS, n=1)
        hint = f"did you mean {matches[0]}?" if matches else "see fewstep models"
        raise RequestError(f"model {name!r} has no entry: {hint}")
    return ASSETS[name]


def _facts(asset: Asset) -> dict[str, Any]:
    """Return an asset as plain data, with where it is on this machine ("": not yet)."""
    place = _place(asset)
    terms = asset.terms
    return asdict(asset) | {
        "terms": terms.terms, "commercial": terms.commercial, "path": "" if place is None else str(place),
        "bytes": asset.bytes or _bundled_bytes(asset),
    }  # fmt: skip


def _place(asset: Asset) -> Path | None:
    from fewstep.catalog.hub import cached_folder
    from fewstep.catalog.models import bundled_folder

    return cached_folder(asset.repo, asset.files, asset.revision) if asset.repo else bundled_folder(asset)


def _bundled_bytes(asset: Asset) -> int:
    """Return the bytes of a folder that comes with fewstep; 0 for others."""
    from fewstep.catalog.models import bundled_folder

    files = [] if asset.repo else [path for path in bundled_folder(asset).glob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)


def _table(facts: Sequence[dict[str, Any]]) -> str:
    """Return a line for each asset, and under them what the licences say."""
    from fewstep.catalog.hub import format_size

    rows = [("name", "size", "where", "licence", "")]
    for entry in facts:
        place = "bundled" if not entry["repo"] else "here" if entry["path"] else "hub"
        pinned = "" if entry["revision"] or not entry["repo"] else ", not pinned"
        size = format_size(entry["bytes"]) if entry["bytes"] else "?"
        rows.append((entry["name"], size, place + pinned, entry["licence"], entry["title"]))
    terms = {entry["licence"]: entry["terms"] for entry in facts}
    lines = [
        f"{name:17} {size:>7}  {place:15}  {terms:17}  {title}" for name, size, place, terms, title in rows
    ]
    return "\n".join([*lines, "", *(f"{name}: {text}" for name, text in terms.items())])


def _details(entry: dict[str, Any]) -> str:
    """Return all that is known of one asset."""
    from fewstep.catalog.hub import format_size

    commercial = {True: "allowed", False: "forbidden", None: "not known"}[entry["commercial"]]
    rows = {
        "what": entry["title"],
        "where": f"{entry['repo']} on the hub" if entry["repo"] else "bundled",
        "revision": entry["revision"] or ("not known: the newest is taken" if entry["repo"] else "bundled"),
        "files": ", ".join(entry["files"]),
        "size": format_size(entry["bytes"]),
        "memory": f"{entry['memory']:g} GB on a GPU in fp16" if entry["memory"] else "",
        "modes": ", ".join(entry["modes"]),
        "licence": f"{entry['licence']}: {entry['terms']}",
        "commercial": commercial,
        "here": entry["path"] or f"no: type fewstep models pull {entry['name']}",
    }
    return "\n".join([entry["name"], *(f"  {name:11} {text}" for name, text in rows.items() if text)])


def _run_pull(assets: Sequence[Asset]) -> int:
    from fewstep.catalog.hub import fetch_folder, format_size
    from fewstep.catalog.models import bundled_folder

    for asset in assets:
        terms = asset.terms
        tell(f"{asset.name}: {format_size(asset.bytes)}; {terms.name}: {terms.terms}")
        path = fetch_folder(asset.repo, asset.files, asset.revision) if asset.repo else bundled_folder(asset)
        with report_of_work():
            print(path)
    return 0
