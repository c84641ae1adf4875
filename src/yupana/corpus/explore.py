"""Looking into a source before training on it: one pass, bounded memory, the same answer every time.

Bytes, tokens and equal copies are counted over whole documents; everything else looks at the first LOOKED_AT
characters of each, so that one document of a gigabyte costs no more than a large one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import signal
import tempfile
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from yupana.corpus import quality, tokenizers
from yupana.corpus import words as w
from yupana.corpus.contamination import Contamination, EvaluationText
from yupana.corpus.duplicates import Duplicates
from yupana.corpus.encode import Encoder
from yupana.corpus.pieces import PIECE, pieces
from yupana.corpus.sources import Skipped, documents, total_bytes
from yupana.corpus.statistics import Statistics, sizes
from yupana.errors import UserError
from yupana.files import disk_errors

LOOKED_AT = 4 << 20
HUB_SAMPLE = 10_000
"""Documents of a hub dataset that are looked at unless --sample says otherwise."""
BPE_BYTES = 32 << 20
"""A bpe:VOCAB is trained on so much of the sources, an equal part of each."""

Progress = Callable[[str, float], None]


def explore(
    sources: Sequence[str | Path],
    tokenizer_names: Sequence[str] = ("bytes",),
    sample: int | None = None,
    evaluation: Sequence[str | Path] = (),
    text_field: str = "text",
    similarity: float = 0.8,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What is in each of `sources`, as one object that JSON can hold.

    `sample`: the first so many documents of each source (default: all of a local one, HUB_SAMPLE of a hub's).
    `evaluation`: texts to look for in the sources. `similarity`: Jaccard similarity from which two documents are near
    copies. `progress(what, share)` is called as it goes. Ctrl-C ends the reading, not the answer: it is then about
    what was read, and `complete` is false.

    The result has documents, tokens (under the first tokenizer), bytes, skipped {reason: documents}, complete, and
    `sources`, a list with everything about each. Raises UserError for a source or tokenizer that cannot be read.
    """
    names = [str(source) for source in sources]
    if not names:
        raise UserError("name at least one source: a file, a folder, 'python', or hf:NAME")
    if sample is not None and sample < 1:
        raise UserError(f"--sample must be at least 1, got {sample}")
    if not 0 < similarity <= 1:
        raise UserError(f"--similarity must be above 0 and at most 1, got {similarity:g}")
    for name in tokenizer_names:
        tokenizers.identity(name)
    held_out = EvaluationText(evaluation, text_field) if evaluation else None
    made = {name: tokenizers.load(name, _training_texts(names, text_field)) for name in tokenizer_names}
    found: list[dict[str, Any]] = []
    with disk_errors(f"to {tempfile.gettempdir()}"), contextlib.ExitStack() as threads:
        encoders = {name: threads.enter_context(Encoder(name, made[name], np.dtype("<u4"))) for name in made}
        for number, name in enumerate(names):

            def told(share: float, number: int = number, name: str = name) -> None:
                if progress:
                    progress(name, (number + share) / len(names))

            with Duplicates(similarity) as duplicates:
                found.append(_Look(name, encoders, duplicates, held_out).at(sample, text_field, told))
            if not found[-1]["complete"]:
                break
    return _together(found)


def default_tokenizer() -> str:
    """llama3 where its package is installed, else bytes."""
    return "llama3" if importlib.util.find_spec("llama_models") else "bytes"


class _Look:
    """Everything that is counted while one source is read."""

    def __init__(
        self, source: str, encoders: dict[str, Encoder], duplicates: Duplicates, evaluation: EvaluationText | None
    ):
        self.source, self.duplicates, self.skipped = source, duplicates, Skipped()
        self.statistics = Statistics()
        self.tokens = {name: _Tokens(encoder) for name, encoder in encoders.items()}
        self.dropped = {rule: _Dropped(rule) for rule in quality.RULES}
        self.families: Counter[str] = Counter()
        self.c4_lines: Counter[str] = Counter()
        self.contamination = Contamination(evaluation) if evaluation else None
        self.languages = _Languages()
        self.in_part = 0

    def at(self, sample: int | None, text_field: str, told: Callable[[float], None]) -> dict[str, Any]:
        """Read the source and describe it."""
        if sample is None and self.source.startswith("hf:"):
            sample = HUB_SAMPLE
        whole = total_bytes(self.source) if sample is None else None
        with _stop_between_documents() as stopped:
            for name, text in itertools.islice(documents([self.source], text_field, self.skipped), sample):
                self._add(name, text)
                read = self.statistics.documents / sample if sample else self.statistics.bytes / (whole or 1 << 62)
                told(min(1.0, read))
                if stopped:
                    break
        for tokens in self.tokens.values():
            tokens.finish()
        return self._result(not stopped, sample)

    def _add(self, name: str, text: str) -> None:
        self.statistics.add_size(text)
        for tokens in self.tokens.values():
            tokens.add(text)
        part = text[:LOOKED_AT]
        self.in_part += len(part) < len(text)
        words, plain = part.split(), w.plain_words(part)
        numbers, plain_numbers = w.hashes(words), w.hashes(plain)
        self.statistics.add(part, words, numbers)
        self.duplicates.add(name, text, plain_numbers)
        self.languages.add(part)
        if self.contamination:
            self.contamination.add(name, plain, plain_numbers)
        lines, sentences = quality.c4_lines(part)
        self.c4_lines.update(lines)
        self._judge(name, part, quality.measures(part, words, numbers, sentences))

    def _judge(self, name: str, text: str, measured: dict[str, float]) -> None:
        families = set()
        for rule, dropped in self.dropped.items():
            if rule.drops(measured):
                dropped.add(name, text, measured[rule.measure])
                families.add(rule.family)
        self.families.update(families)
        self.families["any"] += bool(families)

    def _result(self, complete: bool, sample: int | None) -> dict[str, Any]:
        statistics, number = self.statistics, max(1, self.statistics.documents)
        described = statistics.result()
        tokens = [
            {"name": name, **counted.result(statistics.bytes, described["words"])}
            for name, counted in self.tokens.items()
        ]
        lines = sum(self.c4_lines.values())
        return {
            "source": self.source,
            "complete": complete,
            "sample": sample,
            "documents": statistics.documents,
            "tokens": tokens[0]["tokens"] if tokens else None,
            "bytes": statistics.bytes,
            "skipped": self.skipped.counts,
            "skipped_first": self.skipped.first,
            "looked_at_in_part": self.in_part,
            "tokenizers": tokens,
            **described,
            "languages": self.languages.result(),
            "duplicates": self.duplicates.result(),
            "quality": {
                "rules": [dropped.result(number) for dropped in self.dropped.values()],
                "dropped_by": {
                    family: self.families[family] / number
                    for family in (*dict.fromkeys(rule.family for rule in quality.RULES), "any")
                },
                "c4_lines": {reason: count / max(1, lines) for reason, count in sorted(self.c4_lines.items())},
            },
            "contamination": self.contamination.result() if self.contamination else None,
        }


