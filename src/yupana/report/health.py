"""What a run looked like inside (log.anatomy_every): one line a layer, as one picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from yupana.report.read import RunRecord

PANELS = (  # figure, title, whether the axis is logarithmic
    ("activation_rms", "residual stream (root mean square)", True),
    ("gradient_norm", "gradient norm before clipping", True),
    ("update_ratio", "update / weight", True),
    ("attention_max", "largest attention score", False),
    ("attention_entropy", "attention entropy (nats)", False),
)
EMBEDDING = "#D55E00"  # Okabe & Ito; layers go from dark (first) to light (last)


def draw_health(record: RunRecord) -> Any:
    """A matplotlib figure: activations, gradients, updates and attention of each layer against tokens."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    parts = list(record.health[0]["health"])
    layers = [part for part in parts if part.startswith("layers.")]
    tokens = np.array([line["tokens"] for line in record.health], dtype=float)
    scale, unit = (1e9, "billions") if tokens[-1] > 2e9 else (1e6, "millions")
    depth, colours = Normalize(0, max(len(layers) - 1, 1)), colormaps["viridis"]
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    panels = list(figure.subplots(2, 3, sharex=True).flat)
    for axes, (name, title, logarithmic) in zip(panels, PANELS, strict=False):
        for index, layer in enumerate(layers):
            colour = colours(0.9 * depth(index))
            axes.plot(tokens / scale, _values(record, layer, name), color=colour, linewidth=1.2, marker=_marker(tokens))
        if "embedding" in parts and name in record.health[0]["health"]["embedding"]:
            values = _values(record, "embedding", name)
            axes.plot(tokens / scale, values, color=EMBEDDING, linewidth=1.2, marker=_marker(tokens))
        if logarithmic:
            axes.set_yscale("log")
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel(f"tokens ({unit})")
        axes.tick_params(labelbottom=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].axis("off")
    panels[-1].text(0.1, 0.5, "embedding", color=EMBEDDING, fontweight="bold", transform=panels[-1].transAxes)
    shades = ScalarMappable(Normalize(0, max(len(layers) - 1, 1) / 0.9), colours)
    bar = figure.colorbar(shades, ax=panels[-1], location="left")
    bar.set_label("layer")
    bar.ax.set_ylim(0, max(len(layers) - 1, 1))
    return figure


def _values(record: RunRecord, part: str, name: str) -> np.ndarray:
    """One figure of one part over the looks; a gap where it was not finite."""
    found = [line["health"].get(part, {}).get(name) for line in record.health]
    return np.array([np.nan if value is None else value for value in found], dtype=float)


def _marker(tokens: np.ndarray) -> str:
    return "o" if len(tokens) < 3 else ""
