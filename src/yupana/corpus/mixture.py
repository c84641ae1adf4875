"""Mixtures: which source each sequence of a run comes from, as a pure function of its number.

Weights become whole numbers of sequences out of PERIOD. A mixture may change at a token count, as Llama 3's last
phase does (2407.21783, section 3.4.3); each source goes on in the new phase where it was, so that none of its windows
comes again before all have come once.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from yupana.corpus.permutation import permuted
from yupana.corpus.shards import Corpus
from yupana.errors import UserError

PERIOD = 10_000
"""Sequences of a mixture after which every source has had exactly its share."""


@dataclass(frozen=True)
class Phase:
    """From so many tokens of the run on, these weights."""

    after: int
    """Tokens of the run."""
    weights: Mapping[Corpus, float]
    """In any proportion; 0 leaves a corpus out of this phase."""


def by_size(corpora: Sequence[Corpus], temperature: float) -> list[float]:
    """Shares in proportion to n^(1/T), n being a corpus's training tokens; 1 is by size, a large T makes all equal.

    The temperature of multilingual pretraining (Arivazhagan et al. 1907.05019).
    """
    sizes = np.array([corpus.info["splits"]["train"]["tokens"] for corpus in corpora], dtype=np.float64)
    flattened = (sizes / max(1.0, sizes.max())) ** (1 / temperature)
    return (flattened / flattened.sum()).tolist()


@dataclass(frozen=True)
class Mixture:
    """What a run reads: its corpora by name, and their weights phase by phase."""

    sources: dict[str, Corpus]
    phases: tuple[Phase, ...]

    def shares(self, tokens: int) -> dict[str, float]:
        """Of a run of so many tokens, the share that is meant to come from each source."""
        found = dict.fromkeys(self.sources, 0.0)
        ends = [*(phase.after for phase in self.phases[1:]), tokens]
        for phase, end in zip(self.phases, ends, strict=True):
            part = (end - phase.after) / tokens / sum(phase.weights.values())
            for name, corpus in self.sources.items():
                found[name] += part * phase.weights.get(corpus, 0.0)
        return found

    def planned(self, steps: int, seq_len: int, global_batch: int, seed: int) -> dict[str, int]:
        """Tokens that each source gives to a run of so many steps."""
        schedule = Schedule(self.phases, seq_len, global_batch, seed)
        drawn = dict(zip(schedule.corpora, schedule.drawn(steps * global_batch).tolist(), strict=True))
        return {name: drawn.get(corpus, 0) * seq_len for name, corpus in self.sources.items()}


class Schedule:
    """The phases of a run, a phase beginning with the first step at or after its token."""

    def __init__(self, phases: Sequence[Phase], seq_len: int, global_batch: int, seed: int):
        _check(phases)
        # By hash, so that the order in which a mixture is written down changes nothing.
        named = {corpus for phase in phases for corpus, weight in phase.weights.items() if weight > 0}
        self.corpora = sorted(named, key=lambda corpus: (corpus.hash, str(corpus.path)))
        self.steps = [-(-phase.after // (seq_len * global_batch)) for phase in phases]
        for before, after, phase in zip(self.steps, self.steps[1:], phases[1:], strict=False):
            if before == after:
                raise UserError(
                    f"the phase of the mixture before the one after {phase.after:,} tokens is shorter than a step of "
                    f"{seq_len * global_batch:,} tokens: move one of them, or leave one out"
                )
        self.firsts = np.array(self.steps, dtype=np.int64) * global_batch
        self.parts = [
            _Part([phase.weights.get(corpus, 0.0) for corpus in self.corpora], self.corpora, _key(seed, number))
            for number, phase in enumerate(phases)
        ]
        self.before = [np.zeros(len(self.corpora), dtype=np.int64)]
        for part, length in zip(self.parts, np.diff(self.firsts), strict=False):
            self.before.append(self.before[-1] + part.drawn(int(length)))

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, number of the sequence inside that source) for sequences of the run, both int64."""
        phases = np.searchsorted(self.firsts, numbers, side="right") - 1
        source, inside = np.empty_like(numbers), np.empty_like(numbers)
        for phase in np.unique(phases):
            here = phases == phase
            source[here], rank = self.parts[phase].locate(numbers[here] - self.firsts[phase])
            inside[here] = self.before[phase][source[here]] + rank
        return source, inside

    def drawn(self, sequences: int) -> np.ndarray:
        """Sequences each source has given among the first `sequences` of the run, int64 [sources]."""
        phase = int(np.searchsorted(self.firsts, sequences, side="right")) - 1
        return self.before[phase] + self.parts[phase].drawn(sequences - int(self.firsts[phase]))


