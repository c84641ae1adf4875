"""Tables of the waterfall and of the ladder."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table


def waterfall_table(result: dict[str, Any]) -> Group:
    """Where a step's time goes, and which lever would shrink each part."""
    mfu = result["mfu"]
    table = Table(
        box=None, pad_edge=False, title_justify="left",
        title=f"One step: {result['step_seconds']:.3g} s, {result['tokens_per_second']:,.0f} tokens/s, MFU "
        f"{100 * mfu['exact']:.1f} % exact, {100 * mfu['palm']:.1f} % palm, of {result['peak'] / 1e12:.4g} TFLOP/s "
        f"({result['peak_source']})",
    )  # fmt: skip
    columns = ("part", "time", "share of the step", "lost to the peak", "MFU if nothing were lost here")
    for name in columns:
        table.add_column(name, justify="left" if name == "part" else "right")
    table.add_column("lever")
    for part in result["parts"]:
        table.add_row(
            part["name"], f"{1e3 * part['seconds']:.1f} ms", f"{100 * part['share']:.1f} %",
            f"{100 * part['lost_share']:.1f} %", f"{100 * part['mfu_without_it']:.1f} %", part["lever"],
        )  # fmt: skip
    table.add_section()
    shares, lost = (sum(p[key] for p in result["parts"]) for key in ("share", "lost_share"))
    table.add_row("sum", f"{1e3 * result['step_seconds']:.1f} ms", f"{100 * shares:.1f} %", f"{100 * lost:.1f} %")
    return Group(table, "", products_table(result["products"][:8]))


def products_table(rows: list[dict[str, Any]]) -> Table:
    """The matrix products that lose most."""
    table = Table(box=None, pad_edge=False, title="Matrix products that lose most against the peak", title_justify="left")
    for name in ("m × k × n", "a step", "time a step", "share of peak", "lost"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['m']:,} × {row['k']:,} × {row['n']:,}", f"{row['count']:g}", f"{1e3 * row['seconds']:.1f} ms",
            f"{100 * row['share_of_peak']:.0f} %", f"{1e3 * row['lost_seconds']:.1f} ms",
        )  # fmt: skip
    return table


def ladder_table(rungs: list[dict[str, Any]]) -> Table:
    """One line a rung."""
    ran = [rung for rung in rungs if "mfu" in rung]
    table = Table(
        box=None, pad_edge=False, title_justify="left",
        title=f"MFU against {ran[0]['peak'] / 1e12:.4g} TFLOP/s ({ran[0]['peak_source']})",
    )  # fmt: skip
    table.add_column("rung")
    for name in ("MFU palm", "exact", "tokens/s", "peak memory", "loss minus the lowest rung's"):
        table.add_column(name, justify="right")
    table.add_column("")
    best = max(rung["mfu"] for rung in ran if rung["kept"])
    for rung in rungs:
        if "mfu" not in rung:
            table.add_row(f"[dim]{rung['name']}[/]", "—", "—", "—", "—", "—", f"[dim]{rung['reason']}[/]")
            continue
        told = "best" if rung["mfu"] == best else "" if rung["kept"] else f"{rung['let_go']}: let go"
        table.add_row(
            rung["name"], f"{100 * rung['mfu']:.1f} %", f"{100 * rung['mfu_exact']:.1f} %",
            f"{rung['tokens_per_second']:,.0f}", f"{rung['memory_bytes'] / 1e9:.2f} GB",
            f"{rung['loss_difference']:+.4f}", told,
        )  # fmt: skip
    return table
