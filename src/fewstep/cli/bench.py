"""`fewstep bench`: what this machine does, against diffusers on the same files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fewstep.cli.arguments import NOT_GIVEN, add_command, typed, whole_number
from fewstep.cli.streams import report_of_work, tell

# Option of `fewstep.bench.Settings` → how the command line reads it.
_OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"help": "tiny, a diffusers folder, random-sdxl or random-sd15 (real sizes, written once)"},
    "runtime": {"dest": "runtimes", "nargs": "+", "help": "fewstep's arms, one for each (auto)"},
    "repeats": {"type": whole_number, "help": "rounds that are counted (15)"},
    "threads": {"type": whole_number, "help": "torch's, of every arm (the cores)"},
    "side": {"type": whole_number, "help": "pixels of a picture's side (the model's; 512 of random ones)"},
    "device": {"help": "cpu, cuda, cuda:1 or mps (cpu)"},
    "precision": {"help": "of every arm: fp32, fp16 or bf16 (fp32)"},
    "pictures": {"type": whole_number, "help": "how many the suite writing draws (100)"},
}  # fmt: skip


def add_bench(commands: Any) -> None:
    """Add the command."""
    bench = add_command(commands, "bench", _run_bench, "measure this machine, against diffusers")
    bench.add_argument(
        "--suite", nargs="+", default=["quick"], metavar="NAME",
        help="quick, batch, threads, busy, modes, text, writing, start, shell, floor (quick)",
    )  # fmt: skip
    for name, keywords in _OPTIONS.items():
        bench.add_argument(f"--{name}", default=NOT_GIVEN, **keywords)
    bench.add_argument(
        "--alone", dest="baselines", action="store_false", default=NOT_GIVEN,
        help="without diffusers and optimum-intel",
    )  # fmt: skip
    bench.add_argument(
        "--processes", action="store_true", default=NOT_GIVEN,
        help="each arm in processes of its own, which take turns",
    )  # fmt: skip
    bench.add_argument("--work", type=Path, help="where random models are written (fewstep's cache)")
    bench.add_argument("--json", action="store_true", help="print JSON")
    bench.add_argument("--plot", type=Path, help="PNG to write")


def _run_bench(arguments: argparse.Namespace) -> int:
    """Tell each row as it is there; print the table."""
    from fewstep.bench import Settings, measure, report

    if arguments.plot is not None:
        report.check_plot()
    names = [*(keywords.get("dest", name) for name, keywords in _OPTIONS.items()), "baselines", "processes"]
    options = typed(arguments, names)
    if "runtimes" in options:
        options["runtimes"] = tuple(options["runtimes"])
    settings, rows = Settings(**options), []
    for row in measure(arguments.suite, settings, arguments.work):
        rows.append(row)
        medians = ", ".join(f"{timing.arm} {report.seconds(timing.median)}" for timing in row.timings)
        tell(f"{row.suite}: {row.name}: {medians}")
    machine = report.machine_facts(settings.threads)
    if arguments.plot is not None:
        report.plot(rows, machine, arguments.plot)
    with report_of_work():
        if arguments.json:
            print(json.dumps(report.rows_as_json(rows, machine)))
        else:
            print(f"{report.table(rows)}\n\n{report.machine_line(machine)}")
    return 0
