"""Tables for the terminal: a predicted step on many accelerators."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table

from yupana.flops.layout import Layout
from yupana.report.flops_text import LEFT, memory_table, step_table

SHOWN = 8  # layouts beside the best


def cluster_tables(name: str, result: dict[str, Any]) -> Group:
    """The step, what communication adds, memory of a rank, other layouts, and what was assumed."""
    layout = Layout(**result["layout"])
    title = f"{name} on {result['ranks']} × {result['hardware']}: {layout}"
    step = step_table(name, result)
    batch = f"{result['global_batch']:,} × {result['seq_len']:,} tokens"
    step.title = f"{title}, {batch}, micro-batches of {result['micro_batch']}"
    step.add_row("compute", f"{result['compute_seconds']:.4g} s", "a rank's, of the step")
    parts: list[Any] = [step, "", communication_table(result), "", memory_table(result)]
    if len(result["candidates"]) > 1:
        parts += ["", candidates_table(result)]
    told = f"A prediction: nothing of it was measured on such a cluster. Links: {result['links']['source']}."
    return Group(*parts, "", told, f"Assumed: {'; '.join(result['assumed'])}.")


def communication_table(result: dict[str, Any]) -> Table:
    """Every kind of collective."""
    table = Table(title="Communication of a step, a rank", **LEFT)
    for column in ("collective", "of", "ranks"):
        table.add_column(column, justify="right" if column == "ranks" else "left")
    for column in ("times", "GB", "alone", "seen"):
        table.add_column(column, justify="right")
    for row in result["communication"]:
        table.add_row(
            row["name"],
            f"{row['what']} ({row['over']})",
            str(row["ranks"]),
            f"{row['count']:,}",
            f"{row['bytes'] / 1e9:,.3f}",
            f"{row['seconds'] * 1e3:,.2f} ms",
            f"{row['seen_seconds'] * 1e3:,.2f} ms",
        )
    return table


def candidates_table(result: dict[str, Any]) -> Table:
    """The recommended layout and the next ones."""
    table = Table(title=f"Layouts of {result['ranks']} that fit, the recommended one first", **LEFT)
    for column in ("replicate", "fsdp", "cp", "tp", "micro-batch", "step", "tokens/s", "MFU (palm)", "GB a rank"):
        table.add_column(column, justify="right")
    for row in result["candidates"][: SHOWN + 1]:
        table.add_row(
            *(str(row["layout"][name]) for name in ("replicate", "fsdp", "cp", "tp")),
            str(row["micro_batch"]),
            f"{row['step_seconds']:.3f} s",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['mfu']['palm']:.1%}",
            f"{row['memory_bytes'] / 1e9:,.1f}",
        )
    return table
