"""How much of an evaluation text is inside a corpus: runs of 13 plain words that both have (Brown et al. 2005.14165, C)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yupana.corpus import words as w
from yupana.corpus.sources import documents
from yupana.errors import UserError

RUN = 13
"""Words of a run, as GPT-3's authors chose; shorter ones are often idioms."""


class EvaluationText:
    """The runs of words of an evaluation text; read once, looked for in any number of sources."""

    def __init__(self, sources: Sequence[str | Path], text_field: str = "text"):
        self.names = [str(source) for source in sources]
        found = [np.zeros(0, dtype=np.uint64)]
        self.documents = 0
        for _, text in documents(self.names, text_field):
            found.append(w.ngrams(w.hashes(w.plain_words(text)), RUN))
            self.documents += 1
        self.runs = np.unique(np.concatenate(found))
        if not len(self.runs):
            raise UserError(f"{', '.join(self.names)} holds no run of {RUN} words: give a longer evaluation text")


class Contamination:
    """What of an evaluation text one source holds."""

    def __init__(self, evaluation: EvaluationText):
        self.evaluation = evaluation
        self.found = np.zeros(len(evaluation.runs), dtype=bool)
        self.documents = self.dirty = 0
        self.examples: list[dict[str, str]] = []

    def add(self, name: str, plain: list[str], word_hashes: np.ndarray) -> None:
        """Look into one document, given as its plain words and their numbers."""
        self.documents += 1
        runs = w.ngrams(word_hashes, RUN)
        places = np.minimum(np.searchsorted(self.evaluation.runs, runs), len(self.found) - 1)
        hits = self.evaluation.runs[places] == runs
        if not hits.any():
            return
        self.dirty += 1
        self.found[places[hits]] = True
        if len(self.examples) < 5:
            begin = int(np.argmax(hits))
            self.examples.append({"id": name, "run": " ".join(plain[begin : begin + RUN])})

    def result(self) -> dict[str, Any]:
        """Shares of the evaluation text's runs that were found, and of the documents that hold one."""
        return {
            "evaluation": self.evaluation.names,
            "words_a_run": RUN,
            "runs": len(self.found),
            "found": int(self.found.sum()),
            "share": float(self.found.mean()),
            "documents": self.dirty,
            "document_share": self.dirty / max(1, self.documents),
            "examples": self.examples,
        }
