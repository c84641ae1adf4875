"""Token shards: a prepared corpus as a folder, made once, memory-mapped ever after.

    corpus.json        source, tokenizer, splits, what was skipped, size and sha256 of every shard
    tokenizer.json     the tokenizer
    token_bytes.bin    uint16: bytes of text that each token stands for
    train_00000.bin    tokens, little-endian uint16 (uint32 for vocabularies above 65 536)
    train_00000.idx    uint64: where each document begins in the shard
    val_00000.bin …    the held-out documents

A document is stored as <|begin_of_text|>, its tokens, <|end_of_text|>.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from yupana.errors import UserError
from yupana.files import disk_errors, sha256_of, sync_folder, write_json

FORMAT = 1
SHARD_TOKENS = 100_000_000
BATCH_CHARS = 4_000_000  # text tokenised at once: enough for every core, little memory

Progress = Callable[[str, int, int], None]


# --- reading -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """An opened corpus. Equal when its content is."""

    path: Path = field(compare=False)
    info: dict[str, Any] = field(compare=False, repr=False)
    hash: str

    @property
    def tokenizer_hash(self) -> str:
        """SHA-256 of tokenizer.json."""
        return self.info["tokenizer"]["sha256"]

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
        return TokenStream(self.path, self.info["splits"][name]["shards"], np.dtype(self.info["dtype"]))


class TokenStream:
    """All shards of a split as one logical array of tokens; nothing is read before it is asked for."""

    def __init__(self, folder: Path, shards: list[dict[str, Any]], dtype: np.dtype) -> None:
        self.shards = [np.memmap(folder / s["file"], dtype=dtype, mode="r") for s in shards]
        self.ends = np.cumsum([s["tokens"] for s in shards]) if shards else np.zeros(0, dtype=np.int64)
        begins = [np.fromfile(folder / s["index"], dtype="<u8").astype(np.int64) for s in shards]
        self.starts = np.concatenate(
            [index + end - s["tokens"] for index, end, s in zip(begins, self.ends, shards, strict=True)]
            or [np.zeros(0, dtype=np.int64)]
        )
        self.n_tokens = int(self.ends[-1]) if shards else 0
        self.n_documents = len(self.starts)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) as int64."""
        parts = []
        shard = int(np.searchsorted(self.ends, start, side="right"))
        while start < stop:
            first = int(self.ends[shard]) - len(self.shards[shard])
            end = min(stop, int(self.ends[shard]))
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
        if size != sealed["bytes"]:
            found = "is missing" if size is None else f"is truncated or longer ({size} bytes of {sealed['bytes']})"
            raise UserError(f"{path / name} {found}: prepare the corpus again")
    return Corpus(path, info, info["hash"])


def verify(corpus: Corpus) -> None:
    """Read every byte. Raises UserError naming the file that is not as it was written."""
    for name, sealed in corpus.info["files"].items():
        if sha256_of(corpus.path / name) != sealed["sha256"]:
            raise UserError(f"{corpus.path / name} has been altered since it was written: prepare the corpus again")


# --- writing -------------------------------------------------------------------------------------------------


