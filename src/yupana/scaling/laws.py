"""Laws of the loss: each with its formula, its source, its units and its published constants.

Units everywhere: N in parameters, D in tokens, C in FLOPs, losses in nats a token. Each law says which parameters its
N counts (see counting.py) and C is 6·N·D with that N. A published E or A depends on the authors' text and tokenizer:
the shape of the law carries over to other text, the level of the loss does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from yupana.errors import UserError, did_you_mean

PF_DAY = 1e15 * 86_400  # FLOPs

Numbers = Any  # a float or a numpy array: every formula here works on both


@dataclass(frozen=True)
class ChinchillaLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al., 2203.15556, equation 2)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    name: str = "chinchilla"
    source: str = ""
    counted: str = "all"
    """Which parameters N counts."""
    covariance: tuple[tuple[float, ...], ...] | None = field(default=None, repr=False)
    """Of (log E, log A, log B, alpha, beta), where it is known."""
    residual: float = 0.0
    """Standard deviation of log-loss about the law, between runs; 0 where it is not known."""
    samples: tuple[tuple[float, ...], ...] = field(default=(), repr=False)
    """Bootstrap refits (E, A, B, alpha, beta), where there are any."""
    largest_flops: float | None = None
    """The largest 6·N·D the law was fitted on, where it is known."""
    held_out: dict[str, float] | None = field(default=None, repr=False)
    """How the law, fitted below a budget, told the losses above it (diagnose.py), where that was tried."""

    @classmethod
    def of(cls, values: Any, **about: Any) -> ChinchillaLaw:
        """The law with (E, A, B, alpha, beta) = `values`; `about`: the other fields."""
        E, A, B, alpha, beta = (float(value) for value in values)
        return cls(E, A, B, alpha, beta, **about)

    def loss(self, n: Numbers, tokens: Numbers) -> Numbers:
        """Loss of a model of n parameters trained on `tokens` tokens, seen once."""
        return self.E + self.A * n**-self.alpha + self.B * tokens**-self.beta

    @property
    def exponent_n(self) -> float:
        """a in N_opt ∝ C^a: beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)

    def optimum(self, flops: Numbers) -> tuple[Numbers, Numbers]:
        """(N, D) with the least loss among those with 6·N·D = flops (2203.15556, equation 4)."""
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        n = g * (flops / 6) ** self.exponent_n
        return n, flops / (6 * n)

    def tokens_for(self, n: Numbers, loss: Numbers) -> Numbers:
        """Tokens after which n parameters reach `loss`; infinite where they never do."""
        gap = loss - self.E - self.A * n**-self.alpha
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(gap > 0, (self.B / np.where(gap > 0, gap, 1.0)) ** (1 / self.beta), np.inf)

    def draws(self, count: int = 400) -> list[ChinchillaLaw]:
        """Laws as plausible as this one: its bootstrap refits, or draws from its covariance; none if neither."""
        if self.samples:
            return [ChinchillaLaw.of(row, name=self.name) for row in self.samples]
        if self.covariance is None:
            return []
        centre = [np.log(self.E), np.log(self.A), np.log(self.B), self.alpha, self.beta]
        rows = np.random.default_rng(0).multivariate_normal(centre, np.array(self.covariance), count)
        rows = rows[(rows[:, 3] > 0) & (rows[:, 4] > 0)]
        return [ChinchillaLaw.of([*np.exp(row[:3]), *row[3:]], name=self.name) for row in rows]

    def interval(self, n: float, tokens: float, level: float = 0.8) -> tuple[float, float] | None:
        """The central interval in which one run's loss falls with probability `level`; None where not known.

        It holds the uncertainty of the parameters and the scatter of runs, not the difference between corpora.
        """
        laws = self.draws()
        if not laws:
            return None
        losses = np.array([law.loss(n, tokens) for law in laws])
        losses *= np.exp(self.residual * np.random.default_rng(1).standard_normal(len(laws)))
        low, high = np.quantile(losses, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def gadre(law: ChinchillaLaw, flops: Numbers, multiplier: Numbers) -> Numbers:
    """Loss by compute and over-training, L(C, M) = E + (a·M^eta + b·M^-eta)·C^-eta, M = D/N (2403.08540, equation 4).

    It is Chinchilla's law with alpha = beta = 2·eta, a = A·6^eta, b = B·6^eta, so it takes such a law (fit one with
    `--law gadre`). Raises UserError when the law's two exponents differ.
    """
    if abs(law.alpha - law.beta) > 1e-9:
        raise UserError(f"the over-training law needs alpha = beta, got {law.alpha:g} and {law.beta:g}")
    eta = law.alpha / 2
    return law.E + 6**eta * (law.A * multiplier**eta + law.B * multiplier**-eta) * flops**-eta


# Repetition (Muennighoff et al., 2305.16264, equations 5 and 6; constants of appendix A).
REPEATED_TOKENS, EXCESS_PARAMETERS = 15.387756, 5.309743


def effective(unique: Numbers, total: Numbers, decay: float) -> Numbers:
    """What `total` is worth when only `unique` of it is new: U + U·R*·(1 - exp(-R / R*)), R = total/unique - 1.

    `total` itself up to `unique`; never more than U·(1 + R*).
    """
    repeats = np.maximum(total / unique - 1, 0)
    return np.minimum(total, unique) + np.where(repeats > 0, unique * decay * (1 - np.exp(-repeats / decay)), 0.0)


def repeated_loss(
    law: ChinchillaLaw,
    n: Numbers,
    tokens: Numbers,
    unique: Numbers,
    repeated: float = REPEATED_TOKENS,
    excess: float = EXCESS_PARAMETERS,
) -> Numbers:
    """Loss after `tokens` tokens of which `unique` are new (2305.16264): both N and D count for less.

    U_N, the parameters that `unique` tokens can use, is the law's optimum for them; parameters beyond it decay too.
    """
    unique = np.minimum(unique, tokens)
    useful = useful_parameters(law, n, unique)
    return law.loss(effective(useful, n, excess), effective(unique, tokens, repeated))


def useful_parameters(law: ChinchillaLaw, n: Numbers, unique: Numbers) -> Numbers:
    """U_N of 2305.16264: of n parameters, those that the law's optimum for `unique` tokens would have."""
    log_g = np.log(law.alpha * law.A / (law.beta * law.B)) / (law.alpha + law.beta)
    most = np.exp(np.minimum((np.log(unique) + log_g) * law.beta / law.alpha + log_g, 700.0))
    return np.clip(most, 1.0, n)


@dataclass(frozen=True)
class KaplanLaw:
    """L(N, D) = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D (Kaplan et al., 2001.08361, equation 1.5 and table 2)."""

    alpha_N: float = 0.076
    alpha_D: float = 0.103
    N_c: float = 6.4e13
    D_c: float = 1.8e13
    name: str = "kaplan"
    source: str = "Kaplan et al., 2001.08361, table 2 (WebText2, early stopping)"
    counted: str = "non-embedding"

    def loss(self, n: Numbers, tokens: Numbers) -> Numbers:
        """Loss of n non-embedding parameters on `tokens` distinct tokens, stopped early."""
        return ((self.N_c / n) ** (self.alpha_N / self.alpha_D) + self.D_c / tokens) ** self.alpha_D


def kaplan_parameters(n: Numbers) -> Numbers:
    """L(N) = (8.8e13 / N)^0.076, N non-embedding, trained to convergence on enough text (2001.08361, eq. 1.1)."""
    return (8.8e13 / n) ** 0.076


def kaplan_tokens(tokens: Numbers) -> Numbers:
    """L(D) = (5.4e13 / D)^0.095, large models stopped early (2001.08361, equation 1.2)."""
    return (5.4e13 / tokens) ** 0.095


def kaplan_compute(flops: Numbers) -> Numbers:
    """L(C_min) = (3.1e8 PF-days / C)^0.050, non-embedding FLOPs, optimal size and batch (2001.08361, eq. 1.3)."""
    return (3.1e8 * PF_DAY / flops) ** 0.050


def kaplan_optimum(flops: Numbers) -> Numbers:
    """N_opt = 1.3e9 · (C in PF-days)^0.73 non-embedding parameters (2001.08361, section 6 and table 6)."""
    return 1.3e9 * (flops / PF_DAY) ** 0.73


def llama3_tokens(flops: Numbers) -> Numbers:
    """D_opt = 0.29 · C^0.53 tokens (Llama 3, 2407.21783, section 3.2.1).

    The two digits that are printed give 1.0e13 tokens at 3.8e25 FLOPs; the paper, with more digits, 1.655e13.
    """
    return 0.29 * flops**0.53


def accuracy_from_loss(loss: Numbers, floor: float, ceiling: float, slope: float, middle: float) -> Numbers:
    """A task's accuracy from its loss by a sigmoid (2407.21783, section 3.2.1; 2403.08540 uses an exponential).

    `floor` is chance, `ceiling` the best to be had; `middle` (nats) is where accuracy is half-way, `slope` a nat.
    All four belong to a task: fit them on models whose loss and accuracy are both known.
    """
    return floor + (ceiling - floor) / (1 + np.exp(slope * (loss - middle)))


HOFFMANN = ChinchillaLaw(
    1.69, 406.4, 410.7, 0.34, 0.28, "hoffmann", "Hoffmann et al., 2203.15556, equation 10 (approach 3, MassiveText)"
)
# The covariance, the scatter and the largest run are not in the paper: `yupana scaling fit` on the same 240 points, 1 000
# bootstrap refits (docs/scaling.md).
BESIROGLU = ChinchillaLaw(
    1.8172, 482.01, 2085.43, 0.3478, 0.3658, "besiroglu", "Besiroglu et al., 2404.10102 (Hoffmann's runs, refitted)",
    covariance=(
        (0.000185877, 0.00188067, 0.00351773, 0.000110893, 0.000171653),
        (0.00188067, 0.0623341, -0.0306467, 0.00371907, -0.00152965),
        (0.00351773, -0.0306467, 0.178871, -0.00189753, 0.00875277),
        (0.000110893, 0.00371907, -0.00189753, 0.000222185, -9.47726e-05),
        (0.000171653, -0.00152965, 0.00875277, -9.47726e-05, 0.000428577),
    ),
    residual=0.00487, largest_flops=1.296e22,
)  # fmt: skip
MUENNIGHOFF = ChinchillaLaw(
    float(np.exp(0.6254804)), float(np.exp(6.255414)), float(np.exp(7.3049974)), 0.3526596, 0.3526596,
    "muennighoff", "Muennighoff et al., 2305.16264, appendix A (C4; for one epoch)",
)  # fmt: skip
LAWS: dict[str, ChinchillaLaw] = {law.name: law for law in (BESIROGLU, HOFFMANN, MUENNIGHOFF)}


def published(name: str) -> ChinchillaLaw:
    """A published law L(N, D) by name. Raises UserError for an unknown one."""
    if name not in LAWS:
        raise UserError(
            f"there is no law '{name}'{did_you_mean(name, LAWS)}: the published ones are {', '.join(LAWS)}; "
            "or give a fit's JSON file"
        )
    return LAWS[name]
