"""report.html and report.png: a run on one self-contained page."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import Any

import yaml

from yupana.files import write_atomically
from yupana.report.read import RunRecord, read_run
from yupana.report.text import summary, told_slowest
from yupana.run import RunDirectory

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
       color: #222; background: #fff; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.told { color: #666; margin-top: .2rem; }
table { border-collapse: collapse; } td { padding: .15rem 1.5rem .15rem 0; vertical-align: top; }
td:first-child { color: #666; } td:nth-child(2) { font-variant-numeric: tabular-nums; }
pre { background: #f5f5f2; padding: 1rem; overflow-x: auto; white-space: pre-wrap; font-size: .85rem; }
svg { width: 100%; height: auto; } details { margin-top: 1rem; } summary { cursor: pointer; color: #0072b2; }
"""


def write_report(run: RunDirectory) -> Path | None:
    """Write report.html and report.png into the run, and health.png where the run was looked into.

    None where matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context

        from yupana.report.by_source import draw_sources
        from yupana.report.foretold import foretold
        from yupana.report.health import draw_health
        from yupana.report.plots import draw
    except ImportError:
        return None
    record = read_run(run)
    prediction = foretold(record)
    with rc_context({"svg.hashsalt": "yupana", "font.size": 10}):
        drawing = save_figure(draw(record, prediction), run.path / "report.png")
        inside = save_figure(draw_health(record), run.path / "health.png") if record.health else ""
        mixed = any("val_by_source" in evaluation for evaluation in record.evaluations)
        sources = save_figure(draw_sources(record), run.path / "sources.png") if mixed else ""
    told = prediction.told if prediction else ""
    write_atomically(run.path / "report.html", _page(record, drawing, inside, sources, told))
    return run.path / "report.html"


def save_figure(figure: Any, path: Path) -> str:
    """Write the figure as a picture; returns it as an <svg> for the page."""
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.savefig(png, format="png", dpi=130)
    write_atomically(path, png.getvalue())
    drawing = svg.getvalue()
    return drawing[drawing.index("<svg") :]


def _page(record: RunRecord, drawing: str, inside: str, sources: str, prediction: str) -> str:
    figures = summary(record)
    name = html.escape(record.path.name)
    rows = "".join(f"<tr><td>{k}</td><td>{html.escape(v)}</td></tr>" for k, v in _rows(figures))
    config = html.escape(yaml.safe_dump(record.config, sort_keys=False))
    looked = f"<h2>Inside, layer by layer</h2>{inside}" if inside else ""
    mixed = f"<h2>By source</h2>{sources}{_source_table(figures['sources'])}" if sources else ""
    env = html.escape(yaml.safe_dump(record.env, sort_keys=False))
    sample = f"<h2>A sample</h2><pre>{html.escape(record.sample)}</pre>" if record.sample else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} · yupana</title><style>{STYLE}</style></head><body>
<h1>{name}</h1><p class="told">{_headline(figures)}</p>
{drawing}
{f"<p>{html.escape(prediction)}</p>" if prediction else ""}
<h2>In figures</h2><table>{rows}</table>
{mixed}
{looked}
{sample}
<details><summary>Configuration (run.yaml)</summary><pre>{config}</pre></details>
<details><summary>Environment (env.json)</summary><pre>{env}</pre></details>
</body></html>
"""


def _source_table(sources: dict[str, dict[str, Any]]) -> str:
    """The sources of a mixture: shares, epochs, losses."""
    head = ("source", "share of the tokens", "tokens", "of them different", "epochs", "loss, first → last", "bits a byte")
    rows = []
    for name, of in sources.items():
        cells = (
            html.escape(name),
            f"{100 * of['share']:.1f} %",
            f"{of['planned_tokens']:,}",
            f"{min(of['unique_tokens'], of['planned_tokens']):,}",
            f"{of['epochs']:.2f}",
            f"{of['first_val_loss']:.3f} → {of['val_loss']:.3f}",
            f"{of['val_bpb']:.4f}",
        )
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    named = "".join(f"<td>{name}</td>" for name in head)
    return f"<table><tr>{named}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _headline(figures: dict) -> str:
    if figures["val_loss"] is None or not figures["parameters"]:
        return "no evaluation yet"
    return (
        f"{figures['parameters'] / 1e6:,.1f} M parameters, {figures['tokens'] / 1e6:,.2f} M tokens: validation loss "
        f"{figures['first_val_loss']:.3f} → {figures['val_loss']:.3f} nats a token"
    )


def _rows(figures: dict) -> list[tuple[str, str]]:
    forms = (
        ("validation loss", "val_loss", "{:.4f} nats a token", 1),
        ("bits per byte", "val_bpb", "{:.4f}", 1),
        ("training loss, last step", "loss", "{:.4f} nats a token", 1),
        ("steps", "steps", "{:,}", 1),
        ("tokens", "tokens", "{:,}", 1),
        ("FLOPs (exact)", "flops", "{:.3g}", 1),
        ("tokens per second, median", "tokens_per_second", "{:,.0f}", 1),
        ("MFU (palm), median", "mfu", "{:.1f} %", 100),
        ("MFU (exact), median", "mfu_exact", "{:.1f} %", 100),
        ("MFU is against", "peak_source", "{}", 1),
        ("precision", "precision", "{}", 1),
        ("device", "device", "{}", 1),
        ("peak memory", "memory_bytes", "{:.2f} GB", 1e-9),
        ("time", "seconds", "{:,.0f} s", 1),
        ("slowest rank", "slowest", "{}", 1),
    )
    figures = {**figures, "slowest": told_slowest(figures)}
    shown = [(label, figures[key], form, scale) for label, key, form, scale in forms if figures[key] is not None]
    return [
        (label, form.format(value if isinstance(value, str) or scale == 1 else value * scale))
        for label, value, form, scale in shown
    ]
