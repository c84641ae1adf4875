"""`yupana doctor`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from yupana.commands.shared import add_command, print_result


def register(commands: Any) -> None:
    """Add the command."""
    c = add_command(commands, "doctor", doctor, "what works on this machine: versions, accelerator, back ends, disk, logins")
    c.add_argument("--folder", type=Path, default=Path(), metavar="DIR", help="where runs would be written (here)")


def doctor(arguments: argparse.Namespace) -> int:
    """`yupana doctor`: 1 where something that training needs does not work."""
    from rich.table import Table

    from yupana.doctor import examine

    found = examine(arguments.folder)
    table = Table(box=None, pad_edge=False, show_header=False)
    marks = {True: "[green]✓[/green]", False: "[red]✗[/red]", None: "[dim]–[/dim]"}
    for section, checks in found.items():
        table.add_row(f"[bold]{section}[/bold]", "", "")
        for check in checks:
            table.add_row(f"  {check['name']}", marks[check["ok"]], check["told"])
    sick = [check["name"] for checks in found.values() for check in checks if check["ok"] is False]
    print_result(arguments, {**found, "sick": sick}, table)
    return 1 if sick else 0
