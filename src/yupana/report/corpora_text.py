"""The known corpora for the terminal: a table of all, or everything about some."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table


def list_table(entries: list[dict[str, Any]]) -> Group:
    """All of them, a line or three each."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("name", style="cyan", no_wrap=True)
    table.add_column("tokens or bytes", justify="right")
    table.add_column("good for", ratio=3)
    table.add_column("deduplicated by", ratio=2)
    table.add_column("hub name, or source", ratio=2, overflow="fold")
    for entry in entries:
        where = f"hf:{entry['hub']}" if entry["hub"] else entry["source"]
        how_much = amount(entry["tokens"]) if entry["tokens"] else size(entry["bytes"])
        table.add_row(entry["name"], how_much, entry["good_for"], entry["deduplication"] or "—", where)
    return Group(table, "\nEverything about one: yupana corpus list NAME · all of it for a program: --json")


def full_tables(entries: list[dict[str, Any]]) -> Group:
    """Everything about each, with its mixture."""
    return Group(*map(_entry, entries))


def _entry(entry: dict[str, Any]) -> Group:
    table = Table(title=entry["title"], title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column("", style="dim", no_wrap=True)
    table.add_column("")
    counted = f" ({entry['tokenizer']})" if entry["tokenizer"] else ""
    field = f" --text_field {entry['text_field']}" if entry["text_field"] else ""
    rows = (
        ("what it is", entry["about"]),
        ("good for", entry["good_for"]),
        ("tokens", entry["tokens"] and amount(entry["tokens"]) + counted),
        ("bytes", entry["bytes"] and size(entry["bytes"])),
        ("documents", entry["documents"] and f"{entry['documents']:,}"),
        ("deduplicated by", entry["deduplication"]),
        ("licence", entry["licence"]),
        ("look inside", entry["hub"] and f"yupana corpus explore hf:{entry['hub']}{field} --sample 1000"),
        ("source", entry["source"]),
    )
    for label, told in rows:
        if told:
            table.add_row(label, told)
    return Group(table, *([_mixture(entry["mixture"])] if entry["mixture"] else []), "")


def _mixture(parts: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("part")
    for name in ("share of the training", "epochs", "tokens", "bytes"):
        table.add_column(name, justify="right")
    for part in parts:
        table.add_row(
            part["name"],
            f"{100 * part['weight']:.1f} %",
            "—" if part["epochs"] is None else f"{part['epochs']:g}",
            amount(part["tokens"]),
            size(part["bytes"]),
        )
    return table


def packing_table(result: dict[str, Any]) -> Table:
    """What each way of packing costs."""
    title = f"{result['documents']:,} documents, {result['tokens']:,} tokens, {result['seq_len']:,} a sequence"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    columns = ("padding", "cut", "needlessly_cut", "lost", "twice")
    for name in ("sequences", "padding", "documents cut", "needlessly", "tokens lost", "read twice"):
        table.add_column(name, justify="right")
    for row in result["methods"]:
        table.add_row(row["method"], f"{row['sequences']:,}", *(f"{100 * row[name]:.2f} %" for name in columns))
    return table


def amount(value: float | None) -> str:
    """A count of tokens in three digits: 1.4 T, 627 B, 6 M."""
    return _scaled(value, "TBM", "")


def size(value: float | None) -> str:
    """A number of bytes in three digits: 1.4 TB, 40 GB, 6 MB."""
    return _scaled(value, "TGM", "B")


def _scaled(value: float | None, letters: str, unit: str) -> str:
    if value is None:
        return "—"
    for size, letter in zip((1e12, 1e9, 1e6), letters, strict=True):
        if value >= size:
            return f"{value / size:.3g} {letter}{unit}"
    return f"{value:,.0f} {unit}".strip()
