"""The curves of a run as one picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from yupana.report.foretold import Foretold, draw_foretold
from yupana.report.read import RunRecord

# Colours that stay apart for colour-blind eyes (Okabe & Ito), one meaning each.
TRAINING, VALIDATION, RATE, NORM, SPEED, UTILISATION = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
)


def draw(record: RunRecord, prediction: Foretold | None = None) -> Any:
    """A matplotlib figure: loss (training, validation, predicted), learning rate, gradient norm, throughput and MFU."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=[2, 1, 1])
    loss = figure.add_subplot(grid[0, :])
    small = [figure.add_subplot(grid[row, column]) for row in (1, 2) for column in (0, 1)]

    tokens = column(record, "tokens")
    scale, unit = (1e9, "billion") if tokens.size and tokens[-1] > 2e9 else (1e6, "million")
    _loss(loss, record, tokens / scale, scale)
    if prediction and prediction.curve:
        draw_foretold(loss, prediction.curve, scale)
    curves = (
        ("learning rate", column(record, "lr"), RATE, 1.0),
        ("gradient norm", column(record, "grad_norm"), NORM, 1.0),
        ("tokens per second", column(record, "tokens_per_second"), SPEED, 1.0),
        ("MFU, palm (%)", column(record, "mfu"), UTILISATION, 100.0),
    )
    for axes, (label, values, colour, factor) in zip(small, curves, strict=True):
        axes.plot(tokens / scale, values * factor, color=colour, linewidth=1.2)
        axes.set_title(label, loc="left", fontsize=10)
        # The first steps compile and warm up: a spike there must not flatten the rest.
        _frame(axes, values * factor)
    for axes in small[2:]:
        axes.set_xlabel(f"tokens ({unit}s)".replace("ss", "s"))
    loss.set_xlabel(f"tokens ({unit}s)")
    return figure


def column(record: RunRecord, name: str) -> np.ndarray:
    """One metric over the logged steps."""
    return np.array([step[name] for step in record.steps], dtype=float)


def _loss(axes: Any, record: RunRecord, tokens: np.ndarray, scale: float) -> None:
    losses = column(record, "loss")
    axes.plot(tokens, losses, color=TRAINING, alpha=0.35, linewidth=0.8)
    axes.plot(tokens, smooth(losses), color=TRAINING, linewidth=1.8)
    held_out = [(e["tokens"] / scale, e["val_loss"]) for e in record.evaluations]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color=VALIDATION, marker="o", markersize=4, linewidth=1.4)
        axes.annotate(
            f"validation {held_out[-1][1]:.3f}", held_out[-1], xytext=(-6, 14), textcoords="offset points",
            ha="right", color=VALIDATION, fontweight="bold",
        )  # fmt: skip
    if losses.size:
        middle = losses.size // 3
        axes.annotate(
            "training (thin: each step)", (tokens[middle], smooth(losses)[middle]), xytext=(8, 14),
            textcoords="offset points", color=TRAINING, fontweight="bold",
        )  # fmt: skip
    axes.set_ylabel("loss (nats a token)")
    axes.set_title(record.path.name, loc="left", fontweight="bold")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)


def _frame(axes: Any, values: np.ndarray) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    settled = values[len(values) // 20 :]
    if settled.size:
        axes.set_ylim(0, 1.15 * max(float(settled.max()), 1e-12))


def smooth(values: np.ndarray, share: float = 0.03) -> np.ndarray:
    """A centred running mean over a share of the curve; shorter at the ends, so that nothing is shifted."""
    half = max(1, round(len(values) * share / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)
