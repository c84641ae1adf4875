"""Tables for the terminal: what a machine can do, and what a step will take."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table

from yupana.flops.accelerators import of_device
from yupana.flops.limits import DTYPES, LAYOUTS, Limits


def limits_tables(limits: Limits) -> Group:
    """Rates by shape with their share of the peak; memory and kernels; overheads."""
    card = of_device(limits.machine.name)
    sheet = card.source if card else "No data sheet is known for this device: its peak is the measured one."
    tables = (products_table(limits), attention_table(limits), kernels_table(limits))
    if limits.disturbed > 0.05:
        sheet += (
            f"\nThe machine was busy with something else: threads waited {limits.disturbed:.0%} of the time, so these "
            "rates are too low. Measure again when it is quiet; the better of each rate is kept."
        )
    return Group(peaks_table(limits), sheet, *(part for table in tables for part in ("", table)))


def peaks_table(limits: Limits) -> Table:
    """The machine, its measured peaks and beside them what its data sheet promises."""
    m = limits.machine
    table = Table(title=f"{m.name}, {m.threads} threads, torch {m.torch}, measured {m.date}", **LEFT)
    table.add_column("")
    table.add_column("measured", justify="right")
    table.add_column("data sheet", justify="right")
    card = of_device(m.name)
    sheet = {"bfloat16": card.bf16, "float32": card.fp32} if card else {}
    for dtype in DTYPES:
        if any(row.dtype == dtype for row in limits.products):
            promised = tera(sheet[dtype]) if card else "—"
            table.add_row(f"{dtype} matrix products, best", tera(limits.peak(dtype)), promised)
    copies = [row.bytes_per_second for row in limits.kernels if row.kind == "copy"]
    if copies:
        table.add_row("copying memory, best", giga(max(copies)), giga(card.bandwidth) if card else "—")
    table.add_row("an operation's launch", f"{limits.launch_seconds * 1e6:.1f} µs", "")
    table.add_row("a compiled call, both passes", f"{limits.compiled_seconds * 1e6:.0f} µs", "")
    for row in limits.collectives:
        table.add_row(f"{row.name} of {row.bytes / 1e6:,.0f} MB", giga(row.bytes_per_second), "")
    return table


def products_table(limits: Limits) -> Table:
    """Matrix products: a row a shape, a column a dtype and layout."""
    table = Table(title=r"Matrix products \[m, k] × \[k, n], TFLOP/s (share of the dtype's best)", **LEFT)
    for name in ("m", "n", "k"):
        table.add_column(name, justify="right")
    columns = [(d, layout) for d in DTYPES for layout in LAYOUTS if any(r.dtype == d for r in limits.products)]
    for dtype, layout in columns:
        table.add_column(f"{dtype}\n{layout}", justify="right")
    rates = {(r.dtype, r.layout, r.m, r.n, r.k): r.flops_per_second for r in limits.products}
    for size in sorted({(r.m, r.n, r.k) for r in limits.products}):
        cells = []
        for column in columns:
            rate = rates.get((*column, *size))
            cells.append("—" if rate is None else f"{rate / 1e12:.3g} ({rate / limits.peak(column[0]):.0%})")
        table.add_row(*(f"{side:,}" for side in size), *cells)
    return table


def attention_table(limits: Limits) -> Table:
    """Causal attention by length."""
    table = Table(title="Causal attention, TFLOP/s with the masked half not counted (share of the dtype's best)", **LEFT)
    for name in ("dtype", "head_dim", "seq_len", "forward", "backward"):
        table.add_column(name, justify="left" if name == "dtype" else "right")
    for row in limits.attention:
        best = limits.peak(row.dtype)
        both = (f"{rate / 1e12:.3g} ({rate / best:.0%})" for rate in (row.forward, row.backward))
        table.add_row(row.dtype, str(row.head_dim), f"{row.seq_len:,}", *both)
    return table


def kernels_table(limits: Limits) -> Table:
    """Elementwise kernels and the memory itself: a row a kernel, a column a size."""
    table = Table(title="Kernels, GB/s by the bytes they must move: from small (in the caches) to large", **LEFT)
    for name in ("kernel", "dtype", "pass"):
        table.add_column(name)
    table.add_column("small", justify="right")
    table.add_column("middle", justify="right")
    table.add_column("large", justify="right")
    rates: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for row in limits.kernels:
        rates.setdefault((row.kind, row.dtype, row.pass_), []).append((row.bytes, row.bytes_per_second))
    for key, found in sorted(rates.items()):
        cells = [f"{rate / 1e9:,.1f}" for _, rate in sorted(found)]
        table.add_row(*key, *(cells if len(cells) == 3 else [cells[0], "", cells[-1]] if len(cells) == 2 else cells))
    return table


def prediction_tables(name: str, result: dict[str, Any]) -> Group:
    """The step, its memory, its operations."""
    notes = [f"Assumed: {'; '.join(result['assumed'])}."] if result["assumed"] else []
    return Group(step_table(name, result), "", memory_table(result), "", operations_table(result), *notes)


def step_table(name: str, result: dict[str, Any]) -> Table:
    """The figures of the whole step."""
    batch = f"{result['global_batch']} × {result['seq_len']:,} tokens in micro-batches of {result['micro_batch']}"
    table = Table(title=f"{name}, {batch}, {result['precision']}, on {result['hardware']}", show_header=False, **LEFT)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("", style="dim")
    table.add_row("step", f"{result['step_seconds']:.4g} s", f"rates: {result['rates']}")
    table.add_row("tokens/s", f"{result['tokens_per_second']:,.0f}", "")
    table.add_row("MFU (palm)", f"{result['mfu']['palm']:.1%}", f"of {tera(result['peak_flops_per_second'])}")
    table.add_row("MFU (exact)", f"{result['mfu']['exact']:.1%}", result["peak_source"])
    return table


def memory_table(result: dict[str, Any]) -> Table:
    """Memory at the fullest moment, by part."""
    memory, capacity = result["memory_bytes"], result["memory_capacity_bytes"]
    table = Table(title="Peak memory", show_header=False, **LEFT)
    table.add_column("")
    table.add_column("", justify="right")
    for part, count in memory.items():
        if part != "total" and count:
            table.add_row(part, f"{count / 1e9:,.3f} GB")
    table.add_section()
    verdict = "" if result["fits"] else " — does not fit"
    table.add_row("total", f"{memory['total'] / 1e9:,.3f} GB")
    table.add_row("there is", f"{capacity / 1e9:,.3f} GB{verdict}")
    table.add_row("largest micro-batch", f"{result['largest_micro_batch']:,} sequences")
    return table


def operations_table(result: dict[str, Any]) -> Table:
    """Every operation of the step."""
    table = Table(title="Operations of a step, all repetitions together", **LEFT)
    table.add_column("operation")
    for column in ("times", "GFLOP", "GB", "forward", "backward", "share"):
        table.add_column(column, justify="right")
    table.add_column("bound by")
    for row in result["operations"]:
        forward, backward = row["seconds"]["forward"], row["seconds"]["backward"]
        flops = sum(row["flops"].values())
        table.add_row(
            row["part"] if row["part"] == row["name"] else f"{row['name']} {row['part']}",
            str(row["count"]),
            f"{flops / 1e9:,.1f}" if flops else "",
            f"{sum(row['bytes'].values()) / 1e9:,.2f}",
            f"{forward * 1e3:,.2f} ms",
            f"{backward * 1e3:,.2f} ms",
            f"{(forward + backward) / result['step_seconds']:.1%}",
            row["bound"],
        )
    return table


LEFT: dict[str, Any] = {"box": None, "title_justify": "left", "pad_edge": False}


def tera(rate: float) -> str:
    """FLOP/s in the terms that data sheets use."""
    return f"{rate / 1e12:,.4g} TFLOP/s"


def giga(rate: float) -> str:
    """Bytes/s in GB/s."""
    return f"{rate / 1e9:,.1f} GB/s"
