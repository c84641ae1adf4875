"""Pictures of a fit and of a prediction, from their JSON objects and the points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from yupana.files import write_atomically

# Okabe & Ito, one meaning each.
MEASURED, FITTED, OPTIMUM, OUTLYING, QUIET = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8a8a8a"


def write_pictures(folder: Path, result: dict[str, Any], points: Any) -> list[str]:
    """fit.png (and, for a law of the loss, residuals.png) in `folder`; the paths written. Needs matplotlib."""
    if result["law"] == "power":
        pictures = {"fit.png": draw_allocation(result, points)}
    else:
        pictures = {"residuals.png": draw_residuals(result, points)}
        if "E" in result["parameters"]:
            pictures["fit.png"] = draw_fit(result, points)
    return [save(figure, folder / name) for name, figure in sorted(pictures.items())]


def save(figure: Any, path: Path) -> str:
    """Write a figure as PNG, atomically; its path."""
    import io

    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=140)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data.getvalue())
    return str(path)


def draw_fit(result: dict[str, Any], points: Any) -> Any:
    """Loss against size, a curve a budget, and the optimum with its interval; beside it N_opt against C."""
    figure, (left, right) = _figure(2, (11.5, 5))
    colours = _colours()
    low, high = np.log10(points.flops.min()), np.log10(points.flops.max())
    left.scatter(
        points.n, points.loss, c=colours((np.log10(points.flops) - low) / max(high - low, 1e-9)), s=14, linewidths=0
    )
    sizes = np.geomspace(points.n.min() / 1.5, points.n.max() * 1.5, 300)
    shown = np.unique(10 ** np.log10(points.flops).round(1))  # the sweep's own budgets, where they are few
    shown = shown if len(shown) <= 6 else np.geomspace(10**low, 10**high, 5)
    ceiling = float(points.loss.max()) * 1.03
    for flops in shown:
        curve = _loss(result["parameters"], sizes, flops / (6 * sizes))
        colour = colours((np.log10(flops) - low) / max(high - low, 1e-9))
        left.plot(sizes, np.where(curve < ceiling, curve, np.nan), color=colour, linewidth=1.2, alpha=0.9)
        lowest = _optimum(result["parameters"], flops)
        if np.isfinite(lowest).all():
            left.annotate(
                _power(flops), lowest, xytext=(0, -12), textcoords="offset points",
                ha="center", color=colour, fontsize=8, fontweight="bold",
            )  # fmt: skip
    path = np.geomspace(10**low, 10**high, 60)
    optimum = np.array([_optimum(result["parameters"], c) for c in path])
    left.plot(optimum[:, 0], optimum[:, 1], color="black", linewidth=1.2, linestyle="--")
    left.set(xscale="log", xlabel="parameters N", ylabel="loss (nats a token)")
    left.set_ylim(np.nanmin([points.loss.min(), *optimum[:, 1]]) * 0.95, ceiling)
    left.set_title("Loss at a budget (colour, FLOPs); dashed: the optimum", loc="left", fontsize=10)
    _draw_optimum(right, result, path)
    return figure


def draw_residuals(result: dict[str, Any], points: Any) -> Any:
    """Errors of loss in per cent against N, D and C."""
    figure, axes = _figure(3, (11.5, 3.8))
    errors = 100 * (np.exp(np.array(result["residuals"])) - 1)
    outside = np.abs(errors) > 600 * result["diagnostics"]["residual_sd"]
    names = (("parameters N", points.n), ("tokens D", points.tokens), ("FLOPs C", points.flops))
    for axis, (name, values) in zip(axes, names, strict=True):
        axis.scatter(values[~outside], errors[~outside], s=12, color=MEASURED, linewidths=0, alpha=0.7)
        axis.scatter(values[outside], errors[outside], s=18, color=OUTLYING, linewidths=0)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(xscale="log", xlabel=name)
    axes[0].set_ylabel("told − measured loss (%)")
    axes[0].set_title(
        "Error of the law, a point a run" + ("; purple: outliers" if outside.any() else ""), loc="left", fontsize=10
    )
    return figure


def draw_allocation(result: dict[str, Any], points: Any) -> Any:
    """Approaches 1 and 2: the runs with the optimum of each budget, and the line through the optima."""
    figure, (left, right) = _figure(2, (11.5, 5))
    colours = _colours()
    optima = result["optima"]
    low, high = np.log10(points.flops.min()), np.log10(points.flops.max())
    shade = (np.log10(points.flops) - low) / max(high - low, 1e-9)
    left.scatter(points.n, points.loss, c=colours(shade), s=12, linewidths=0)
    left.plot(
        [o["n"] for o in optima], [o["loss"] for o in optima], "o--", color="black", markersize=5, linewidth=1, mfc="none"
    )
    best = np.array([o["loss"] for o in optima])
    left.set_ylim(best.min() * 0.97, min(points.loss.max(), best.max() * 1.25) * 1.01)
    left.set(xscale="log", xlabel="parameters N", ylabel="loss (nats a token)")
    left.set_title("Runs by budget (colour); circles: optimum of each", loc="left", fontsize=10)
    flops, n = np.array([o["flops"] for o in optima]), np.array([o["n"] for o in optima])
    right.scatter(flops, n, color="black", s=28, facecolors="none", zorder=3)
    line = np.geomspace(flops.min() / 2, flops.max() * 2, 50)
    slope = result["exponent_n"]
    right.plot(line, result["parameters"]["coefficient"] * line**slope, color=FITTED, linewidth=1.6)
    first, last = result["intervals"]["exponent_n"]
    right.annotate(
        f"N ∝ C^{slope:.3f}\n80 %: {first:.3f} to {last:.3f}",
        (line[20], result["parameters"]["coefficient"] * line[20] ** slope),
        xytext=(14, -34), textcoords="offset points", color=FITTED, fontweight="bold",
    )  # fmt: skip
    right.set(xscale="log", yscale="log", xlabel="FLOPs C", ylabel="optimal parameters N")
    return figure


def draw_prediction(prediction: dict[str, Any], compared: dict[str, Any] | None = None) -> Any:
    """The predicted curve with its band, and the measured validation losses over it."""
    figure, (axis,) = _figure(1, (8.5, 5))
    curve = prediction["curve"]
    steps = np.array([row["step"] for row in curve])
    losses = np.array([row["loss"] for row in curve])
    if curve and curve[0]["low"] is not None:
        axis.fill_between(
            steps, [row["low"] for row in curve], [row["high"] for row in curve], color=FITTED, alpha=0.25, linewidth=0
        )
        axis.fill_between(
            steps,
            [2 * row["low"] - row["loss"] for row in curve],
            [2 * row["high"] - row["loss"] for row in curve],
            color=FITTED,
            alpha=0.12,
            linewidth=0,
        )
    axis.plot(steps, losses, color=FITTED, linewidth=1.6)
    middle = len(steps) // 3
    axis.annotate(
        "predicted (80 %; lighter: alarm)", (steps[middle], losses[middle]), xytext=(10, 16), textcoords="offset points",
        color=FITTED,
        fontweight="bold",
    )  # fmt: skip
    if compared:
        rows = compared["rows"]
        axis.plot([r["step"] for r in rows], [r["measured"] for r in rows], "o-", color=MEASURED, markersize=4, linewidth=1)
        last = rows[-1]
        axis.annotate(
            f"measured {last['measured']:.3f}, prediction {compared['relative_error']:+.2%}",
            (last["step"], last["measured"]),
            xytext=(-8, 22), textcoords="offset points", ha="right", color=MEASURED, fontweight="bold",
        )  # fmt: skip
    axis.set(xlabel="step", ylabel="validation loss (nats a token)")
    lowest = min([losses.min(), *(row["measured"] for row in compared["rows"])]) if compared else losses.min()
    axis.set_ylim(lowest * 0.97, np.quantile(losses, 0.97) * 1.05)
    return figure


def _draw_optimum(axis: Any, result: dict[str, Any], flops: Any) -> None:
    """N_opt against C with the bootstrap band, and where the other approaches stand."""
    values = result["parameters"]
    optimum = np.array([_optimum(values, c)[0] for c in flops])
    axis.plot(flops, optimum, color=OPTIMUM, linewidth=1.8)
    names = list(values)
    samples = [dict(zip(names, row, strict=True)) for row in result.get("samples") or []]
    refits = [[_optimum(row, c)[0] for c in flops] for row in samples if np.isfinite(_optimum(row, flops[0])[0])]
    if refits:
        low, high = np.quantile(refits, [0.1, 0.9], axis=0)
        axis.fill_between(flops, low, high, color=OPTIMUM, alpha=0.25, linewidth=0)
    told = [
        f"approach {k}: a = {v['exponent_n']:.3f}" for k, v in result["diagnostics"]["approaches"].items() if v["exponent_n"]
    ]
    axis.text(0.04, 0.95, "\n".join(told), transform=axis.transAxes, va="top", fontsize=9, color=QUIET)
    middle = len(flops) // 2
    if np.isfinite(optimum[middle]):
        axis.annotate(
            f"N ∝ C^{result['exponent_n']:.3f}", (flops[middle], optimum[middle]), xytext=(14, -18),
            textcoords="offset points", color=OPTIMUM, fontweight="bold",
        )  # fmt: skip
    if not refits and not np.isfinite(optimum).any():  # nothing that a logarithmic axis could show
        why = "no optimum: a term of the law\ndoes not fall"
        axis.text(0.5, 0.5, why, transform=axis.transAxes, ha="center", color=QUIET)
        axis.set(xscale="log", xlabel="FLOPs C", yticks=[])
        return
    axis.set(xscale="log", yscale="log", xlabel="FLOPs C", ylabel="optimal parameters N")
    axis.set_title("Optimal size, with the 80 % interval of refits", loc="left", fontsize=10)


def _loss(values: dict[str, float], n: Any, tokens: Any) -> Any:
    return values["E"] + values["A"] * n ** -values["alpha"] + values["B"] * tokens ** -values["beta"]


def _optimum(values: dict[str, float], flops: float) -> tuple[float, float]:
    """(N_opt, loss there) at 6·N·D = flops; not a number where a refit to few points lost one of its terms."""
    a, b = values["alpha"], values["beta"]
    if min(values["A"], values["B"], a, b) <= 0:
        return np.nan, np.nan
    n = (a * values["A"] / (b * values["B"])) ** (1 / (a + b)) * (flops / 6) ** (b / (a + b))
    return float(n), float(_loss(values, n, flops / (6 * n)))


def _power(flops: float) -> str:
    return f"{flops:.0e}".replace("e+", "e")


def _colours() -> Any:
    from matplotlib import colormaps

    return lambda shade: colormaps["viridis"](0.92 * np.asarray(shade))


def _figure(columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, columns, sharey=columns == 3))
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes
