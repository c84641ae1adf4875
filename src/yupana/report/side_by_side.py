"""What the page that compares runs has beside their curves: where the MFU of each went, and what was evaluated."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yupana.report.read import Evaluated, evaluated, read_json
from yupana.run import WATERFALL

SMALLEST = 0.001
"""Of the peak: what loses less in every run is left out, as on a run's own page."""


def waterfalls(paths: Sequence[Path], names: Sequence[str]) -> str:
    """Where the MFU of each run went, part by part, in bars of one scale; empty where `flops explain` saw none of them."""
    kept = [read_json(path / WATERFALL) for path in paths]
    found = [one if isinstance(one, dict) else None for one in kept]
    if not any(found):
        return ""
    lost = [{part["name"]: part["lost_share"] for part in one["parts"]} if one else {} for one in found]
    most = {name: max(of.get(name, 0.0) for of in lost) for name in dict.fromkeys(name for of in lost for name in of)}
    parts = [name for name in sorted(most, key=lambda name: -most[name]) if most[name] >= SMALLEST]
    left = [one["mfu"]["exact"] if one else None for one in found]
    longest = max([share for share in left if share is not None] + list(most.values()))

    rows = [_row("MFU, exact", [_bar(share, "left", longest) for share in left])]
    for name in parts:
        shares = [of.get(name, 0.0) if one else None for one, of in zip(found, lost, strict=True)]
        rows.append(_row(name, [_bar(share, "lost", longest) for share in shares]))
    for name, figure in (
        ("MFU, palm", lambda one: f"{100 * one['mfu']['palm']:.1f} %"),
        ("a step", lambda one: f"{one['step_seconds']:,.4g} s"),
        ("the peak", lambda one: f"{one['peak'] / 1e12:,.4g} TFLOP/s, {one['peak_source']}"),
    ):
        rows.append(_row(name, [html.escape(figure(one)) if one else "—" for one in found]))
    unseen = [name for name, one in zip(names, found, strict=True) if one is None]
    told = "MFU, and what each part takes from it, in shares of each run's own peak; yupana flops explain measured it"
    told += f" (not of {', '.join(unseen)})." if unseen else "."
    return f"<h2 id='waterfall'>Where the MFU went</h2><p class='told'>{html.escape(told)}</p>{_table(names, rows)}"


def _bar(share: float | None, kind: str, longest: float) -> str:
    if share is None:
        return "—"
    size = f"{100 * abs(share):.1f}"
    sign = "" if kind == "left" or size == "0.0" else "−" if share > 0 else "+"
    return f"{sign}{size} %<div class='{kind}' style='width:calc({max(0.0, share) / longest:.4f} * var(--bar))'></div>"


def evaluations(paths: Sequence[Path], names: Sequence[str]) -> str:
    """What `yupana eval` found of each run: texts and tasks, a run a column; empty where it looked at none of them."""
    found = [evaluated(path) for path in paths]
    texts, tasks = [], []
    for which, text in dict.fromkeys(key for one in found for key in one.texts):
        for unit, value, interval in (
            ("nats a token", "nll_per_token", "nll_interval"),
            ("bits a byte", "bits_per_byte", "bits_per_byte_interval"),
        ):
            cells = [_within(one.texts.get((which, text), {}), value, interval) for one in found]
            texts.append(_row(f"{Evaluated.label(text)}, {unit}{_of(which)}", cells))
    for which, task, metric in dict.fromkeys(key for one in found for key in one.tasks):
        cells = [_give_or_take(one.tasks.get((which, task, metric))) for one in found]
        tasks.append(_row(f"{task}, {metric}{_of(which)}", cells))
    parts = ""
    if texts:
        told = "Below each value its 95 % interval, over documents. Between tokenizers only bits a byte can be compared."
        parts += f"<p class='told'>{told}</p>{_table(names, texts)}"
    if tasks:
        parts += f"<h3>Tasks of lm-evaluation-harness, ± a standard error</h3>{_table(names, tasks)}"
    return f"<h2 id='evaluations'>Evaluations</h2>{parts}" if parts else ""


def _of(which: str) -> str:
    return "" if which == "last" else f" ({which})"


def _within(row: dict[str, Any], value: str, interval: str) -> str:
    if row.get(value) is None:
        return "—"
    ends = row[interval]
    return f"{row[value]:.4f}" + (f"<div class='told'>{ends[0]:.4f} … {ends[1]:.4f}</div>" if ends else "")


def _give_or_take(found: tuple[Any, Any, Any] | None) -> str:
    if found is None or found[0] is None:
        return "—"
    value, error, _ = found
    return f"{value:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _row(name: str, cells: list[str]) -> str:
    return f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _table(names: Sequence[str], rows: list[str]) -> str:
    heads = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in ("", *names))
    table = f"<table class='compare'><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<div class='scroll'>{table}</div>"
