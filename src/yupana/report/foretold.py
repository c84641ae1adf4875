"""The prediction that a run directory holds, over the run's measured losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from yupana import config
from yupana.errors import UserError
from yupana.report.read import RunRecord
from yupana.scaling.compare import ALARM, FILE, compare, read_prediction

COLOUR = "#666666"  # grey: the measured curves have the colours


@dataclass(frozen=True)
class Foretold:
    """A prediction and how the run stands to it."""

    curve: list[dict[str, Any]]
    """As `scaling predict` writes it; empty where the file holds no prediction of this run."""
    told: str
    """One sentence for the page."""


def foretold(record: RunRecord) -> Foretold | None:
    """The run's prediction, or None where it has none."""
    if not (record.path / FILE).is_file():
        return None
    try:
        prediction = read_prediction(record.path / FILE)
        steps = config.load(file=record.path / "run.yaml").total_steps
        found = compare(prediction, record.evaluations, steps, record.env.get("parameters"))
    except UserError as error:
        return Foretold([], f"No prediction is drawn: {error}.")
    last, when = found["rows"][-1], "at the end" if found["finished"] else "so far"
    sentence = (
        f"Predicted {last['loss']:.4f}, measured {last['measured']:.4f} nats a token at step {last['step']:,}: the "
        f"prediction is off by {found['relative_error']:+.2%} {when}. "
    )
    if last["low"] is None:
        sentence += "It has no interval, so there is no alarm."
    elif found["left_band_at"] is None:
        sentence += "The run never left its alarm band."
    else:
        sentence += f"The run left its alarm band at step {found['left_band_at']:,}: look at it."
    return Foretold(prediction["curve"], sentence)


def draw_foretold(axes: Any, curve: list[dict[str, Any]], scale: float) -> None:
    """The predicted curve, its interval and its alarm band into axes of loss against tokens / scale.

    The axes keep the range of the measured losses, widened to the end of the prediction.
    """
    bottom, top = axes.get_ylim()
    tokens, middle = (np.array([row[name] for row in curve], dtype=float) for name in ("tokens", "loss"))
    tokens = tokens / scale
    if curve[0]["low"] is not None:
        low, high = (np.array([row[name] for row in curve], dtype=float) for name in ("low", "high"))
        for width, alpha in ((ALARM, 0.15), (1.0, 0.25)):
            axes.fill_between(
                tokens, middle + width * (low - middle), middle + width * (high - middle),
                color=COLOUR, alpha=alpha, linewidth=0, zorder=0,
            )  # fmt: skip
    axes.plot(tokens, middle, color=COLOUR, linewidth=1.4, linestyle="--")
    at = 2 * len(curve) // 3
    axes.annotate(
        "predicted (80 %; lighter: alarm)", (tokens[at], middle[at]), xytext=(0, 70), textcoords="offset points",
        ha="center", color=COLOUR, fontweight="bold", arrowprops={"arrowstyle": "-", "color": COLOUR, "linewidth": 0.8},
    )  # fmt: skip
    axes.set_ylim(min(bottom, 0.97 * middle[-1]), top)
