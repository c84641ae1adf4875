"""The whole loss curve from the learning rate of every step.

Two laws, both of the areas under the learning rate (steps counted from 1, rates as given to the optimiser):

`annealing` (Tissue et al., 2408.11029, equation 1): L(s) = L0 + A·S1^-alpha - C·S2, with S1 = sum of the rates and S2
the annealing area, sum over steps i of sum over k ≤ i of (eta_{k-1} - eta_k)·lambda^(i-k), lambda = 0.999.

`multipower` (Luo et al., 2503.12811, section 3): L(t) = L0 + A·S1^-alpha - B·sum over k ≤ t of
(eta_{k-1} - eta_k)·G(eta_k^-gamma·S_k(t)), G(x) = 1 - (1 + C·x)^-beta, S_k(t) = eta_k + … + eta_t.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yupana.errors import UserError, did_you_mean
from yupana.scaling.solve import minimise

Array = Any  # a numpy array

DECAY = 0.999  # lambda of the annealing law, a step (2408.11029, section 3)


@dataclass(frozen=True)
class Curve:
    """A measured loss curve: the rate of every step [total_steps], and the losses at some of them."""

    name: str
    rates: Array
    steps: Array
    """Steps (from 1) at which the loss was measured, [points]."""
    losses: Array
    """Nats a token, [points]."""


@dataclass(frozen=True)
class AnnealingLaw:
    """L0 + A·S1^-alpha - C·S2."""

    L0: float
    A: float
    alpha: float
    C: float
    name: str = "annealing"

    def losses(self, rates: Array, steps: Array) -> Array:
        """Losses at `steps` (from 1) of a run whose every step's rate is in `rates`."""
        at = np.asarray(steps) - 1
        return self.L0 + self.A * forward_area(rates)[at] ** -self.alpha - self.C * annealing_area(rates)[at]


@dataclass(frozen=True)
class MultiPowerLaw:
    """L0 + A·S1^-alpha - B·sum of (drop in rate)·G(eta_k^-gamma·S_k)."""

    L0: float
    A: float
    alpha: float
    B: float
    C: float
    beta: float
    gamma: float
    name: str = "multipower"

    def losses(self, rates: Array, steps: Array) -> Array:
        """Losses at `steps` (from 1) of a run whose every step's rate is in `rates`; [points]."""
        at = np.asarray(steps) - 1
        area = forward_area(rates)
        return self.L0 + self.A * area[at] ** -self.alpha - self.B * self._reduction(rates, area, at)

    def _reduction(self, rates: Array, area: Array, at: Array) -> Array:
        size, rate, before, drops = _drops(rates, area)
        since = np.where(drops <= at[:, None], area[at][:, None] - before, 0.0)  # S_k(t), [points, drops]
        with np.errstate(divide="ignore"):
            scale = np.where(rate > 0, np.maximum(rate, 1e-12) ** -self.gamma, 0.0)
        return (1 - (1 + self.C * scale * since) ** -self.beta) @ size


# 2503.12811, the authors' fit to their 100M model, peak rate 3e-4. Their sum starts from a rate of 0, so that the rise
# to the peak adds B·3e-4 to every loss; here the sum starts at the peak and L0 holds it.
MULTIPOWER_100M = MultiPowerLaw(2.651 + 437.946 * 3e-4, 0.601, 0.453, 437.946, 2.132, 0.598, 0.655)
LAWS = {"annealing": AnnealingLaw, "multipower": MultiPowerLaw}


def forward_area(rates: Array) -> Array:
    """S1 after every step: the running sum of the rates, [total_steps]."""
    return np.cumsum(rates)


def annealing_area(rates: Array, decay: float = DECAY) -> Array:
    """S2 after every step: the running sum of a momentum of the rate's drops, [total_steps].

    The rise of a warm-up is no annealing: only what follows the first step at the peak rate counts.
    """
    drops = -np.diff(rates, prepend=rates[0])
    drops[: int(np.argmax(rates)) + 1] = 0
    return np.cumsum(list(itertools.accumulate(drops.tolist(), lambda momentum, drop: decay * momentum + drop)))


