"""Token shards: a prepared corpus as a folder, made once, memory-mapped ever after.

    corpus.json        source, tokenizer, splits, what was skipped, size and sha256 of every shard
    tokenizer.json     the tokenizer
    token_bytes.bin    uint16: bytes of text that each token stands for
    train-00000.bin    tokens, little-endian uint16 (uint32 for vocabularies above 65 536)
    train-00000.idx    uint64: where each document begins in the shard, and where the last one ends
    val-00000.bin …    the held-out documents

A document is stored as <|begin_of_text|>, its tokens, <|end_of_text|>.
"""

from __future__ import annotations

import bisect
import itertools
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from yupana.corpus.prepare import FORMAT
from yupana.errors import UserError
from yupana.files import sha256_of


@dataclass(frozen=True)
class Corpus:
    """An opened corpus. Equal when its content is."""

    path: Path = field(compare=False)
    info: dict[str, Any] = field(compare=False, repr=False)
    hash: str

    @property
    def tokenizer_hash(self) -> str:
        """SHA-256 of tokenizer.json."""
        return self.info["tokenizer"]["hash"]

    @property
    def vocab_size(self) -> int:
        """Tokens in the tokenizer's vocabulary."""
        return self.info["tokenizer"]["vocab_size"]

    @property
    def bos_id(self) -> int:
        """The token before each document."""
        return self.info["tokenizer"]["bos_id"]

    @property
    def eos_id(self) -> int:
        """The token after each document."""
        return self.info["tokenizer"]["eos_id"]

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer's tokenizer.json."""
        return self.path / "tokenizer.json"

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """Bytes of text that each token stands for, [vocab]."""
        return np.fromfile(self.path / "token_bytes.bin", dtype="<u2")

    def split(self, name: str) -> TokenStream:
        """ "train" or "val" as one long stream of tokens."""
        return TokenStream(self.path, self.info["splits"][name]["shards"], np.dtype(self.info["dtype"]).newbyteorder("<"))


class TokenStream:
    """All shards of a split as one logical array of tokens; nothing is read before it is asked for."""

    def __init__(self, folder: Path, shards: list[dict[str, Any]], dtype: np.dtype) -> None:
        self.folder = folder
        # As plain arrays and a list: a memmap's own slicing and numpy's search cost more than a short read.
        self.shards = [np.asarray(np.memmap(folder / s["file"], dtype=dtype, mode="r")) for s in shards]
        self.ends: list[int] = list(itertools.accumulate(s["tokens"] for s in shards))
        begins = [np.fromfile(folder / s["index"], dtype="<u8").astype(np.int64)[:-1] for s in shards]
        self.starts = np.concatenate(
            [index + end - s["tokens"] for index, end, s in zip(begins, self.ends, shards, strict=True)]
            or [np.zeros(0, dtype=np.int64)]
        )
        self.n_tokens: int = self.ends[-1] if shards else 0
        self.n_documents = len(self.starts)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) as int64."""
        parts: list[np.ndarray] = []
        shard = bisect.bisect_right(self.ends, start)
        while start < stop:
            first = self.ends[shard] - len(self.shards[shard])
            end = min(stop, self.ends[shard])
            if not parts and end == stop:
                return self.shards[shard][start - first : end - first].astype(np.int64)
            parts.append(self.shards[shard][start - first : end - first])
            start, shard = end, shard + 1
        return np.concatenate(parts).astype(np.int64)

    def document_of(self, position: int) -> int:
        """The number of the document that holds a position."""
        return int(np.searchsorted(self.starts, position, side="right")) - 1

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        """Where documents begin within [start, stop)."""
        first, last = np.searchsorted(self.starts, [start, stop])
        return self.starts[first:last]

    def document_ids(self, start: int, stop: int) -> np.ndarray:
        """The number of the document of each position in [start, stop)."""
        return np.searchsorted(self.starts, np.arange(start, stop), side="right") - 1


def open_corpus(folder: Path | str) -> Corpus:
    """Open a prepared corpus. Raises UserError when it is none, or a shard has not the size it was written with."""
    path = Path(folder)
    try:
        info = json.loads((path / "corpus.json").read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is not a prepared corpus: it has no corpus.json (see yupana corpus prepare)") from None
    except ValueError:
        raise UserError(f"{path / 'corpus.json'} is damaged: prepare the corpus again") from None
    if info.get("format") != FORMAT:
        raise UserError(f"{path} has corpus format {info.get('format')}, this version reads {FORMAT}: prepare it again")
    for name, sealed in info["files"].items():
        size = (path / name).stat().st_size if (path / name).is_file() else None
        if size != sealed["size"]:
            found = "is missing" if size is None else f"is truncated or longer ({size} bytes of {sealed['size']})"
            raise UserError(f"{path / name} {found}: prepare the corpus again")
    return Corpus(path, info, info["hash"])


def verify(corpus: Corpus) -> None:
    """Read every byte. Raises UserError naming the file that is not as it was written."""
    for name, sealed in corpus.info["files"].items():
        if sha256_of(corpus.path / name) != sealed["sha256"]:
            raise UserError(f"{corpus.path / name} has been altered since it was written: prepare the corpus again")
