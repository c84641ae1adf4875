"""How far a fit can be trusted: what is determined, what disagrees, what stands out, and how it predicts.

Every function returns plain numbers for the JSON result; `warnings` turns them into sentences.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from yupana.errors import UserError
from yupana.scaling import forms
from yupana.scaling.allocation import AllocationFit, envelope, isoflop
from yupana.scaling.fit import ParametricFit, parametric
from yupana.scaling.points import Points, budgets

OUTLIER = 6.0  # robust standard deviations of log-loss
BITS = float(np.log(1 / np.log(2)))  # what log-loss is off by when bits stand among nats: 0.3665


def diagnose(points: Points, fit: ParametricFit) -> dict[str, Any]:
    """Everything below for a parametric fit, by name."""
    return {
        "agreeing_starts": fit.agreeing,
        "starts": fit.starts,
        "residual_sd": robust_sd(fit.residuals),
        "trends": trends(points, fit.residuals),
        "outliers": outliers(points, fit.residuals),
        "approaches": approaches(points, fit),
        "without_smallest_budget": without_smallest_budget(points, fit),
        "parabola_bias": parabola_bias(points, fit),
    }


def robust_sd(residuals: Any) -> float:
    """Standard deviation by the median absolute deviation: what outliers do not move."""
    return float(1.4826 * np.median(np.abs(residuals - np.median(residuals))))


def trends(points: Points, residuals: Any) -> dict[str, dict[str, float]]:
    """Slope of the residuals of log-loss a decade of N, D and C, and how many standard errors it is from none."""
    told = {}
    for name, values in (("n", points.n), ("tokens", points.tokens), ("flops", points.flops)):
        x = np.log10(values) - np.log10(values).mean()
        spread = x @ x
        if spread < 1e-9:
            continue
        slope = (x @ residuals) / spread
        error = residuals - residuals.mean() - slope * x
        sigma = np.sqrt((error @ error) / max(1, len(x) - 2) / spread)
        told[name] = {"slope_per_decade": float(slope), "sigmas": float(abs(slope) / max(sigma, 1e-15))}
    return told


def outliers(points: Points, residuals: Any) -> list[dict[str, Any]]:
    """Points further than six robust standard deviations from the law; those that look like bits say so."""
    spread = max(robust_sd(residuals), 1e-4)
    limit, sharp = OUTLIER * spread, spread < 0.03  # a loose law cannot tell bits from other outliers
    found = []
    for i in np.flatnonzero(np.abs(residuals) > limit):
        entry = {"n": points.n[i], "tokens": points.tokens[i], "loss": points.loss[i], "log_error": -residuals[i]}
        found.append(
            {k: float(v) for k, v in entry.items()} | {"looks_like_bits": bool(sharp and abs(-residuals[i] - BITS) < 0.06)}
        )
    return found


def approaches(points: Points, fit: ParametricFit) -> dict[str, dict[str, Any]]:
    """exponent_n and its interval by every approach that the points allow."""
    told: dict[str, dict[str, Any]] = {"3": {"exponent_n": fit.exponent_n, "interval": fit.interval().get("exponent_n")}}
    for name, call in (("1", envelope), ("2", isoflop)):
        try:
            other: AllocationFit = call(points)
        except UserError as error:
            told[name] = {"exponent_n": None, "reason": str(error)}
            continue
        told[name] = {"exponent_n": other.exponent_n, "interval": other.interval["exponent_n"]}
    return dict(sorted(told.items()))


def without_smallest_budget(points: Points, fit: ParametricFit) -> dict[str, Any] | None:
    """The parameters without the smallest budget, or without the smallest few while they hold under 5 % of the points."""
    labels = budgets(points)
    reached = np.cumsum(np.bincount(labels)) >= max(3, 0.05 * len(points))
    kept = labels > int(np.argmax(reached))
    try:
        other = parametric(points.where(kept), fit.form, refits=0)
    except UserError:
        return None
    return {"points": int(kept.sum()), "parameters": other.parameters, "exponent_n": other.exponent_n}


def parabola_bias(points: Points, fit: ParametricFit) -> dict[str, float] | None:
    """What approach 2 would find on noiseless losses of this law at these very points, against the law's own optimum.

    A parabola is symmetric and a loss curve with alpha ≠ beta is not: the minimum it finds lies beside the true one.
    """
    if fit.form not in ("chinchilla", "gadre"):
        return None
    law = forms.law_of(fit.form, fit.parameters)
    exact = Points(points.n, points.tokens, points.flops, law.loss(points.n, points.flops / (6 * points.n)))
    try:
        found = isoflop(exact)
    except UserError:
        return None
    middle = float(np.exp(np.log(found.flops).mean()))
    optimum = law.optimum(middle)[0]  # type: ignore[union-attr]
    return {
        "exponent_n": found.exponent_n - (fit.exponent_n or 0.0),
        "n_at_middle_budget": float(found.optimum(middle) / optimum),
    }


def held_out(points: Points, form: str, below: float) -> dict[str, Any]:
    """Fit the points with at most `below` FLOPs and predict the others.

    Relative errors of loss. Raises UserError when either side has too few points.
    """
    small = points.flops <= below
    if small.all() or not small.any():
        side = "above" if small.all() else "below"
        raise UserError(
            f"no point of {points.source} lies {side} {below:g} FLOPs: choose a budget between {points.flops.min():.3g} "
            f"and {points.flops.max():.3g}"
        )
    fit = parametric(points.where(small), form, refits=0)
    large = points.where(~small)
    error = forms.losses(form, fit.parameters, large) / large.loss - 1
    return {
        "below": below,
        "fitted_on": int(small.sum()),
        "predicted": len(large),
        "furthest": float(large.flops.max() / points.flops[small].max()),
        "mean_absolute_error": float(np.abs(error).mean()),
        "mean_error": float(error.mean()),
        "largest_error": float(error[np.argmax(np.abs(error))]),
    }


def warnings(points: Points, fit: ParametricFit, found: dict[str, Any]) -> list[str]:
    """What a reader has to know before using the fit, one sentence each."""
    told = list(points.warnings)
    told += _undetermined(points, fit)
    if found["agreeing_starts"] < 0.5:
        told.append(
            f"only {found['agreeing_starts']:.0%} of {found['starts']} starts reach the best objective: the law may have "
            "several minima on these points"
        )
    for name, trend in found["trends"].items():
        if trend["sigmas"] > 4 and abs(trend["slope_per_decade"]) > 0.002:
            told.append(
                f"residuals trend with {name} by {trend['slope_per_decade']:+.2%} a decade ({trend['sigmas']:.0f} standard "
                "errors): the law bends away from the points"
            )
    told += _about_outliers(points, found["outliers"])
    told += _disagreement(found["approaches"])
    other = found["without_smallest_budget"]
    if other and fit.exponent_n and abs(other["exponent_n"] - fit.exponent_n) > 0.05:
        told.append(
            f"without the smallest budget exponent_n is {other['exponent_n']:.3f} instead of {fit.exponent_n:.3f}: small "
            "runs pull the law"
        )
    return told


def _undetermined(points: Points, fit: ParametricFit) -> list[str]:
    told = []
    for name, (low, high) in fit.interval().items():
        value = fit.parameters.get(name, fit.exponent_n or 0.0)
        width = (high - low) / max(abs(value), 1e-12)
        if name == "E" and (low < 0.1 * points.loss.min() or width > 0.5):
            told.append(
                f"E is not determined (80 % interval {low:.2f} to {high:.2f} nats): the runs are too far from the "
                "irreducible loss; do not extrapolate far"
            )
        elif name in ("alpha", "beta", "alpha_N", "alpha_D") and width > 0.5:
            told.append(f"{name} is not determined (80 % interval {low:.2f} to {high:.2f}): add runs further apart")
    ratio = np.log(points.tokens / points.n)
    if ratio.std() < 0.15:
        told.append(
            "all runs have nearly the same tokens a parameter, so the terms in N and D cannot be told apart: add runs with "
            "other ratios"
        )
    return told


def _about_outliers(points: Points, found: list[dict[str, Any]]) -> list[str]:
    told = []
    if bits := sum(entry["looks_like_bits"] for entry in found):
        told.append(
            f"{bits} point{'s lie' if bits > 1 else ' lies'} 1.44 times above the law: "
            f"{'their losses look' if bits > 1 else 'its loss looks'} like bits among nats"
        )
    if len(found) > bits:
        worst = max(found, key=lambda entry: abs(entry["log_error"]))
        highest = np.sort(points.loss)[-len(found) :].tolist()
        advice = f"; they are the highest losses: --drop {len(found)} leaves them out"
        told.append(
            f"{len(found)} {'points stand' if len(found) > 1 else 'point stands'} out by more than {OUTLIER:.0f} robust "
            f"standard deviations, most of all n = {worst['n']:.3g}, tokens = {worst['tokens']:.3g}, loss = "
            f"{worst['loss']:.3f}{advice if {entry['loss'] for entry in found} == set(highest) else ''}"
        )
    return told


def _disagreement(found: dict[str, dict[str, Any]]) -> list[str]:
    two, three = found.get("2", {}), found["3"]
    if not two.get("interval") or not three.get("interval"):
        return []
    apart = max(two["interval"][0], three["interval"][0]) > min(two["interval"][1], three["interval"][1])
    if not apart:
        return []
    return [
        f"approach 2 gives exponent_n {two['exponent_n']:.3f} and approach 3 {three['exponent_n']:.3f}, outside each "
        "other's intervals: the law does not have the points' shape, or the parabolas are lopsided"
    ]
