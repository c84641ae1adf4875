"""`yupana sample`, `export`, `import` and `report`: what is done with a run directory."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from yupana.commands.shared import add_command, print_result, show
from yupana.errors import UserError


def register(commands: Any) -> None:
    """Add the commands."""
    c = add_command(commands, "sample", sample, "text from a run's checkpoint")
    c.add_argument("run", metavar="RUN")
    c.add_argument("--prompt", default="", help="text to continue; empty starts a new document")
    c.add_argument("--chat", metavar="TEXT", help="instead: what a tuned run answers to TEXT")
    c.add_argument("--tokens", type=int, default=200, help="tokens to write at most (200)")
    c.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (0.8)")
    c.add_argument("--top_k", type=int, default=50, help="sample among so many; 0: all (50)")
    c.add_argument("--seed", type=int, default=0)
    c.add_argument("--checkpoint", default="last", help="last, best or a step")

    c = add_command(commands, "export", export, "write a Hugging Face folder that transformers loads")
    c.add_argument("run", metavar="RUN")
    c.add_argument("--out", type=Path, help="folder to write (RUN/export)")
    c.add_argument("--checkpoint", default="last", help="last, best or a step")
    c.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")

    c = add_command(commands, "import", import_, "begin a run from a Hugging Face folder's weights")
    c.add_argument("folder", metavar="FOLDER")
    c.add_argument("--run", required=True, metavar="DIR", help="run directory to make")

    c = add_command(commands, "report", report, "a page from a run directory; several: one that compares them, too")
    c.add_argument("runs", nargs="+", metavar="RUN")
    c.add_argument("--out", type=Path, metavar="HTML", help="the page that compares (comparison.html beside the first run)")
    c.add_argument("--live", action="store_true", help="write the pages again while a run trains; Ctrl-C ends it")


def sample(arguments: argparse.Namespace) -> int:
    """`yupana sample`."""
    sampling = {"temperature": arguments.temperature, "top_k": arguments.top_k, "seed": arguments.seed}
    if arguments.chat is not None:
        if arguments.prompt:
            raise UserError("--prompt and --chat exclude each other: one is continued, the other answered")
        from yupana.tune.chat import answer

        text = answer(Path(arguments.run), arguments.chat, arguments.tokens, **sampling)
        print_result(arguments, {"chat": arguments.chat, "text": text}, text)
        return 0
    from yupana.train.sample import sample_text

    text = sample_text(
        Path(arguments.run), arguments.prompt, arguments.tokens, which=arguments.checkpoint, **sampling
    )
    print_result(arguments, {"prompt": arguments.prompt, "text": text}, text)
    return 0


def export(arguments: argparse.Namespace) -> int:
    """`yupana export`."""
    from yupana.train.exchange import export_run

    result = export_run(Path(arguments.run), arguments.out, arguments.checkpoint, arguments.dtype)
    print_result(arguments, result, f"wrote {result['path']}: {result['parameters']:,} parameters, {result['dtype']}")
    return 0


def import_(arguments: argparse.Namespace) -> int:
    """`yupana import`."""
    from yupana.train.exchange import import_folder

    result = import_folder(Path(arguments.folder), Path(arguments.run))
    print_result(arguments, result, f"imported {result['parameters']:,} parameters into {result['run']}")
    return 0


def report(arguments: argparse.Namespace) -> int:
    """`yupana report`."""
    from yupana.report.live import follow
    from yupana.report.page import write_comparison, write_report
    from yupana.report.text import run_table, summaries
    from yupana.run import open_run

    runs = [open_run(path) for path in arguments.runs]
    target = comparison_file(arguments.out, arguments.runs)
    pages = [run.path / "report.html" for run in runs]

    def write(again: int | None) -> None:
        for run in runs:
            write_report(run, pictures=not arguments.live, again=again)
        if target:
            write_comparison(runs, target, again=again)

    if arguments.live:
        training = any(run.held for run in runs)
        told = f"following; open {target or pages[0]} (Ctrl-C ends it)" if training else "no run is training: wrote once"
        print(f"yupana: {told}", file=sys.stderr)
        with contextlib.suppress(KeyboardInterrupt):
            follow(runs, write)
    else:
        write(None)
    if arguments.json:
        rows = [{**s, "report": str(p)} for s, p in zip(summaries(runs), pages, strict=True)]
        print(json.dumps({"runs": rows, **({"comparison": str(target)} if target else {})}))
        return 0
    show(run_table(*runs))
    for page in pages:
        print(f"Report: {page}")
    if target:
        print(f"Comparison: {target}")
    return 0


def comparison_file(out: Path | None, runs: list[str]) -> Path | None:
    """Where the page that compares several runs goes; None of one run. Raises UserError where it cannot go."""
    if len(runs) < 2:
        if out:
            raise UserError("--out names the page that compares runs, and there is only one: give several, or leave it out")
        return None
    target = out or Path(runs[0]).resolve().parent / "comparison.html"
    if target.suffix != ".html" or target.is_dir() or not target.parent.is_dir():
        raise UserError(f"--out must name an .html file in a folder that exists, got {target}")
    return target
