"""Batches as a pure function of (corpus, seed, step): nothing to save, nothing to restore, nothing to lose.

A split is one long array of tokens, cut into windows of T tokens (one more is read, as the last target). Sequence
number s = step · global_batch + row of the run is window π_e(s mod n) of epoch e = s div n, where π_e is a
pseudo-random permutation of the n windows that is computed for the numbers asked, never stored.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from yupana.corpus.shards import Corpus, TokenStream
from yupana.corpus.words import mix
from yupana.errors import UserError

IGNORED = -100
"""A target that the loss leaves out."""
PERIOD = 10_000
"""Sequences of a mixture after which every source has had exactly its share."""

Packing = Literal["stream", "documents"]


@dataclass(frozen=True)
class Batch:
    """Sequences to train on."""

    tokens: np.ndarray
    """int64 [batch, seq]"""
    targets: np.ndarray
    """The token after each, int64 [batch, seq]; with packing "documents", -100 where that is another document's."""
    document_ids: np.ndarray | None
    """Which document of its row each token belongs to, from 0, int32 [batch, seq]; None for packing "stream"."""
    spans: list[tuple[TokenStream, int, int]]
    """Where each row's tokens lie: the split of its corpus, start, stop."""

    @property
    def documents(self) -> list[range]:
        """The documents in each row, by their number in the split of the row's corpus."""
        return [range(stream.document_of(a), stream.document_of(b - 1) + 1) for stream, a, b in self.spans]


class Batches:
    """The global batches of a run.

    `corpora` is one corpus, or a mixture {corpus: weight}; `seq_len` in tokens, `global_batch` in sequences. With
    packing "stream" attention crosses document boundaries; with "documents" `document_ids` keep them apart. Raises
    UserError when a split is shorter than a sequence and when the corpora of a mixture differ in their tokenizer.
    """

    def __init__(
        self,
        corpora: Corpus | Mapping[Corpus, float],
        seq_len: int,
        global_batch: int,
        seed: int = 0,
        packing: Packing = "stream",
        split: str = "train",
    ):
        weights = {corpora: 1.0} if isinstance(corpora, Corpus) else dict(corpora)
        _same_tokenizer(list(weights))
        # By hash, so that the order in which a mixture is written down changes nothing.
        self.corpora = sorted(weights, key=lambda corpus: (corpus.hash, str(corpus.path)))
        self.sources = [_Windows(corpus, split, seq_len, seed) for corpus in self.corpora]
        self.mixture = _Mixture(self.corpora, [weights[corpus] for corpus in self.corpora], seed)
        self.seq_len, self.global_batch, self.packing = seq_len, global_batch, packing

    def batch(self, step: int, rows: range | slice | None = None) -> Batch:
        """Global batch `step` (from 0), or those `rows` of it: a micro-batch, a rank's share."""
        numbers = step * self.global_batch + np.arange(self.global_batch, dtype=np.int64)
        if isinstance(rows, range):
            numbers = numbers[np.asarray(rows, dtype=np.int64)]
        elif rows is not None:
            numbers = numbers[rows]
        of_source, inside = self.mixture.locate(numbers)
        spans: list[tuple[TokenStream, int, int]] = [(self.sources[0].stream, 0, 0)] * len(numbers)
        for number, source in enumerate(self.sources):
            chosen = np.flatnonzero(of_source == number)
            for row, start in zip(chosen, source.starts(inside[chosen]), strict=True):
                spans[row] = (source.stream, int(start), int(start) + self.seq_len + 1)
        return _read(spans, self.packing)

    def epochs_seen(self, step: int) -> dict[Corpus, float]:
        """How often each corpus has been gone through when `step` global batches are done."""
        drawn = self.mixture.drawn(step * self.global_batch)
        return {c: n / source.count for c, n, source in zip(self.corpora, drawn, self.sources, strict=True)}


