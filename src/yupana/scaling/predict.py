"""The loss of a run before it is made: at its end, and on the way there under its learning-rate schedule.

The end is the law L(N, D). On the way the learning rate is still high, so the loss is above the law: the curve has
the form of the annealing law (2408.11029, equation 1) with the law's own power of the data,

    L(t) = E + A/N^alpha + b / D_1(t)^beta - c · S_2(t),

D_1 = tokens weighted by lr / peak, S_2 = the annealing area in units of the peak and of its memory (1: fully annealed),
and b such that L(end) is the law's. The memory is a 24th of the run: the law's 1 000 steps in the 24 000 it was fitted
on. A fixed number of steps tells longer and shorter runs worse (docs/scaling.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from yupana.errors import UserError
from yupana.scaling.annealing import annealing_area, forward_area
from yupana.scaling.laws import ChinchillaLaw
from yupana.scaling.plan import FURTHEST, missed

Array = Any  # a numpy array

LEVEL = 0.8
MEMORY = 1000.0
"""Steps of the annealing law's memory, 1 / (1 - lambda)."""
MEMORY_SHARE = 1 / 24
ANNEALING = 0.4818 * 3e-4 * MEMORY
"""c in nats: the annealing law fitted to three 100M curves of 2503.12811 (docs/scaling.md), times peak rate and memory."""


def predict(
    law: ChinchillaLaw,
    n: float,
    tokens: float,
    rates: Array | None = None,
    *,
    annealing: float = ANNEALING,
    far: bool = False,
    points: int = 100,
) -> dict[str, Any]:
    """Loss at the end of a run of n parameters and `tokens` tokens, and with `rates` [steps] the curve to it.

    Raises UserError when 6·N·D is more than a hundred times the largest run the law was fitted on, unless `far`.
    """
    flops = 6 * n * tokens
    if law.largest_flops and flops > FURTHEST * law.largest_flops and not far:
        raise UserError(
            f"6·N·D = {flops:.3g} FLOPs are {flops / law.largest_flops:,.0f} times the largest run the law was fitted on: "
            "fit it on larger runs, or add --far to extrapolate all the same"
        )
    pair = law.interval(n, tokens, LEVEL)
    warnings = [] if pair else [f"the law '{law.name}' comes without uncertainty, so there is no interval"]
    if law.largest_flops and flops > law.largest_flops:
        warnings.append(f"the run is {flops / law.largest_flops:,.1f} times the largest one the law was fitted on")
        warnings += missed(law)
    return {
        "law": law.name,
        "parameters": n,
        "tokens": tokens,
        "flops": flops,
        "loss": float(law.loss(n, tokens)),
        "loss_interval": None if pair is None else list(pair),
        "interval_level": LEVEL,
        "curve": [] if rates is None else _curve(law, n, tokens, rates, annealing, points),
        "warnings": warnings,
    }


def _curve(law: ChinchillaLaw, n: float, tokens: float, rates: Array, annealing: float, points: int) -> list[dict[str, Any]]:
    steps = len(rates)
    first = max(int(np.argmax(rates)) + 1, round(0.02 * steps), 1)
    at = np.unique(np.linspace(first, steps, min(points, steps)).round().astype(int))
    peak = float(rates.max())
    weighted = forward_area(rates) / peak * (tokens / steps)
    decay = max(0.0, 1 - 1 / (MEMORY_SHARE * steps))
    annealed = annealing_area(rates, decay) / peak * (1 - decay)

    def losses(one: ChinchillaLaw) -> Array:
        floor = one.E + one.A * n**-one.alpha
        height = (one.loss(n, tokens) - floor + annealing * annealed[-1]) * weighted[-1] ** one.beta
        return floor + height * weighted[at - 1] ** -one.beta - annealing * annealed[at - 1]

    middle = losses(law)
    draws = law.draws()
    low = high = np.full(len(at), np.nan)
    if draws:
        scatter = np.exp(law.residual * np.random.default_rng(1).standard_normal(len(draws)))
        spread = np.array([losses(one) for one in draws]) * scatter[:, None]
        low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [
        {
            "step": int(s), "tokens": tokens * int(s) / steps, "lr": float(rates[s - 1]), "loss": float(middle[i]),
            "low": float(low[i]) if draws else None, "high": float(high[i]) if draws else None,
        }
        for i, s in enumerate(at)
    ]  # fmt: skip