class _Dropped:
    """The documents that one rule would drop."""

    def __init__(self, rule: quality.Rule):
        self.rule, self.documents = rule, 0
        self.examples: list[dict[str, Any]] = []

    def add(self, name: str, text: str, value: float) -> None:
        self.documents += 1
        if len(self.examples) < 3:
            self.examples.append({"id": name, "value": value, "excerpt": text[:160]})

    def result(self, documents: int) -> dict[str, Any]:
        rule = self.rule
        return {
            "family": rule.family,
            "measure": rule.measure,
            "rule": rule.told,
            "documents": self.documents,
            "share": self.documents / documents,
            "examples": self.examples,
        }


class _Tokens:
    """Tokens under one tokenizer, without those that begin and end a document; counted while the next text is looked at."""

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        self.tokens = 0
        self.used = np.zeros(encoder.tokenizer.get_vocab_size(), dtype=bool)
        self.of_document = array("q")
        self._waiting: list[str] = []
        self._owners: list[int] = []
        self._size = 0
        self._coming: tuple[list[int], Future[list[np.ndarray]] | None] = [], None

    def add(self, text: str) -> None:
        self.of_document.append(0)
        for piece in pieces(text):
            self._waiting.append(piece)
            self._owners.append(len(self.of_document) - 1)
            self._size += len(piece)
            if self._size >= PIECE:
                self.flush()

    def finish(self) -> None:
        """Count what still waits."""
        self.flush()
        self.flush()

    def flush(self) -> None:
        """Count what was sent out before, and send out what waits."""
        owners, coming = self._coming
        for owner, ids in zip(owners, coming.result() if coming else (), strict=True):
            self.tokens += len(ids)
            self.of_document[owner] += len(ids)
            self.used[ids] = True
        self._coming = self._owners, self.encoder.ahead(self._waiting) if self._waiting else None
        self._waiting, self._owners, self._size = [], [], 0

    def result(self, text_bytes: int, words: int) -> dict[str, Any]:
        """Bytes a token, tokens a word (fertility), and the share of the vocabulary that was used."""
        return {
            "tokens": self.tokens,
            "bytes_per_token": text_bytes / self.tokens if self.tokens else None,
            "tokens_per_word": self.tokens / words if words else None,
            "vocab_size": len(self.used),
            "vocabulary_used": int(self.used.sum()),
            "vocabulary_share": float(self.used.mean()),
            "sizes": sizes(self.of_document),
        }


class _Languages:
    """Languages by py3langid, which works offline; nothing where it is not installed."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        try:
            from py3langid import classify
        except ImportError:
            classify = None
        self.classify = classify

    def add(self, text: str) -> None:
        if self.classify:
            self.counts[self.classify(text[:2000])[0]] += 1

    def result(self) -> dict[str, float] | None:
        """Shares of the documents by ISO 639-1 code, the most frequent first."""
        total = sum(self.counts.values())
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return {code: count / total for code, count in ordered} if self.classify else None


@contextlib.contextmanager
def _stop_between_documents() -> Iterator[list[int]]:
    """A list that the first Ctrl-C puts something into; the second one stops at once."""
    stopped: list[int] = []

    def note(number: int, frame: Any) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)

    if threading.current_thread() is not threading.main_thread():  # only there can a signal be caught
        yield stopped
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _training_texts(names: list[str], text_field: str) -> Iterator[str]:
    """The beginning of each source."""
    for name in names:
        taken = 0
        for _, text in documents([name], text_field):
            yield from pieces(text[: BPE_BYTES // len(names)])
            taken += len(text)
            if taken >= BPE_BYTES // len(names):
                break


def _together(found: list[dict[str, Any]]) -> dict[str, Any]:
    skipped: Counter[str] = Counter()
    for source in found:
        skipped.update(source["skipped"])
    return {
        "documents": sum(source["documents"] for source in found),
        "tokens": sum(source["tokens"] or 0 for source in found),
        "bytes": sum(source["bytes"] for source in found),
        "skipped": dict(sorted(skipped.items())),
        "complete": all(source["complete"] for source in found),
        "sources": found,
    }
