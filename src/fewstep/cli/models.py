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
    """`fewstep models`, `fewstep models NAME...`, `fewstep models pull NAME...`"""
    models = add_command(
        commands, "models", _run_models, "list model files and licences; `models pull NAME` gets them"
    )
    models.add_argument("names", nargs="*", metavar="[pull] NAME", help="tell more of these, or get them")
    models.add_argument("--json", action="store_true", help="print JSON")


def _run_models(asked: argparse.Namespace) -> int:
    from fewstep.catalog.assets import ASSETS

    pull = asked.names[:1] == ["pull"]
    names = asked.names[1:] if pull else asked.names
    if pull and not names:
        raise RequestError("the name is missing: type fewstep models pull sdxl")
    chosen = [_asset(name) for name in names] or [*ASSETS.values()]
    if pull:
        return _run_pull(chosen)
    facts = [_facts(asset) for asset in chosen]
    if asked.json:
        print(json.dumps(facts))
    else:
        print("\n\n".join(map(_details, facts)) if names else _table(facts))
    return 0


def _asset(name: str) -> Asset:
    from fewstep.catalog.assets import ASSETS

    if name not in ASSETS:
        near = get_close_matches(name, ASSETS, n=1)
        hint = f"did you mean {near[0]}?" if near else "see fewstep models"
        raise RequestError(f"model {name!r} has no entry: {hint}")
    return ASSETS[name]


def _facts(asset: Asset) -> dict[str, Any]:
    """An asset as plain data, with where it is on this machine ("": not yet)."""
    found = _place(asset)
    terms = asset.terms
    return asdict(asset) | {
        "terms": terms.terms, "commercial": terms.commercial, "path": "" if found is None else str(found),
        "bytes": asset.bytes or _bundled_bytes(asset),
    }  # fmt: skip


def _place(asset: Asset) -> Path | None:
    from fewstep.catalog.hub import cached_folder
    from fewstep.catalog.models import bundled_folder

    return cached_folder(asset.repo, asset.files, asset.revision) if asset.repo else bundled_folder(asset)


def _bundled_bytes(asset: Asset) -> int:
    """Of a folder that comes with fewstep; 0 for others."""
    from fewstep.catalog.models import bundled_folder

    files = [] if asset.repo else [path for path in bundled_folder(asset).glob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)


def _table(facts: Sequence[dict[str, Any]]) -> str:
    """A line for each, and under them what the licences say."""
    from fewstep.catalog.hub import format_size

    rows = [("name", "size", "where", "licence", "")]
    for one in facts:
        place = "bundled" if not one["repo"] else "here" if one["path"] else "hub"
        pinned = "" if one["revision"] or not one["repo"] else ", not pinned"
        size = format_size(one["bytes"]) if one["bytes"] else "?"
        rows.append((one["name"], size, place + pinned, one["licence"], one["title"]))
    terms = {one["licence"]: one["terms"] for one in facts}
    lines = [
        f"{name:17} {size:>7}  {place:15}  {terms:17}  {title}" for name, size, place, terms, title in rows
    ]
    return "\n".join([*lines, "", *(f"{name}: {text}" for name, text in terms.items())])


def _details(one: dict[str, Any]) -> str:
    """All that is known of one."""
    from fewstep.catalog.hub import format_size

    commercial = {True: "allowed", False: "forbidden", None: "not known"}[one["commercial"]]
    rows = {
        "what": one["title"],
        "where": f"{one['repo']} on the hub" if one["repo"] else "bundled",
        "revision": one["revision"] or ("not known: the newest is taken" if one["repo"] else "bundled"),
        "files": ", ".join(one["files"]),
        "size": format_size(one["bytes"]),
        "memory": f"{one['memory']:g} GB on a GPU in fp16" if one["memory"] else "",
        "modes": ", ".join(one["modes"]),
        "licence": f"{one['licence']}: {one['terms']}",
        "commercial": commercial,
        "here": one["path"] or f"no: type fewstep models pull {one['name']}",
    }
    return "\n".join([one["name"], *(f"  {name:11} {text}" for name, text in rows.items() if text)])


def _run_pull(chosen: Sequence[Asset]) -> int:
    from fewstep.catalog.hub import fetch_folder, format_size
    from fewstep.catalog.models import bundled_folder

    for asset in chosen:
        terms = asset.terms
        tell(f"{asset.name}: {format_size(asset.bytes)}; {terms.name}: {terms.terms}")
        path = fetch_folder(asset.repo, asset.files, asset.revision) if asset.repo else bundled_folder(asset)
        with report_of_work():
            print(path)
    return 0
