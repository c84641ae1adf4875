"""`yupana tune`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from yupana.commands.shared import add_command, show


def register(commands: Any) -> None:
    """Add the command."""
    told = "fine-tune a model on conversations (SFT) or preferences (DPO), by adapters (LoRA) or whole"
    c = add_command(commands, "tune", tune, told, add_help=False)
    c.add_argument("base", nargs="?", metavar="BASE", help="a run directory, a Hugging Face folder or a hub name")
    c.add_argument("--config", type=Path, metavar="FILE", help="YAML settings")
    c.add_argument("--run", type=Path, metavar="DIR", default=Path("runs/tuned"), help="run directory (runs/tuned)")
    c.add_argument("--resume", action="store_true", help="go on with the run in DIR from its last checkpoint")
    c.add_argument("-h", "--help", action="store_true", help="show this and every setting")
    c.set_defaults(usage_printer=c.print_help, takes_settings=True)


def tune(arguments: argparse.Namespace) -> int:
    """`yupana tune`."""
    if arguments.help:
        return _help(arguments)
    from yupana.report.page import write_report
    from yupana.report.text import run_table
    from yupana.run import RunDirectory
    from yupana.tune.begin import begin

    run = RunDirectory(arguments.run)
    base = [f"--model.base={arguments.base}"] if arguments.base else []
    with contextlib.redirect_stdout(sys.stderr):  # the libraries talk, and standard output belongs to the result
        result = begin(run, arguments.config, [*base, *arguments.overrides], resume=arguments.resume)
    page = write_report(run)
    if arguments.json:
        print(json.dumps(result))
        return 0
    show(run_table(run))
    for name, label in (("adapter", "Adapter"), ("export", "Tuned model")):
        if name in result:
            print(f"{label}: {result[name]}")
    if result.get("cut"):
        print(f"{result['cut']} conversations were cut at data.seq_len tokens, {result['left_out']} left out for it")
    print(f"Report: {page}")
    return 0


def _help(arguments: argparse.Namespace) -> int:
    from yupana.config import settings
    from yupana.report.text import settings_table
    from yupana.tune.config import Tuning

    arguments.usage_printer()
    print("\nSettings (in a YAML file, or as --section.key value):")
    show(settings_table(settings(Tuning)))
    return 0
