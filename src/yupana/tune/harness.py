"""lm-evaluation-harness on a Hugging Face folder: its own tasks, or task files of a folder, which need no network."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch

from yupana.errors import UserError, did_you_mean


def run_tasks(
    folder: str, tasks: list[str], include: Path | None = None, limit: int | None = None, batch: int = 8
) -> dict[str, dict[str, float]]:
    """`{task: {metric: value, metric_stderr: value, samples: n}}`.

    `include` is a folder of the harness' YAML task files; `limit` the documents of each task, for a quick look.
    Raises UserError for a task that does not exist (with the nearest names), and for one whose data cannot be had.
    """
    evaluator, manager, wrapper = _harness()
    if include is not None and not include.is_dir():
        raise UserError(f"--include names {include}, which is no folder of task files")
    with _quiet():
        known = manager(include_path=str(include) if include is not None else None)
        for task in tasks:
            if task not in known.all_tasks:
                raise UserError(f"there is no task '{task}'{did_you_mean(task, known.all_tasks)}: {_hint(include)}")
        try:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            model = wrapper(pretrained=folder, dtype="float32", batch_size=batch, device=device)
            found = evaluator.simple_evaluate(model, tasks=tasks, task_manager=known, limit=limit, log_samples=False)
        except (ConnectionError, OSError, ValueError) as error:
            raise UserError(
                f"the tasks {', '.join(tasks)} could not be run: {' '.join(str(error).split())[:300]} "
                "(a task's data come from the hub unless its file names a local one)"
            ) from error
    samples = found.get("n-samples", {})
    return {
        task: {**_metrics(figures), "samples": samples.get(task, {}).get("effective", 0)}
        for task, figures in found["results"].items()
    }


def _harness() -> tuple[Any, Any, Any]:
    try:
        from lm_eval import evaluator
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"yupana eval --tasks needs {error.name}: pip install 'yupana[tune]'") from error
    return evaluator, TaskManager, HFLM


def _metrics(figures: dict[str, Any]) -> dict[str, float]:
    """The harness names a metric "acc,none", none being the filter of the answers."""
    short = {name.removesuffix(",none"): value for name, value in figures.items()}
    return {name: value for name, value in short.items() if isinstance(value, (int, float)) and value == value}


def _hint(include: Path | None) -> str:
    if include is None:
        return "lm-eval ls tasks lists the harness' own, and --include FOLDER adds task files"
    return f"the names are the 'task:' of the files in {include}, and those that lm-eval ls tasks lists"


@contextlib.contextmanager
def _quiet() -> Any:
    """The harness talks on standard output, which belongs to the result."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with contextlib.redirect_stdout(sys.stderr):
        yield
