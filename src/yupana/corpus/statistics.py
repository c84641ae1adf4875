"""What a stream of documents is made of: sizes, characters, words, lines, personal data; bounded memory."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from yupana.corpus.frequent import Distinct, Frequent

PHRASE = 5
"""Words of the runs of which the most repeated are shown."""
COUNTED = 200
"""Words, lines and runs are counted by their first so many characters: one of a megabyte must not fill the memory."""
PERSONAL = {
    "e-mail address": re.compile(r"\b[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b", re.ASCII),
    "public IPv4 address": re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)", re.ASCII),
}
CLASSES = {
    "letters a to z": "",
    "other letters": "LM",
    "digits": "N",
    "spaces": "",
    "line ends and tabs": "",
    "punctuation and symbols": "PS",
    "control and unassigned": "CZ",
}


class Statistics:
    """Counts over documents. What is only estimated beyond a size says so in the result."""

    def __init__(self) -> None:
        self.documents = self.bytes = self.words = self.line_count = self.analysed_bytes = 0
        self.sizes = array("q")
        self.characters: Counter[str] = Counter()
        self._ascii = np.zeros(256, dtype=np.int64)
        self.frequent_words, self.different_words = Frequent(), Distinct()
        self.lines, self.phrases = Frequent(), Frequent()
        self.personal = dict.fromkeys(PERSONAL, 0)
        self.personal_documents = 0
        self.growth: list[tuple[int, int]] = []
        """(words read, different words among them), about four points a factor of ten."""
        self._next_point = 100.0
        self._compressor, self._compressed = zlib.compressobj(6), 0

    def add_size(self, text: str) -> None:
        """Count a whole document."""
        size = len(text.encode())
        self.documents, self.bytes = self.documents + 1, self.bytes + size
        self.sizes.append(size)

    def add(self, text: str, words: list[str], word_hashes: np.ndarray) -> None:
        """Look at the text of a document; `words` are text.split(), `word_hashes` their numbers."""
        data = text.encode()
        self.analysed_bytes += len(data)
        self._compressed += len(self._compressor.compress(data))
        if text.isascii():  # the usual case, ten times as fast
            self._ascii += np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
        else:
            self.characters.update(text)
        self.words += len(words)
        if long := max(map(len, words), default=0) * PHRASE + PHRASE > COUNTED:
            words = [word[:COUNTED] for word in words]
        self.frequent_words.add(words)
        self.different_words.add(word_hashes)
        lines = [line for line in map(str.strip, text.splitlines()) if line]
        self.line_count += len(lines)
        self.lines.add(line[:COUNTED] for line in lines)
        self.phrases.add((phrase[:COUNTED] for phrase in _phrases(words)) if long else _phrases(words))
        if self.words >= self._next_point:
            self.growth.append((self.words, self.different_words.estimate()))
            while self._next_point <= self.words:
                self._next_point *= 10**0.25
        found = {kind: _personal(kind, text) for kind in PERSONAL}
        self.personal_documents += any(found.values())
        for kind, count in found.items():
            self.personal[kind] += count

    def result(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        compressed = self._compressed + len(self._compressor.copy().flush())
        self.characters.update({chr(byte): count for byte, count in enumerate(self._ascii.tolist()) if count})
        self._ascii[:] = 0
        return {
            "characters": sum(self.characters.values()),
            "words": self.words,
            "lines": self.line_count,
            "sizes": sizes(self.sizes),
            "compression": {
                "method": "zlib 6", "bytes": compressed, "ratio": self.analysed_bytes / max(1, compressed),
            },
            "character_classes": _classes(self.characters),
            "different_characters": len(self.characters),
            "personal": {"found": self.personal, "documents": self.personal_documents},
            "repeated": {"lines": _top(self.lines), f"phrases_of_{PHRASE}_words": _top(self.phrases)},
            "vocabulary": self._vocabulary(),
        }  # fmt: skip

    def _vocabulary(self) -> dict[str, Any]:
        """Zipf's law (frequency ∝ rank^-exponent) and Heaps's (different words ∝ words^exponent), fitted."""
        counts = np.sort(np.fromiter(self.frequent_words.counts.values(), dtype=np.int64))[::-1]
        ranks = np.unique(np.geomspace(1, max(1, len(counts)), 60).astype(np.int64))
        growth = [*self.growth, (self.words, self.different_words.estimate())] if self.words else []
        middle = ranks[(ranks >= 10) & (ranks <= 3000)]
        return {
            "different_words": self.different_words.estimate(),
            "zipf": {
                "ranks": ranks[: len(counts)].tolist(),
                "counts": counts[ranks[: len(counts)] - 1].tolist() if len(counts) else [],
                "exponent": _negative(_slope(middle, counts[middle - 1])) if len(counts) else None,
            },
            "heaps": {
                "words": [words for words, _ in growth],
                "different": [different for _, different in growth],
                "exponent": _slope(*zip(*growth, strict=True)) if growth else None,
            },
            "most_frequent": [{"word": word, "count": count} for word, count in self.frequent_words.top(20)],
            "count_error": self.frequent_words.error,
        }


def sizes(values: Any) -> dict[str, Any]:
    """Mean, quantiles and a histogram by powers of two of whole numbers."""
    numbers = np.asarray(values, dtype=np.int64)
    if not len(numbers):
        return {"mean": None, "quantiles": {}, "from": [], "documents": []}
    shares = {"least": 0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "most": 1}
    powers = np.floor(np.log2(np.maximum(numbers, 1))).astype(np.int64)
    return {
        "mean": float(numbers.mean()),
        "quantiles": {name: int(np.quantile(numbers, share, method="lower")) for name, share in shares.items()},
        "from": [1 << power for power in range(int(powers.max()) + 1)],
        "documents": np.bincount(powers).tolist(),
    }


def _phrases(words: list[str]) -> Iterator[str]:
    """Every run of PHRASE words."""
    return map(" ".join, zip(*(words[first:] for first in range(PHRASE)), strict=False))


def _classes(characters: Counter[str]) -> dict[str, float]:
    """Shares of the characters, by what kind they are (Unicode's general category)."""
    found = dict.fromkeys(CLASSES, 0)
    for character, count in characters.items():
        found[_class(character)] += count
    total = max(1, sum(found.values()))
    return {kind: count / total for kind, count in found.items()}


def _class(character: str) -> str:
    if character.isascii() and character.isalpha():
        return "letters a to z"
    category = unicodedata.category(character)
    if category == "Zs":
        return "spaces"
    if character in "\n\r\t\v\f\u2028\u2029\x85":
        return "line ends and tabs"
    return next(kind for kind, categories in CLASSES.items() if category[0] in categories)


def _personal(kind: str, text: str) -> int:
    if kind == "e-mail address":
        return len(PERSONAL[kind].findall(text)) if "@" in text else 0
    return sum(_public(address) for address in PERSONAL[kind].findall(text))


def _public(address: str) -> bool:
    """Whether it is an address at all, and not one of a local network, an example or a version number's size."""
    try:
        return ipaddress.IPv4Address(address).is_global
    except ValueError:
        return False


def _top(counted: Frequent) -> dict[str, Any]:
    """The 20 most repeated; a count may be too low by `count_error`."""
    rows = [{"text": text, "count": count} for text, count in counted.top(20) if count > 1]
    return {"most": rows, "count_error": counted.error}


def _slope(x: Any, y: Any) -> float | None:
    """Of log y against log x, by least squares; None of fewer than three points."""
    if len(x) < 3:
        return None
    return float(np.polyfit(np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float)), 1)[0])


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
