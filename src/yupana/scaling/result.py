"""A fit as one JSON object: what `yupana scaling fit` prints and writes, and `predict` and `plan` read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from yupana.errors import UserError
from yupana.scaling import annealing, diagnose, laws
from yupana.scaling.allocation import LEVEL, AllocationFit
from yupana.scaling.fit import ParametricFit
from yupana.scaling.laws import ChinchillaLaw
from yupana.scaling.points import Points

KEPT_SAMPLES = 200  # refits in the file: enough for an 80 % interval of a prediction


def of_parametric(points: Points, fit: ParametricFit) -> dict[str, Any]:
    """Approach 3 as an object, with its diagnostics."""
    found = diagnose.diagnose(points, fit)
    return {
        "approach": 3,
        "law": fit.form,
        "formula": {
            "chinchilla": "E + A/N^alpha + B/D^beta",
            "gadre": "E + A/N^alpha + B/D^beta, alpha = beta",
            "kaplan": "((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D",
            "muennighoff": "E + A/N'^alpha + B/D'^beta, N' and D' worth less where repeated",
        }[fit.form],
        "parameters": fit.parameters,
        "intervals": {name: list(pair) for name, pair in fit.interval().items()},
        "interval_level": LEVEL,
        "standard_errors": fit.standard_errors(),
        "objective": fit.objective,
        "exponent_n": fit.exponent_n,
        **_about(points),
        "diagnostics": found,
        "warnings": diagnose.warnings(points, fit, found),
        "residuals": np.round(fit.residuals, 6).tolist(),
        "samples": np.round(fit.samples[:KEPT_SAMPLES], 8).tolist(),
    }


def of_allocation(points: Points, fit: AllocationFit) -> dict[str, Any]:
    """Approach 1 or 2 as an object."""
    rows = zip(fit.flops, fit.n, fit.loss, strict=True)
    return {
        "approach": fit.approach,
        "law": "power",
        "formula": "N_opt = coefficient * C^exponent_n",
        "parameters": {"coefficient": fit.coefficient, "exponent_n": fit.exponent_n},
        "intervals": {name: list(pair) for name, pair in fit.interval.items()},
        "interval_level": LEVEL,
        "objective": fit.objective,
        "exponent_n": fit.exponent_n,
        "optima": [{"flops": float(c), "n": float(n), "loss": float(loss)} for c, n, loss in rows],
        **_about(points),
        "warnings": [*points.warnings, *fit.warnings],
    }


def of_curves(law: Any, curves: list[annealing.Curve]) -> dict[str, Any]:
    """A fitted law of whole curves as an object."""
    values = {k: float(v) for k, v in vars(law).items() if k != "name"}
    accuracy = {curve.name: annealing.accuracy(law, curve) for curve in curves}
    return {
        "law": law.name,
        "parameters": values,
        "intervals": {},
        "objective": None,
        "exponent_n": None,
        "accuracy": accuracy,
        "warnings": ["accuracies are those of the curves fitted; check the law on a schedule it has not seen"],
    }


def load_law(name: str) -> ChinchillaLaw:
    """A law of the loss: a published name, or the JSON file (or folder) of a fit by approach 3.

    Raises UserError for what is neither, or for a fit that has no loss.
    """
    content = read_fit(name)
    if content is None:
        return laws.published(name)
    parameters = content.get("parameters", {})
    if not {"E", "A", "B", "alpha", "beta"} <= set(parameters):
        raise UserError(
            f"{name} holds the law '{content.get('law')}', which gives no loss by size and tokens: fit with --approach 3 "
            "and --law chinchilla"
        )
    return ChinchillaLaw.of(
        [parameters[k] for k in ("E", "A", "B", "alpha", "beta")],
        name=str(name),
        source=content.get("source", ""),
        residual=content.get("diagnostics", {}).get("residual_sd", 0.0),
        samples=tuple(tuple(row[:5]) for row in content.get("samples", ())),
        largest_flops=content.get("largest_flops"),
        held_out=content.get("held_out"),
    )


def read_fit(name: str) -> dict[str, Any] | None:
    """The content of a fit's file, or None when `name` is no path. Raises UserError for a file that is no fit."""
    path = Path(name) / "fit.json" if Path(name).is_dir() else Path(name)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict) or "parameters" not in content:
        raise UserError(f"{path} is no result of yupana scaling fit: it is not a JSON object with parameters")
    return content


def _about(points: Points) -> dict[str, Any]:
    return {
        "points": len(points),
        "source": points.source,
        "conventions": {"n": "as given", "flops": "as given, or 6·N·D", "loss": "nats a token"},
        "smallest_flops": float(points.flops.min()),
        "largest_flops": float(points.flops.max()),
    }
