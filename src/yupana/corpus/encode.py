"""Texts to tokens on all cores, each tokenizer by the fastest way that gives exactly its ids.

Bytes are their own ids. Llama 3's ids come from tiktoken, which it was made with, where that is installed (they are the
same: `pytest tests/test_corpus.py -k tiktoken`); all others, and texts that tiktoken's regular expressions might choke
on, go through the tokenizer's own library. Long texts are cut where their words are, so that memory is bounded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from yupana.corpus import tokenizers
from yupana.corpus.pieces import pieces

RUN = 10_000
"""Characters: a text that is all white space, or has none, over more than twice so many is none for tiktoken (Llama's
own tokenizer cuts at 25 000 of them)."""


class Encoder:
    """Groups of texts to arrays of `dtype`, one a text. Use as a context manager: its threads end with it."""

    def __init__(self, spec: str, tokenizer: Any, dtype: np.dtype):
        self.tokenizer, self.dtype = tokenizer, dtype
        self.own = spec.split(":")[0] in ("bytes", "bpe", "llama3")
        self.one: Callable[[str], np.ndarray] | None = None
        if spec == "bytes":
            self.one = lambda text: np.frombuffer(text.encode(), dtype=np.uint8).astype(self.dtype)
        elif spec == "llama3" and (fast := _tiktoken()) is not None:
            self.fast, self.one = fast, self._by_tiktoken
        self.threads = ThreadPoolExecutor(os.cpu_count() or 1)
        self.ahead = ThreadPoolExecutor(1)

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.ahead.shutdown(cancel_futures=True)
        self.threads.shutdown(cancel_futures=True)

    def groups(self, groups: Iterable[list[str]]) -> Iterator[tuple[list[str], list[np.ndarray]]]:
        """(texts, their tokens) of each group, the next one being made meanwhile."""
        waiting = None
        for texts in groups:
            following = texts, self.ahead.submit(self.encode, texts)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The tokens of each text, without those that begin and end a document."""
        if self.one is not None:
            return list(self.threads.map(self._piece_by_piece, texts))
        if len(texts) == 1 and self.own:
            return [self._piece_by_piece(texts[0])]
        return [self._ids(encoding) for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _piece_by_piece(self, text: str) -> np.ndarray:
        one = self.one or self._by_library
        return np.concatenate([one(piece) for piece in pieces(text)])

    def _by_library(self, text: str) -> np.ndarray:
        return self._ids(self.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0])

    def _by_tiktoken(self, text: str) -> np.ndarray:
        if not _ordinary(text):
            return self._by_library(text)
        return self.fast.encode_to_numpy(text, disallowed_special=()).astype(self.dtype)

    def _ids(self, encoding: Any) -> np.ndarray:
        return np.array(encoding.ids, dtype=self.dtype)


def _tiktoken() -> Any:
    """Llama 3's encoding in tiktoken, without its specials, which text never is; None where it is not installed."""
    try:
        import tiktoken
    except ImportError:
        return None
    ranks = dict(tokenizers._llama3_ranks())
    return tiktoken.Encoding("llama3", pat_str=tokenizers.LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={})


def _ordinary(text: str) -> bool:
    """Whether no RUN characters in a row are all white space or all something else: each run of 2 · RUN has such a block."""
    if len(text) < 2 * RUN:
        return True
    blocks = (text[begin : begin + RUN] for begin in range(0, len(text) - RUN + 1, RUN))
    return all(not block.isspace() and len(block.split(maxsplit=1)) == 2 for block in blocks)
