"""Tables of fits, predictions and plans for the terminal, from their JSON objects alone."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table


def fit_table(result: dict[str, Any]) -> Group:
    """Parameters with intervals, what was found out about them, and the warnings."""
    table = _table(f"{result['law']}: {result.get('formula', '')}")
    for column in ("parameter", "value", "80 % interval", "standard error"):
        table.add_column(column, justify="left" if column == "parameter" else "right")
    errors = result.get("standard_errors", {})
    for name, value in result["parameters"].items():
        error = "boundless" if name in errors and errors[name] is None else _figure(errors.get(name))
        table.add_row(name, _figure(value), _pair(result["intervals"].get(name)), error)
    if "exponent_n" not in result["parameters"] and result["exponent_n"] is not None:
        interval = _pair(result["intervals"].get("exponent_n"))
        table.add_row("exponent_n (a in N ∝ C^a)", _figure(result["exponent_n"]), interval, "")
    return Group(table, *_facts(result), *_warnings(result))


def plan_table(result: dict[str, Any]) -> Group:
    """The run, the trade-off around it, the variants."""
    table = _table(f"{result['count']} × {result['hardware']}, MFU {result['mfu']:.0%}, law {result['law']}")
    table.add_column("")
    table.add_column("", justify="right")
    model = result["model"]
    rows = [
        ("budget (palm FLOPs)", f"{result['budget_flops']:.4g}"),
        ("parameters", f"{result['parameters']:,}"),
        ("tokens", f"{result['tokens']:,} ({result['tokens_per_parameter']:.1f} a parameter)"),
        ("expected loss", _loss(result["loss"], result["loss_interval"])),
        ("layers × width", f"{model['n_layers']} × {model['d_model']}"),
        ("heads", f"{model['n_heads']} of {model['head_dim']}, {model['n_kv_heads']} key/value"),
        ("feed-forward, vocabulary", f"{model['d_ff']}, {model['vocab_size']:,}"),
        ("steps × batch", f"{result['steps']:,} × {result['batch_tokens']:,} tokens"),
        ("learning rate", f"{result['lr']:g} ({result['lr_law']} law), {result['schedule']}"),
        ("wall-clock", _time(result["seconds"])),
        ("energy", "—" if result["energy_kwh"] is None else f"{result['energy_kwh']:,.1f} kWh"),
        ("cost", "— (give --price)" if result["cost"] is None else f"{result['cost']:,.2f}"),
    ]
    if better := result["ten_points_of_mfu"]:
        rows.append((f"MFU {better['mfu']:.0%} instead", f"loss {better['loss']:.4f} ({-better['gain']:+.4f})"))
    if served := result["inference_aware"]:
        rows.append(
            (
                f"same loss, {served['serve_tokens']:.2g} tokens served",
                f"{served['parameters'] / 1e6:,.0f} M on {served['tokens'] / 1e9:,.1f} B tokens: {served['saved']:.0%} "
                "fewer FLOPs in all",
            )
        )
    for row in rows:
        table.add_row(*row)
    around = _table("The same budget on other sizes")
    for column in ("parameters", "tokens", "tokens a parameter", "loss", "above the best"):
        around.add_column(column, justify="right")
    for row in result["trade_off"]:
        around.add_row(
            f"{row['parameters'] / 1e6:,.1f} M", f"{row['tokens'] / 1e9:,.2f} B", f"{row['tokens_per_parameter']:.1f}",
            f"{row['loss']:.4f}", f"{row['loss_above_best']:+.4f}",
        )  # fmt: skip
    return Group(table, "", around, *_warnings(result))


def prediction_table(result: dict[str, Any]) -> Group:
    """The loss at the end, and a dozen points of the way."""
    head = (
        f"{result['parameters']:,.0f} parameters, {result['tokens'] / 1e6:,.1f} M tokens, law {result['law']}: loss "
        f"{_loss(result['loss'], result['loss_interval'])}"
    )
    if not result["curve"]:
        return Group(head, *_warnings(result))
    table = _table("On the way")
    for column in ("step", "tokens", "learning rate", "loss", "80 % interval"):
        table.add_column(column, justify="right")
    curve = result["curve"]
    for row in curve[:: max(1, len(curve) // 12)] + curve[-1:]:
        pair = None if row["low"] is None else (row["low"], row["high"])
        table.add_row(
            f"{row['step']:,}", f"{row['tokens'] / 1e6:,.1f} M", f"{row['lr']:.3g}", f"{row['loss']:.4f}", _pair(pair)
        )
    return Group(head, "", table, *_warnings(result))


def comparison_table(result: dict[str, Any]) -> Group:
    """Measured beside predicted, and whether the run left its band."""
    table = _table("Measured and predicted validation loss")
    for column in ("step", "measured", "predicted", "80 % interval", ""):
        table.add_column(column, justify="right")
    rows = result["rows"]
    for row in rows[:: max(1, len(rows) // 15)] + rows[-1:]:
        mark = "outside" if row["inside"] is False else ""
        table.add_row(
            f"{row['step']:,}", f"{row['measured']:.4f}", f"{row['loss']:.4f}", _pair((row["low"], row["high"])), mark
        )
    when = "at the end" if result["finished"] else "so far"
    left = result["left_band_at"]
    told = "the run never left its alarm band" if left is None else f"the run left its alarm band at step {left}: look at it"
    return Group(table, f"\nThe prediction is off by {result['relative_error']:+.2%} {when}; {told}.")


def sweep_table(result: dict[str, Any]) -> Group:
    """Every run with its state; what is left, and when that ends."""
    import datetime

    table = _table(f"{len(result['runs'])} runs, {result['done']} done")
    for column in ("run", "parameters", "tokens", "steps", "batch", "learning rate", "FLOPs (palm)", ""):
        table.add_column(column, justify="left" if column in ("run", "") else "right")
    for row in result["runs"]:
        table.add_row(
            row["name"], f"{row['parameters']:,}", f"{row['tokens']:,}", f"{row['steps']:,}", f"{row['batch_tokens']:,}",
            f"{row['lr']:g}", f"{row['palm_flops']:.3g}", row["state"],
        )  # fmt: skip
    left = f"\n{result['flops_left']:.3g} FLOPs are left"
    if result["seconds_left"] is None:
        return Group(table, left + "; how long they take is known after the first run")
    end = datetime.datetime.now() + datetime.timedelta(seconds=result["seconds_left"])
    return Group(
        table,
        f"{left}: {_time(result['seconds_left'])} at the {result['flops_per_second']:.3g} FLOP/s of the finished runs, "
        f"until {end:%A %H:%M}",
    )


def _facts(result: dict[str, Any]) -> list[str]:
    facts = [""]
    if result.get("points"):
        facts.append(
            f"{result['points']} points, {result['smallest_flops']:.3g} to {result['largest_flops']:.3g} FLOPs, objective "
            f"{result['objective']:.6g}"
        )
    found = result.get("diagnostics")
    if found:
        facts.append(
            f"{found['agreeing_starts']:.0%} of {found['starts']} starts agree; residual {found['residual_sd']:.2%}"
        )
        told = [
            f"approach {name}: {entry['exponent_n']:.3f}"
            for name, entry in found["approaches"].items()
            if entry["exponent_n"]
        ]
        facts.append(f"exponent_n by {', '.join(told)}")
    for name, entry in result.get("accuracy", {}).items():
        facts.append(f"{name}: R² {entry['r2']:.4f}, mean absolute error {entry['mean_absolute_error']:.5f} nats")
    if out := result.get("held_out"):
        facts.append(
            f"fitted below {out['below']:.3g} FLOPs ({out['fitted_on']} points): {out['predicted']} points up to "
            f"{out['furthest']:.0f} times beyond, mean absolute error {out['mean_absolute_error']:.2%}, mean error "
            f"{out['mean_error']:+.2%}"
        )
    return facts


def _warnings(result: dict[str, Any]) -> list[str]:
    return ["", *(f"[yellow]note:[/yellow] {warning}" for warning in result["warnings"])] if result["warnings"] else []


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False)


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if abs(value) >= 1e4 or abs(value) < 1e-3 else f"{value:.4f}"


def _pair(pair: Any) -> str:
    return "" if not pair or pair[0] is None else f"{_figure(pair[0])} to {_figure(pair[1])}"


def _loss(loss: float, pair: Any) -> str:
    return f"{loss:.4f} nats a token" + (f" ({_pair(pair)})" if pair else "")


def _time(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours / 24:.1f} days" if hours > 72 else f"{hours:.1f} hours" if hours > 1 else f"{seconds / 60:.1f} minutes"
