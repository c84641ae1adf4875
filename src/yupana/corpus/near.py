"""Near-duplicates taken out of a folder of JSON lines: datatrove's MinHash proposes pairs, which are then compared.

Five passes, each a pipeline in tasks: signatures of all documents, pairs that agree in a whole band, those pairs compared
exactly, groups of what is alike, and all but one of each group taken out.
"""

from __future__ import annotations

import functools
import itertools
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from yupana.corpus import words as w
from yupana.corpus.duplicates import jaccard, shingle_set

THRESHOLD = 0.8
"""Jaccard similarity of the sets of runs of five words from which two documents are near-duplicates."""
BANDS, ROWS = 28, 10
"""A pair of similarity s is proposed with probability 1 - (1 - s^10)^28: 0.958 at 0.8, 0.998 at 0.85."""
_PAIR = "<4I"
"""Of datatrove's files of pairs: file and document of the one, file and document of the other."""

Run = Callable[[str, list[Any], int], None]
"""(name of the pass, its steps, its tasks)"""


def deduplicate(kept: Path, work: Path, tasks: int, removed: Any, run: Run) -> Path:
    """Write what is unique of the folder `kept` to work/unique; `removed` writes down what went, `run` runs a pass."""
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers.jsonl import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.text import TextNormConfig

    hashing = HashConfig(precision=64, hash_fc="sha1")  # from the standard library: the same for ever
    as_is = TextNormConfig(norm_numbers=False, norm_unicode_diacritics=False)  # tables of other figures are other tables
    config = MinhashConfig(n_grams=5, num_buckets=BANDS, hashes_per_bucket=ROWS, norm_config=as_is, hash_config=hashing)
    signatures, pairs, alike, groups = (str(work / name) for name in ("signatures", "pairs", "alike", "groups"))
    read = functools.partial(JsonlReader, str(kept), compression=None)
    run("signatures", [read(), MinhashDedupSignature(signatures, config, language=plain_words())], tasks)
    run("pairs", [MinhashDedupBuckets(signatures, pairs, config=config)], BANDS)
    run("alike", [_comparison(kept, Path(pairs), Path(alike))], BANDS)
    run("groups", [MinhashDedupCluster(alike, groups, config)], 1)
    unique = work / "unique"
    run("unique", [read(), MinhashDedupFilter(groups, removed), JsonlWriter(str(unique), compression=None)], tasks)
    return unique


def _comparison(kept: Path, pairs: Path, alike: Path) -> Any:
    from datatrove.pipeline.base import PipelineStep

    class Compare(PipelineStep):
        """Keeps the proposed pairs whose sets of runs are alike; a task has a part of them, by the later document."""

        type, name = "🫂 - DEDUP", "exact comparison"

        def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
            """Write the pairs of task `rank` that are alike, in datatrove's format."""
            found = sorted({pair for pair in proposed(pairs) if (pair[2] * 31 + pair[3]) % world_size == rank})
            texts = Texts(kept)
            alike.mkdir(parents=True, exist_ok=True)
            with open(alike / f"{rank:05d}_00.dups", "wb") as file:
                for one, other in ((pair[:2], pair[2:]) for pair in found):
                    if jaccard(texts.runs(*one), texts.runs(*other)) >= THRESHOLD:
                        file.write(struct.pack(_PAIR, *one, *other))

    return Compare()


def proposed(pairs: Path) -> Iterator[tuple[int, ...]]:
    """The pairs of all bands; a pair comes once for each band that it agrees in."""
    for path in sorted(pairs.glob("*.dups")):
        yield from struct.iter_unpack(_PAIR, path.read_bytes())


class Texts:
    """Documents of a folder of JSON lines by (file, line), as sets of runs of five words."""

    def __init__(self, folder: Path):
        self.files = [open(path, "rb") for path in sorted(folder.glob("*.jsonl"))]  # noqa: SIM115 - live with the task
        self.starts = [np.array([0, *itertools.accumulate(map(len, file))], dtype=np.int64) for file in self.files]
        self.runs = functools.lru_cache(maxsize=10_000)(self._runs)

    def _runs(self, file: int, line: int) -> np.ndarray:
        import json

        begin, end = self.starts[file][line : line + 2].tolist()
        self.files[file].seek(begin)
        text = json.loads(self.files[file].read(end - begin))["text"]
        return shingle_set(w.hashes(w.plain_words(text)))


def plain_words() -> Any:
    """The words that copies are compared by: those of exploring, so that no model of a language is needed."""
    from datatrove.utils.word_tokenizers import WordTokenizer

    class PlainWords(WordTokenizer):
        """Runs of letters and digits, in lower case."""

        def word_tokenize(self, text: str) -> list[str]:
            """The words of a text."""
            return w.plain_words(text)

        def sent_tokenize(self, text: str) -> list[str]:
            """MinHash asks for words alone."""
            raise NotImplementedError

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            """MinHash asks for words alone."""
            raise NotImplementedError

    return PlainWords()