class _Part:
    """One phase: which source each of its sequences comes from, and which of that source's it is."""

    def __init__(self, weights: list[float], corpora: list[Corpus], key: tuple[int, ...]):
        self.key = key
        self.counts = shares(weights, PERIOD)
        for corpus, weight, count in zip(corpora, weights, self.counts, strict=True):
            if weight > 0 and not count:
                raise UserError(
                    f"the weight {weight:g} of {corpus.path} is less than 1 in {PERIOD} of the mixture: raise it, "
                    "or leave the corpus out"
                )
        self.only = int(np.argmax(self.counts)) if (self.counts > 0).sum() == 1 else None

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.only is not None:
            return np.full_like(numbers, self.only), numbers
        periods, slots = np.divmod(numbers, PERIOD)
        source, rank = np.empty_like(numbers), np.empty_like(numbers)
        for period in np.unique(periods):
            here = periods == period
            sources, ranks = self._period(int(period))
            source[here], rank[here] = sources[slots[here]], ranks[slots[here]]
        return source, periods * self.counts[source] + rank

    def drawn(self, sequences: int) -> np.ndarray:
        if self.only is not None:
            return np.where(np.arange(len(self.counts)) == self.only, sequences, 0)
        period, rest = divmod(sequences, PERIOD)
        return period * self.counts + np.bincount(self._period(period)[0][:rest], minlength=len(self.counts))

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a handful of mixtures live as long as their run
    def _period(self, period: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, rank among that source's) of the slots of a period, both [PERIOD]."""
        order = permuted(np.arange(PERIOD), PERIOD, "mixture", *self.key, period)
        sources = np.repeat(np.arange(len(self.counts)), self.counts)[order]
        ranks = np.empty_like(sources)
        for number, count in enumerate(self.counts):
            ranks[sources == number] = np.arange(count)
        return sources, ranks


def shares(weights: Sequence[float], total: int) -> np.ndarray:
    """Whole numbers that sum to `total`, in proportion to the weights: largest remainder."""
    exact = np.array(weights, dtype=np.float64) / sum(weights) * total
    counts = np.floor(exact).astype(np.int64)
    largest = np.argsort(counts - exact, kind="stable")
    counts[largest[: total - counts.sum()]] += 1
    return counts


def _key(seed: int, phase: int) -> tuple[int, ...]:
    return (seed,) if phase == 0 else (seed, phase)


def _check(phases: Sequence[Phase]) -> None:
    if not phases or any(not sum(phase.weights.values()) > 0 for phase in phases):
        raise UserError("the mixture is empty: name at least one corpus with a weight above 0")
    if phases[0].after != 0:
        raise UserError("the first phase of a mixture begins at token 0")
    for before, phase in itertools.pairwise(phases):
        if phase.after <= before.after:
            raise UserError(
                f"the phases of a mixture must come in order: one begins after {phase.after:,} tokens, "
                f"the one before it after {before.after:,}"
            )
    first, *others = dict.fromkeys(corpus for phase in phases for corpus in phase.weights)
    for corpus in others:
        if corpus.tokenizer_hash != first.tokenizer_hash:
            raise UserError(
                f"{corpus.path} was prepared with another tokenizer ({corpus.info['tokenizer']['name']}) than "
                f"{first.path} ({first.info['tokenizer']['name']}): prepare both with the same one "
                f"(--tokenizer {first.path})"
            )
