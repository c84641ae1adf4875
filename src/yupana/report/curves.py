"""The curves of runs as data: what page.js draws, and every number that it can show.

{"tracks": {name: {step, tokens, flops, seconds: lists}},      where the points of a curve lie, on each axis
 "charts": [{id, group, title, unit, factor, series: [{name, track, values, …}]}]}

Values are those of metrics.jsonl to seven digits, in its units; `factor` takes them to the chart's unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from yupana.report.read import RunRecord
from yupana.scaling.compare import ALARM

POINTS = 4000
"""Points of all runs on a page, at most, which keeps it far below 2 MB; a longer run is drawn in steps of several."""

Chart = dict[str, Any]
Tracks = dict[str, dict[str, list[float | None]]]

METRICS = (  # name in metrics.jsonl, title, unit, factor, whether the axis begins at 0
    ("lr", "Learning rate", "", 1, True),
    ("grad_norm", "Gradient norm", "before clipping", 1, True),
    ("tokens_per_second", "Speed", "tokens a second", 1, True),
    ("memory_bytes", "Memory, peak so far", "GB", 1e-9, True),
)
HEALTH = (  # figure, title, unit, whether the axis is logarithmic
    ("activation_rms", "Residual stream", "root mean square", True),
    ("gradient_norm", "Gradient norm by layer", "before clipping", True),
    ("update_ratio", "Update / weight", "of norms", True),
    ("attention_max", "Largest attention score", "", False),
    ("attention_entropy", "Attention entropy", "nats", False),
)


def run_curves(record: RunRecord, prediction: list[dict[str, Any]]) -> dict[str, Any]:
    """The curves of one run; `prediction` is the curve of its scaling prediction, or empty."""
    tracks: Tracks = {}
    train = _Track(record, record.steps, "train", tracks, POINTS)
    held_out = _Track(record, record.evaluations, "held-out", tracks)
    loss = [
        train.series("loss", "training", 0, smooth=True),
        held_out.series("val_loss", "validation", 1, marker=True),
        *_predicted(record, prediction, tracks),
    ]
    mfu = [train.series("mfu", "palm", 4), train.series("mfu_exact", "exact", 0, dash=1)]
    charts = [_chart("loss", "Loss", "nats a token", loss, wide=True)]
    charts += [
        _chart(name, title, unit, [train.series(name, "", place)], factor=factor, zero=zero)
        for place, (name, title, unit, factor, zero) in enumerate(METRICS, start=2)
    ]
    charts.insert(-1, _chart("mfu", "MFU", "%", mfu, factor=100, zero=True))
    charts.append(_chart("val_bpb", "Validation, bits a byte", "", [held_out.series("val_bpb", "", 1, marker=True)]))
    charts += _sources(record, tracks) + _health(record, tracks)
    return {"tracks": tracks, "charts": [chart for chart in charts if chart["series"]]}


def compared_curves(records: list[RunRecord], names: list[str]) -> dict[str, Any]:
    """The curves of several runs, a colour and a dash for each."""
    tracks: Tracks = {}
    trains, held_outs = [], []
    for number, record in enumerate(records):
        trains.append(_Track(record, record.steps, f"train {number}", tracks, max(200, POINTS // len(records))))
        held_outs.append(_Track(record, record.evaluations, f"held-out {number}", tracks))

    def chart(of: list[_Track], key: str, title: str, unit: str, **more: Any) -> Chart:
        options = {name: more.pop(name) for name in ("smooth", "marker", "value") if name in more}
        series = [t.series(key, names[n], n, dash=n, run=n, **options) for n, t in enumerate(of)]
        return _chart(key, title, unit, series, **more)

    charts = [
        chart(held_outs, "val_loss", "Validation loss", "nats a token", marker=True, wide=True),
        chart(trains, "loss", "Training loss", "nats a token", smooth=True, wide=True),
        chart(held_outs, "val_bpb", "Validation, bits a byte", "", marker=True),
        chart(trains, "mfu", "MFU (palm)", "%", factor=100, zero=True),
        *(chart(trains, key, title, unit, factor=factor, zero=zero) for key, title, unit, factor, zero in METRICS),
    ]
    shared = dict.fromkeys(name for record in records for name in _source_names(record))
    for name in shared:
        value = _of("val_by_source", name, "val_loss")
        charts.append(chart(held_outs, f"val_loss {name}", name, "nats a token", marker=True, group="sources", value=value))
    return {"tracks": tracks, "charts": [chart for chart in charts if chart["series"]]}


def _chart(
    name: str, title: str, unit: str, series: list[dict[str, Any] | None], *, group: str = "curves", factor: float = 1,
    zero: bool = False, wide: bool = False, log: bool = False,
) -> Chart:  # fmt: skip
    """A chart of the series that have a value."""
    return {
        "id": name, "group": group, "title": title, "unit": unit, "factor": factor, "zero": zero, "wide": wide, "log": log,
        "series": [one for one in series if one],
    }  # fmt: skip


class _Track:
    """Lines of metrics.jsonl as points on every axis, thinned to `limit`; adds itself to `tracks` when it is used."""

    def __init__(
        self, record: RunRecord, lines: list[dict[str, Any]], name: str, tracks: Tracks, limit: int | None = None
    ) -> None:
        self.lines, self.name, self.tracks = lines, name, tracks
        self.stride = -(-len(lines) // limit) if limit and lines else 1
        self.shown = lines[:: self.stride]
        if self.stride > 1 and (len(lines) - 1) % self.stride:
            self.shown = [*self.shown, lines[-1]]
        self.places = _places(record, self.shown)

    def series(
        self, key: str, name: str, colour: int, *, smooth: bool = False, marker: bool = False, dash: int = 0,
        run: int | None = None, value: Callable[[dict[str, Any]], Any] | None = None, ramp: float | None = None,
    ) -> dict[str, Any] | None:  # fmt: skip
        """The curve of one metric, or of a `value` deeper in the lines; None where no line has it."""
        get = value or (lambda line: line.get(key))
        values = _rounded(get(line) for line in self.shown)
        if all(one is None for one in values):
            return None
        self.tracks.setdefault(self.name, self.places)
        found = {"name": name, "track": self.name, "values": values, "colour": colour, "dash": dash}
        found |= {"smooth": True} if smooth else {}
        found |= {"marker": True} if marker else {}
        found |= {"run": run} if run is not None else {}
        found |= {"ramp": ramp} if ramp is not None else {}
        if self.stride > 1:
            found |= self._range(get)
        return found

    def _range(self, get: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The lowest and highest value of the lines from each point shown to the next."""
        all_values = [get(line) for line in self.lines]
        low, high = [], []
        for start in range(0, len(all_values), self.stride):
            part = [value for value in all_values[start : start + self.stride] if value is not None]
            low.append(min(part, default=None))
            high.append(max(part, default=None))
        if len(self.shown) > len(low):
            low, high = [*low, low[-1]], [*high, high[-1]]
        return {"low": _rounded(low), "high": _rounded(high), "stride": self.stride}


