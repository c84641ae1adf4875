"""The validation loss of each source of a mixture over a run, as one picture."""

from __future__ import annotations

from typing import Any

from yupana.report.read import RunRecord

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito; more sources than that begin again, with dashes."""


def draw_sources(record: RunRecord) -> Any:
    """A matplotlib figure: nats a token, and bits a byte (comparable between texts), of each source over the tokens."""
    from matplotlib.figure import Figure

    evaluations = [e for e in record.evaluations if "val_by_source" in e]
    names = list(evaluations[-1]["val_by_source"])
    last = max(e["tokens"] for e in evaluations)
    scale, unit = (1e9, "billions") if last > 2e9 else (1e6, "millions")
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (key, label) in zip(
        panels, (("val_loss", "validation loss (nats a token)"), ("val_bpb", "bits a byte")), strict=True
    ):
        ends = []
        for number, name in enumerate(names):
            points = [(e["tokens"] / scale, e["val_by_source"][name][key]) for e in evaluations]
            style = "-" if number < len(COLOURS) else "--"
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(*zip(*points, strict=True), style, color=colour, marker="o", markersize=3, linewidth=1.6)
            ends.append((points[-1][1], name, colour))
        for phase in record.config.get("data", {}).get("phases") or []:
            axes.axvline(phase["after"] / scale, color="#666666", linewidth=0.8, linestyle=":")
        axes.set_title(label, loc="left", fontsize=10)
        axes.set_xlabel(f"tokens ({unit})")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        _label_ends(axes, ends, last / scale)
    return figure


def _label_ends(axes: Any, ends: list[tuple[float, str, str]], right: float) -> None:
    """Each curve's name and last value at its right end, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    axes.set_xlim(right=right)
    step, height = (high - low) / 16, low
    for value, name, colour in sorted(ends):
        height = max(value, height)
        axes.annotate(
            f"{name} {value:.3f}", (right, value), xytext=(1.02, (height - low) / (high - low)),
            textcoords="axes fraction", color=colour, fontweight="bold", va="center", fontsize=9, annotation_clip=False,
        )  # fmt: skip
        height += step
