"""Copies: texts that are equal, and texts that share most of their 5-word runs, found by MinHash and then checked.

A text is the set of its runs of five plain words. Two texts are near copies when the Jaccard similarity of their sets
(what they share of what either has) is at least a threshold. 128 minimum hashes in 32 bands of 4 propose pairs
(Broder 1997; Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, section 3.4): one of similarity s is proposed
with probability 1 - (1 - s^4)^32, which is 0.9999999 at 0.8. Every proposed pair is then compared exactly, so that
nothing below the threshold is reported. The sets wait in a temporary file.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from typing import Any

import numpy as np

from yupana.corpus import words as w

SHINGLE = 5
BANDS, ROWS = 32, 4
NEAR_LIMIT = 400_000
"""Texts that are compared for nearness, at 512 bytes of memory each; later ones are only looked at for equality."""
EARLIER = 16
"""A text is compared with so many earlier ones of a bucket, so that a bucket of thousands stays cheap."""
EXCERPT = 160

_RANDOM = np.random.default_rng(0x59_55_50_41_4E_41)
_FACTORS = _RANDOM.integers(0, 1 << 63, BANDS * ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_SHIFTS = _RANDOM.integers(0, 1 << 63, BANDS * ROWS, dtype=np.uint64)


class Duplicates:
    """The copies among the texts added. Use as a context manager: the temporary file goes away with it."""

    def __init__(self, threshold: float = 0.8, limit: int = NEAR_LIMIT):
        self.threshold, self.limit = threshold, limit
        self.seen: dict[bytes, int] = {}
        """What tells a text from others, and how many copies of it there were."""
        self.documents = self.exact_bytes = self.compared = 0
        self.copies: list[dict[str, str]] = []
        self._signatures: list[np.ndarray] = []
        self._sets = tempfile.TemporaryFile()  # noqa: SIM115 - both held until __exit__
        self._names = tempfile.TemporaryFile()  # noqa: SIM115
        self._set_ends, self._name_ends = [0], [0]
        self._first: dict[bytes, int] = {}

    def __enter__(self) -> Duplicates:
        return self

    def __exit__(self, *_: object) -> None:
        self._sets.close()
        self._names.close()

    def add(self, name: str, text: str, word_hashes: np.ndarray) -> None:
        """One more text; `word_hashes` are the numbers of its plain words (words.plain_words)."""
        self.documents += 1
        key = hashlib.blake2b(text.encode(), digest_size=8).digest()
        if key in self.seen:
            self.seen[key] += 1
            self.exact_bytes += len(text.encode())
            if len(self.copies) < 5 and key in self._first:
                self.copies.append({**self._describe(self._first.pop(key)), "copy": name})
            return
        self.seen[key] = 1
        shingles = shingle_set(word_hashes)
        if len(shingles) and self.compared < self.limit:
            self._signatures.append(signature(shingles))
            self._set_ends.append(self._set_ends[-1] + self._sets.write(shingles.tobytes()))
            self._name_ends.append(
                self._name_ends[-1] + self._names.write(json.dumps([name, text[:EXCERPT]]).encode())
            )
            if len(self._first) < 10_000:
                self._first[key] = self.compared
            self.compared += 1

    def result(self) -> dict[str, Any]:
        """How many documents and bytes keeping one of each would remove, and examples."""
        clusters, examples = self.near()
        sizes = sorted((len(cluster) for cluster in clusters), reverse=True)
        exact = self.documents - len(self.seen)
        return {
            "exact": {
                "documents": exact,
                "share": exact / max(1, self.documents),
                "bytes": self.exact_bytes,
                "most_copies": max(self.seen.values(), default=0),
                "examples": self.copies,
            },
            "near": {
                "threshold": self.threshold,
                "compared": self.compared,
                "documents": sum(sizes) - len(sizes),
                "share": (sum(sizes) - len(sizes)) / max(1, self.documents),
                "clusters": len(sizes),
                "largest_cluster": max(sizes, default=0),
                "recall_at_threshold": 1 - (1 - self.threshold**ROWS) ** BANDS,
                "examples": examples,
            },
        }

    def near(self) -> tuple[list[list[int]], list[dict[str, Any]]]:
        """Groups of near copies, and for the five pairs found first where they lie and how they begin."""
        parent = list(range(self.compared))
        refused: set[tuple[int, int]] = set()
        examples: list[dict[str, Any]] = []
        self._sets.flush()
        for later, earlier in self._proposed():
            if _root(parent, later) == _root(parent, earlier) or (later, earlier) in refused:
                continue
            similarity = jaccard(self._set(later), self._set(earlier))
            if similarity < self.threshold:
                refused.add((later, earlier))
                continue
            parent[_root(parent, later)] = _root(parent, earlier)
            if len(examples) < 5:
                one, other = self._describe(earlier), self._describe(later)
                examples.append({"similarity": similarity, "first": one, "second": other})
        groups: dict[int, list[int]] = {}
        for number in range(self.compared):
            groups.setdefault(_root(parent, number), []).append(number)
        return [group for group in groups.values() if len(group) > 1], examples

    def _proposed(self) -> Any:
        """(later, earlier) numbers of texts that agree in a whole band."""
        if not self._signatures:
            return
        all_rows = np.stack(self._signatures)
        for band in range(BANDS):
            keys = np.zeros(len(all_rows), dtype=np.uint64)
            for row in range(band * ROWS, (band + 1) * ROWS):
                keys = w.mix(keys * np.uint64(0x9E3779B97F4A7C15) + all_rows[:, row].astype(np.uint64))
            order = np.argsort(keys, kind="stable")
            cuts = np.flatnonzero(np.diff(keys[order])) + 1
            for begin, end in itertools.pairwise([0, *cuts.tolist(), len(order)]):
                if end - begin > 1:
                    bucket = order[begin:end].tolist()
                    for place, later in enumerate(bucket[1:], start=1):
                        yield from ((later, earlier) for earlier in bucket[max(0, place - EARLIER) : place])

    def _set(self, number: int) -> np.ndarray:
        begin, end = self._set_ends[number : number + 2]
        self._sets.seek(begin)
        return np.frombuffer(self._sets.read(end - begin), dtype=np.uint32)

    def _describe(self, number: int) -> dict[str, str]:
        begin, end = self._name_ends[number : number + 2]
        self._names.seek(begin)
        name, excerpt = json.loads(self._names.read(end - begin))
        self._names.seek(0, 2)
        return {"id": name, "excerpt": excerpt}


def shingle_set(word_hashes: np.ndarray) -> np.ndarray:
    """The different runs of SHINGLE words, sorted, uint32 [runs]; of a shorter text the one run that it is."""
    runs = w.ngrams(word_hashes, min(SHINGLE, len(word_hashes))) if len(word_hashes) else word_hashes
    return np.unique((runs >> np.uint64(32)).astype(np.uint32))


def signature(shingles: np.ndarray) -> np.ndarray:
    """The least of each of the 128 hashes, uint32 [128] (multiply-shift hashing, Dietzfelbinger et al. 1997)."""
    least = np.full(BANDS * ROWS, 0xFFFFFFFF, dtype=np.uint64)
    for begin in range(0, len(shingles), 4096):
        some = shingles[begin : begin + 4096].astype(np.uint64)[:, None]
        least = np.minimum(least, ((some * _FACTORS + _SHIFTS) >> np.uint64(32)).min(axis=0))
    return least.astype(np.uint32)


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """|one ∩ other| / |one ∪ other| of two sorted sets."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number