def _places(record: RunRecord, lines: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """Where lines lie on each axis; a line without a time gets that of the steps around it."""
    flops = record.env.get("flops_per_token", {}).get("exact")
    known = sorted((line["step"], line["seconds"]) for line in record.steps + record.evaluations if "seconds" in line)
    seconds: list[float | None] = [None] * len(lines)
    if known:
        steps, times = zip(*known, strict=True)
        told = np.interp([line["step"] for line in lines], steps, times, left=math.nan, right=math.nan)
        seconds = [line.get("seconds", float(time)) for line, time in zip(lines, told, strict=True)]
    tokens = [line["tokens"] for line in lines]
    return {
        "step": [line["step"] for line in lines],
        "tokens": tokens,
        "flops": [float(f"{t * flops:.6g}") for t in tokens] if flops else [None] * len(lines),
        "seconds": [round(s, 3) if s is not None and math.isfinite(s) else None for s in seconds],
    }


def _predicted(record: RunRecord, curve: list[dict[str, Any]], tracks: Tracks) -> list[dict[str, Any]]:
    """The scaling prediction as a grey line, with its interval and the alarm band."""
    if not curve:
        return []
    tracks["predicted"] = _places(record, curve)
    loss = [row["loss"] for row in curve]
    found = {"name": "predicted", "track": "predicted", "values": _rounded(loss), "colour": "muted", "dash": 1}
    if curve[0]["low"] is not None:
        found["name"] = "predicted (80 %; lighter: alarm)"
        for side in ("low", "high"):
            found[side] = _rounded(row[side] for row in curve)
            found[f"alarm_{side}"] = _rounded(row["loss"] + ALARM * (row[side] - row["loss"]) for row in curve)
    return [found]


def _source_names(record: RunRecord) -> list[str]:
    return list(dict.fromkeys(name for e in record.evaluations for name in e.get("val_by_source", {})))


def _sources(record: RunRecord, tracks: Tracks) -> list[Chart]:
    """The held-out loss of each source of a mixture, in nats a token and in bits a byte (comparable between texts)."""
    mixed = [e for e in record.evaluations if "val_by_source" in e]
    track = _Track(record, mixed, "sources", tracks)
    charts = []
    for key, title, unit in (("val_loss", "Validation loss", "nats a token"), ("val_bpb", "Bits a byte", "validation")):
        series = [
            track.series("", name, n, dash=n, marker=True, value=_of("val_by_source", name, key))
            for n, name in enumerate(_source_names(record))
        ]
        charts.append(_chart(f"source-{key}", f"{title} by source", unit, series, group="sources", wide=True))
    return charts


def _health(record: RunRecord, tracks: Tracks) -> list[Chart]:
    """What log.anatomy_every recorded: a line a layer, from dark (first) to light (last), and the embedding."""
    if not record.health:
        return []
    track = _Track(record, record.health, "looks", tracks, 1000)
    parts = list(record.health[0]["health"])
    layers = [part for part in parts if part.startswith("layers.")]
    charts = []
    for key, title, unit, log in HEALTH:
        series = [
            track.series("", part.replace("layers.", "layer "), 0, ramp=n / max(1, len(layers) - 1),
                         value=_of("health", part, key))
            for n, part in enumerate(layers)
        ]  # fmt: skip
        if "embedding" in parts:
            series.append(track.series("", "embedding", 1, dash=1, value=_of("health", "embedding", key)))
        charts.append(_chart(f"health-{key}", title, unit, series, group="health", log=log))
    return charts


def _of(*path: str) -> Callable[[dict[str, Any]], Any]:
    """What gets a value deep in a line, or None."""

    def get(line: dict[str, Any]) -> Any:
        found: Any = line
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return found

    return get


def _rounded(values: Any) -> list[float | None]:
    """To seven digits; None for what is missing or not finite."""
    return [float(f"{v:.7g}") if v is not None and math.isfinite(v) else None for v in values]
