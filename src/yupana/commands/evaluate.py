"""`yupana eval`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from yupana.commands.shared import add_command, print_result
from yupana.errors import UserError


def register(commands: Any) -> None:
    """Add the command."""
    told = "a model's loss on texts, by file and with intervals; tasks of lm-evaluation-harness"
    c = add_command(commands, "eval", evaluate, told)
    c.add_argument("run", metavar="RUN", help="a run directory, a tuned run or a Hugging Face folder")
    c.add_argument("--text", nargs="+", default=[], metavar="FILE", help="texts as `corpus prepare` reads them")
    c.add_argument("--seq_len", type=int, help="tokens of a window (what the model was trained with)")
    c.add_argument("--tasks", default="", metavar="A,B", help="tasks of lm-evaluation-harness")
    c.add_argument("--include", type=Path, metavar="FOLDER", help="a folder with more task files")
    c.add_argument("--limit", type=int, help="documents of a task, at most")
    c.add_argument("--checkpoint", default="last", help="last, best or a step")


def evaluate(arguments: argparse.Namespace) -> int:
    """`yupana eval`."""
    from yupana.tune.harness import run_tasks
    from yupana.tune.text_loss import open_reader, text_loss

    tasks = [task.strip() for task in arguments.tasks.split(",") if task.strip()]
    if not arguments.text and not tasks:
        raise UserError("there is nothing to evaluate on: give --text FILE or --tasks NAME")
    path = Path(arguments.run)
    result: dict[str, Any] = {"run": str(path)}
    if arguments.text:
        reader = open_reader(path, arguments.checkpoint)
        result |= text_loss(reader, arguments.text, arguments.seq_len)
    if tasks:
        from yupana.tune.begin import base_folder

        result["tasks"] = run_tasks(base_folder(str(path)), tasks, arguments.include, arguments.limit)
    _keep(path, result, arguments.checkpoint)
    print_result(arguments, result, _tables(result))
    return 0


def _keep(path: Path, result: dict[str, Any], which: str) -> None:
    """Add the result to the run's evaluations.json; a folder that is no run keeps nothing."""
    import json

    from yupana.files import write_json
    from yupana.run import RunDirectory

    run = RunDirectory(path)
    if not run.exists:
        return
    file = run.path / "evaluations.json"
    kept = json.loads(file.read_text()) if file.is_file() else []
    write_json(file, [*kept, {"checkpoint": which, **result}])


def _tables(result: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table

    parts: list[Any] = []
    if "domains" in result:
        table = Table(box=None, pad_edge=False)
        for column in ("text", "nats a token", "95 % interval", "bits a byte", "95 % interval", "tokens", "documents"):
            words = column == "text"
            table.add_column(column, justify="left" if words else "right", no_wrap=not words, overflow="fold")
        whole = [{**result, "name": "all"}] if len(result["domains"]) > 1 else []
        for row in [*result["domains"], *whole]:
            table.add_row(
                str(row["name"]),
                f"{row['nll_per_token']:.4f}",
                _between(row["nll_interval"]),
                f"{row['bits_per_byte']:.4f}",
                _between(row["bits_per_byte_interval"]),
                f"{row['tokens']:,}",
                f"{row['documents']:,}",
            )
        parts.append(table)
    if "tasks" in result:
        table = Table(box=None, pad_edge=False)
        for column in ("task", "metric", "value", "standard error", "documents"):
            table.add_column(column, justify="left" if column in ("task", "metric") else "right")
        for task, figures in result["tasks"].items():
            for name, value in figures.items():
                if name.endswith("_stderr") or name == "samples":
                    continue
                error = figures.get(f"{name}_stderr")
                shown = "" if error is None else f"{error:.4f}"
                table.add_row(task, name, f"{value:.4f}", shown, f"{figures['samples']:,}")
        parts.append(table)
    return Group(*parts)


def _between(interval: list[float] | None) -> str:
    return "—" if interval is None else f"{interval[0]:.4f} … {interval[1]:.4f}"
