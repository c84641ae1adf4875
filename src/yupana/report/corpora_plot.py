"""The published mixtures as one picture: how much of what, and how often it is seen."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from yupana.files import write_atomically

# One colour a kind of text, the same in every mixture (Okabe & Ito).
KINDS = {
    "web": ("#0072B2", "commoncrawl", "c4", "pile-cc", "openwebtext2", "web pages", "general knowledge"),
    "code": ("#D55E00", "github", "code"),
    "academic, law, mathematics": (
        "#009E73", "arxiv", "pubmed central", "pubmed abstracts", "freelaw", "uspto backgrounds", "philpapers",
        "nih exporter", "dm mathematics", "papers (pes2o)", "mathematics and reasoning",
    ),
    "books": ("#CC79A7", "books", "books3", "gutenberg (pg-19)", "bookcorpus2", "gutenberg"),
    "encyclopaedia": ("#E69F00", "wikipedia", "wikipedia (en)", "wikipedia, wikibooks"),
    "talk": (
        "#56B4E9", "stackexchange", "reddit", "hackernews", "ubuntu irc", "opensubtitles", "youtubesubtitles",
        "enron emails", "europarl",
    ),
    "other languages": ("#8a8a8a", "multilingual"),
}  # fmt: skip


PER_CHARACTER = 0.086
"""Width of a character, in per cent of the axis, for each point of its size."""


def save_mixtures(entries: list[dict[str, Any]], path: Path) -> None:
    """Draw the mixtures of `entries` and write them to `path`, whole or not at all."""
    content = io.BytesIO()
    draw_mixtures(entries).savefig(content, format=path.suffix[1:], dpi=130)
    write_atomically(path, content.getvalue())


def draw_mixtures(entries: list[dict[str, Any]]) -> Any:
    """A matplotlib figure with one bar a mixture, cut into its parts; epochs where they are published."""
    from matplotlib.figure import Figure

    entries = [entry for entry in entries if entry["mixture"]]
    figure = Figure(figsize=(14, 0.95 * len(entries) + 1.1), layout="constrained")
    axes = figure.subplots()
    for row, entry in enumerate(entries):
        _bar(axes, row, entry["mixture"])
    axes.set_yticks(range(len(entries)), [entry["title"] for entry in entries], fontsize=11)
    axes.set_ylim(len(entries) - 0.5, -1.0)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the tokens trained on (%); ×n: epochs")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _kinds(axes)
    return figure


def kind_of(part: str) -> str:
    """The kind of text that a part is, for its colour."""
    return next(kind for kind, (_, *parts) in KINDS.items() if part.lower() in parts)


def _bar(axes: Any, row: int, parts: list[dict[str, Any]]) -> None:
    """The parts, those of a kind side by side, large ones first."""
    order = list(KINDS)
    begin = 0.0
    for part in sorted(parts, key=lambda part: (order.index(kind_of(part["name"])), -part["weight"])):
        width = 100 * part["weight"]
        colour = KINDS[kind_of(part["name"])][0]
        axes.barh(row, width, left=begin, height=0.62, color=colour, edgecolor="white", linewidth=0.8)
        _label(axes, begin + width / 2, row, width, part)
        begin += width


def _label(axes: Any, middle: float, row: int, width: float, part: dict[str, Any]) -> None:
    """Name, share and epochs inside the part, as large as it has room for; none where it has none."""
    name = part["name"].replace("Wikipedia", "Wiki-\npedia") if width < 6 else part["name"]
    if width < PER_CHARACTER * 5.5 * len(name):
        name = name.replace(" ", "\n").replace("StackExchange", "Stack-\nExchange")
    epochs = "" if part["epochs"] is None else f"\n×{part['epochs']:g}"
    told = f"{name}\n{width:.2g} %{epochs}" if width < 10 else f"{name}\n{width:.3g} %{epochs}"
    size = min(8.0, width / (PER_CHARACTER * max(map(len, told.split("\n")))))
    if size >= 5.5:
        axes.text(middle, row, told, ha="center", va="center", fontsize=size, color="white")


def _kinds(axes: Any) -> None:
    """The colours named above the bars."""
    place = 0.0
    for kind, (colour, *_) in KINDS.items():
        axes.text(place, -0.72, kind, color=colour, fontweight="bold", fontsize=10, va="center")
        place += 2.5 + 0.78 * len(kind)
