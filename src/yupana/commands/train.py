"""`yupana train`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from yupana.commands.shared import add_command, show
from yupana.errors import UserError


def register(commands: Any) -> None:
    """Add the command."""
    c = add_command(commands, "train", train, "train a model; ends with a report and a sample", add_help=False)
    c.add_argument(
        "preset", nargs="?", metavar="PRESET", help="the settings to start from, such as 7m or llama3.2-1b"
    )
    c.add_argument("--config", type=Path, metavar="FILE", help="YAML settings, on top of the preset")
    c.add_argument("--run", type=Path, metavar="DIR", default=Path("runs/run"), help="run directory (runs/run)")
    c.add_argument("--resume", action="store_true", help="go on with the run in DIR")
    c.add_argument("--explain", action="store_true", help="profile a few steps at the end: where the lost MFU went")
    c.add_argument("-h", "--help", action="store_true", help="show this and every setting")
    c.set_defaults(usage_printer=c.print_help, takes_settings=True)


def train(arguments: argparse.Namespace) -> int:
    """`yupana train`."""
    if arguments.help:
        return _help(arguments)
    from yupana.run import RunDirectory
    from yupana.train.begin import begin
    from yupana.train.interrupt import Interrupted
    from yupana.train.launch import launched
    from yupana.train.ranks import lost_the_others, speaks

    run = RunDirectory(arguments.run)
    started = (run, arguments.preset, arguments.config, arguments.overrides)
    if (code := launched(*started, resume=arguments.resume)) is not None:
        return code
    try:
        last = begin(*started, resume=arguments.resume, look=_tell_repetition)
    except Interrupted as stopped:
        if speaks():
            print(f"yupana: {stopped}", file=sys.stderr)
        return 1
    except UserError:
        if speaks():
            raise
        return 2  # every rank has the same to say: rank 0 says it
    except BaseException as error:
        if not lost_the_others(error):
            raise
        print(f"yupana: a rank has ended, and rank {os.environ['RANK']} cannot go on without it", file=sys.stderr)
        return 1
    if speaks():
        if arguments.explain:
            _explain(run)
        _finish(run, last, as_json=arguments.json)
    return 0


def _explain(run: Any) -> None:
    """The waterfall of the run that has ended, as `yupana flops explain` keeps it."""
    from yupana.config import load
    from yupana.files import write_json
    from yupana.run import WATERFALL
    from yupana.train.profile import explained
    from yupana.train.ranks import under_launcher

    if under_launcher():
        print("yupana: --explain profiles runs of one process, and this one had more: left out", file=sys.stderr)
        return
    write_json(run.path / WATERFALL, explained(load(file=run.config_file), steps=5))


def _tell_repetition(config: Any, mixture: Any) -> None:
    """Say which sources the run goes through often, and what that costs."""
    from yupana.scaling.repetition import told

    planned = mixture.planned(config.total_steps, config.data.seq_len, config.train.global_batch, config.data.seed)
    unique = {name: corpus.info["splits"]["train"]["tokens"] for name, corpus in mixture.sources.items()}
    if min(unique.values()) <= config.data.seq_len:  # which training refuses, and one sentence is enough
        return
    for line in told(config.model.parameters, planned, unique):
        print(f"yupana: {line}", file=sys.stderr)


def _finish(run: Any, last: dict[str, Any], *, as_json: bool) -> None:
    """After training: the table, a sample, the report."""
    from yupana.files import write_atomically
    from yupana.report.page import write_report
    from yupana.report.text import run_table
    from yupana.train.checkpoint import complete
    from yupana.train.sample import sample_after_training

    sample = ""
    if complete(run):
        sample = sample_after_training(run.path)
        write_atomically(run.path / "sample.txt", sample)
    page = write_report(run)
    if as_json:
        print(json.dumps(last))
        return
    show(run_table(run))
    _show_waterfall(run)
    print(f"\n{sample}" if sample else "")
    print(f"Report: {page}")


def _show_waterfall(run: Any) -> None:
    """Where the lost MFU went, if the run says."""
    from yupana.report.mfu_text import waterfall_table
    from yupana.run import WATERFALL

    file = run.path / WATERFALL
    if file.is_file():
        show(waterfall_table(json.loads(file.read_text())))


def _help(arguments: argparse.Namespace) -> int:
    from yupana.config import preset_names, settings
    from yupana.report.text import settings_table

    arguments.usage_printer()
    print(f"\nPresets: {', '.join(preset_names())}\n\nSettings (in a YAML file, or as --section.key value):")
    show(settings_table(settings()))
    return 0
