"""30 sessions of `fewstep generate` in a shell, as users have them: `python -m tests.shell_sessions`.

Encodings, full and read-only disks, long names, no HOME, closed pipes and files, Ctrl-C at five points. For
each: the exit code that it shall have, and whether the picture is where it shall be; nothing half-written
stays anywhere. Needs Linux (`/dev/full`); draws with the bundled model, a few seconds for each session.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

FEWSTEP = f"{sys.executable} -m fewstep"
REQUEST = "a_sun --steps 1 --seed 1"
DRAW = "$fewstep generate $request"
LONG = "a" * 251 + ".png"  # 255 bytes, as many as file systems take


@dataclass(frozen=True)
class Session:
    """One shell's command line, and what it shall come to."""

    title: str
    line: str
    code: int
    picture: str = ""  # is there afterwards; "" is none
    variables: Mapping[str, str] = field(default_factory=dict)
    interrupted_after: float = 0  # the share of an undisturbed session's time; 0 is never


def _encoding(name: str, words: str = "") -> Session:
    line = f"{DRAW} -o 猫🦊.png {words} > out.txt"
    variables = {"PYTHONUTF8": "0", "PYTHONIOENCODING": name}
    return Session(f"stdout in {name}{words and ', JSON'}", line, 0, "猫🦊.png", variables)


SESSIONS = (
    *(_encoding(name) for name in ("ascii", "cp1252", "cp932", "latin-1", "utf-8")),
    _encoding("cp1252", "--json"),
    Session("locale C", f"{DRAW} -o é.png", 0, "é.png", variables={"LC_ALL": "C"}),
    Session("stdout on a full disk", f"{DRAW} -o a.png > /dev/full", 0, "a.png"),
    Session("JSON on a full disk", f"{DRAW} -o a.png --json > /dev/full", 0, "a.png"),
    Session("stderr on a full disk", f"{DRAW} -o a.png 2> /dev/full", 0, "a.png"),
    Session("plan on a full disk", "$fewstep plan $request > /dev/full", 73),
    Session("stdout closed", f"{DRAW} -o a.png >&-", 0, "a.png"),
    Session("stderr closed", f"{DRAW} -o a.png 2>&-", 0, "a.png"),
    Session("all closed", f"{DRAW} -o a.png >&- 2>&- <&-", 0, "a.png"),
    Session("a reader that leaves", f"set -o pipefail; {DRAW} -o a.png | true", 0, "a.png"),
    Session("the picture to a pipe", f"{DRAW} -o - | cat > a.png", 0, "a.png"),
    Session("the picture to nobody", f"set -o pipefail; {DRAW} -o - | true", 141),
    Session("the picture to a full disk", f"{DRAW} -o - > /dev/full", 73, "fewstep-*/rescued.png"),
    Session("a name of 255 bytes", f"{DRAW} -o {LONG}", 0, LONG),
    Session("a name of 256 bytes", f"{DRAW} -o a{LONG}", 73),
    Session("a folder that takes no files", f"{DRAW} -o /proc/a.png", 73),
    Session("a full disk", f"mount -t tmpfs -o size=16k none small && {DRAW} -o small/a.png", 73),
    Session("a read-only disk", f"mount -t tmpfs -o ro none small && {DRAW} -o small/a.png", 73),
    Session("no HOME", f"unset HOME; {DRAW} -o a.png", 0, "a.png"),
    Session("HOME that is not there", f"HOME=/nowhere {DRAW} -o a.png", 0, "a.png"),
    *(
        Session(
            f"Ctrl-C after {share:.0%} of its time", f"exec {DRAW} -o a.png", 130, interrupted_after=share
        )
        for share in (0.1, 0.3, 0.5, 0.7, 0.9)
    ),
)


def run(session: Session, folder: Path, usual: float) -> tuple[str, float]:
    """Run one in a folder of its own; returns what is wrong, "" for nothing, and its seconds."""
    (folder / "small").mkdir(parents=True)
    variables = {
        **os.environ, "TMPDIR": str(folder), "fewstep": FEWSTEP, "request": REQUEST, **session.variables
    }  # fmt: skip
    line = session.line
    if "mount" in line:  # in a name space of its own, which ends with it
        line = f"unshare --mount --map-root-user bash -c {_quoted(line)}"
    started = time.monotonic()
    shell = subprocess.Popen(
        ["bash", "-c", line], cwd=folder, env=variables, stderr=subprocess.PIPE, text=True
    )
    if session.interrupted_after:
        time.sleep(session.interrupted_after * usual)
        shell.send_signal(signal.SIGINT)
    said = shell.communicate()[1]
    seconds = time.monotonic() - started
    pictures = [path for path in folder.rglob("*.png") if path.stat().st_size]
    wrong = []
    # A process that a signal ends, as Python does at its very end, has this code in a shell.
    code = shell.returncode if shell.returncode >= 0 else 128 - shell.returncode
    if code != session.code and not (session.interrupted_after and code == 0 and pictures):
        wrong.append(f"exit code {code}, not {session.code}")
    if session.picture and not [*folder.glob(session.picture)]:
        wrong.append(f"no picture {session.picture}")
    if "Traceback" in said:
        wrong.append(said.splitlines()[-1])
    wrong += [f"{path.name} was left" for path in folder.rglob("*.partial")]
    return "; ".join(wrong), seconds


def _quoted(line: str) -> str:
    return "'" + line.replace("'", "'\\''") + "'"


def main() -> int:
    """Run all, and print a line for each; returns 1 where any came to something else."""
    failures, usual = 0, 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for number, session in enumerate(SESSIONS):
            wrong, seconds = run(session, Path(scratch) / str(number), usual)
            usual = seconds if number == 1 else usual  # the second has warm files
            failures += bool(wrong)
            print(
                f"{number + 1:2}  {session.title:34} {seconds:5.1f} s  {wrong or 'as it shall be'}",
                flush=True,
            )
    print(f"{len(SESSIONS)} sessions, {failures} wrong")
    return int(failures > 0)


if __name__ == "__main__":
    raise SystemExit(main())
