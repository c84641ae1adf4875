"""`yupana sample`, `export`, `import` and `report`: what is done with a run directory."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from yupana.commands.shared import add_command, print_result, show


def register(commands: Any) -> None:
    """Add the commands."""
    c = add_command(commands, "sample", sample, "text from a run's checkpoint")
    c.add_argument("run", metavar="RUN")
    c.add_argument("--prompt", default="", help="text to continue; empty starts a new document")
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

    c = add_command(commands, "report", report, "a page and plots from run directories")
    c.add_argument("runs", nargs="+", metavar="RUN")


def sample(arguments: argparse.Namespace) -> int:
    """`yupana sample`."""
    from yupana.train.sample import sample_text

    text = sample_text(
        Path(arguments.run),
        prompt=arguments.prompt,
        tokens=arguments.tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        seed=arguments.seed,
        which=arguments.checkpoint,
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
    from yupana.report.page import write_report
    from yupana.report.text import run_table, summaries
    from yupana.run import open_run

    runs = [open_run(path) for path in arguments.runs]
    pages = [write_report(run) for run in runs]
    if arguments.json:
        print(json.dumps({"runs": [{**s, "report": str(p)} for s, p in zip(summaries(runs), pages, strict=True)]}))
        return 0
    show(run_table(*runs))
    for page in pages:
        print(f"Report: {page}" if page else "No pages: pip install 'yupana[report]'")
    return 0
