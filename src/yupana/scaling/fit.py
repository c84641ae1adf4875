"""Approach 3: one law of the loss through all runs, with bootstrap refits (2203.15556, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from yupana.errors import UserError
from yupana.scaling import forms
from yupana.scaling.allocation import LEVEL
from yupana.scaling.points import Points
from yupana.scaling.solve import minimise

Array = Any  # a numpy array


@dataclass(frozen=True)
class ParametricFit:
    """A law fitted to all points (approach 3)."""

    form: str
    parameters: dict[str, float]
    objective: float
    """Sum over points of Huber(1e-3) of the error of log-loss."""
    residuals: Array
    """log(told) - log(measured), [points]."""
    samples: Array
    """Bootstrap refits, [refits, parameters]; resampled points, drawn with replacement."""
    agreeing: float
    """Share of the starts that reach the objective to within 1 %."""
    starts: int

    @property
    def exponent_n(self) -> float | None:
        """a in N_opt ∝ C^a."""
        return exponent(self.form, np.array([list(self.parameters.values())]))[0]

    def interval(self, level: float = LEVEL) -> dict[str, tuple[float, float]]:
        """Central bootstrap interval of every parameter and of exponent_n."""
        if not len(self.samples):
            return {}
        columns = dict(zip(self.parameters, self.samples.T, strict=True))
        columns["exponent_n"] = np.array(exponent(self.form, self.samples))
        return {name: _central(values, level) for name, values in columns.items()}

    def standard_errors(self) -> dict[str, float | None]:
        """Bootstrap standard deviation of every parameter; None where refits run away, so that it has none."""
        if not len(self.samples):
            return {}
        with np.errstate(over="ignore"):
            errors = self.samples.std(axis=0)
        return {name: float(e) if np.isfinite(e) else None for name, e in zip(self.parameters, errors, strict=True)}


def exponent(form: str, rows: Array) -> list[float]:
    """a in N_opt ∝ C^a at C = 6·N·D for rows of parameters in the order of the form's names."""
    if form == "kaplan":  # the optimum has D ∝ N^(alpha_N / alpha_D)
        return (1 / (1 + rows[:, 0] / rows[:, 1])).tolist()
    return (rows[:, 4] / (rows[:, 3] + rows[:, 4])).tolist()


def parametric(points: Points, form: str = "chinchilla", refits: int = 1000, seed: int = 0) -> ParametricFit:
    """Fit a law to all points (approach 3), with `refits` bootstrap refits.

    Raises UserError when the points cannot fix the law: fewer than its parameters, all of one size or length.
    """
    _enough(points, form)
    problem = forms.problem(form, points)
    measured = np.log(points.loss)
    theta, value = minimise(problem.model, problem.starts, measured, jacobian=problem.jacobian)
    best = int(np.argmin(value))
    # The winner once more to a tighter tolerance: it is what everything else is compared with.
    theta_best, value_best = minimise(
        problem.model, theta[best : best + 1], measured, jacobian=problem.jacobian, tolerance=1e-12, steps=500
    )
    values = problem.to_parameters(theta_best)[0]
    return ParametricFit(
        form,
        dict(zip(problem.names, values.tolist(), strict=True)),
        float(value_best[0]),
        problem.model(theta_best)[0] - measured,
        _refit(problem, _distinct_basins(theta, value), measured, refits, seed),
        float((value < value_best[0] * 1.01).mean()),
        len(theta),
    )


def _refit(problem: forms.Problem, starts: Array, measured: Array, refits: int, seed: int) -> Array:
    """Natural parameters of bootstrap refits, [refits, parameters]; each from every basin, the best kept."""
    if not refits:
        return np.empty((0, len(problem.names)))
    random = np.random.default_rng(seed)
    points = measured.size
    counts = random.multinomial(points, np.full(points, 1 / points), size=refits).astype(float)
    best, least = np.empty((refits, starts.shape[1])), np.full(refits, np.inf)
    for start in starts:
        theta, value = minimise(
            problem.model, np.tile(start, (refits, 1)), measured, counts, jacobian=problem.jacobian, tolerance=1e-6
        )
        better = value < least
        best[better], least[better] = theta[better], value[better]
    return problem.to_parameters(best)


def _distinct_basins(theta: Array, value: Array, most: int = 2) -> Array:
    """The best minimum, and the next one that is elsewhere and within 20 % of it."""
    order = np.argsort(value)
    chosen = [theta[order[0]]]
    for i in order[1:]:
        if value[i] > 1.2 * value[order[0]] or len(chosen) == most:
            break
        if min(np.abs(theta[i] - c).max() for c in chosen) > 0.3:
            chosen.append(theta[i])
    return np.array(chosen)


def _enough(points: Points, form: str) -> None:
    parameters = forms.SIZES.get(form, 0)
    if len(points) <= parameters:
        raise UserError(
            f"the {form} law has {parameters} parameters and {points.source} only {len(points)} points: give more runs"
        )
    for what, values in (("n", points.n), ("tokens", points.tokens)):
        if len(np.unique(np.round(np.log(values), 2))) < 3:
            raise UserError(
                f"{points.source} has fewer than three different numbers of {what}: the {form} law cannot tell its terms "
                "apart; add runs of other sizes and lengths"
            )
    if points.flops.max() < 1.5 * points.flops.min():
        raise UserError(
            f"all points of {points.source} have one budget ({points.flops.max():.3g} FLOPs): how loss falls with compute "
            "cannot be told from it; add runs with other budgets"
        )


def _central(values: Array, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