def _drops(rates: Array, area: Array, most: int = 2000) -> tuple[Array, Array, Array, Array]:
    """(drop, rate after it, S1 before it, step) wherever the rate falls after its peak; neighbours merged to `most`."""
    peak = int(np.argmax(rates))
    steps = np.flatnonzero(np.diff(rates[peak:])) + peak + 1
    edges = np.unique(np.linspace(0, steps.size, min(steps.size, most) + 1).astype(int))
    first, last = steps[edges[:-1]], steps[np.maximum(edges[1:] - 1, 0)]
    middle = (first + last) // 2
    return rates[first - 1] - rates[last], rates[middle], area[middle - 1], middle


def fit(law: str, curves: Sequence[Curve]) -> AnnealingLaw | MultiPowerLaw:
    """The law of the least sum of Huber losses of log-loss (delta 1e-3, as in both papers) over all curves.

    Starts with the linear parameters solved exactly for several exponents. Raises UserError when there are fewer
    points than parameters, or no curve whose rate falls.
    """
    if law not in LAWS:
        raise UserError(f"there is no curve law '{law}'{did_you_mean(law, LAWS)}: there are {', '.join(LAWS)}")
    _check(law, curves)

    def model(theta: Array) -> Array:
        with np.errstate(all="ignore"):
            told = [np.concatenate([LAWS[law](*np.exp(t)).losses(c.rates, c.steps) for c in curves]) for t in theta]
        return np.log(np.maximum(told, 1e-3))

    measured = np.log(np.concatenate([c.losses for c in curves]))
    theta, value = minimise(model, _starts(law, curves), measured, steps=100, tolerance=1e-6)
    return LAWS[law](*np.exp(theta[int(np.argmin(value))]))


def accuracy(law: AnnealingLaw | MultiPowerLaw, curve: Curve) -> dict[str, float]:
    """How well `law` tells a curve: R², mean absolute error (nats), and the signed error of the last point (nats)."""
    told = law.losses(curve.rates, curve.steps)
    error = told - curve.losses
    spread = curve.losses - curve.losses.mean()
    return {
        "r2": float(1 - (error @ error) / (spread @ spread)),
        "mean_absolute_error": float(np.abs(error).mean()),
        "last_error": float(error[-1]),
    }


def _starts(law: str, curves: Sequence[Curve]) -> Array:
    """Starting points: log parameters whose linear ones are exact for a few exponents."""
    measured = np.concatenate([c.losses for c in curves])
    area = np.concatenate([forward_area(c.rates)[c.steps - 1] for c in curves])
    reduced = np.concatenate([annealing_area(c.rates)[c.steps - 1] for c in curves])
    starts = []
    for alpha in (0.3, 0.5, 0.7):
        columns = np.stack([np.ones_like(area), area**-alpha, -reduced], axis=1)
        level, height, drop = np.maximum(np.linalg.lstsq(columns, measured, rcond=None)[0], 1e-3)
        if law == "annealing":
            starts.append(np.log([level, height, alpha, drop]))
        else:
            peak = max(float(c.rates.max()) for c in curves)
            starts += [np.log([level, height, alpha, 0.15 / peak, c, 0.5, 0.5]) for c in (1.0, 5.0)]
    return np.array(starts)


def _check(law: str, curves: Sequence[Curve]) -> None:
    points = sum(c.losses.size for c in curves)
    needed = 4 if law == "annealing" else 7
    if points < needed:
        raise UserError(f"the {law} law has {needed} parameters and the curves only {points} points: give more points")
    if not any(c.rates[-1] < 0.99 * c.rates.max() for c in curves):
        raise UserError(
            f"the learning rate falls in none of the curves, so what falling does cannot be fitted: the {law} law "
            "needs at least one curve with a decay"
        )
