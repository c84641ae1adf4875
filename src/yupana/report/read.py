"""A run directory as records, ready to draw."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from yupana.errors import UserError
from yupana.run import RunDirectory

State = Literal["training", "finished", "stopped"]


@dataclass(frozen=True)
class RunRecord:
    """What a run left behind."""

    path: Path
    config: dict[str, Any]
    env: dict[str, Any]
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    sample: str
    health: list[dict[str, Any]] = field(default_factory=list)
    """What log.anatomy_every recorded: step, tokens, and figures by part of the model."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """What log.samples recorded: step, tokens, and {"prompt", "text"}."""
    state: State = "finished"
    """training: a live process holds the run; stopped: it ended before its last step."""
    broken_lines: int = 0
    """Lines of metrics.jsonl that are not whole: the last is cut off when its writer is killed."""


def read_run(run: RunDirectory) -> RunRecord:
    """Read a run, finished, interrupted or still being written.

    Raises UserError when run.yaml or env.json is not what yupana wrote.
    """
    sample = run.path / "sample.txt"
    config, env = _settings(run)
    metrics, broken = _metrics(run)
    return RunRecord(
        path=run.path,
        config=config,
        env=env,
        steps=[line for line in metrics if "loss" in line],
        evaluations=[line for line in metrics if "val_loss" in line],
        sample=sample.read_text() if sample.is_file() else "",
        health=[line for line in metrics if "health" in line],
        samples=[line for line in metrics if "sample" in line],
        state=_state(run, metrics, total_steps(config)),
        broken_lines=broken,
    )


def total_steps(config: dict[str, Any]) -> int | None:
    """Steps of the whole run, or None where only its data say (tuning by epochs)."""
    train, data = config["train"], config["data"]
    if train.get("steps") is None and train.get("tokens") is not None:
        return -(-train["tokens"] // (train["global_batch"] * data["seq_len"]))
    return train.get("steps")


@dataclass(frozen=True)
class Evaluated:
    """What `yupana eval` found of a run; the same evaluated again replaces what was found before."""

    texts: dict[tuple[str, tuple[str, ...]], dict[str, Any]]
    """By checkpoint and texts: of each text alone, and of several together."""
    tasks: dict[tuple[str, str, str], tuple[Any, Any, Any]]
    """By checkpoint, task and metric: value, standard error, documents."""

    @staticmethod
    def label(text: tuple[str, ...]) -> str:
        """A text as a table names it."""
        return Path(text[0]).name if len(text) == 1 else f"all {len(text)} together"


def evaluated(path: Path) -> Evaluated:
    """What the run's evaluations.json holds."""
    kept = read_json(path / "evaluations.json")
    texts: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    tasks: dict[tuple[str, str, str], tuple[Any, Any, Any]] = {}
    for found in kept if isinstance(kept, list) else []:
        which = str(found.get("checkpoint", ""))
        domains = {(row["name"],): row for row in found.get("domains", [])}
        whole = {tuple(name for (name,) in domains): found} if len(domains) > 1 else {}
        texts |= {(which, text): row for text, row in (domains | whole).items()}
        for task, figures in found.get("tasks", {}).items():
            for metric, value in figures.items():
                if metric != "samples" and not metric.endswith("_stderr"):
                    tasks[which, task, metric] = (value, figures.get(f"{metric}_stderr"), figures.get("samples"))
    return Evaluated(texts, tasks)


def read_json(path: Path) -> Any:
    """A JSON file of the run, or None where it is not there or not whole."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _settings(run: RunDirectory) -> tuple[dict[str, Any], dict[str, Any]]:
    """run.yaml and env.json. Raises UserError when one of them is damaged."""
    import yaml

    try:
        config = yaml.safe_load(run.config_file.read_text())
        total_steps(config)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{run.config_file} is damaged: it is no configuration as yupana writes it") from None
    try:
        env = json.loads(run.env_file.read_text()) if run.env_file.is_file() else {}
        env.get("parameters")
    except (ValueError, AttributeError):
        raise UserError(f"{run.env_file} is damaged: delete it, and the report goes without it") from None
    return config, env


def _metrics(run: RunDirectory) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of metrics.jsonl, and how many are not whole."""
    if not run.metrics_file.is_file():
        return [], 0
    lines = run.metrics_file.read_text(errors="replace").splitlines()
    whole = run.metrics()
    return whole, len([line for line in lines if line.strip()]) - len(whole)


def _state(run: RunDirectory, metrics: list[dict[str, Any]], total: int | None) -> State:
    if run.held:
        return "training"
    last = metrics[-1] if metrics else {"step": 0}
    ended = last["step"] >= total if total else "val_loss" in last and last["step"] > 0
    return "finished" if ended else "stopped"