def prepare(
    sources: Sequence[str],
    out: Path | str,
    tokenizer: str,
    *,
    val_fraction: float = 0.01,
    text_field: str = "text",
    shard_tokens: int = SHARD_TOKENS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Turn sources into token shards in `out`; returns documents, tokens, bytes, skipped and more.

    Works in a hidden folder beside `out`, renamed at the end. Killed and called again it goes on where it stopped
    and ends in the same bytes; called on a finished corpus of the same making it returns at once. Raises UserError
    for sources or tokenizers that cannot be used, and when `out` holds something else.
    """
    began, out = time.monotonic(), Path(out)
    if not 0 < val_fraction < 1:
        raise UserError(f"--val_fraction must lie between 0 and 1, got {val_fraction}")
    recipe = {
        "sources": list(sources),
        "tokenizer": tokenizer,
        "val_fraction": val_fraction,
        "text_field": text_field,
        "shard_tokens": shard_tokens,
    }
    if (out / "corpus.json").is_file():
        info = open_corpus(out).info
        if info["recipe"] != recipe:
            changed = ", ".join(key for key in recipe if info["recipe"].get(key) != recipe[key])
            raise UserError(f"{out} holds a corpus of another making ({changed} differ): choose another folder")
        return result(info, out, 0.0)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is no prepared corpus: choose another folder")
    work = out.resolve().with_name(f".{out.resolve().name}.part")
    with disk_errors(f"the corpus {out}"):
        writer = Writer.resume(work, recipe)
        info = writer.run(progress)
        if out.exists():
            out.rmdir()
        os.replace(work, out)
        sync_folder(out.resolve().parent)
    return result(info, out, time.monotonic() - began)


def result(info: dict[str, Any], out: Path, seconds: float) -> dict[str, Any]:
    """What `corpus prepare` reports."""
    return {
        "path": str(out),
        **{key: info[key] for key in ("documents", "tokens", "bytes", "skipped", "splits", "hash")},
        "tokenizer": info["tokenizer"]["name"],
        "vocab_size": info["tokenizer"]["vocab_size"],
        "seconds": round(seconds, 2),
    }


class Writer:
    """A corpus in the making: files that grow, and a state file that says how far they may be trusted."""

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        self.folder, self.recipe = folder, recipe
        self.done = 0  # documents taken from the sources
        self.bytes = {"train": 0, "val": 0}
        self.shards: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}

    @classmethod
    def resume(cls, folder: Path, recipe: dict[str, Any]) -> Writer:
        """Go on in `folder` if the same recipe was begun there, else begin."""
        writer = cls(folder, recipe)
        try:
            state = json.loads((folder / "state.json").read_text())
        except (OSError, ValueError):
            state = {}
        if state.get("recipe") != recipe:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            writer.save()
            return writer
        writer.done, writer.bytes, writer.shards = state["done"], state["bytes"], state["shards"]
        itemsize = state.get("itemsize", 2)
        known = {"state.json", "tokenizer.json"}
        for shard in (s for shards in writer.shards.values() for s in shards):
            os.truncate(folder / shard["file"], shard["tokens"] * itemsize)
            os.truncate(folder / shard["index"], shard["documents"] * 8)
            known |= {shard["file"], shard["index"]}
        for path in folder.iterdir():  # begun after the state was written
            if path.name not in known:
                path.unlink()
        return writer

    def save(self) -> None:
        """Write down how far we are; everything up to here is on disk."""
        itemsize = self.dtype.itemsize if (self.folder / "tokenizer.json").is_file() else 2
        state = {"recipe": self.recipe, "done": self.done, "bytes": self.bytes, "shards": self.shards}
        write_json(self.folder / "state.json", {**state, "itemsize": itemsize})

    def run(self, progress: Progress | None) -> dict[str, Any]:
        """Tokenise everything, seal, and return corpus.json's content."""
        from yupana.corpus import tokenizers
        from yupana.corpus.sources import Source

        sources = [Source(name, self.recipe["text_field"]) for name in self.recipe["sources"]]
        file = self.folder / "tokenizer.json"
        if not file.is_file():
            texts = (lambda: self._told(sources, progress)) if progress else (lambda: _all(sources))
            tokenizer = tokenizers.build(self.recipe["tokenizer"], texts)
            temporary = self.folder / ".tokenizer.tmp"
            tokenizer.save(str(temporary))
            os.replace(temporary, file)
        self.tokenizer = tokenizers.build(str(file), lambda: [])
        self.tokenizer.encode_special_tokens = True  # "<|end_of_text|>" inside a text is text
        self.bos = self.tokenizer.token_to_id(tokenizers.BEGIN)
        self.eos = self.tokenizer.token_to_id(tokenizers.END)
        for number, texts_ in enumerate(_batches(_all(sources, self.done))):
            self._append(texts_)
            if number % 8 == 7:
                self.save()
            if progress:
                progress("tokenising", self.done, sum(s["tokens"] for v in self.shards.values() for s in v))
        self._balance()
        tokenizers.token_bytes(self.tokenizer).astype("<u2").tofile(self.folder / "token_bytes.bin")
        return self._seal(sources)

    @property
    def dtype(self) -> np.dtype:
        """uint16 where the vocabulary fits, else uint32."""
        from tokenizers import Tokenizer

        size = Tokenizer.from_file(str(self.folder / "tokenizer.json")).get_vocab_size()
        return np.dtype("<u2" if size <= 1 << 16 else "<u4")

    def _told(self, sources: list[Any], progress: Progress) -> Iterator[str]:
        for number, text in enumerate(_all(sources)):
            progress("training the tokenizer", number, 0)
            yield text

    def _append(self, texts: list[str]) -> None:
        dtype = np.dtype("<u2" if self.tokenizer.get_vocab_size() <= 1 << 16 else "<u4")
        encoded = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        tokens: dict[str, list[np.ndarray]] = {"train": [], "val": []}
        for text, encoding in zip(texts, encoded, strict=True):
            split = self._split_of(text)
            self.bytes[split] += len(text.encode())
            tokens[split].append(np.array([self.bos, *encoding.ids, self.eos], dtype=dtype))
        for split, documents in tokens.items():
            for document in documents:
                self._place(split, document)
        self._flush()
        self.done += len(texts)

    def _split_of(self, text: str) -> str:
        digest = hashlib.sha256(text.encode()).digest()
        return "val" if int.from_bytes(digest[:8], "big") < self.recipe["val_fraction"] * 2**64 else "train"

    def _place(self, split: str, document: np.ndarray) -> None:
        shards = self.shards[split]
        if not shards or shards[-1]["tokens"] >= self.recipe["shard_tokens"]:
            name = f"{split}_{len(shards):05d}"
            shards.append({"file": f"{name}.bin", "index": f"{name}.idx", "tokens": 0, "documents": 0})
        shard = shards[-1]
        self._pending.setdefault(shard["index"], []).append(np.array([shard["tokens"]], dtype="<u8"))
        self._pending.setdefault(shard["file"], []).append(document)
        shard["tokens"] += len(document)
        shard["documents"] += 1

    @cached_property
    def _pending(self) -> dict[str, list[np.ndarray]]:
        return {}

    def _flush(self) -> None:
        for name, arrays in self._pending.items():
            with open(self.folder / name, "ab") as file:
                np.concatenate(arrays).tofile(file)
                file.flush()
                os.fsync(file.fileno())
        self._pending.clear()

    def _balance(self) -> None:
        """Both splits need a document: give an empty one the other's last."""
        counts = {split: sum(s["documents"] for s in shards) for split, shards in self.shards.items()}
        if sum(counts.values()) < 2:
            raise UserError(
                f"{', '.join(self.recipe['sources'])} gives {sum(counts.values())} documents: at least two are needed, "
                "one to train on and one to hold out"
            )
        for empty, other in (("val", "train"), ("train", "val")):
            if counts[empty]:
                continue
            shard = self.shards[other][-1]
            start = int(np.fromfile(self.folder / shard["index"], dtype="<u8")[-1])
            dtype = self.dtype
            document = np.fromfile(self.folder / shard["file"], dtype=dtype)[start:]
            shard["tokens"], shard["documents"] = start, shard["documents"] - 1
            os.truncate(self.folder / shard["file"], start * dtype.itemsize)
            os.truncate(self.folder / shard["index"], shard["documents"] * 8)
            size = len(self.tokenizer.decode(document[1:-1].tolist()).encode())
            self.bytes[other] -= size
            self.bytes[empty] += size
            self._place(empty, document)
            self._flush()

    def _seal(self, sources: list[Any]) -> dict[str, Any]:
        skipped: dict[str, int] = {}
        for source in sources:
            for reason, count in source.skipped.items():
                skipped[reason] = skipped.get(reason, 0) + count
        (self.folder / "state.json").unlink()
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in sorted(self.folder.iterdir())
        }
        splits = {
            split: {
                "documents": sum(s["documents"] for s in shards),
                "tokens": sum(s["tokens"] for s in shards),
                "bytes": self.bytes[split],
                "shards": shards,
            }
            for split, shards in self.shards.items()
        }
        content = json.dumps([FORMAT, {name: sealed["sha256"] for name, sealed in files.items()}], sort_keys=True)
        info = {
            "format": FORMAT,
            "recipe": self.recipe,
            "documents": sum(s["documents"] for s in splits.values()),
            "tokens": sum(s["tokens"] for s in splits.values()),
            "bytes": sum(s["bytes"] for s in splits.values()),
            "skipped": skipped,
            "tokenizer": {
                "name": self.recipe["tokenizer"],
                "sha256": files["tokenizer.json"]["sha256"],
                "vocab_size": self.tokenizer.get_vocab_size(),
                "bos_id": self.bos,
                "eos_id": self.eos,
            },
            "dtype": self.dtype.str,
            "splits": splits,
            "files": files,
            "hash": hashlib.sha256(content.encode()).hexdigest(),
        }
        write_json(self.folder / "corpus.json", info)
        return info


def _all(sources: Iterable[Any], skip: int = 0) -> Iterator[str]:
    """Every document of every source, in order, without the first `skip`."""
    number = 0
    for source in sources:
        for text in source:
            if number >= skip:
                yield text
            number += 1


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
