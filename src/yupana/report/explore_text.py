"""What yupana corpus explore found, for the terminal: the sources side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Group
from rich.table import Table

Row = tuple[str, Callable[[dict[str, Any]], str]]
"""A label, and how to write the figure of a source."""


def explore_tables(result: dict[str, Any]) -> Group:
    """Figures, rules and repeated lines, a column for each source."""
    sources = result["sources"]
    parts: list[Any] = [_side_by_side("In figures", figures(sources), sources)]
    parts.append(_side_by_side("Documents that the rules would drop", rules(sources), sources))
    parts += [_repeated(source) for source in sources]
    parts += [f"\n{line}" for line in notes(result)]
    return Group(*parts)


def figures(sources: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """(what, one figure a source)."""
    rows: list[Row] = [
        ("documents", lambda s: f"{s['documents']:,}"),
        ("bytes", lambda s: f"{s['bytes']:,}"),
        ("words", lambda s: f"{s['words']:,}"),
        ("different words", lambda s: f"{s['vocabulary']['different_words']:,}"),
        ("bytes a document, median", lambda s: f"{s['sizes']['quantiles']['median']:,}"),
        ("… 5 % to 95 %", lambda s: f"{s['sizes']['quantiles']['p5']:,} to {s['sizes']['quantiles']['p95']:,}"),
    ]
    for number, tokenizer in enumerate(sources[0]["tokenizers"]):
        rows += _of_tokenizer(number, tokenizer["name"])
    rows += [
        ("compression (zlib)", lambda s: f"{s['compression']['ratio']:.2f} ×"),
        ("equal copies", lambda s: _count(s["duplicates"]["exact"])),
        ("near copies", lambda s: _count(s["duplicates"]["near"])),
        ("Zipf, Heaps exponent", lambda s: f"{_exponent(s, 'zipf')}, {_exponent(s, 'heaps')}"),
        ("languages", _languages),
        ("e-mail addresses", lambda s: f"{s['personal']['found']['e-mail address']:,}"),
        ("public IPv4 addresses", lambda s: f"{s['personal']['found']['public IPv4 address']:,}"),
    ]
    if "model" in sources[0]:
        rows.append((f"loss of {short(sources[0]['model']['run'])}, nats a token", lambda s: f"{s['model']['loss']:.3f}"))
        rows.append(("… bits a byte", lambda s: f"{s['model']['bits_per_byte']:.3f}"))
        rows.append(("… tokens read", lambda s: f"{s['model']['tokens']:,}"))
    if sources[0]["contamination"]:
        rows.append(("evaluation text found", lambda s: _percent(s["contamination"]["share"])))
        rows.append(("… documents that hold some", lambda s: f"{s['contamination']['documents']:,}"))
    rows.append(("skipped", lambda s: f"{sum(s['skipped'].values()):,}"))
    return [(label, [figure(source) for source in sources]) for label, figure in rows]


def _of_tokenizer(number: int, name: str) -> list[Row]:
    def figure(key: str, form: str) -> Callable[[dict[str, Any]], str]:
        return lambda source: form.format(source["tokenizers"][number][key])

    return [
        (f"tokens, {name}", figure("tokens", "{:,}")),
        ("… bytes a token", figure("bytes_per_token", "{:.2f}")),
        ("… tokens a word", figure("tokens_per_word", "{:.2f}")),
        ("… of the vocabulary used", figure("vocabulary_share", "{:.1%}")),
    ]


def rules(sources: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """(rule, share of the documents that it drops in each source); only rules that drop something somewhere."""
    rows = []
    for family in sources[0]["quality"]["dropped_by"]:
        shares = [source["quality"]["dropped_by"][family] for source in sources]
        rows.append((f"[bold]{family}[/bold]: any rule" if family != "any" else "[bold]all[/bold]", shares))
        for number, rule in enumerate(sources[0]["quality"]["rules"]):
            shares = [source["quality"]["rules"][number]["share"] for source in sources]
            if rule["family"] == family and any(shares):
                rows.append((f"  {rule['rule']}", shares))
    rows.append(("[bold]C4[/bold]: lines dropped", [1 - source["quality"]["c4_lines"].get("kept", 0) for source in sources]))
    return [(label, [_percent(share) for share in shares]) for label, shares in rows]


def notes(result: dict[str, Any]) -> list[str]:
    """What a reader has to know about the figures."""
    told = []
    for source in result["sources"]:
        name = source["source"]
        for reason, count in source["skipped"].items():
            told.append(f"{name}: {count:,} skipped, {reason}, the first at {source['skipped_first'][reason]}")
        if source["looked_at_in_part"]:
            long = source["looked_at_in_part"]
            told.append(f"{name}: of {long:,} documents only the first 4 Mi characters were looked at")
        if source["duplicates"]["near"]["compared"] == 400_000:
            told.append(f"{name}: near copies were looked for among the first 400 000 documents")
        if source["languages"] is None and source is result["sources"][0]:
            told.append("languages need py3langid: pip install 'yupana[corpus]'")
        if not source["complete"]:
            told.append(f"stopped: {name} was read up to document {source['documents']:,}, later sources not at all")
    return told


def _side_by_side(title: str, rows: list[tuple[str, list[str]]], sources: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", style="dim")
    for source in sources:
        table.add_column(short(source["source"]), justify="right", overflow="fold")
    for label, values in rows:
        table.add_row(label, *values)
    return table


def _repeated(source: dict[str, Any]) -> Table:
    table = Table(title=f"Most repeated in {short(source['source'])}", title_justify="left", box=None, pad_edge=False)
    for name in ("times", "line", "times", "five words"):
        table.add_column(name, justify="right" if name == "times" else "left", no_wrap=True, overflow="ellipsis")
    lines = source["repeated"]["lines"]["most"][:6]
    phrases = source["repeated"]["phrases_of_5_words"]["most"][:6]
    for number in range(max(len(lines), len(phrases))):
        cells = []
        for rows in (lines, phrases):
            row = rows[number] if number < len(rows) else None
            cells += [f"{row['count']:,}", _plain(row["text"])] if row else ["", ""]
        table.add_row(*cells)
    return table


def short(source: str) -> str:
    """The last two parts of a path; a hub name whole."""
    return source if source.startswith("hf:") else "/".join(source.rstrip("/").split("/")[-2:])


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text[:48])


def _percent(share: float) -> str:
    return "0" if share == 0 else f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.05 %"


def _count(copies: dict[str, Any]) -> str:
    return f"{copies['documents']:,} ({_percent(copies['share'])})" if copies["documents"] else "0"


def _exponent(source: dict[str, Any], law: str) -> str:
    value = source["vocabulary"][law]["exponent"]
    return "—" if value is None else f"{value:.2f}"


def _languages(source: dict[str, Any]) -> str:
    found = source["languages"]
    if not found:
        return "—"
    return ", ".join(f"{code} {100 * share:.0f} %" for code, share in list(found.items())[:3] if share >= 0.005)
