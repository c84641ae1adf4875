"""The laws that a fit can have: parameters, log-loss, starting points.

Every form works on many parameter vectors at once: theta [problems, parameters] to log-loss [problems, points].
Positive parameters are fitted as logarithms. N and D are divided by their geometric means inside, so that a
coefficient and its exponent are not tied to each other (without it their correlation is above 0.99).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from yupana.errors import UserError, did_you_mean
from yupana.scaling.laws import ChinchillaLaw, KaplanLaw, repeated_loss
from yupana.scaling.points import Points
from yupana.scaling.solve import Jacobian, Model

Array = Any  # a numpy array

SIZES = {"chinchilla": 5, "gadre": 4, "kaplan": 4, "muennighoff": 7}  # parameters
EXPONENTS = (0.1, 0.2, 0.3, 0.4, 0.55, 0.75, 1.0, 1.4)  # grid of starts for alpha and beta


@dataclass(frozen=True)
class Problem:
    """A law set up for given points."""

    names: tuple[str, ...]
    model: Model
    starts: Array
    """[starts, parameters]."""
    to_parameters: Any
    """theta [problems, parameters] -> natural parameters [problems, len(names)]."""
    jacobian: Jacobian | None = None


def problem(law: str, points: Points) -> Problem:
    """The fit of `law` ("chinchilla", "gadre", "kaplan" or "muennighoff") to `points`. Raises UserError for others."""
    makers = {"chinchilla": _chinchilla, "gadre": _gadre, "kaplan": _kaplan, "muennighoff": _muennighoff}
    if law not in makers:
        raise UserError(f"there is no form '{law}'{did_you_mean(law, makers)}: fit one of {', '.join(makers)}")
    return makers[law](points)


def law_of(name: str, parameters: dict[str, float]) -> ChinchillaLaw | KaplanLaw:
    """The law object of a fit's parameters."""
    if name == "kaplan":
        return KaplanLaw(parameters["alpha_N"], parameters["alpha_D"], parameters["N_c"], parameters["D_c"])
    return ChinchillaLaw.of(parameters[key] for key in ("E", "A", "B", "alpha", "beta"))


def losses(name: str, parameters: dict[str, float], points: Points) -> Array:
    """What a fitted law says of each point, nats a token, [points]."""
    law = law_of(name, parameters)
    if name != "muennighoff":
        return law.loss(points.n, points.tokens)
    assert isinstance(law, ChinchillaLaw)
    decays = parameters["repeated"], parameters["excess"]
    return repeated_loss(law, points.n, points.tokens, points.unique, *decays)


def linear_starts(u: Array, v: Array, losses: Array, pairs: list[tuple[float, float]]) -> Array:
    """Starts for every (alpha, beta): log E, log A, log B of the least squared relative error, solved exactly.

    Variable projection: for fixed exponents the law is linear in the other three, [pairs, 5].
    """
    starts = []
    for alpha, beta in pairs:
        columns = np.stack([np.ones_like(u), np.exp(-alpha * u), np.exp(-beta * v)], axis=1) / losses[:, None]
        weights = np.ones(len(losses))
        for _ in range(4):  # reweighted towards absolute error, so that an outlier does not choose the start
            solved = np.linalg.lstsq(columns * weights[:, None], weights, rcond=None)[0]
            weights = 1 / np.sqrt(np.maximum(np.abs(columns @ solved - 1), 1e-3))
        least = 0.02 * float(losses.min())
        starts.append([*np.log(np.maximum(solved, least)), alpha, beta])
    return np.array(starts)


