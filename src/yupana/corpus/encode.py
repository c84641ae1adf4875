"""Texts to tokens on all cores, each tokenizer by the fastest way that gives exactly its ids.

Bytes are their own ids. A tokenizer that is tiktoken's in other words, as Llama 3's is (tokenizers.ranks), goes through
tiktoken where that is installed; all others, and texts that tiktoken's regular expressions might choke on, go through the
tokenizer's own library. That the ids are the same: `python benchmarks/corpus.py same`. Long texts are cut where their
words are, so that memory is bounded.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from yupana.corpus import tokenizers
from yupana.corpus.pieces import PIECE, pieces

RUN = 10_000
"""Characters: a text that is all white space, or has none, over more than twice so many is none for tiktoken (Llama's
own tokenizer cuts at 25 000 of them)."""
GROUP, LIBRARY_GROUP = 512 << 10, 1 << 20
"""Characters that a thread tokenises at once; and of those that the library spreads over the cores itself, where a token
takes about 100 bytes while it is made."""

SEPARATOR = "\0<|yupana|>\0"
"""Between texts that are tokenised together; one that holds it is tokenised apart."""

Job = TypeVar("Job")
Result = TypeVar("Result")


class Encoder:
    """Texts to arrays of `dtype`. Use as a context manager: its threads end with it."""

    def __init__(self, spec: str, tokenizer: Any, dtype: np.dtype):
        self.tokenizer, self.dtype = tokenizer, dtype
        self.bytes = spec == "bytes"
        self.fast: Any = None if self.bytes else _tiktoken(spec, tokenizer)
        by_library = self.fast is None and not self.bytes
        self.in_pieces = not by_library or spec.startswith("bpe:")
        self.workers = 1 if by_library else os.cpu_count() or 1
        self.group = LIBRARY_GROUP if by_library else GROUP
        self.threads = ThreadPoolExecutor(self.workers)

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown(cancel_futures=True)

    def stream(self, texts: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Each text with its tokens, in order, the next ones being made meanwhile; without those that begin and end it."""
        for group, found in self._in_order(_groups(texts, self.group), self._group):
            if found is None:  # one long text
                found = [np.concatenate([ids for _, ids in self._in_order(pieces(group[0]), self._piece)])]
            yield from zip(group, found, strict=True)

    def ahead(self, texts: list[str]) -> Future[list[np.ndarray]]:
        """The tokens of each text, made meanwhile."""
        return self.threads.submit(self._whole, texts)

    def _in_order(self, jobs: Iterable[Job], work: Callable[[Job], Result]) -> Iterator[tuple[Job, Result]]:
        """Each job with its result; a few are worked on ahead."""
        waiting: deque[tuple[Job, Future[Result]]] = deque()
        for job in jobs:
            waiting.append((job, self.threads.submit(work, job)))
            if len(waiting) > 2 * self.workers:
                done, result = waiting.popleft()
                yield done, result.result()
        for done, result in waiting:
            yield done, result.result()

    def _group(self, texts: list[str]) -> list[np.ndarray] | None:
        """The tokens of each text; None of one that is made piece by piece."""
        if self.in_pieces and len(texts[0]) > PIECE:
            return None
        return self._whole(texts)

    def _whole(self, texts: list[str]) -> list[np.ndarray]:
        if self.bytes:
            return [np.frombuffer(text.encode(), dtype=np.uint8).astype(self.dtype) for text in texts]
        return self._by_library(texts) if self.fast is None else self._by_tiktoken(texts)

    def _piece(self, text: str) -> np.ndarray:
        return self._whole([text])[0]

    def _by_tiktoken(self, texts: list[str]) -> list[np.ndarray]:
        """All texts in one call, during which other threads go on; the odd ones, one by one, by the library."""
        odd = [SEPARATOR in text or not _ordinary(text) for text in texts]
        joined = SEPARATOR.join("" if other else text for text, other in zip(texts, odd, strict=True))
        ids = self.fast.encode_to_numpy(joined, allowed_special={SEPARATOR}).astype(self.dtype, copy=False)
        ends = [*np.flatnonzero(ids == self.fast.n_vocab - 1).tolist(), len(ids)]
        found = [ids[begin:end] for begin, end in zip([0, *(end + 1 for end in ends[:-1])], ends, strict=True)]
        return [self._by_library([t])[0] if other else it for t, it, other in zip(texts, found, odd, strict=True)]

    def _by_library(self, texts: list[str]) -> list[np.ndarray]:
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self.dtype) for encoding in encodings]


def _tiktoken(spec: str, tokenizer: Any) -> Any:
    """The same tokenizer in tiktoken; None where that is not installed or it cannot be expressed there."""
    try:
        import tiktoken
    except ImportError:
        return None
    if (ranks := tokenizers.ranks(tokenizer, spec)) is None:
        return None
    # The one special is what texts are joined by. (With none at all tiktoken would look for nothing at every byte.)
    special = {SEPARATOR: len(ranks)}
    return tiktoken.Encoding("yupana", pat_str=tokenizers.LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens=special)


def _ordinary(text: str) -> bool:
    """Whether no RUN characters in a row are all white space or all something else: each run of 2 · RUN has such a block."""
    if len(text) < 2 * RUN:
        return True
    blocks = (text[begin : begin + RUN] for begin in range(0, len(text) - RUN + 1, RUN))
    return all(not block.isspace() and len(block.split(maxsplit=1)) == 2 for block in blocks)


def _groups(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of texts of about `size` characters together; a text longer than PIECE is alone in its list."""
    group: list[str] = []
    held = 0
    for text in texts:
        if group and len(text) > PIECE:
            yield group
            group, held = [], 0
        group.append(text)
        held += len(text)
        if held >= size or len(text) > PIECE:
            yield group
            group, held = [], 0
    if group:
        yield group
