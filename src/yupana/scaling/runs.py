"""Run directories as points and as curves."""

from __future__ import annotations

from typing import Any

import numpy as np

from yupana.errors import UserError
from yupana.run import RunDirectory
from yupana.scaling.annealing import Curve


def final_point(run: RunDirectory) -> dict[str, float]:
    """{"n": all parameters, "tokens", "loss": the last validation loss} of a finished run.

    Raises UserError for a run without validation, or one that stopped before its configured end: its learning rate
    had not come down, so its loss is not that of a run of its length.
    """
    from yupana import config

    settings = config.load(file=run.config_file)
    evaluations = [record for record in run.metrics() if "val_loss" in record]
    if not evaluations:
        raise UserError(f"{run.path} has no validation loss yet: train it to its end first")
    last = evaluations[-1]
    if last["step"] < settings.total_steps:
        raise UserError(
            f"{run.path} stopped at step {last['step']} of {settings.total_steps}: go on with it (yupana train --run "
            f"{run.path} --resume) or leave it out"
        )
    return {"n": settings.model.parameters, "tokens": last["tokens"], "loss": last["val_loss"]}


def curve_of(run: RunDirectory, what: str = "loss") -> Curve:
    """A run's curve: the learning rate of every step by its schedule, and its logged `loss` or `val_loss`."""
    from yupana import config

    settings = config.load(file=run.config_file)
    records = [record for record in run.metrics() if what in record]
    if not records:
        raise UserError(f"{run.path} has no {what} in its metrics yet")
    rates = schedule_rates(settings.optim, settings.total_steps)
    steps = np.array([record["step"] for record in records])
    return Curve(run.path.name, rates, steps, np.array([record[what] for record in records], dtype=float))


def schedule_rates(optim: Any, steps: int) -> np.ndarray:
    """The learning rate of every step (the `optim` branch of a configuration), [steps]."""
    from yupana.train.schedule import learning_rate

    return np.array([learning_rate(step, steps, optim) for step in range(steps)])


def curve_from_csv(path: Any) -> Curve:
    """A curve from a CSV file with the columns step, lr and loss; the rate between two lines is interpolated.

    Before the first line the rate is taken to rise linearly from 0.
    """
    import csv

    from yupana.scaling.points import _numbers

    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    missing = [c for c in ("step", "lr", "loss") if not rows or c not in rows[0]]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}: a curve needs step, lr and loss")
    steps = _numbers(rows, "step", path).astype(int)
    rates, losses = _numbers(rows, "lr", path), _numbers(rows, "loss", path)
    if (np.diff(steps) <= 0).any():
        raise UserError(f"the steps of {path} must rise from line to line")
    every = np.interp(np.arange(1, steps[-1] + 1), [0, *steps], [0, *rates])
    return Curve(path.stem, every, steps, losses)
