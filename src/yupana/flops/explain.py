"""A profile as a result: the waterfall of one step as one JSON object, scaled to the time of an unprofiled step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from yupana.flops.count import flops_per_token
from yupana.flops.hardware import Peaks
from yupana.flops.waterfall import Event, by_shape, waterfall
from yupana.model.shapes import ModelShape


def explain(
    events: list[Event], products: list[Event], steps: int, profiled_seconds: float, plain_seconds: float,
    shape: ModelShape, batch: int, seq_len: int, peaks: Peaks, settings: dict[str, str],
) -> dict[str, Any]:  # fmt: skip
    """`{"step_seconds", "mfu", "parts": [{"name", "seconds", "share", "lost_share", "lever", …}], "products", …}`.

    `products` are the matrix products with their sizes; `batch` is sequences in a step; `settings`, by dotted name, are
    those in force: what they do already is no lever. The profiler slows every operator by a few microseconds; all times
    are scaled by what the same steps took without it, which `profiler_overhead` tells. The parts' shares sum to 1, and MFU
    (exact) and all lost shares sum to 1.
    """
    scale = plain_seconds / profiled_seconds
    scaled = [replace(event, seconds=event.seconds * scale) for event in events]
    shaped = [replace(event, seconds=event.seconds * scale) for event in products]
    peak, step = peaks.best_known, plain_seconds / steps
    parts = waterfall(scaled, shaped, plain_seconds, steps, shape, batch, seq_len, peak, settings)
    flops = {name: batch * seq_len * f for name, f in flops_per_token(shape, seq_len).items()}
    return {
        "step_seconds": step,
        "tokens_per_second": batch * seq_len / step,
        "mfu": {name: f / step / peak for name, f in flops.items()},
        "peak": peak,
        "peak_source": peaks.source,
        "profiler_overhead": profiled_seconds / plain_seconds - 1,
        "parts": [
            {
                "name": part.name,
                "seconds": part.seconds,
                "share": part.seconds / step,
                "useful_share": part.useful_seconds / step,
                "lost_share": part.lost_seconds / step,
                "lever": part.lever,
                "mfu_without_it": flops["exact"] / (step - max(part.lost_seconds, 0.0)) / peak,
            }
            for part in parts
        ],
        "products": by_shape(shaped, steps, peak),
    }
