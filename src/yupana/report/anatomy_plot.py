"""Where a training step's FLOPs, bytes and time go, as one picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from yupana.errors import UserError
from yupana.files import write_atomically

COMPUTE, MEMORY, NEUTRAL = "#0072B2", "#E69F00", "#999999"  # Okabe & Ito
FORMATS = (".png", ".svg", ".pdf")


def check_target(path: Path) -> None:
    """Raise UserError unless a picture can be written to `path`."""
    if path.suffix not in FORMATS:
        raise UserError(f"--save must end in {', '.join(FORMATS)}, got {path}")
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} of --save does not exist: make it, or choose another")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("drawing needs matplotlib: pip install 'yupana[report]'") from None


def save_step(result: dict[str, Any], path: Path) -> None:
    """Draw the shares of each operation and write them to `path`, whole or not at all."""
    content = io.BytesIO()
    draw_step(result).savefig(content, format=path.suffix[1:], dpi=130)
    write_atomically(path, content.getvalue())


def draw_step(result: dict[str, Any]) -> Any:
    """A matplotlib figure with a bar for each operation: share of FLOPs, of bytes and of least time."""
    from matplotlib.figure import Figure

    rows = result["operations"]
    labels = [row["part"].replace("_", " ") + (f"  ×{row['count']}" if row["count"] > 1 else "") for row in rows]
    figure = Figure(figsize=(11, 0.32 * len(rows) + 1.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    titles = (
        ("flops", f"FLOPs of matrix products: {result['flops'] / 1e12:,.3g} T"),
        ("bytes", f"bytes moved: {result['bytes'] / 1e9:,.3g} GB"),
        ("seconds", f"least time: {result['seconds']:,.3g} s"),
    )
    for axes, (key, title) in zip(panels, titles, strict=True):
        shares = [100 * row[f"{key}_share"] for row in rows]
        colours = [COMPUTE if row["bound"] == "compute" else MEMORY for row in rows]
        axes.barh(range(len(rows)), shares, color=colours if key == "seconds" else NEUTRAL)
        for place, share in enumerate(shares):
            if share >= 0.05:
                axes.text(share + 0.8, place, f"{share:.1f} %", va="center", fontsize=8.5)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("share of the step (%)")
        axes.set_xlim(0, 1.22 * max(shares))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(rows)), labels)
    panels[0].invert_yaxis()
    time = panels[2]
    for height, colour, word in ((0.95, COMPUTE, "compute"), (0.90, MEMORY, "memory")):
        time.text(0.98, height, f"bound by {word}", color=colour, fontweight="bold", ha="right", transform=time.transAxes)
    figure.suptitle(
        f"One training step of {result['model']}, batch {result['batch']} × {result['seq_len']:,} tokens, "
        f"{result['dtype']}: {result['flops_per_second'] / 1e12:,.3g} TFLOP/s, "
        f"{result['bytes_per_second'] / 1e9:,.3g} GB/s",
        fontsize=11, x=0.01, ha="left",
    )  # fmt: skip
    return figure
