"""What yupana corpus explore found, as one picture: six panels, a colour for each source."""

from __future__ import annotations

from typing import Any

from yupana.report.explore_text import short

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a8a8a", "#000000")  # Okabe & Ito


def draw_explore(sources: list[dict[str, Any]]) -> Any:
    """A matplotlib figure: lengths, words by rank, vocabulary growth, bytes a token, characters, rules."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 12), layout="constrained")
    names, panels, below = list(figure.subfigures(3, 1, height_ratios=[0.045, 1, 0.9]))  # type: ignore[arg-type]
    _names(names, sources)
    axes = panels.subplots(2, 3).ravel()
    for draw, one in zip((_lengths, _zipf, _heaps, _tokens, _characters, _copies), axes, strict=True):
        draw(one, sources)
        one.spines[["top", "right"]].set_visible(False)
    _rules(below.subplots(), sources)
    return figure


def draw_losses(sources: list[dict[str, Any]]) -> Any:
    """A matplotlib figure: a run's loss on each source by the tokens seen before."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    names, panel = list(figure.subfigures(2, 1, height_ratios=[0.08, 1]))  # type: ignore[arg-type]
    _names(names, sources)
    axes = panel.subplots()
    for number, source in enumerate(sources):
        bins = [of for of in source["model"]["by_position"] if of["tokens"]]
        places = [max(0.5, (of["from"] * of["to"]) ** 0.5) for of in bins]
        axes.plot(places, [of["loss"] for of in bins], color=colour(number), marker="o", markersize=4, linewidth=1.8)
        axes.annotate(
            f"{bins[-1]['loss']:.2f}", (places[-1], bins[-1]["loss"]), xytext=(8, 0), textcoords="offset points",
            va="center", color=colour(number), fontweight="bold",
        )  # fmt: skip
    last = max(of["to"] for source in sources for of in source["model"]["by_position"])
    powers = [1 << power for power in range(0, last.bit_length() + 1, 2)]
    axes.set_xscale("log", base=2)
    axes.set_xticks([0.5, *powers], ["0", *map(str, powers)])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    run = short(sources[0]["model"]["run"])
    _title(axes, f"Loss of {run} by position", "tokens seen before", "nats a token")
    return figure


def _names(figure: Any, sources: list[dict[str, Any]]) -> None:
    """The sources in their colours, in one line; smaller when they are many."""
    length = sum(len(short(source["source"])) + 3 for source in sources)
    size = min(13.0, 13.0 * 105 / length)
    place = 0.01
    for number, source in enumerate(sources):
        name = short(source["source"])
        figure.text(place, 0.5, name, color=colour(number), fontweight="bold", fontsize=size, va="center")
        place += 0.00073 * size * (len(name) + 3)


def colour(number: int) -> str:
    """Of the source of that number."""
    return COLOURS[number % len(COLOURS)]


def _lengths(axes: Any, sources: list[dict[str, Any]]) -> None:
    for number, source in enumerate(sources):
        sizes = source["sizes"]
        total = max(1, sum(sizes["documents"]))
        shares = [100 * count / total for count in sizes["documents"]]
        axes.stairs(shares, [*sizes["from"], 2 * sizes["from"][-1]], color=colour(number), linewidth=1.8)
    axes.set_xscale("log", base=2)
    least = max(1, min(source["sizes"]["quantiles"]["least"] for source in sources) // 2)
    most = 2 * max(source["sizes"]["quantiles"]["most"] for source in sources)
    powers = range(0, 40, 4 if most / least > 1 << 9 else 2)
    axes.set_xticks([1 << power for power in powers], [_bytes(1 << power) for power in powers])
    axes.set_xlim(least, most)
    axes.minorticks_off()
    _title(axes, "Lengths", "bytes a document", "documents (%)")


def _bytes(size: int) -> str:
    """A power of two, short."""
    for power, letter in ((30, "Gi"), (20, "Mi"), (10, "Ki")):
        if size >= 1 << power:
            return f"{size >> power} {letter}"
    return str(size)


def _zipf(axes: Any, sources: list[dict[str, Any]]) -> None:
    for number, source in enumerate(sources):
        zipf = source["vocabulary"]["zipf"]
        total = max(1, source["words"])
        axes.loglog(zipf["ranks"], [count / total for count in zipf["counts"]], color=colour(number), linewidth=1.8)
    _title(axes, "Zipf: words by rank", "rank", "share of all words")


def _heaps(axes: Any, sources: list[dict[str, Any]]) -> None:
    for number, source in enumerate(sources):
        heaps = source["vocabulary"]["heaps"]
        axes.loglog(heaps["words"], heaps["different"], color=colour(number), linewidth=1.8)
    _title(axes, "Heaps: vocabulary growth", "words read", "different words")


def _tokens(axes: Any, sources: list[dict[str, Any]]) -> None:
    bars = [
        (f"{tokenizer['name']}", tokenizer["bytes_per_token"], colour(number))
        for place in range(len(sources[0]["tokenizers"]))
        for number, source in enumerate(sources)
        for tokenizer in [source["tokenizers"][place]]
    ]
    _bars(axes, bars, "{:.2f}")
    _title(axes, "Bytes a token", "bytes", "")


def _copies(axes: Any, sources: list[dict[str, Any]]) -> None:
    bars = [
        (kind, 100 * source["duplicates"][key]["share"], colour(number))
        for kind, key in (("equal", "exact"), ("near", "near"))
        for number, source in enumerate(sources)
    ]
    _bars(axes, bars, "{:.2f} %")
    _title(axes, "Copies", "documents that repeat another (%)", "")


def _characters(axes: Any, sources: list[dict[str, Any]]) -> None:
    kinds = list(sources[0]["character_classes"])
    height = 0.8 / len(sources)
    for number, source in enumerate(sources):
        shares = [100 * source["character_classes"][kind] for kind in kinds]
        axes.barh([place + number * height for place in range(len(kinds))], shares, height=height, color=colour(number))
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(kinds))], kinds, fontsize=8.5)
    axes.invert_yaxis()
    _title(axes, "Characters", "share (%)", "")


def _rules(axes: Any, sources: list[dict[str, Any]]) -> None:
    """A row for each rule that drops something, a dot for each source."""
    rules = sources[0]["quality"]["rules"]
    shown = [n for n in range(len(rules)) if any(source["quality"]["rules"][n]["documents"] for source in sources)]
    for row, number in enumerate(shown):
        shares = [100 * source["quality"]["rules"][number]["share"] for source in sources]
        axes.plot([min(shares), max(shares)], [row, row], color="#cccccc", linewidth=1, zorder=1)
        for place, share in enumerate(shares):
            axes.scatter(share, row, color=colour(place), s=34, zorder=2)
    axes.set_yticks(range(len(shown)), [f"{rules[n]['family']}: {rules[n]['rule']}" for n in shown], fontsize=8.5)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(-1, 101)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _title(axes, "What each rule would drop", "documents (%)", "")


def _bars(axes: Any, bars: list[tuple[str, float | None, str]], form: str) -> None:
    most = max((value or 0 for _, value, _ in bars), default=0) or 1
    for place, (_, value, shade) in enumerate(bars):
        axes.barh(place, value or 0, color=shade, height=0.72)
        axes.text((value or 0) + 0.015 * most, place, form.format(value or 0), va="center", fontsize=8.5)
    names = [name for name, _, _ in bars]
    firsts = [place for place in range(len(bars)) if place == 0 or names[place] != names[place - 1]]
    axes.set_yticks(firsts, [names[place] for place in firsts], fontsize=8.5)
    axes.set_xlim(0, 1.22 * most)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)


def _title(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8.5)
