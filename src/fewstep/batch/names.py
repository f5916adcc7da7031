"""Names of pictures' files: templates, and what is safe on POSIX and on Windows.

A name is relative to the output folder. Rules of both systems hold on both, so that a folder made on one
can be copied to the other (Microsoft, "Naming Files, Paths, and Namespaces").
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Collection, Mapping
from typing import Any

from fewstep import values
from fewstep.errors import RequestError

FORMATS: Mapping[str, str] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
# What may stand in a template, in braces.
FIELDS = (
    "id", "key", "prompt", "seed", "mode", "model", "steps", "guidance", "width", "height", "line", "number",
)  # fmt: skip
MAX_NAME = 240  # bytes of a name with its folders: Windows has 260 for the whole path
MAX_PART = 160  # bytes of a folder's or file's own name: file systems have 255, encryption takes a part
MAX_FIELD = 60  # letters of a prompt in a name

_SPEC = re.compile(r"0?\d{0,2}d?")
_FORBIDDEN = re.compile(r'[<>:"\\|?*\x00-\x1f\x7f-\x9f]')
_TURNED = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # direction marks: "gnp.exe"
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])( *\..*)?", re.IGNORECASE)
_UNSAFE = re.compile(r"[^\w.,+=@-]+")


def format_of(name: str) -> str:
    """Return the format that a name's ending means: png, jpeg or webp; raises `RequestError`."""
    ending = name[name.rfind(".") :].lower() if "." in name else ""
    if ending not in FORMATS:
        raise RequestError(f"name={name!r:.200}: end it in .png, .jpg or .webp")
    return FORMATS[ending]


def check_template(template: str, keep: Collection[str] = ()) -> None:
    """Check that a template has known fields in it, and makes safe names; raises `RequestError`."""
    if not isinstance(template, str):
        raise RequestError(f"name={template!r:.80}: give a template, such as '{{id}}-{{seed}}.png'")
    format_of(template)
    allowed = (*FIELDS, *keep)
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise RequestError(f"name={template!r:.200}: {error}") from None
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if name not in allowed or conversion or not _SPEC.fullmatch(spec or ""):
            raise RequestError(
                f"name={template!r:.200}: {{{name}}} is not known there: choose from {', '.join(allowed)}, a "
                "number also as {seed:06}"
            )
    check_name("".join(text + ("x" if name is not None else "") for text, name, *_ in parts))


def fill_template(template: str, fields: Mapping[str, Any]) -> str:
    """Return a picture's name; texts in it lose what no file name may have."""
    safe = {name: _safe_text(value) if isinstance(value, str) else value for name, value in fields.items()}
    parts = list[str]()
    for text, name, spec, _ in string.Formatter().parse(template):
        parts.append(text)
        if name is not None:
            value = safe.get(name, "")
            number = isinstance(value, int) and not isinstance(value, bool)
            parts.append(format(value, spec or "") if number else str(value))
    return "".join(parts)


def check_name(name: Any) -> str:
    """Return a relative name that is safe everywhere; raises `RequestError` for any other."""
    if not isinstance(name, str) or not name:
        raise RequestError(f"file_name={values.shown(name)}: give a name, such as 'cats/1.png'")
    reason = _fault(name)
    if reason:
        raise RequestError(f"file_name={values.shown(name)} {reason}")
    format_of(name)
    return name


def fold_name(name: str) -> str:
    """Return what two names have in common that are one file on Windows or macOS."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _fault(name: str) -> str:
    """Return what is wrong with a name, or ""."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "has half a character in it"
    if size > MAX_NAME:
        return f"has {size} bytes: at most {MAX_NAME}"
    if bad := _FORBIDDEN.search(name) or _TURNED.search(name):
        return f"has {bad[0]!r} in it, which no name may have on Windows"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return "must lie in the output folder: no '..', no '/' at either end, none doubled"
        if part[0] == ".":
            return "begins with a dot: fewstep's own files and hidden ones do"
        if part[0] == " " or part[-1] in " .":
            return "has a part that begins with a space, or ends in a space or a dot"
        if _DEVICES.fullmatch(part):
            return f"has {part!r} in it, which is a device on Windows"
        if len(part.encode()) > MAX_PART:
            return f"has a part of {len(part.encode())} bytes: at most {MAX_PART}"
    return ""


def _safe_text(text: str) -> str:
    """Return a text as part of a name: letters of any script, digits and a few signs."""
    upright = "".join(letter for letter in unicodedata.normalize("NFC", text) if not _TURNED.match(letter))
    safe = _UNSAFE.sub("-", upright.encode("utf-8", "replace").decode())[:MAX_FIELD].strip("-. ")
    while len(safe.encode()) > 2 * MAX_FIELD:
        safe = safe[:-1]
    return f"{safe}-" if _DEVICES.fullmatch(safe) else safe or "empty"
