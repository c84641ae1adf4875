"""Two published errors of scaling-law fits, made again on purpose, beside the right way.

    python benchmarks/scaling_wrong_ways.py ../shared/data/scaling

1. Chinchilla (2203.15556) averaged the Huber losses instead of summing them: the gradient of a mean over 240 points is
   240 times smaller, and L-BFGS-B with default tolerances stops early (found by 2404.10102). Needs scipy.
2. Kaplan (2001.08361) left the output head out of N and of C, kept one long warm-up for every length and never let the
   learning rate decay to a run's own end (taken apart by 2406.19146).
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from yupana.scaling import allocation, fit, points
from yupana.scaling.solve import huber

# What 2406.19146 changes, one step after the other, in the words of its files.
STEPS = (
    ("head not counted, long warm-up, one decay for all", "rw|base|long|kaplan|kaplan|train"),
    ("head counted", "rw|base|long|kaplan|standard|val"),
    ("warm-up as long as the run needs", "rw|base|short|kaplan|standard|val"),
    ("decay to each run's end", "rw|base|short|chinchilla|standard|val"),
    ("constant rate, tuned rate, batch and beta2", "rw|tuned|short|const|standard|val"),
)


def main(folder: Path) -> None:
    """Print both tables."""
    read = points.read([folder / "chinchilla_epoch.csv"])
    kept = read.where(np.sort(np.argsort(read.loss)[:-5]))
    right = fit.parametric(kept, refits=0)
    print("Chinchilla points        alpha   beta      a   sum of Huber losses")
    for name, theta in (("mean, default tolerances", lbfgs(kept, "mean")), ("sum, default tolerances", lbfgs(kept, "sum"))):
        alpha, beta = theta[3:]
        print(f"{name:24} {alpha:.4f} {beta:.4f} {beta / (alpha + beta):.4f}   {objective(theta, kept, 'sum')[0]:.6e}")
    p = right.parameters
    print(f"{'yupana':24} {p['alpha']:.4f} {p['beta']:.4f} {right.exponent_n:.4f}   {right.objective:.6e}\n")

    print("RefinedWeb, approach 2                                   a   80 % interval")
    for told, setting in STEPS:
        found = allocation.isoflop(points.read([folder / "porian_refinedweb.csv"], where=f"config={setting}"))
        low, high = found.interval["exponent_n"]
        print(f"{told:52} {found.exponent_n:.3f}   {low:.3f} to {high:.3f}")


def lbfgs(kept: points.Points, reduction: str, every: int = 15) -> Any:
    """The best of scipy's L-BFGS-B, default tolerances, from every 15th point of the published grid of 4 500 starts."""
    from scipy.optimize import minimize

    grid = itertools.product(
        range(0, 26, 5), range(0, 26, 5), np.arange(-1, 1.5, 0.5), np.arange(0, 2.5, 0.5), np.arange(0, 2.5, 0.5)
    )
    tries = [
        minimize(objective, np.array(start, dtype=float), (kept, reduction), "L-BFGS-B", jac=True)
        for start in itertools.islice(grid, 0, None, every)
    ]
    return min(tries, key=lambda found: found.fun).x


def objective(theta: Any, kept: points.Points, reduction: str) -> tuple[float, Any]:
    """(value, gradient) over theta = (log A, log B, log E, alpha, beta)."""
    log_n, log_d = np.log(kept.n), np.log(kept.tokens)
    logs = np.stack([theta[0] - theta[3] * log_n, theta[1] - theta[4] * log_d, np.full_like(log_n, theta[2])])
    highest = logs.max(axis=0)
    parts = np.exp(logs - highest)
    share = parts / parts.sum(axis=0)
    error = highest + np.log(parts.sum(axis=0)) - np.log(kept.loss)
    pull = np.clip(error, -1e-3, 1e-3) * share
    gradient = np.stack([*pull, -pull[0] * log_n, -pull[1] * log_d])
    if reduction == "mean":
        return float(huber(error).mean()), gradient.mean(axis=1)
    return float(huber(error).sum()), gradient.sum(axis=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of chinchilla_epoch.csv and porian_refinedweb.csv")
    main(parser.parse_args().folder)
