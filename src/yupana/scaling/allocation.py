"""Approaches 1 and 2: one optimum a budget, and a line through them, N_opt = G·C^a (2203.15556, sections 3.1 and 3.2)."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from yupana.errors import UserError
from yupana.scaling.points import Points, budgets

Array = Any  # a numpy array

LEVEL = 0.8  # of every interval


@dataclass(frozen=True)
class AllocationFit:
    """N_opt = coefficient·C^exponent_n through one optimum a budget (approaches 1 and 2)."""

    approach: int
    coefficient: float
    exponent_n: float
    interval: dict[str, tuple[float, float]]
    objective: float
    """Sum of squared errors of log N_opt about the line."""
    flops: Array
    n: Array
    loss: Array
    """The optimum of each budget that has one, [budgets]."""
    parabolas: list[Array] = field(default_factory=list)
    """Approach 2: coefficients of loss in log N (highest first), a budget each."""
    warnings: tuple[str, ...] = ()

    def optimum(self, flops: float) -> float:
        """N_opt at a budget of `flops`."""
        return self.coefficient * flops**self.exponent_n


def isoflop(points: Points, reach: float = 1.2) -> AllocationFit:
    """Approach 2: a parabola of log-loss in log N through the runs of each budget, and a line through their minima.

    The parabola uses the runs within `reach` e-folds of N about the minimum (the five nearest at least): far from it
    a loss curve is no parabola. Budgets whose minimum lies outside their runs are left out. The line weighs each
    minimum by 1 / (its own variance + that of the budgets about the line), as in a random-effects meta-analysis.
    """
    labels = budgets(points)
    minima = [_minimum(points.where(labels == label), reach) for label in np.unique(labels)]
    found = [minimum for minimum in minima if minimum is not None]
    squares, degrees = (np.array([getattr(m, what) for m in found], dtype=float) for what in ("squares", "degrees"))
    # A few runs tell their own scatter badly: one degree of freedom of the middle budget's is mixed in.
    noise = (squares + np.median(squares / np.maximum(degrees, 1))) / (degrees + 1) if found else squares
    warnings = []
    if left_out := len(minima) - len(found):
        warnings.append(f"{left_out} budgets have fewer than 4 sizes or no minimum inside them, and are left out")
    return _line(
        2,
        np.array([[m.log_flops, m.log_n, m.log_loss] for m in found]).reshape(-1, 3),
        np.array([m.variance for m in found]) * noise,
        [m.coefficients for m in found],
        warnings,
    )


def envelope(points: Points) -> AllocationFit:
    """Approach 1: the best run of each budget, and a line through their sizes.

    Where runs are not grouped by budget, C is cut into bins a third of a decade wide and the best run of each bin,
    after the whole trend of loss in C is taken out, stands for it.
    """
    labels = budgets(points)
    if len(np.unique(labels)) > len(points) / 3:
        labels = np.floor(np.log10(points.flops) * 3).astype(int)
    log_c = np.log(points.flops)
    degree = min(2, len(np.unique(labels)) - 1)
    trend = np.polyval(np.polyfit(log_c, np.log(points.loss), degree), log_c)
    found = []
    for label in np.unique(labels):
        inside = np.flatnonzero(labels == label)
        best = inside[int(np.argmin(np.log(points.loss[inside]) - trend[inside]))]
        if len(inside) >= 3:
            found.append((log_c[best], np.log(points.n[best]), np.log(points.loss[best])))
    warnings = [
        "the best run of a budget is one of the sizes that were tried: a coarse grid of sizes makes N_opt jump, and "
        "runs that were still at a high learning rate do not belong on the envelope"
    ]
    return _line(1, np.array(found).reshape(-1, 3), np.zeros(len(found)), [], warnings)


@functools.cache
def student_quantile(level: float, degrees: int) -> float:
    """The t with which a central interval holds `level` of Student's distribution, by bisection of its integral."""

    def inside(t: float) -> float:
        x = np.linspace(0.0, np.arctan(t / np.sqrt(degrees)), 2001)  # t = sqrt(nu)·tan x: density ∝ cos(x)^(nu - 1)
        whole = np.linspace(0.0, np.pi / 2, 20001)
        return float(np.trapezoid(np.cos(x) ** (degrees - 1), x) / np.trapezoid(np.cos(whole) ** (degrees - 1), whole))

    low, high = 0.0, 1e4
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if inside(middle) < level else (low, middle)
    return 0.5 * (low + high)


