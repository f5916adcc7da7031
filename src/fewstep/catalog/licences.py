"""What a licence allows, in a plain sentence each; and whether a call may be commercial. No legal advice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from fewstep.errors import RequestError

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class Licence:
    """A licence by the name that model cards use."""

    name: str
    terms: str  # a sentence
    commercial: bool | None  # None: not known


_ROWS = (
    # The licence texts, read for what they say of commercial use of weights.
    Licence(name="Apache-2.0", terms="Free to use, also commercially.", commercial=True),
    Licence(name="MIT", terms="Free to use, also commercially.", commercial=True),
    Licence(
        name="openrail++",  # CreativeML Open RAIL++-M, attachment A
        terms="Free to use, also commercially, but not for the harms that its attachment A lists.",
        commercial=True,
    ),
    Licence(
        name="creativeml-openrail-m",
        terms="Free to use, also commercially, but not for the harms that its attachment A lists.",
        commercial=True,
    ),
    Licence(
        name="sai-nc-community",  # as the card of stabilityai/sdxl-turbo had it
        terms="For research and non-commercial use; commercial terms are at stability.ai/license.",
        commercial=False,
    ),
    Licence(
        name="cc-by-nc-4.0",
        terms="With attribution, and not commercially (its code's licence is CC BY-NC-SA 4.0).",  # DMD2
        commercial=False,
    ),
    Licence(
        name="cc-by-nc-nd-4.0",
        terms="With attribution, not commercially, and no changed version may be passed on.",
        commercial=False,
    ),
    # The tag was taken from the hub in 2024-08. The LICENSE.md in the repository is reported by third
    # parties to give the SDXL files CreativeML Open RAIL++-M; not confirmed.
    Licence(
        name="hyper-sd",
        terms="No tag on the hub; read the LICENSE.md of ByteDance/Hyper-SD before commercial use.",
        commercial=None,
    ),
)
LICENCES: MappingProxyType[str, Licence] = MappingProxyType({row.name: row for row in _ROWS})


def find_licence(name: str) -> Licence:
    """What is known of a licence; of most of the world's, nothing."""
    terms = "Not known to fewstep: read the page that the weights came from."
    return LICENCES.get(name) or Licence(name=name, terms=terms, commercial=None)


def join_licences(licences: Iterable[str]) -> str:
    """Return the licences of a result, each once; one may be several, joined before."""
    return ", ".join(dict.fromkeys(name for joined in licences for name in joined.split(", ")))


def check_commercial(licences: Mapping[str, str]) -> None:
    """Check that all may be used commercially: what it is → its licence; raises `RequestError`."""
    for source, name in licences.items():
        licence = find_licence(name)
        if not licence.commercial:
            why = "its licence is not known" if licence.commercial is None else f"its licence is {name}"
            raise RequestError(
                f"commercial=True, but {source} cannot be used: {why}. {licence.terms} Choose other weights, "
                "or leave commercial out where you have the right"
            )
