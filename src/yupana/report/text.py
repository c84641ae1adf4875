"""Tables for the terminal, from run directories and counts."""

from __future__ import annotations

import statistics
from typing import Any

from rich.table import Table

from yupana.flops.count import breakdown, flops_per_token
from yupana.flops.pace import slowest
from yupana.model.shapes import ModelShape
from yupana.report.read import RunRecord, read_run
from yupana.run import RunDirectory


def summaries(runs: list[RunDirectory]) -> list[dict[str, Any]]:
    """The figures of each run that a table or a program wants."""
    return [summary(read_run(run)) for run in runs]


def summary(record: RunRecord) -> dict[str, Any]:
    """One run in figures; rates are medians over all steps but the first tenth."""
    steps, evaluations = record.steps, record.evaluations
    settled = steps[len(steps) // 10 :] or steps
    last = steps[-1] if steps else {}
    return {
        "run": str(record.path),
        "parameters": record.env.get("parameters"),
        "precision": record.env.get("precision"),
        "device": record.env.get("device"),
        "steps": last.get("step", 0),
        "tokens": last.get("tokens", 0),
        # A tuned run does not say: its conversations differ in length, and its frozen weights have no gradients.
        "flops": last.get("tokens", 0) * flops["exact"] if (flops := record.env.get("flops_per_token")) else None,
        "loss": last.get("loss"),
        "first_val_loss": evaluations[0]["val_loss"] if evaluations else None,
        "val_loss": evaluations[-1]["val_loss"] if evaluations else None,
        "val_bpb": evaluations[-1]["val_bpb"] if evaluations else None,
        "tokens_per_second": median([s["tokens_per_second"] for s in settled]),
        "mfu": median([s["mfu"] for s in settled]),
        "mfu_exact": median([s["mfu_exact"] for s in settled]),
        "mfu_measured": median([s["mfu_measured"] for s in settled]),
        "peak_source": record.env.get("peaks", {}).get("source"),
        "memory_bytes": max((s["memory_bytes"] for s in steps), default=None),
        "seconds": last.get("seconds"),
        "sources": by_source(record),
        "slowest_rank": slowest_rank(record),
    }


def slowest_rank(record: RunRecord) -> dict[str, Any] | None:
    """Of a run of many ranks: `rank`, `behind` (the share by which it takes longer than the others), `ranks`; or None.

    Each rank's time for the same work is the median over all evaluations.
    """
    taken = [evaluation["rank_seconds"] for evaluation in record.evaluations if "rank_seconds" in evaluation]
    taken = [seconds for seconds in taken if len(seconds) == len(taken[-1])]  # a run may go on with other ranks
    if not taken:
        return None
    rank, behind = slowest([statistics.median(of_rank) for of_rank in zip(*taken, strict=True)])
    return {"rank": rank, "behind": behind, "ranks": len(taken[-1])}


def told_slowest(figures: dict[str, Any]) -> str | None:
    """The same as a few words."""
    if (slow := figures["slowest_rank"]) is None:
        return None
    return f"{slow['rank']} of 0–{slow['ranks'] - 1}, {slow['behind']:.1%} behind the others"


def by_source(record: RunRecord) -> dict[str, dict[str, Any]]:
    """Of each source of a run: its share of the tokens, epochs at the end, and its first and last validation loss.

    The losses are None for a run on one corpus, whose only ones are the run's own.
    """
    corpora = [corpus for corpus in record.env.get("corpora", []) if "name" in corpus]
    total = sum(corpus["planned_tokens"] for corpus in corpora) or 1
    evaluations = [e["val_by_source"] for e in record.evaluations if "val_by_source" in e]
    found = {}
    for corpus in corpora:
        name = corpus["name"]
        first, last = ((e.get(name, {}) for e in (evaluations[0], evaluations[-1])) if evaluations else ({}, {}))
        found[name] = {
            "share": corpus["planned_tokens"] / total,
            "planned_tokens": corpus["planned_tokens"],
            "unique_tokens": corpus["unique_tokens"],
            "epochs": corpus["epochs"],
            "first_val_loss": first.get("val_loss"),
            "val_loss": last.get("val_loss"),
            "val_bpb": last.get("val_bpb"),
        }
    return found


def run_table(*runs: RunDirectory) -> Table:
    """Runs side by side, one a column."""
    table = Table(box=None, pad_edge=False, show_header=len(runs) > 1)
    table.add_column("", style="dim")
    for run in runs:
        table.add_column(run.path.name, justify="right")
    for label, values in run_rows(summaries(list(runs))):
        table.add_row(label, *values)
    return table


def run_rows(figures: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """(label, what each run has there) of the figures that runs are compared by; "—" where one has none."""
    rows: list[tuple[str, str, float, str]] = [
        ("parameters", "parameters", 1e-6, "{:,.2f} M"),
        ("tokens trained on", "tokens", 1e-6, "{:,.2f} M"),
        ("FLOPs (exact)", "flops", 1, "{:.3g}"),
        ("validation loss, first", "first_val_loss", 1, "{:.4f} nats/token"),
        ("validation loss, last", "val_loss", 1, "{:.4f} nats/token"),
        ("bits per byte", "val_bpb", 1, "{:.4f}"),
        ("tokens/s, median", "tokens_per_second", 1, "{:,.0f}"),
        ("MFU (palm), median", "mfu", 100, "{:.1f} %"),
        ("MFU (exact), median", "mfu_exact", 100, "{:.1f} %"),
        ("peak memory", "memory_bytes", 1e-9, "{:.2f} GB"),
        ("time", "seconds", 1, "{:,.0f} s"),
    ]
    shown = []
    for label, key, scale, form in rows:
        values = [f[key] for f in figures]
        shown.append((label, ["—" if v is None else form.format(v * scale) for v in values]))
    for name in dict.fromkeys(name for f in figures for name in f["sources"]):
        losses = [f["sources"].get(name, {}).get("val_loss") for f in figures]
        if any(loss is not None for loss in losses):
            label = f"validation loss on {name}"
            shown.append((label, ["—" if loss is None else f"{loss:.4f} nats/token" for loss in losses]))
    if any(slow := [told_slowest(f) for f in figures]):
        shown.append(("slowest rank", [told or "—" for told in slow]))
    return [*shown, ("MFU is against", [str(f["peak_source"]) for f in figures])]


def flops_table(name: str, shape: ModelShape, seq_len: int) -> Table:
    """Parameters and FLOPs a token by part."""
    counts = flops_per_token(shape, seq_len)
    table = Table(title=f"{name} at {seq_len:,} tokens a sequence", box=None, title_justify="left", pad_edge=False)
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("MFLOP a token, forward + backward (palm)", justify="right")
    table.add_column("share", justify="right")
    for part, parameters, flops in breakdown(shape, seq_len):
        table.add_row(part, f"{parameters:,}", f"{flops / 1e6:,.1f}", f"{100 * flops / counts['palm']:.1f} %")
    table.add_section()
    table.add_row("palm: 6·N_matmul + 12·L·d·T", f"{shape.parameters:,}", f"{counts['palm'] / 1e6:,.1f}", "100.0 %")
    table.add_row(
        "exact: causal attention at half",
        "",
        f"{counts['exact'] / 1e6:,.1f}",
        f"{100 * counts['exact'] / counts['palm']:.1f} %",
    )
    return table


def settings_table(rows: list[tuple[str, str, str]]) -> Table:
    """Every setting: key, default, meaning."""
    table = Table(box=None, pad_edge=False)
    table.add_column("setting", style="cyan", no_wrap=True)
    table.add_column("default", style="dim", overflow="fold")
    table.add_column("what it is")
    for row in rows:
        table.add_row(*row)
    return table


def median(values: list[float]) -> float | None:
    """The middle value, or None of an empty list."""
    return sorted(values)[len(values) // 2] if values else None
