"""Which rank is slow, from what each took for the same work. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median


def slowest(seconds: Sequence[float]) -> tuple[int, float]:
    """The rank that took longest, and by which share longer than the median of the others (0.5: half as long again)."""
    rank = max(range(len(seconds)), key=lambda one: seconds[one])
    others = [other for one, other in enumerate(seconds) if one != rank]
    return rank, seconds[rank] / median(others) - 1
