"""Counting in bounded memory: the most frequent of any number of things, and how many different ones there were."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable

import numpy as np


class Frequent:
    """The most frequent things of a stream, with at most 2 · `capacity` counters at any time.

    While there are fewer different things every count is exact. Beyond, all counters are lowered by the same number
    and those at zero dropped, so that a count is at most `error` too low and never too high. (Misra & Gries, Finding
    repeated elements, 1982, many at a time.)
    """

    def __init__(self, capacity: int = 1 << 19):
        self.capacity = capacity
        self.counts: Counter[str] = Counter()
        self.error = 0
        """What any count may be too low by."""

    def add(self, things: Iterable[str]) -> None:
        """Count each of them once more."""
        self.counts.update(things)
        if len(self.counts) > 2 * self.capacity:
            least = np.fromiter(self.counts.values(), dtype=np.int64)
            lowered = int(np.partition(least, len(least) - self.capacity)[len(least) - self.capacity - 1])
            self.counts = Counter({thing: count - lowered for thing, count in self.counts.items() if count > lowered})
            self.error += lowered

    def top(self, count: int) -> list[tuple[str, int]]:
        """The `count` most frequent with their counts; of equals those first in alphabetical order."""
        return heapq.nsmallest(count, self.counts.items(), key=lambda item: (-item[1], item[0]))


class Distinct:
    """How many different numbers a stream held, within about 0.1 % up to 100 million, in 32 MiB.

    Each number marks one of m places; with z left unmarked there were about -m · ln(z/m) different ones. (Whang et al.,
    A linear-time probabilistic counting algorithm, 1990, eq. 1.)
    """

    def __init__(self, places: int = 1 << 25):
        self.marked = np.zeros(places, dtype=bool)

    def add(self, numbers: np.ndarray) -> None:
        """Mark scrambled numbers, uint64 [n]."""
        self.marked[(numbers % np.uint64(len(self.marked))).astype(np.int64)] = True

    def estimate(self) -> int:
        """The number of different ones."""
        places = len(self.marked)
        unmarked = max(1, places - int(np.count_nonzero(self.marked)))
        return round(-places * np.log(unmarked / places))
