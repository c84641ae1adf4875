"""What `yupana anatomy` prints: an operation's formulas, cost and check, and the table of a whole step."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from yupana.model.shapes import ModelShape

# What goes in → what comes out; backward returns a gradient of each input's shape.
SHAPES = {
    "embedding": "table [vocab, d_model], tokens [batch, seq] → [batch, seq, d_model]",
    "rmsnorm": "x [batch, seq, d_model], weight [d_model] → [batch, seq, d_model]",
    "linear": "x [batch, seq, d_in], weight [d_out, d_in] → [batch, seq, d_out], d_in and d_out as below",
    "rope": "q [batch, n_heads, seq, head_dim], k [batch, n_kv_heads, seq, head_dim] → the same",
    "softmax": "scores [batch, n_heads, seq, seq] → the same",
    "attention": "q [batch, n_heads, seq, head_dim], k and v [batch, n_kv_heads, seq, head_dim] → q's",
    "residual": "x and branch [batch, seq, d_model] → the same",
    "swiglu": "gate and up [batch, seq, d_ff] → the same",
    "cross_entropy": "logits [batch · seq, vocab], targets [batch · seq] → a scalar, nats a token",
    "linear_cross_entropy": "hidden [batch · seq, d_model], weight [vocab, d_model], targets [batch · seq] → a scalar",
    "block": "x [batch, seq, d_model] → the same",
    "llama": "tokens [batch, seq] → logits [batch, seq, vocab] → a scalar, nats a token",
    "adamw": "weight, gradient and two moments, every parameter → weight and moments",
    "muon": "weight, gradient and momentum of each block matrix → weight and momentum",
    "clip": "every gradient → every gradient, and their norm",
}
SHAPES["tiled_attention"] = SHAPES["attention"]


def operation_text(result: dict[str, Any], formulas: str, shape: ModelShape) -> Group:
    """Formulas, shapes, cost and check of one operation."""
    symbols = SHAPES[result["operation"]]
    return Group(
        Text(result["operation"], style="bold"),
        Padding(Text(formulas.strip()), (1, 0)),
        Text.assemble(("shapes    ", "dim"), symbols),
        Text.assemble((f"{'':10}", ""), _in_numbers(symbols, result, shape)),
        Padding(Text(f"Cost in {_what(result)}", style="bold"), (1, 0, 0, 0)),
        _cost_table(result),
        Text(f"{_machine(result)}.", style="dim"),
        Padding(Text("Checked now in float64 at small odd sizes, against autograd and torch's own", style="bold"),
                (1, 0, 0, 0)),
        _check_table(result["checks"]),
    )


def step_text(result: dict[str, Any]) -> Group:
    """A training step in order: each operation's share of FLOPs, bytes and predicted time."""
    ceiling = result["flops"] / result["flops_per_second"] / result["seconds"]
    return Group(
        Text(f"One training step of {_what(result)}", style="bold"),
        Padding(_step_table(result), (1, 0)),
        Text(
            f"{_machine(result)}. Time is the least there can be, each operation at its bound and one after the other: "
            f"no step is faster unless operations are fused, and MFU (exact) stays below {100 * ceiling:.0f} %.",
            style="dim",
        ),
    )


def _step_table(result: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name, side in (
        ("operation", "left"), ("×", "right"), ("GFLOP", "right"), ("share", "right"), ("GB", "right"),
        ("share", "right"), ("FLOP/byte", "right"), ("ms", "right"), ("share", "right"), ("", "left"), ("bound", "left"),
    ):  # fmt: skip
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for row in result["operations"]:
        table.add_row(
            row["part"], str(row["count"]), _number(row["flops"] / 1e9), _share(row["flops_share"]),
            f"{row['bytes'] / 1e9:.2f}", _share(row["bytes_share"]), _number(row["intensity"]),
            f"{1e3 * row['seconds']:,.1f}", _share(row["seconds_share"]),
            "█" * round(20 * row["seconds_share"]), row["bound"],
        )  # fmt: skip
    table.add_section()
    table.add_row(
        "the step", "", f"{result['flops'] / 1e9:,.1f}", "100 %", f"{result['bytes'] / 1e9:.2f}", "100 %",
        _number(result["flops"] / result["bytes"]), f"{1e3 * result['seconds']:,.1f}", "100 %",
    )  # fmt: skip
    return table


def _cost_table(result: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    matrices = any(row["d_in"] for row in result["parts"]) and result["operation"] != "muon"
    columns = ["×", *(["d_in → d_out"] if matrices else []), "GFLOP forward", "backward", "MB forward", "backward"]
    table.add_column("part")
    for name in [*columns, "FLOP/byte", "least ms"]:
        table.add_column(name, justify="right")
    table.add_column("bound by")
    for row in result["parts"]:
        sizes = [f"{row['d_in']:,} → {row['d_out']:,}" if row["d_in"] else ""] if matrices else []
        passes = (row["forward"], row["backward"])
        table.add_row(
            row["part"], str(row["count"]), *sizes, *(_number(p["flops"] / 1e9) for p in passes),
            *(_number(p["bytes"] / 1e6) for p in passes), _number(row["intensity"]), _number(1e3 * row["seconds"]),
            row["bound"],
        )  # fmt: skip
    return table


def _check_table(checks: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("check")
    table.add_column("relative error", justify="right")
    table.add_column("")
    for check in checks:
        verdict = "[green]agrees[/green]" if check["passed"] else "[red]DIFFERS[/red]"
        table.add_row(check["name"], f"{check['relative_error']:.1e}", verdict)
    return table


def _in_numbers(symbols: str, result: dict[str, Any], shape: ModelShape) -> str:
    """The same line with this model's sizes in place of their names."""
    sizes = {
        "batch": result["batch"], "seq": result["seq_len"], "vocab": shape.vocab_size, "d_model": shape.d_model,
        "d_ff": shape.d_ff, "n_heads": shape.n_heads, "n_kv_heads": shape.n_kv_heads, "head_dim": shape.head_dim,
    }  # fmt: skip

    def numbers(brackets: re.Match[str]) -> str:
        return re.sub(r"\w+", lambda word: str(sizes.get(word[0], word[0])), brackets[0])

    return re.sub(r"\[[^]]*\]", numbers, symbols)


def _what(result: dict[str, Any]) -> str:
    return f"{result['model']}, batch {result['batch']} × {result['seq_len']:,} tokens, {result['dtype']}"


def _machine(result: dict[str, Any]) -> str:
    return (
        f"{result['device']}: {result['flops_per_second'] / 1e12:,.3g} TFLOP/s and "
        f"{result['bytes_per_second'] / 1e9:,.3g} GB/s ({result['rates_source']}), so below "
        f"{result['balance']:,.0f} FLOP a byte memory bounds"
    )


def _number(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