def validation_batches(
    corpus: Corpus, seq_len: int, batch: int, max_tokens: int, packing: Packing = "stream"
) -> Iterator[Batch]:
    """The first windows of the held-out documents, in order: at most `max_tokens` tokens, but at least one window.

    The last batch may have fewer rows than `batch`; a split shorter than one window is one shorter window. Raises
    UserError when nothing is held out.
    """
    stream = corpus.split("val")
    if stream.n_tokens < 2:
        raise UserError(
            f"{corpus.path} holds no validation documents: prepare it from at least two documents "
            "and with a val_fraction above 0"
        )
    seq_len = min(seq_len, stream.n_tokens - 1)
    count = min((stream.n_tokens - 1) // seq_len, max(1, max_tokens // seq_len))
    return (
        _read([(stream, w * seq_len, (w + 1) * seq_len + 1) for w in range(first, min(first + batch, count))], packing)
        for first in range(0, count, batch)
    )


def permuted(numbers: np.ndarray, n: int, *key: object) -> np.ndarray:
    """π(numbers), where π is the pseudo-random permutation of 0 … n-1 that `key` names; int64, any shape.

    A Feistel network permutes the 4^k ≥ n numbers; one that lands at n or above is sent through again until it
    lands below ("cycle walking"), fewer than four times on average. (Black & Rogaway, Ciphers with Arbitrary
    Finite Domains, CT-RSA 2002, §3 and §4.)
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.frombuffer(hashlib.blake2b(repr(key).encode(), digest_size=64).digest(), dtype="<u8")
    flat = np.asarray(numbers).astype(np.uint64).ravel()
    walking = np.arange(flat.size)
    while walking.size:
        left, right = flat[walking] >> half, flat[walking] & mask
        for round_key in keys:  # eight rounds
            left, right = right, left ^ (mix(right ^ round_key) & mask)
        flat[walking] = left << half | right
        walking = walking[flat[walking] >= n]
    return flat.astype(np.int64).reshape(np.shape(numbers))


class _Windows:
    """The windows of one corpus, in the order in which they are used."""

    def __init__(self, corpus: Corpus, split: str, seq_len: int, seed: int):
        self.stream, self.seq_len, self.seed, self.hash = corpus.split(split), seq_len, seed, corpus.hash
        # A window's last target is the next window's first token: n windows take n·T + 1 tokens.
        self.count, self.remainder = divmod(self.stream.n_tokens - 1, seq_len)
        if self.count < 1:
            raise UserError(
                f"data.seq_len ({seq_len}) is longer than the corpus: the {split} split of {corpus.path} has "
                f"{self.stream.n_tokens} tokens and a sequence needs {seq_len + 1}; shorten data.seq_len or "
                "prepare more text"
            )

    def starts(self, numbers: np.ndarray) -> np.ndarray:
        """Where the sequences `numbers`, counted from the beginning of the run, start in the split."""
        epochs, inside = np.divmod(numbers, self.count)
        starts = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = (self.hash, self.seed, int(epoch))
            starts[here] = permuted(inside[here], self.count, "windows", *key) * self.seq_len + self._offset(*key)
        return starts

    def _offset(self, *key: object) -> int:
        """How far this epoch's windows are shifted: so that no token is left out of every epoch."""
        digest = hashlib.blake2b(repr(("offset", *key)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % (self.remainder + 1)


class _Mixture:
    """Which source each sequence of the run comes from, and which of that source's sequences it is."""

    def __init__(self, corpora: list[Corpus], weights: list[float], seed: int):
        self.seed = seed
        self.counts = _shares(weights, PERIOD)
        for corpus, weight, count in zip(corpora, weights, self.counts, strict=True):
            if not count:
                raise UserError(
                    f"the weight {weight:g} of {corpus.path} is less than 1 in {PERIOD} of the mixture: raise it, "
                    "or leave the corpus out"
                )

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, number of the sequence inside that source) for sequences of the run, both int64."""
        if len(self.counts) == 1:
            return np.zeros_like(numbers), numbers
        periods, slots = np.divmod(numbers, PERIOD)
        source, rank = np.empty_like(numbers), np.empty_like(numbers)
        for period in np.unique(periods):
            here = periods == period
            sources, ranks = self._period(int(period))
            source[here], rank[here] = sources[slots[here]], ranks[slots[here]]
        return source, periods * self.counts[source] + rank

    def drawn(self, sequences: int) -> np.ndarray:
        """Sequences each source has given among the first `sequences` of the run."""
        if len(self.counts) == 1:
            return np.array([sequences])
        period, rest = divmod(sequences, PERIOD)
        return period * self.counts + np.bincount(self._period(period)[0][:rest], minlength=len(self.counts))

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a handful of mixtures live as long as their run
    def _period(self, period: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, rank among that source's) of the slots of a period, both [PERIOD]."""
        order = permuted(np.arange(PERIOD), PERIOD, "mixture", self.seed, period)
        sources = np.repeat(np.arange(len(self.counts)), self.counts)[order]
        ranks = np.empty_like(sources)
        for number, count in enumerate(self.counts):
            ranks[sources == number] = np.arange(count)
        return sources, ranks


def _shares(weights: list[float], total: int) -> np.ndarray:
    """Whole numbers that sum to `total`, in proportion to the weights: largest remainder."""
    exact = np.array(weights, dtype=np.float64) / sum(weights) * total
    counts = np.floor(exact).astype(np.int64)
    largest = np.argsort(counts - exact, kind="stable")
    counts[largest[: total - counts.sum()]] += 1
    return counts


def _read(spans: list[tuple[TokenStream, int, int]], packing: Packing) -> Batch:
    """The batch whose rows are `spans`, all of the same length seq + 1."""
    window = np.stack([stream.read(start, stop) for stream, start, stop in spans])  # [batch, seq + 1]
    tokens, targets = window[:, :-1].copy(), window[:, 1:].copy()  # of their own: masking a target leaves the tokens
    if packing == "stream":
        return Batch(tokens, targets, None, spans)
    begins = np.zeros(window.shape, dtype=np.int32)
    for row, (stream, start, stop) in enumerate(spans):
        begins[row, stream.document_starts(start + 1, stop) - start] = 1
    documents = np.cumsum(begins, axis=1, dtype=np.int32)
    targets[begins[:, 1:] == 1] = IGNORED
    return Batch(tokens, targets, np.ascontiguousarray(documents[:, :-1]), spans)


def _same_tokenizer(corpora: list[Corpus]) -> None:
    if not corpora:
        raise UserError("the mixture is empty: name at least one corpus")
    for corpus in corpora[1:]:
        if corpus.tokenizer_hash != corpora[0].tokenizer_hash:
            raise UserError(
                f"{corpus.path} was prepared with another tokenizer ({corpus.info['tokenizer']['name']}) than "
                f"{corpora[0].path} ({corpora[0].info['tokenizer']['name']}): prepare both with the same one"
            )