def _chinchilla(points: Points) -> Problem:
    u, v, u0, v0 = _centred(points)

    def parts(theta: Array) -> tuple[Array, Array, Array]:
        t = theta[:, :, None]
        with np.errstate(over="ignore"):
            e = np.exp(t[:, 0]) * np.ones_like(u)
            return e, np.exp(t[:, 1] - t[:, 3] * u), np.exp(t[:, 2] - t[:, 4] * v)

    def model(theta: Array) -> Array:
        return np.log(sum(parts(theta)))

    def jacobian(theta: Array) -> Array:
        e, a, b = parts(theta)
        whole = e + a + b
        return np.stack([e / whole, a / whole, b / whole, -a * u / whole, -b * v / whole], axis=2)

    def natural(theta: Array) -> Array:
        e, a, b, alpha, beta = theta.T
        return np.stack([np.exp(e), np.exp(a + alpha * u0), np.exp(b + beta * v0), alpha, beta], axis=1)

    pairs = list(itertools.product(EXPONENTS, EXPONENTS))
    return Problem(("E", "A", "B", "alpha", "beta"), model, linear_starts(u, v, points.loss, pairs), natural, jacobian)


def _gadre(points: Points) -> Problem:
    whole = _chinchilla(points)
    u, v, _, _ = _centred(points)

    def widen(theta: Array) -> Array:
        return np.concatenate([theta, theta[:, 3:4]], axis=1)

    def jacobian(theta: Array) -> Array:
        assert whole.jacobian is not None
        slopes = whole.jacobian(widen(theta))
        return np.concatenate([slopes[:, :, :3], slopes[:, :, 3:4] + slopes[:, :, 4:5]], axis=2)

    starts = linear_starts(u, v, points.loss, [(x, x) for x in np.geomspace(0.08, 1.5, 16)])[:, :4]
    return Problem(
        whole.names, lambda theta: whole.model(widen(theta)), starts, lambda t: whole.to_parameters(widen(t)), jacobian
    )


def _kaplan(points: Points) -> Problem:
    log_n, log_d = np.log(points.n), np.log(points.tokens)

    def natural(theta: Array) -> Array:
        return np.exp(theta)

    def model(theta: Array) -> Array:
        alpha_n, alpha_d = np.exp(theta[:, 0:1]), np.exp(theta[:, 1:2])
        ratio = alpha_n / alpha_d
        return alpha_d * np.logaddexp(ratio * (theta[:, 2:3] - log_n), theta[:, 3:4] - log_d)

    starts = [
        [np.log(a), np.log(b), n, d]
        for a, b in itertools.product((0.05, 0.1, 0.2), (0.05, 0.1, 0.2))
        for n, d in itertools.product((25.0, 32.0), (25.0, 31.0))
    ]
    return Problem(("alpha_N", "alpha_D", "N_c", "D_c"), model, np.array(starts), natural)


def _muennighoff(points: Points) -> Problem:
    if points.unique is None:
        raise UserError("the muennighoff law needs the number of unique tokens: name its column with --columns unique=…")
    names = ("E", "A", "B", "alpha", "beta", "repeated", "excess")
    once = _chinchilla(points)

    def model(theta: Array) -> Array:
        rows = natural(theta)
        with np.errstate(all="ignore"):  # wild steps of the search; what they give is not taken
            told = [
                repeated_loss(
                    ChinchillaLaw.of([*r[:3], *np.maximum(r[3:5], 1e-3)]), points.n, points.tokens, points.unique, r[5], r[6]
                )
                for r in rows
            ]
        return np.log(np.maximum(np.array(told), 1e-9))

    def natural(theta: Array) -> Array:
        return np.concatenate([once.to_parameters(theta[:, :5]), np.exp(theta[:, 5:])], axis=1)

    pairs = list(itertools.product((0.2, 0.35, 0.5), (0.2, 0.35, 0.5)))
    u, v, _, _ = _centred(points)
    linear = linear_starts(u, v, points.loss, pairs)
    decays = np.tile(np.log([10.0, 5.0]), (len(pairs), 1))
    return Problem(names, model, np.concatenate([linear, decays], axis=1), natural)


def _centred(points: Points) -> tuple[Array, Array, float, float]:
    u, v = np.log(points.n), np.log(points.tokens)
    return u - u.mean(), v - v.mean(), float(u.mean()), float(v.mean())
