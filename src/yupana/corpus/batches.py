"""Batches as a pure function of (corpus, seed, step): nothing to save, nothing to restore, nothing to lose.

A split is one long array of tokens, cut into windows of T tokens (one more is read, as the last target), or its
documents are packed into sequences of T. Sequence number s = step · global_batch + row of the run is sequence
π_e(s mod n) of epoch e = s div n, where π_e is a pseudo-random permutation of the n sequences that is computed for the
numbers asked, never stored. A mixture first says which source s comes from (mixture.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from yupana.corpus.mixture import Phase, Schedule
from yupana.corpus.sequences import BestFit, Windows
from yupana.corpus.shards import Corpus, TokenStream
from yupana.errors import UserError

IGNORED = -100
"""A target that the loss leaves out."""

Packing = Literal["stream", "documents", "best-fit"]
Row = list[tuple[TokenStream, int, int]]
"""The pieces of a sequence: the split of a corpus, start, stop; the last token of a piece is only a target."""


@dataclass(frozen=True)
class Batch:
    """Sequences to train on."""

    tokens: np.ndarray
    """int64 [batch, seq]"""
    targets: np.ndarray
    """The token after each, int64 [batch, seq]; unless packing is "stream", -100 where that is another document's."""
    document_ids: np.ndarray | None
    """Which document of its row each token belongs to, from 0, int32 [batch, seq]; None for packing "stream". Padding
    is a document of its own."""
    spans: list[Row]
    """Where each row's tokens lie."""

    @property
    def documents(self) -> list[list[int]]:
        """The documents in each row, by their number in the split of the row's corpus."""
        return [
            sorted({d for stream, a, b in row for d in range(stream.document_of(a), stream.document_of(b - 1) + 1)})
            for row in self.spans
        ]


class Batches:
    """The global batches of a run.

    `corpora` is one corpus, a mixture {corpus: weight}, or the phases of one that changes; `seq_len` in tokens,
    `global_batch` in sequences. With packing "stream" attention crosses document boundaries; with "documents"
    `document_ids` keep them apart; with "best-fit" documents that fit into a sequence are never cut, and what stays
    free is padding. Raises UserError when a split is shorter than a sequence and when the corpora of a mixture differ
    in their tokenizer.
    """

    def __init__(
        self,
        corpora: Corpus | Mapping[Corpus, float] | Sequence[Phase],
        seq_len: int,
        global_batch: int,
        seed: int = 0,
        packing: Packing = "stream",
        split: str = "train",
    ):
        if isinstance(corpora, Corpus):
            corpora = {corpora: 1.0}
        phases = [Phase(0, corpora)] if isinstance(corpora, Mapping) else corpora
        self.mixture = Schedule(phases, seq_len, global_batch, seed)
        self.corpora = self.mixture.corpora
        kind = BestFit if packing == "best-fit" else Windows
        self.sources: list[BestFit | Windows] = [kind(corpus, split, seq_len, seed) for corpus in self.corpora]
        self.seq_len, self.global_batch, self.packing = seq_len, global_batch, packing

    def batch(self, step: int, rows: range | slice | None = None) -> Batch:
        """Global batch `step` (from 0), or those `rows` of it: a micro-batch, a rank's share."""
        numbers = step * self.global_batch + np.arange(self.global_batch, dtype=np.int64)
        if isinstance(rows, range):
            numbers = numbers[np.asarray(rows, dtype=np.int64)]
        elif rows is not None:
            numbers = numbers[rows]
        of_source, inside = self.mixture.locate(numbers)
        spans: list[Row] = [[]] * len(numbers)
        for number, source in enumerate(self.sources):
            chosen = np.flatnonzero(of_source == number)
            for row, pieces in zip(chosen, source.spans(inside[chosen]), strict=True):
                spans[row] = [(source.stream, start, stop) for start, stop in pieces]
        return _packed(spans, self.seq_len) if self.packing == "best-fit" else _windows(spans, self.packing)

    def sequences_seen(self, step: int) -> dict[Corpus, int]:
        """Sequences that each corpus has given when `step` global batches are done."""
        drawn = self.mixture.drawn(step * self.global_batch)
        return {corpus: int(count) for corpus, count in zip(self.corpora, drawn, strict=True)}

    def epochs_seen(self, step: int) -> dict[Corpus, float]:
        """How often each corpus has been gone through when `step` global batches are done."""
        counts = {corpus: source.count for corpus, source in zip(self.corpora, self.sources, strict=True)}
        return {corpus: seen / counts[corpus] for corpus, seen in self.sequences_seen(step).items()}


def validation_batches(
    corpus: Corpus, seq_len: int, batch: int, max_tokens: int, packing: Packing = "stream"
) -> Iterator[Batch]:
    """The first windows of the held-out documents, in order: at most `max_tokens` tokens, but at least one window.

    They are windows for packing "best-fit" too, document by document, so that every run reads the same held-out
    text. The last batch may have fewer rows than `batch`; a split shorter than one window is one shorter window.
    Raises UserError when nothing is held out.
    """
    stream = corpus.split("val")
    if stream.n_tokens < 2:
        raise UserError(
            f"{corpus.path} holds no validation documents: prepare it from at least two documents "
            "and with a val_fraction above 0"
        )
    seq_len = min(seq_len, stream.n_tokens - 1)
    count = min((stream.n_tokens - 1) // seq_len, max(1, max_tokens // seq_len))
    rows: list[Row] = [[(stream, w * seq_len, (w + 1) * seq_len + 1)] for w in range(count)]
    return (_windows(rows[first : first + batch], packing) for first in range(0, count, batch))


def _windows(spans: list[Row], packing: Packing) -> Batch:
    """The batch whose rows are one piece each, all of the same length seq + 1."""
    window = np.stack([stream.read(start, stop) for ((stream, start, stop),) in spans])  # [batch, seq + 1]
    tokens, targets = window[:, :-1].copy(), window[:, 1:].copy()  # of their own: masking a target leaves the tokens
    if packing == "stream":
        return Batch(tokens, targets, None, spans)
    begins = np.zeros(window.shape, dtype=np.int32)
    for row, ((stream, start, stop),) in enumerate(spans):
        begins[row, stream.document_starts(start + 1, stop) - start] = 1
    documents = np.cumsum(begins, axis=1, dtype=np.int32)
    targets[begins[:, 1:] == 1] = IGNORED
    return Batch(tokens, targets, np.ascontiguousarray(documents[:, :-1]), spans)


def _packed(spans: list[Row], seq_len: int) -> Batch:
    """The batch whose rows are pieces of documents, each a document to the attention, and padding after them."""
    shape = len(spans), seq_len
    tokens, targets = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    documents = np.empty(shape, dtype=np.int32)
    for row, pieces in enumerate(spans):
        place = 0
        for number, (stream, start, stop) in enumerate(pieces):
            read, end = stream.read(start, stop), place + stop - start - 1
            tokens[row, place:end], targets[row, place:end], documents[row, place:end] = read[:-1], read[1:], number
            place = end
        documents[row, place:] = len(pieces)
    return Batch(tokens, targets, documents, spans)