@dataclass(frozen=True)
class _Minimum:
    """The parabola of one budget: log-loss = c2·x² + c1·x + c0, x = log N."""

    log_flops: float
    log_n: float
    log_loss: float
    coefficients: Array
    variance: float
    """Of log_n, for residuals of variance 1 (delta method)."""
    squares: float
    degrees: int
    """Squared residuals and their degrees of freedom."""


def _minimum(run: Points, reach: float) -> _Minimum | None:
    """The minimum of a budget, or None without one among its runs."""
    x, y = np.log(run.n), np.log(run.loss)
    if len(np.unique(np.round(x, 3))) < 4:
        return None
    centre = x[int(np.argmin(y))]
    for _ in range(2):  # once about the best run, once about the minimum found
        distance = np.abs(x - centre)
        near = distance <= max(reach, np.sort(distance)[min(4, len(x) - 1)])
        powers = np.stack([(x[near] - centre) ** 2, x[near] - centre, np.ones(near.sum())], axis=1)
        c2, c1, c0 = np.linalg.lstsq(powers, y[near], rcond=None)[0]
        lowest = centre - c1 / (2 * c2)
        if c2 <= 0 or not x.min() < lowest < x.max():
            return None
        inverse = np.linalg.inv(powers.T @ powers)
        slope = np.array([c1 / (2 * c2**2), -1 / (2 * c2), 0.0])  # d log_n / d (c2, c1, c0)
        error = y[near] - powers @ [c2, c1, c0]
        coefficients = np.array([c2, c1 - 2 * c2 * centre, c0 - c1 * centre + c2 * centre**2])
        centre = lowest
    return _Minimum(
        float(np.log(run.flops).mean()), float(lowest), float(np.polyval(coefficients, lowest)), coefficients,
        float(slope @ inverse @ slope), float(error @ error), int(near.sum()) - 3,
    )  # fmt: skip


def _line(approach: int, found: Array, variance: Array, parabolas: list[Array], warnings: list[str]) -> AllocationFit:
    """log N = log G + a·log C through `found` [budgets, (log C, log N, log loss)]; Student's intervals."""
    if len(found) < 3:
        name = {1: "the envelope needs", 2: "IsoFLOP parabolas need"}[approach]
        raise UserError(
            f"{name} at least three budgets with an optimum inside their runs, here are {len(found)}: add "
            "budgets, or use --approach 3"
        )
    x, y, log_loss = found.T
    weights = 1 / (variance + _between(x, y, variance))
    weights /= weights.mean()
    design = np.stack([x, np.ones_like(x)], axis=1)
    inverse = np.linalg.inv(design.T @ (weights[:, None] * design))
    slope, start = inverse @ (design.T @ (weights * y))
    error = y - (slope * x + start)
    sigma2 = (weights * error) @ error / (len(x) - 2)
    half, at_zero = student_quantile(LEVEL, len(x) - 2) * np.sqrt(sigma2 * np.diag(inverse))
    interval = {
        "coefficient": (float(np.exp(start - at_zero)), float(np.exp(start + at_zero))),
        "exponent_n": (float(slope - half), float(slope + half)),
    }
    return AllocationFit(
        approach, float(np.exp(start)), float(slope), interval, float(error @ error), np.exp(x), np.exp(y),
        np.exp(log_loss), parabolas, tuple(warnings),
    )  # fmt: skip


def _between(x: Array, y: Array, variance: Array) -> float:
    """Variance of the budgets about the line beyond their own (DerSimonian & Laird's moment estimate)."""
    if not variance.any():
        return 1.0
    weights = 1 / np.maximum(variance, 1e-12)
    design = np.stack([x, np.ones_like(x)], axis=1)
    gram = np.linalg.inv(design.T @ (weights[:, None] * design))
    error = y - design @ (gram @ (design.T @ (weights * y)))
    excess = (weights * error) @ error - (len(x) - 2)
    return max(0.0, float(excess / (weights.sum() - np.trace(gram @ (design.T @ (weights[:, None] ** 2 * design))))))
