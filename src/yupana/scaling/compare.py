"""A run beside its prediction: the alarm that something is wrong with it. Needs numpy only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from yupana.errors import UserError

ALARM = 2.0  # half-widths of the 80 % interval: about 99 %
FILE = "prediction.json"
"""Where a run directory keeps its prediction: `scaling predict --run` puts it there, the run's report draws it."""


def read_prediction(path: Path) -> dict[str, Any]:
    """The prediction in a file. Raises UserError for one that holds none."""
    try:
        prediction = json.loads(path.read_text())
        whole = isinstance(prediction["curve"], list) and prediction["parameters"] > 0
    except (OSError, ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise UserError(f"{path} is no prediction: make one with yupana scaling predict FIT --config … --out FILE")
    return prediction


def compare(
    prediction: dict[str, Any], evaluations: list[dict[str, Any]], final_step: int, parameters: float | None = None
) -> dict[str, Any]:
    """A run's validation losses beside its prediction: where it left the alarm band, and the error at the end.

    One evaluation in five is outside an 80 % interval by chance; the alarm band is twice as wide.

    `evaluations`: {"step", "val_loss"} as in metrics.jsonl; `final_step` and, where known, `parameters`: the run's.
    Raises UserError for the prediction of another run, and when no evaluation lies in the predicted range.
    """
    curve = prediction["curve"]
    if not curve:
        raise UserError("the prediction holds no curve: make it with --config run.yaml, which gives the schedule")
    if curve[-1]["step"] != final_step or (parameters is not None and parameters != prediction["parameters"]):
        size = "" if parameters is None else f" of {parameters:,.0f} parameters"
        raise UserError(
            f"the prediction is another run's: it has {curve[-1]['step']:,} steps of {prediction['parameters']:,.0f} "
            f"parameters, the run {final_step:,} steps{size}"
        )
    steps = np.array([row["step"] for row in curve], dtype=float)
    lines = {name: np.array([row[name] for row in curve], dtype=float) for name in ("loss", "low", "high")}
    rows = []
    for record in evaluations:
        if not steps[0] <= record["step"] <= steps[-1]:
            continue
        told = {name: float(np.interp(record["step"], steps, line)) for name, line in lines.items()}
        inside = None
        if np.isfinite(told["low"]):
            far = record["val_loss"] - told["loss"]
            limit = told["high"] - told["loss"] if far > 0 else told["loss"] - told["low"]
            inside = bool(abs(far) <= ALARM * limit)
        row = {"step": record["step"], "measured": record["val_loss"], "inside": inside}
        rows.append(row | {name: value if np.isfinite(value) else None for name, value in told.items()})
    if not rows:
        raise UserError("the run has no validation loss yet in the range of the prediction: wait for its next evaluation")
    last = rows[-1]
    finished = last["step"] >= final_step
    return {
        "rows": rows,
        "left_band_at": next((row["step"] for row in rows if row["inside"] is False), None),
        "finished": finished,
        "relative_error": last["loss"] / last["measured"] - 1,
    }
