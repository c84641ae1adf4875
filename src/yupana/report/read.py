"""A run directory as records, ready to draw."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yupana.run import RunDirectory


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


def read_run(run: RunDirectory) -> RunRecord:
    """Read a run, finished, interrupted or still being written."""
    import yaml

    metrics = run.metrics()
    sample = run.path / "sample.txt"
    return RunRecord(
        path=run.path,
        config=yaml.safe_load(run.config_file.read_text()),
        env=json.loads(run.env_file.read_text()) if run.env_file.is_file() else {},
        steps=[record for record in metrics if "loss" in record],
        evaluations=[record for record in metrics if "val_loss" in record],
        sample=sample.read_text() if sample.is_file() else "",
        health=[record for record in metrics if "health" in record],
    )
