"""What packing documents into sequences of equal length costs: padding, documents cut, tokens lost or read twice.

stream    documents one after the other, cut wherever a sequence ends (what yupana trains on; attention may be kept
          inside a document, which changes none of these figures)
best-fit  documents longer than a sequence are cut into whole sequences; what remains and all shorter ones are packed,
          longest first, each into the fullest sequence that still has room (Ding et al. 2404.10830, section 3)
windows   each document on its own in windows that overlap, and the rest that fills no window dropped
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from yupana.errors import UserError


@dataclass(frozen=True)
class Packed:
    """The costs of one way of packing."""

    method: str
    sequences: int
    padding: float
    """Share of the positions that hold no token."""
    cut: float
    """Share of the documents that do not lie in one sequence as a whole."""
    needlessly_cut: float
    """Share of the documents that are cut although they would fit into a sequence."""
    lost: float
    """Share of the tokens that are in no sequence."""
    twice: float
    """Tokens that are in a second sequence as well, as a share of all tokens."""


def compare(lengths: Sequence[int] | np.ndarray, seq_len: int, overlap: int | None = None) -> list[dict[str, Any]]:
    """The costs of each way for documents of those lengths, in tokens. `overlap` of windows: an eighth unless given.

    Raises UserError for no documents and for an overlap that leaves no step.
    """
    of = np.asarray(lengths, dtype=np.int64)
    overlap = seq_len // 8 if overlap is None else overlap
    if not len(of) or of.min() < 1 or seq_len < 1:
        raise UserError("packing needs documents of at least one token and a seq_len of at least 1")
    if not 0 <= overlap < seq_len:
        raise UserError(f"the overlap must be at least 0 and below seq_len ({seq_len}), got {overlap}")
    return [asdict(packed) for packed in (stream(of, seq_len), best_fit(of, seq_len), windows(of, seq_len, overlap))]


def stream(lengths: np.ndarray, seq_len: int) -> Packed:
    """One after the other; only the last sequence is padded."""
    total = int(lengths.sum())
    ends = np.cumsum(lengths)
    cut = (ends - lengths) // seq_len != (ends - 1) // seq_len
    sequences = -(-total // seq_len)
    needless = (cut & (lengths <= seq_len)).mean()
    return Packed("stream", sequences, 1 - total / (sequences * seq_len), float(cut.mean()), float(needless), 0.0, 0.0)


def best_fit(lengths: np.ndarray, seq_len: int) -> Packed:
    """Best-fit decreasing; cuts only documents that fit into no sequence."""
    whole = int((lengths // seq_len).sum())
    rest = lengths % seq_len
    sequences = whole + len(pack(rest[rest > 0], seq_len))
    cut = float((lengths > seq_len).mean())
    return Packed("best-fit", sequences, 1 - int(lengths.sum()) / (sequences * seq_len), cut, 0.0, 0.0, 0.0)


def pack(lengths: np.ndarray, seq_len: int) -> list[list[int]]:
    """Which pieces, by number, share a sequence: longest first, each where the least room is left that suffices."""
    packed: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(seq_len + 1)]
    rooms = 0  # bit r: some sequence has room for r more
    for number in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[number])
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            place = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, place = seq_len, len(packed)
            packed.append([])
        packed[place].append(number)
        by_room[room - length].append(place)
        rooms |= 1 << (room - length)
    return packed


def windows(lengths: np.ndarray, seq_len: int, overlap: int) -> Packed:
    """Whole windows of each document, the step from one to the next being seq_len - overlap."""
    count = np.where(lengths >= seq_len, (lengths - seq_len) // (seq_len - overlap) + 1, 0)
    kept = np.where(count > 0, seq_len + (count - 1) * (seq_len - overlap), 0)
    total = int(lengths.sum())
    return Packed(
        f"windows, {overlap} overlapping",
        int(count.sum()),
        0.0,
        float(((count != 1) | (kept < lengths)).mean()),
        float(((lengths <= seq_len) & (kept < lengths)).mean()),
        1 - int(kept.sum()) / total,
        int((np.maximum(count - 1, 0) * overlap).sum()) / total,
    )
