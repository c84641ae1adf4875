"""explore.html, explore.png and explore.json: what is inside some sources, on one self-contained page."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import Any

from yupana.errors import UserError
from yupana.files import disk_errors, write_atomically, write_json
from yupana.report.explore_text import figures, notes, rules, short

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
       color: #222; background: #fff; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.told { color: #666; margin-top: .2rem; }
table { border-collapse: collapse; } td { padding: .15rem 1.5rem .15rem 0; vertical-align: top; }
td:first-child { color: #666; } td:nth-child(2) { font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; } details { margin-top: 1rem; } summary { cursor: pointer; color: #0072b2; }
th { text-align: right; vertical-align: bottom; padding: .15rem 0 .15rem 1rem; } td:nth-child(n+2) { text-align: right; }
table.texts td { text-align: left; font-size: .85rem; } table.texts td.number { text-align: right; }
code { background: #f5f5f2; white-space: pre-wrap; overflow-wrap: anywhere; }
div.wide { overflow-x: auto; font-size: .9rem; } div.wide td { padding: .1rem 0 .1rem 1rem; }
div.wide td:first-child { position: sticky; left: 0; background: #fff; padding-left: 0; white-space: nowrap; }
@media (max-width: 50rem) {
  div.picture svg { width: 56rem; } div.wide td:first-child { white-space: normal; min-width: 8rem; }
  table.texts :is(tbody, tr, td) { display: block; } table.texts td.number { text-align: left; }
}
"""


def check_folder(folder: Path) -> None:
    """Raise UserError unless a page can be written into `folder`; makes it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("the page needs matplotlib: pip install 'yupana[report]', or leave --out away") from None
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: --out names a folder")
    with disk_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)


def write_page(result: dict[str, Any], folder: Path) -> Path:
    """Write the page, its picture and the figures into `folder`; returns the page's path."""
    from matplotlib import rc_context

    from yupana.report.explore_plots import draw_explore, draw_losses

    with rc_context({"svg.hashsalt": "yupana", "font.size": 10}):
        drawing = save_figure(draw_explore(result["sources"]), folder / "explore.png")
        if all("model" in source for source in result["sources"]):
            drawing += save_figure(draw_losses(result["sources"]), folder / "losses.png")
    write_json(folder / "explore.json", result)
    write_atomically(folder / "explore.html", _page(result, drawing))
    return folder / "explore.html"


def save_figure(figure: Any, path: Path) -> str:
    """Write the figure as a picture; returns it as an <svg> for the page."""
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.savefig(png, format="png", dpi=130)
    write_atomically(path, png.getvalue())
    drawing = svg.getvalue()
    return drawing[drawing.index("<svg") :]


def _page(result: dict[str, Any], drawing: str) -> str:
    sources = result["sources"]
    names = html.escape(" · ".join(short(source["source"]) for source in sources))
    told = "".join(f"<li>{html.escape(line)}</li>" for line in notes(result))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{names} · yupana</title><style>{STYLE}</style></head><body>
<h1>{names}</h1>
<p class="told">{result["documents"]:,} documents, {result["bytes"]:,} bytes, {result["tokens"]:,} tokens
({html.escape(sources[0]["tokenizers"][0]["name"])})</p>
<div class="wide picture">{drawing}</div>
{f"<ul>{told}</ul>" if told else ""}
<h2>In figures</h2>{_table(figures(sources), sources)}
<h2>Documents that the rules of Gopher, C4 and FineWeb would drop</h2>{_table(rules(sources), sources)}
{"".join(_source(source) for source in sources)}
</body></html>
"""


def _table(rows: list[tuple[str, list[str]]], sources: list[dict[str, Any]]) -> str:
    names = (html.escape(short(source["source"])).replace("/", "/<wbr>") for source in sources)
    heads = "".join(f"<th>{name}</th>" for name in names)
    body = ""
    for label, values in rows:
        marked = html.escape(label).replace("[bold]", "<b>").replace("[/bold]", "</b>").replace("  ", "&emsp;", 1)
        body += f"<tr><td>{marked}</td>{''.join(f'<td>{html.escape(value)}</td>' for value in values)}</tr>"
    return f'<div class="wide"><table><tr><th></th>{heads}</tr>{body}</table></div>'


def _source(source: dict[str, Any]) -> str:
    """The examples of one source, folded away."""
    copies = source["duplicates"]
    repeated = source["repeated"]
    parts = [
        ("Most repeated lines", [(f"{row['count']:,}", row["text"]) for row in repeated["lines"]["most"]]),
        (
            "Most repeated runs of five words",
            [(f"{row['count']:,}", row["text"]) for row in repeated["phrases_of_5_words"]["most"]],
        ),
        ("Equal copies", [(f"{row['id']} = {row['copy']}", row["excerpt"].strip()) for row in copies["exact"]["examples"]]),
        (
            "Near copies",
            [
                (f"{row['similarity']:.2f}", f"{row[one]['id']}: {row[one]['excerpt'].strip()}")
                for row in copies["near"]["examples"]
                for one in ("first", "second")
            ],
        ),
        (
            "What the rules would drop",
            [
                (f"{rule['family']}: {rule['rule']}", f"{row['id']} ({row['value']:.3g}): {row['excerpt'].strip()}")
                for rule in source["quality"]["rules"]
                for row in rule["examples"][:2]
            ],
        ),
        (
            "Evaluation text found",
            [(row["id"], row["run"]) for row in (source["contamination"] or {"examples": []})["examples"]],
        ),
    ]
    folded = "".join(_folded(title, rows) for title, rows in parts if rows)
    return f"<h2>{html.escape(source['source'])}</h2>{folded or '<p>no examples</p>'}"


def _folded(title: str, rows: list[tuple[str, str]]) -> str:
    body = "".join(
        f'<tr><td class="number">{html.escape(label)}</td><td><code>{html.escape(text)}</code></td></tr>'
        for label, text in rows
    )
    return f'<details><summary>{title}</summary><table class="texts">{body}</table></details>'
