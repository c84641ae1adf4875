"""What every command needs: adding itself to the parser, and printing for people or for programs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from yupana.errors import UserError

Call = Callable[[argparse.Namespace], int]


def add_command(to: Any, name: str, call: Call, told: str, **options: Any) -> argparse.ArgumentParser:
    """A command `name` under the subparsers `to`, with --json; `call` gets the arguments and returns the exit code."""
    command = to.add_parser(name, help=told, description=told, allow_abbrev=False, **options)
    command.set_defaults(call=call)
    command.add_argument("--json", action="store_true", help="print one JSON object")
    return command


def add_group(commands: Any, name: str, told: str) -> Any:
    """A group of commands, such as `yupana corpus …`: what its commands are added to."""
    group = commands.add_parser(name, help=told, description=told, allow_abbrev=False)
    return group.add_subparsers(dest=f"{name}_command", required=True, metavar="COMMAND")


def print_result(arguments: argparse.Namespace, result: dict[str, Any], text: Any) -> None:
    """One JSON object with --json, else `text`: a string, or tables for rich."""
    if arguments.json:
        print(json.dumps(result, default=str))
    elif isinstance(text, str):
        print(text)
    else:
        show(text)


def show(renderable: Any) -> None:
    """Print a rich table, as wide as the terminal (or 120 columns into a file)."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", 120))).print(renderable)


class Parser(argparse.ArgumentParser):
    """argparse, with its complaints as a UserError in one sentence."""

    def error(self, message: str) -> Any:
        """Raise instead of printing the usage and leaving."""
        raise UserError(f"{message}: see {self.prog} --help")
