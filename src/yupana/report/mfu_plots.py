"""Pictures of the waterfall and of the ladder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from yupana.errors import UserError
from yupana.files import write_atomically
from yupana.report.plots import TRAINING, UTILISATION, VALIDATION

LOST = "#BBBBBB"


def draw_waterfall(result: dict[str, Any], title: str) -> Any:
    """From 100 % of the peak down to the MFU that is left, a bar for each part that takes some."""
    from matplotlib.figure import Figure

    parts = [p for p in result["parts"] if abs(p["lost_share"]) >= 0.001]
    figure = Figure(figsize=(10, 0.8 + 0.42 * (len(parts) + 2)), layout="constrained")
    axes = figure.add_subplot()
    labels, level = ["peak"], 1.0
    axes.barh(0, 100, color=TRAINING, alpha=0.25)
    for row, part in enumerate(parts, start=1):
        lost = part["lost_share"]
        axes.barh(row, 100 * lost, left=100 * (level - lost), color=VALIDATION, alpha=0.8)
        axes.text(100 * max(level, level - lost) + 0.8, row, f"−{100 * lost:.1f}", va="center", fontsize=9)
        level -= lost
        labels.append(part["name"])
    exact, palm = (100 * result["mfu"][name] for name in ("exact", "palm"))
    axes.barh(len(parts) + 1, exact, color=TRAINING)
    axes.text(exact + 0.8, len(parts) + 1, f"{exact:.1f} (palm {palm:.1f})", va="center", fontweight="bold")
    axes.set_yticks(range(len(parts) + 2), [*labels, "MFU, exact"])
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    figure.supxlabel(f"% of {result['peak'] / 1e12:.4g} TFLOP/s ({result['peak_source']})", fontsize=9)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    return figure


def draw_ladder(rungs: list[dict[str, Any]], title: str) -> Any:
    """One bar a rung, lowest first."""
    from matplotlib.figure import Figure

    ran = [rung for rung in rungs if "mfu" in rung]
    figure = Figure(figsize=(10, 0.9 + 0.42 * len(ran)), layout="constrained")
    axes = figure.add_subplot()
    for row, rung in enumerate(ran):
        axes.barh(row, 100 * rung["mfu"], color=UTILISATION if rung["kept"] else LOST)
        told = f"{100 * rung['mfu']:.1f} %   {rung['tokens_per_second']:,.0f} tokens/s"
        axes.text(100 * rung["mfu"] + 0.8, row, told, va="center", fontsize=9)
    axes.set_yticks(range(len(ran)), [rung["name"] for rung in ran])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(100 * rung["mfu"] for rung in ran))
    told = f"MFU, palm: % of {ran[0]['peak'] / 1e12:.4g} TFLOP/s ({ran[0]['peak_source']}); grey: let go again"
    figure.supxlabel(told, fontsize=9)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    return figure


def save_png(figure: Any, path: Path) -> None:
    """Write a figure as PNG, atomically. Raises UserError when the folder does not exist."""
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} does not exist: make it, or save the picture elsewhere")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    write_atomically(path, picture.getvalue())
