"""The sequences of one corpus in the order in which they are used: windows of the stream, or best-fit packing."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator

import numpy as np

from yupana.corpus.packing import pack
from yupana.corpus.permutation import permuted
from yupana.corpus.shards import Corpus
from yupana.errors import UserError

Span = tuple[int, int]
"""[start, stop) in a split; its last token is only a target."""


class Windows:
    """Windows of seq_len tokens, one after the other; the last target of one is the first token of the next."""

    def __init__(self, corpus: Corpus, split: str, seq_len: int, seed: int):
        self.stream, self.seq_len, self.seed, self.hash = corpus.split(split), seq_len, seed, corpus.hash
        # n windows take n·T + 1 tokens.
        self.count, self.remainder = divmod(self.stream.n_tokens - 1, seq_len)
        if self.count < 1:
            raise UserError(
                f"data.seq_len ({seq_len}) is longer than the corpus: the {split} split of {corpus.path} has "
                f"{self.stream.n_tokens} tokens and a sequence needs {seq_len + 1}; shorten data.seq_len or "
                "prepare more text"
            )
        self.order = _Order(self.count, corpus.hash, seed)

    def spans(self, numbers: np.ndarray) -> Iterator[list[Span]]:
        """Where the sequences `numbers`, counted from the beginning of the run, lie."""
        epochs, places = self.order.at(numbers)
        offsets = [self._offset(self.hash, self.seed, epoch) for epoch in epochs.tolist()]
        starts = [place * self.seq_len + offset for place, offset in zip(places.tolist(), offsets, strict=True)]
        return ([(start, start + self.seq_len + 1)] for start in starts)

    @functools.lru_cache(maxsize=64)  # noqa: B019 - as long as the run
    def _offset(self, *key: object) -> int:
        """How far this epoch's windows are shifted: so that no token is left out of every epoch."""
        digest = hashlib.blake2b(repr(("offset", *key)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % (self.remainder + 1)


class BestFit:
    """Documents fitted whole into sequences, longest first, each where the least room is left that suffices.

    Ding et al. 2404.10830, section 3. A document of L tokens takes L - 1 places: its last token is only a target. One
    that takes more than a sequence fills whole sequences first. Every target is in exactly one sequence.
    """

    def __init__(self, corpus: Corpus, split: str, seq_len: int, seed: int):
        self.stream, self.seq_len, self.seed, self.hash = corpus.split(split), seq_len, seed, corpus.hash
        if self.stream.n_documents == 0:
            raise UserError(f"the {split} split of {corpus.path} holds no documents: prepare more text")
        self.bounds = np.append(self.stream.starts, self.stream.n_tokens)
        places = np.diff(self.bounds) - 1  # [documents]
        self.full, rest = np.divmod(places, seq_len)
        self.full_ends = np.cumsum(self.full)
        self.partial = np.flatnonzero(rest)
        groups = pack(rest[self.partial], seq_len)
        self.members = np.fromiter((member for group in groups for member in group), dtype=np.int64)
        self.group_ends = np.cumsum([len(group) for group in groups], dtype=np.int64)
        self.n_full = int(self.full.sum())
        self.count = self.n_full + len(groups)
        self.order = _Order(self.count, corpus.hash, seed)
        self.padding = 1 - int(places.sum()) / (self.count * seq_len)
        """Share of the places that hold no token."""
        self.cut = float((places > seq_len).mean())
        """Share of the documents that do not lie in one sequence as a whole."""

    def spans(self, numbers: np.ndarray) -> Iterator[list[Span]]:
        """Where the pieces of the sequences `numbers`, counted from the beginning of the run, lie."""
        return (self._row(row) for row in self.order.at(numbers)[1].tolist())

    def _row(self, row: int) -> list[Span]:
        if row < self.n_full:
            document = int(np.searchsorted(self.full_ends, row, side="right"))
            earlier = int(self.full_ends[document] - self.full[document])
            start = int(self.bounds[document]) + (row - earlier) * self.seq_len
            return [(start, start + self.seq_len + 1)]
        group = row - self.n_full
        first = int(self.group_ends[group - 1]) if group else 0
        documents = self.partial[self.members[first : int(self.group_ends[group])]]
        return [(int(self.bounds[d] + self.full[d] * self.seq_len), int(self.bounds[d + 1])) for d in documents]


class _Order:
    """The shuffled places of numbers that run over epochs; computed a block at a time, which costs little more than one."""

    BLOCK = 4096

    def __init__(self, count: int, *key: object):
        self.count, self.key, self.blocks = count, key, -(-count // self.BLOCK)

    def at(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(epoch, place in the order of that epoch) of each number, both int64."""
        epochs, inside = np.divmod(numbers, self.count)
        of_block, places = epochs * self.blocks + inside // self.BLOCK, np.empty_like(numbers)
        for block in set(of_block.tolist()):
            here = of_block == block
            epoch, number = divmod(block, self.blocks)
            places[here] = self._block(epoch, number)[inside[here] - number * self.BLOCK]
        return epochs, places

    @functools.lru_cache(maxsize=8)  # noqa: B019 - as long as the run
    def _block(self, epoch: int, number: int) -> np.ndarray:
        begin = number * self.BLOCK
        block = np.arange(begin, min(begin + self.BLOCK, self.count))
        return permuted(block, self.count, "windows", *self.key, epoch)
