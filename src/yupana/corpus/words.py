"""Words and runs of words as numbers, so that numpy can compare them; the same numbers in every process."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"\w+")
KNOWN = 1 << 18
"""Words whose numbers are kept: nearly all that come have come before."""


class _Known(dict[str, int]):
    """Numbers of words, looked up or made."""

    def __missing__(self, word: str) -> int:
        number = zlib.crc32(word.encode())
        if len(word) < 100:
            self[word] = number
        return number


_KNOWN = _Known()


def plain_words(text: str) -> list[str]:
    """The words of a text in lower case without punctuation: what copies are compared by."""
    return _WORD.findall(text.lower())


def hashes(words: Sequence[str]) -> np.ndarray:
    """A number for each word, uint64 [words]: its CRC-32, scrambled."""
    if len(_KNOWN) > KNOWN:
        _KNOWN.clear()
    return mix(np.fromiter(map(_KNOWN.__getitem__, words), dtype=np.uint64, count=len(words)))


def ngrams(word_hashes: np.ndarray, n: int) -> np.ndarray:
    """A number for each run of `n` words, uint64 [words - n + 1]; empty where there are fewer words."""
    count = len(word_hashes) - n + 1
    if count < 1:
        return np.zeros(0, dtype=np.uint64)
    combined = np.zeros(count, dtype=np.uint64)
    for place in range(n):
        combined = longer(combined, word_hashes[place : place + count])
    return combined


def longer(runs: np.ndarray, word_hashes: np.ndarray) -> np.ndarray:
    """The numbers of runs with one more word each, uint64 [runs]."""
    return mix(runs * np.uint64(0x9E3779B97F4A7C15) + word_hashes)


def mix(x: np.ndarray) -> np.ndarray:
    """Scramble 64 bits one to one: the finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
