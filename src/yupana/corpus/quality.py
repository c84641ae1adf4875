"""The rules by which Gopher, C4 and FineWeb keep or drop a document, as data: a measure and its bounds.

Sources: Rae et al. 2112.11446, appendix A1.1 (Gopher: quality, and repetition in table A1); Raffel et al. 1910.10683,
section 2.2 (C4; bounds as in its code, tensorflow_datasets/text/c4_utils.py); Penedo et al. 2406.17557, section 3.4
(FineWeb). The papers leave details open; here words are what white space separates, lines and paragraphs are
those that are not blank, and a share of characters is of the characters of words or lines, white space left out. C4's
list of bad words is not shipped, and its sentences are counted by their end marks, not by NLTK.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from yupana.corpus import words as w

STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
END_MARKS = (".", "?", "!", '"')
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
PUNCTUATION = (".", "!", "?", "…", "。", "！", "？", "؟", "।")
"""Ends of sentences, other scripts' too."""
_SENTENCE = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)")
_PARAGRAPH = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Rule:
    """Drop a document of which the measure is below `low` or above `high`."""

    family: str
    measure: str
    told: str
    low: float = float("-inf")
    high: float = float("inf")

    def drops(self, measured: dict[str, float]) -> bool:
        """Whether a document of those measures is dropped."""
        return not self.low <= measured[self.measure] <= self.high


RULES = (
    Rule("gopher", "words", "50 to 100 000 words", 50, 100_000),
    Rule("gopher", "mean_word_length", "mean word of 3 to 10 characters", 3, 10),
    Rule("gopher", "hashes_per_word", "at most 0.1 '#' a word", high=0.1),
    Rule("gopher", "ellipses_per_word", "at most 0.1 '…' a word", high=0.1),
    Rule("gopher", "bullet_lines", "at most 90 % of lines begin with a bullet", high=0.9),
    Rule("gopher", "ellipsis_lines", "at most 30 % of lines end in '…'", high=0.3),
    Rule("gopher", "words_with_letters", "at least 80 % of words have a letter", low=0.8),
    Rule("gopher", "stop_words", "at least 2 of: the be to of and that have with", low=2),
    Rule("repetition", "repeated_lines", "at most 30 % of lines are repeats", high=0.3),
    Rule("repetition", "repeated_paragraphs", "at most 30 % of paragraphs are repeats", high=0.3),
    Rule("repetition", "repeated_line_characters", "at most 20 % of characters in repeated lines", high=0.2),
    Rule("repetition", "repeated_paragraph_characters", "at most 20 % of characters in repeated paragraphs", high=0.2),
    *(
        Rule("repetition", f"top_{n}gram", f"at most {high} % of characters in the top {n}-gram", high=high / 100)
        for n, high in ((2, 20), (3, 18), (4, 16))
    ),
    *(
        Rule("repetition", f"repeated_{n}grams", f"at most {high} % of characters in repeated {n}-grams", high=high / 100)
        for n, high in ((5, 15), (6, 14), (7, 13), (8, 12), (9, 11), (10, 10))
    ),
    Rule("c4", "sentences", "at least 3 sentences in the lines that C4 keeps", low=3),
    Rule("c4", "curly_brackets", "no curly bracket", high=0),
    Rule("c4", "lorem_ipsum", "no 'lorem ipsum'", high=0),
    Rule("fineweb", "punctuated_lines", "at least 12 % of lines end in punctuation", low=0.12),
    Rule("fineweb", "repeated_line_characters", "at most 10 % of characters in repeated lines", high=0.1),
    Rule("fineweb", "short_lines", "at most 67 % of lines under 30 characters", high=0.67),
)
"""Repetition is Gopher's too; a family of its own, because it drops other documents."""


