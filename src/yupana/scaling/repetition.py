"""What it costs to go through a source often, after the law of repeated data (Muennighoff et al. 2305.16264)."""

from __future__ import annotations

from collections.abc import Mapping

from yupana.scaling.laws import (
    EXCESS_PARAMETERS,
    MUENNIGHOFF,
    REPEATED_TOKENS,
    ChinchillaLaw,
    effective,
    repeated_loss,
    useful_parameters,
)

FITTED_FROM = 1e8
"""Different tokens of the smallest runs that the law was fitted on."""
OFTEN = 4.0
"""Epochs up to which repeated text is nearly as good as new (2305.16264, section 1)."""


def cost(n: float, planned: Mapping[str, float], unique: Mapping[str, float], law: ChinchillaLaw = MUENNIGHOFF) -> float:
    """Nats a token that a run loses against one whose text is all new.

    n parameters; `planned` and `unique` tokens by source. The paper's law (equations 5 and 6) is about one corpus:
    here each source's tokens count for what it says of that source alone, and then they are added. Its constants were
    fitted on English web text and models up to 9 B parameters.
    """
    total = float(sum(planned.values()))
    new = sum(min(planned[name], unique[name]) for name in planned)
    worth = sum(effective(unique[name], planned[name], REPEATED_TOKENS) for name in planned if planned[name])
    useful = effective(useful_parameters(law, n, new), n, EXCESS_PARAMETERS)
    return float(law.loss(useful, worth) - repeated_loss(law, n, total, total))


def told(n: float, planned: Mapping[str, float], unique: Mapping[str, float]) -> list[str]:
    """A warning, when a source is gone through more than OFTEN times; else nothing."""
    often = {name: planned[name] / unique[name] for name in planned if planned[name] > OFTEN * max(1, unique[name])}
    if not often:
        return []
    new = sum(min(planned[name], unique[name]) for name in planned)
    doubt = "; a guess, since the law was fitted on 100 M different tokens and more" if new < FITTED_FROM else ""
    named = ", ".join(f"{name} {epochs:.1f} times ({unique[name]:,} tokens)" for name, epochs in often.items())
    return [
        f"this run goes through {named}: beyond {OFTEN:g} epochs repeated text is worth less and less; by the law of "
        f"repeated data (2305.16264) the run ends about {cost(n, planned, unique):.2f} nats a token above one on new "
        f"text{doubt}: prepare more text, lower that weight or train shorter"
    ]
