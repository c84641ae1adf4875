"""`yupana push` and `yupana pull`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from yupana.commands.shared import add_command, print_result


def register(commands: Any) -> None:
    """Add the commands."""
    c = add_command(commands, "push", push, "send a run's model and its card to the Hugging Face hub, private by default")
    c.add_argument("run", metavar="RUN")
    c.add_argument("repository", metavar="NAME/MODEL")
    c.add_argument("--public", action="store_true", help="for everybody to see")
    c.add_argument("--license", metavar="L", help="such as apache-2.0; written into the card")
    c.add_argument("--checkpoint", default="last", help="last, best or a step")
    c.add_argument("--dry_run", action="store_true", help="make and show every file, and send nothing")

    c = add_command(commands, "pull", pull, "fetch a model from the hub as a folder")
    c.add_argument("repository", metavar="NAME/MODEL")
    c.add_argument("--out", type=Path, required=True, metavar="DIR")


def push(arguments: argparse.Namespace) -> int:
    """`yupana push`."""
    from yupana import hub

    result = hub.push(
        Path(arguments.run),
        arguments.repository,
        public=arguments.public,
        licence=arguments.license,
        which=arguments.checkpoint,
        dry_run=arguments.dry_run,
    )
    print_result(arguments, result, _told(result))
    return 0


def pull(arguments: argparse.Namespace) -> int:
    """`yupana pull`."""
    from yupana import hub

    result = hub.pull(arguments.repository, arguments.out)
    text = f"{result['path']}: {len(result['files'])} files, {result['bytes'] / 1e6:,.1f} MB"
    print_result(arguments, result, text)
    return 0


def _told(result: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("file")
    table.add_column("bytes", justify="right")
    table.add_column("sha256", style="dim")
    for file in result["files"]:
        table.add_row(file["path"], f"{file['bytes']:,}", file["sha256"][:16])
    seen = "private" if result["private"] else "public"
    if result["url"]:
        return Group(table, f"sent to {result['url']} ({seen})")
    return Group(table, f"would go to {result['repository']} ({seen}); nothing was sent\n", result["card"])
