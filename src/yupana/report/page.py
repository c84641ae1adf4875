"""report.html of a run, and the page that compares several: one self-contained file each."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from yupana.files import write_atomically
from yupana.report import sections, side_by_side
from yupana.report.curves import compared_curves, run_curves
from yupana.report.foretold import foretold
from yupana.report.pictures import write_pictures
from yupana.report.read import RunRecord, read_run
from yupana.report.text import run_rows, summary
from yupana.run import RunDirectory

HERE = Path(__file__).parent
STYLE = (HERE / "page.css").read_text()
CONTROLS = """<form class="controls" aria-label="curves">
<fieldset><legend>against</legend>
<label><input type="radio" name="x" value="tokens"><span>tokens</span></label>
<label><input type="radio" name="x" value="flops"><span>FLOPs</span></label>
<label><input type="radio" name="x" value="seconds"><span>time</span></label>
<label><input type="radio" name="x" value="step"><span>steps</span></label></fieldset>
<label>smoothing <input type="range" id="smooth" min="0" max="20" step="1"> <output id="smooth-told"></output></label>
<label><input type="checkbox" id="log"> log loss</label>
<button type="button" id="whole" hidden>whole run</button>
</form>
<p class="told hint">Point at a curve for its values; drag to zoom, double-click to undo; a name hides its curve.</p>
<noscript><p class="state">The curves need JavaScript; every figure below does without.</p></noscript>
<p class="spoken" id="spoken" aria-live="polite"></p>"""


def write_report(run: RunDirectory, *, pictures: bool = True, again: int | None = None) -> Path:
    """Write report.html into the run, and its `pictures` where matplotlib is installed; returns the page's path.

    The page loads itself again every `again` seconds. Raises UserError when the run cannot be read or written.
    """
    record = read_run(run)
    if pictures:
        write_pictures(record)
    write_atomically(run.path / "report.html", run_page(record, again))
    return run.path / "report.html"


def write_comparison(runs: list[RunDirectory], target: Path, *, again: int | None = None) -> Path:
    """Write a page that compares runs to `target`; returns it. Raises UserError as `write_report`."""
    records = [read_run(run) for run in runs]
    write_atomically(target, comparison_page(records, again))
    return target


def run_page(record: RunRecord, again: int | None = None) -> str:
    """The page of one run."""
    figures, prediction = summary(record), foretold(record)
    curves = run_curves(record, prediction.curve if prediction else [])
    groups = {chart["group"] for chart in curves["charts"]}
    parts = [
        f"<h1>{html.escape(record.path.resolve().name)}</h1>",
        f'<p class="told">{html.escape(_headline(figures))}</p>',
        sections.state(record),
        sections.tiles(figures),
        CONTROLS,
        _thinned(curves),
        _group("curves"),
        sections.predicted(record, figures, prediction.told if prediction else ""),
        sections.waterfall(record.path),
        sections.evaluations(record.path),
        f"<h2>By source</h2>{_group('sources')}{sections.source_table(figures['sources'])}" if "sources" in groups else "",
        f"<h2>Inside, layer by layer</h2>{_group('health')}" if "health" in groups else "",
        sections.samples(record),
        "<h2>Configuration</h2>",
        sections.settings_changed(record),
        sections.folded("Every setting (run.yaml)", record.config),
        "<h2>Environment</h2>",
        sections.environment(record.env),
        sections.folded("Everything (env.json)", record.env),
    ]
    return document(record.path.resolve().name, "\n".join(parts), curves, again)


def comparison_page(records: list[RunRecord], again: int | None = None) -> str:
    """The page of several runs: curves, figures, where the MFU went, evaluations, and the settings that differ."""
    paths = [record.path for record in records]
    names = distinct_names(paths)
    figures = [summary(record) for record in records]
    curves = compared_curves(records, names)
    joined = "nats\u2060/\u2060token"  # where Firefox breaks no line
    rows = [(label, *(value.replace("nats/token", joined) for value in values)) for label, values in run_rows(figures)]
    settings = settings_of(records)
    states = "".join(
        told.replace('role="status">', f'role="status"><b>{html.escape(name)}</b> ', 1)
        for name, told in zip(names, map(sections.state, records), strict=True)
    )
    by_source = any(chart["group"] == "sources" for chart in curves["charts"])
    parts = [
        f"<h1>{len(records)} runs</h1>",
        f'<p class="told">{html.escape(" · ".join(names))}</p>',
        states,
        CONTROLS,
        _thinned(curves),
        _group("curves"),
        "<h2>In figures</h2>",
        sections.table(("", *names), rows, range(1, len(names) + 1)),
        side_by_side.waterfalls(paths, names),
        side_by_side.evaluations(paths, names),
        f"<h2>By source: validation loss</h2>{_group('sources')}" if by_source else "",
        "<h2>Settings that differ</h2>",
        sections.table(("setting", *names), settings, wrap=True) if settings else "<p>None: they are the same.</p>",
    ]
    return document(" · ".join(names), "\n".join(parts), curves, again)


def distinct_names(paths: list[Path]) -> list[str]:
    """The folders' names, with as many folders above as tell all of them apart."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(path) for path in paths]


def settings_of(records: list[RunRecord]) -> list[tuple[str, ...]]:
    """(setting, value of each run) of every setting that is not the same in all."""
    flat = [sections.flat(record.config) for record in records]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [(key, *(one.get(key, "—") for one in flat)) for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def document(title: str, body: str, curves: dict[str, Any], again: int | None = None) -> str:
    """A whole page around `body`, with its curves as data and the script that draws them."""
    data = json.dumps(curves, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    reload = f' data-again="{again}"' if again else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{html.escape(title)} · yupana</title><style>{STYLE}</style></head><body{reload}>
{body}
<script type="application/json" id="curves">{data}</script>
<script>{(HERE / "page.js").read_text()}</script>
</body></html>
"""


def _group(name: str) -> str:
    return f'<div class="charts" data-group="{name}"></div>'


def _thinned(curves: dict[str, Any]) -> str:
    """What to know of curves that are not drawn through every step."""
    stride = max((s.get("stride", 1) for chart in curves["charts"] for s in chart["series"]), default=1)
    if stride == 1:
        return ""
    return (
        f'<p class="told">A long run: its curves pass through one in {stride} of the logged steps, and a shade spans the '
        "lowest and highest between.</p>"
    )


def _headline(figures: dict[str, Any]) -> str:
    if figures["val_loss"] is None or not figures["parameters"]:
        return "no evaluation yet"
    return (
        f"{figures['parameters'] / 1e6:,.1f} M parameters, {figures['tokens'] / 1e6:,.2f} M tokens: validation loss "
        f"{figures['first_val_loss']:.3f} → {figures['val_loss']:.3f} nats a token"
    )