def measures(text: str, words: list[str], word_hashes: np.ndarray, sentences: int) -> dict[str, float]:
    """Everything that RULES look at.

    `words` are text.split(), `word_hashes` their numbers (words.hashes), `sentences` those of the lines that C4 keeps.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    return {
        **_wording(text, words, lines),
        **_repeated(text, lines),
        **_repeated_ngrams(words, word_hashes),
        "sentences": sentences,
        "curly_brackets": text.count("{"),
        "lorem_ipsum": text.lower().count("lorem ipsum"),
    }


def c4_line(line: str) -> str | None:
    """Why C4 drops a line; None where it keeps it."""
    line = line.strip()
    words = line.split()
    if any(len(word) > 1000 for word in words):
        return "a word over 1 000 characters"
    if not line.endswith(END_MARKS) or line.endswith("..."):
        return "no end mark"
    if len(words) < 5:
        return "under 5 words"
    lower = line.lower()
    if "javascript" in lower:
        return "'javascript'"
    return "terms of use, cookies" if any(phrase in lower for phrase in POLICY) else None


def c4_lines(text: str) -> tuple[Counter[str], int]:
    """How many lines C4 keeps ("kept") and drops for each reason; the sentences in the kept ones."""
    reasons: Counter[str] = Counter()
    sentences = 0
    for line in text.splitlines():
        if line.strip():
            reason = c4_line(line)
            reasons[reason or "kept"] += 1
            sentences += len(_SENTENCE.findall(line)) if reason is None else 0
    return reasons, sentences


def _wording(text: str, words: list[str], lines: list[str]) -> dict[str, float]:
    n_words, n_lines = max(1, len(words)), max(1, len(lines))
    stripped = [line.strip() for line in lines]
    return {
        "words": len(words),
        "mean_word_length": sum(map(len, words)) / n_words,
        "hashes_per_word": text.count("#") / n_words,
        "ellipses_per_word": (text.count("...") + text.count("…")) / n_words,
        "bullet_lines": sum(line.startswith(("•", "-", "*")) for line in stripped) / n_lines,
        "ellipsis_lines": sum(line.endswith(("...", "…")) for line in stripped) / n_lines,
        "words_with_letters": sum(word.isalpha() or any(map(str.isalpha, word)) for word in words) / n_words,
        "stop_words": len(STOP_WORDS.intersection(map(str.lower, words))),
        "punctuated_lines": sum(line.endswith(PUNCTUATION) for line in stripped) / n_lines,
        "short_lines": sum(len(line) < 30 for line in lines) / n_lines,
    }


def _repeated(text: str, lines: list[str]) -> dict[str, float]:
    """Shares of lines and paragraphs that came before, and of the characters in them."""
    lines = [line.strip() for line in lines]
    paragraphs = [part.strip() for part in _PARAGRAPH.split(text) if part.strip()]
    found: dict[str, float] = {}
    for kind, parts in (("line", lines), ("paragraph", paragraphs)):
        different = set(parts)
        characters = sum(map(len, parts))
        found[f"repeated_{kind}s"] = 1 - len(different) / len(parts) if parts else 0.0
        found[f"repeated_{kind}_characters"] = 1 - sum(map(len, different)) / characters if characters else 0.0
    return found


def _repeated_ngrams(words: list[str], word_hashes: np.ndarray) -> dict[str, float]:
    """Shares of the characters of words: in the n-gram that is repeated most, and in all that occur more than once.

    A character in several overlapping n-grams counts once; an n-gram that occurs once is no repetition.
    """
    lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
    total = max(1, int(lengths.sum()))
    found = {}
    starts, grams = np.arange(len(words)), w.ngrams(word_hashes, 1)
    for n in range(2, 11):
        fits = starts <= len(words) - n
        starts = starts[fits]
        grams = w.longer(grams[fits], word_hashes[starts + n - 1])
        _, first, inverse, counts = np.unique(grams, return_index=True, return_inverse=True, return_counts=True)
        again = repeated = counts > 1
        if n <= 4 and repeated.any():  # of the most frequent ones, the one that comes first
            most = np.flatnonzero(counts == counts.max())
            repeated = np.arange(len(counts)) == most[np.argmin(first[most])]
        begins = starts[repeated[inverse]]
        covered = np.zeros(len(words), dtype=bool)
        for place in range(n):
            covered[begins + place] = True
        found[f"top_{n}gram" if n <= 4 else f"repeated_{n}grams"] = int(lengths[covered].sum()) / total
        starts, grams = starts[again[inverse]], grams[again[inverse]]  # only these can be repeated with a word more
    return found
