"""From text to a folder of token shards: streamed, in bounded memory, resumed after a kill, the same bytes always.

Everything is written to a hidden folder beside the destination and renamed at the end. A small state.json there says
how many documents are safely on disk; whatever a killed process had written beyond that is cut off again.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from yupana.corpus import clean, executors, lines
from yupana.corpus.encode import Encoder
from yupana.corpus.pieces import pieces
from yupana.corpus.sources import Skipped, documents, fingerprint
from yupana.errors import UserError
from yupana.files import disk_errors, sha256_of, sync_folder, write_atomically, write_json

FORMAT = 1
SAVE_EVERY = 5.0
"""Seconds between two notes in state.json."""
TASKS = 16
"""Parts that cleaning is cut into: another number puts the documents into another order."""
BPE_BYTES = 256 << 20
"""A byte-level BPE is trained on the first so many bytes of the training documents."""

Progress = Callable[[str, int, int], None]


def prepare(
    sources: Sequence[str | Path],
    out: str | Path,
    tokenizer: str,
    val_fraction: float = 0.01,
    text_field: str = "text",
    shard_tokens: int = 1 << 27,
    progress: Progress | None = None,
    filters: Sequence[str] = (),
    near_duplicates: bool = False,
    tasks: int = TASKS,
    workers: int | None = None,
    executor: str = "local",
) -> dict[str, Any]:
    """Tokenise `sources` into a corpus folder `out`; returns what it holds.

    `sources` as `yupana.corpus.sources` reads them, `tokenizer` as `yupana.corpus.tokenizers` names them;
    `val_fraction` of the documents, chosen by a hash of their text, are held out (at least one, where there are two
    different ones); a shard ends with the first document that brings it to `shard_tokens` tokens. `progress(stage,
    documents, tokens)` is called as it goes.

    `filters` drop documents by the rules of gopher, repetition, c4, fineweb or language:CODE, or lines by c4-lines, and
    `near_duplicates` keeps one of those that are nearly equal (clean.py), in `tasks` parts of which `workers` run at once
    (the cores) where `executor` says (executors.py).

    The result has documents, tokens, bytes (of UTF-8 text), skipped {reason: documents}, removed {filter: documents},
    splits, tokenizer, vocab_size, hash, path, seconds. Killed and called again it goes on where it stopped; on a
    finished folder of the same content it returns at once. Raises UserError for input that cannot be read, an `out`
    that holds something else, and a full disk.
    """
    from yupana.corpus import tokenizers

    began, out = time.monotonic(), Path(out)
    names = [str(source) for source in sources]
    if not names:
        raise UserError("name at least one source: a file, a folder, 'python', or hf:NAME")
    if not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction must be at least 0 and below 1, got {val_fraction:g}")
    if shard_tokens < 1:
        raise UserError(f"shard_tokens must be at least 1, got {shard_tokens}")
    request: dict[str, Any] = {
        "sources": [fingerprint(name) for name in names],
        "tokenizer": tokenizers.identity(tokenizer),
        "val_fraction": val_fraction,
        "text_field": text_field,
        "shard_tokens": shard_tokens,
    }
    if filters or near_duplicates:
        clean.check_filters(filters)
        executors.check(executor, workers)
        if tasks < 1:
            raise UserError(f"--tasks must be at least 1, got {tasks}")
        request["clean"] = {"filters": list(filters), "near_duplicates": near_duplicates, "tasks": tasks}
    if (info := _finished(out, request, names)) is None:
        with disk_errors(f"the corpus {out}"), _workplace(out, request) as work:
            job = _Job(work, request, names, tokenizer, progress or (lambda *_: None), workers, executor)
            job.run()
            os.replace(work, out)
            sync_folder(out.parent)
        info = json.loads((out / "corpus.json").read_text(encoding="utf-8"))
    return _result(info, out, time.monotonic() - began)


def content_hash(info: dict[str, Any]) -> str:
    """The SHA-256 that identifies a corpus: its format, tokenizer, splits and the SHA-256 of every file."""
    essential = {
        "format": info["format"],
        "dtype": info["dtype"],
        "tokenizer": info["tokenizer"]["hash"],
        "splits": info["splits"],
        "files": info["files"],
    }
    return hashlib.sha256(json.dumps(essential, sort_keys=True).encode()).hexdigest()


def held_out_below(texts: Iterable[str], fraction: float) -> int:
    """The number below which a text's hash puts it into the validation split.

    That is fraction · 2^64, moved as little as it takes to leave one document on either side. Reads only until it
    has seen both sides, about 1/fraction documents.
    """
    if fraction == 0:
        return 0
    boundary = int(fraction * 2.0**64)
    least, greatest = 1 << 64, -1
    for text in texts:
        number = text_hash(text)
        least, greatest = min(least, number), max(greatest, number)
        if least < boundary <= greatest:
            return boundary
    if least >= greatest:  # fewer than two different texts: nothing can be held out
        return 0
    return least + 1 if least >= boundary else greatest


def text_hash(text: str) -> int:
    """64 bits that depend on the text alone, so that equal texts are never on both sides of the split."""
    return _hash(text.encode())


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


class _Job:
    """One preparation: decide the split, find the tokenizer, write the shards, describe them."""

    def __init__(
        self, work: Path, request: dict[str, Any], names: list[str], tokenizer: str, progress: Progress,
        workers: int | None, executor: str,
    ):  # fmt: skip
        self.work, self.request, self.names, self.spec, self.progress = work, request, names, tokenizer, progress
        self.workers, self.executor = workers, executor
        self.read_from, self.text_field = list(names), request["text_field"]
        self.skipped = Skipped()

    def run(self) -> None:
        if (self.work / "corpus.json").is_file():  # killed between the last file and the renaming
            (self.work / "state.json").unlink(missing_ok=True)
            shutil.rmtree(self.work / "clean", ignore_errors=True)
            return
        self.state = json.loads((self.work / "state.json").read_text(encoding="utf-8"))
        if "clean" in self.request:
            self._clean()
        if self.state["boundary"] is None:
            self.progress("reading", 0, 0)
            self.state["boundary"] = held_out_below(self._texts(), self.request["val_fraction"])
            self._note()
        self._make_tokenizer()
        self._write_shards()
        self._describe()

    def _clean(self) -> None:
        """Filter into a folder of JSON lines, from which everything else then reads."""
        wanted = self.request["clean"]
        kept = clean.clean(
            self.names, self.text_field, self.work / "clean", wanted["filters"], wanted["near_duplicates"],
            wanted["tasks"], self.workers, self.executor, lambda stage: self.progress(stage, 0, 0),
        )  # fmt: skip
        self.read_from, self.text_field = [str(kept)], "text"

    def _texts(self) -> Iterator[str]:
        return (text for _, text in documents(self.read_from, self.text_field))

    def _make_tokenizer(self) -> None:
        """The tokenizer, from the earlier attempt if it got that far."""
        from yupana.corpus import tokenizers

        path = self.work / "tokenizer.json"
        if self.state["tokenizer"] is None or not path.is_file():
            self.progress("making the tokenizer", 0, 0)
            made = tokenizers.load(self.spec, self._training_texts())
            bos, eos = tokenizers.bos_and_eos(made, self.spec)
            written = tokenizers.canonical(made)
            write_atomically(path, written)
            lengths = tokenizers.token_bytes(made)
            write_atomically(self.work / "token_bytes.bin", lengths.astype("<u2").tobytes())
            self.state["tokenizer"] = {
                "name": self.spec,
                "hash": hashlib.sha256(written).hexdigest(),
                "vocab_size": len(lengths),
                "bos_id": bos,
                "eos_id": eos,
            }
            self._note()
        else:
            made = tokenizers.from_file(path)
        self.tokenizer = made
        self.dtype = "uint16" if self.state["tokenizer"]["vocab_size"] <= 1 << 16 else "uint32"

    def _training_texts(self) -> Iterator[str]:
        taken = 0
        for text in self._texts():
            if text_hash(text) >= self.state["boundary"]:
                for piece in pieces(text):
                    yield piece
                    taken += len(piece)
                    if taken >= BPE_BYTES:
                        return

    def _write_shards(self) -> None:
        """Tokenise every document that is not on disk yet."""
        bos, eos = self.state["tokenizer"]["bos_id"], self.state["tokenizer"]["eos_id"]
        stored = np.dtype(self.dtype).newbyteorder("<")
        writers = {
            name: _Writer(self.work, name, stored, self.request["shard_tokens"], self.state["splits"][name])
            for name in ("train", "val")
        }
        stream = documents(self.read_from, self.text_field, self.skipped)
        noted = time.monotonic()
        ends = np.array([bos], stored), np.array([eos], stored)
        texts = itertools.islice((text for _, text in stream), self.state["documents"], None)
        with Encoder(self.spec, self.tokenizer, stored) as encoder:
            for text, tokens in encoder.stream(texts):
                data = text.encode()
                split = "val" if _hash(data) < self.state["boundary"] else "train"
                writers[split].add([ends[0], tokens, ends[1]], len(data))
                self.state["documents"] += 1
                if time.monotonic() - noted >= SAVE_EVERY:
                    for name, writer in writers.items():
                        self.state["splits"][name] = writer.flush()
                    self._note()
                    noted = time.monotonic()
                self.progress("tokenising", self.state["documents"], sum(writer.all_tokens for writer in writers.values()))
        for name, writer in writers.items():
            self.state["splits"][name] = writer.close()

    def _describe(self) -> None:
        """corpus.json, last: a folder that has it is whole."""
        splits, files = {}, {}
        for name in ("tokenizer.json", "token_bytes.bin"):
            files[name] = _size_and_hash(self.work / name)
        for name, progress in self.state["splits"].items():
            shards = progress["finished"]
            for shard in shards:
                for file in (shard["file"], shard["index"]):
                    files[file] = _size_and_hash(self.work / file)
            splits[name] = {key: sum(s[key] for s in shards) for key in ("documents", "tokens", "bytes")}
            splits[name]["shards"] = shards
        info = {
            "format": FORMAT,
            "source": self.names,
            "tokenizer": self.state["tokenizer"],
            "dtype": self.dtype,
            **{key: sum(split[key] for split in splits.values()) for key in ("documents", "tokens", "bytes")},
            "skipped": self.skipped.counts,
            "splits": splits,
            "files": files,
            "request": self.request,
        }
        if "clean" in self.request:
            info["skipped"] = clean.skipped(self.work / "clean").counts
            info["cleaning"] = self._report(info)
        write_json(self.work / "corpus.json", {**info, "hash": content_hash(info)})
        (self.work / "state.json").unlink()
        shutil.rmtree(self.work / "clean", ignore_errors=True)

    def _report(self, info: dict[str, Any]) -> dict[str, Any]:
        """What the filters removed: for corpus.json, as a page to read, and document by document."""
        gone = clean.removed(self.work / "clean")
        kept = {"documents": info["documents"], "bytes": info["bytes"]}
        cleaning = {**self.request["clean"], "kept": kept, "removed": clean.summary(gone)}
        if taken_out := lines.counted(self.work / "clean" / "lines"):
            cleaning["lines"] = taken_out
        write_atomically(self.work / "removed.md", clean.told_as_text(self.names, cleaning))
        listed = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in gone)
        write_atomically(self.work / "removed.jsonl.gz", gzip.compress(listed.encode(), mtime=0))
        return cleaning

    def _note(self) -> None:
        write_json(self.work / "state.json", self.state)


class _Writer:
    """The shards of one split: what is finished, and the one being written."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, shard_tokens: int, progress: dict[str, Any]):
        self.folder, self.split, self.dtype, self.shard_tokens = folder, split, dtype, shard_tokens
        self.finished = list(progress["finished"])
        self.documents, self.tokens, self.bytes = progress["open"]
        self.files: tuple[BinaryIO, BinaryIO] | None = None
        keep = len(self.finished) + (self.documents > 0)
        for path in folder.glob(f"{split}-*"):  # what a killed process wrote after its last note
            if int(path.stem.rpartition("-")[2]) >= keep:
                path.unlink()
        if self.documents:
            self._open("r+b")

    @property
    def all_tokens(self) -> int:
        return self.tokens + sum(shard["tokens"] for shard in self.finished)

    def add(self, parts: Sequence[np.ndarray], text_bytes: int) -> None:
        """Write a document, without a copy: one may be of half a gigabyte."""
        if self.files is None:
            self._open("w+b")
        assert self.files is not None
        for part in parts:
            self.files[0].write(part.data)
        self.files[1].write(self.tokens.to_bytes(8, "little"))
        self.documents, self.bytes = self.documents + 1, self.bytes + text_bytes
        self.tokens += sum(map(len, parts))
        if self.tokens >= self.shard_tokens:
            self._finish()

    def flush(self) -> dict[str, Any]:
        """Make everything written so far survive; returns what state.json must say to go on from here."""
        for file in self.files or ():
            file.flush()
            os.fsync(file.fileno())
        return {"finished": list(self.finished), "open": [self.documents, self.tokens, self.bytes]}

    def close(self) -> dict[str, Any]:
        if self.files is not None:
            self._finish()
        return self.flush()

    def _finish(self) -> None:
        assert self.files is not None
        self.files[1].write(self.tokens.to_bytes(8, "little"))
        self.flush()
        for file in self.files:
            file.close()
        token_file, index_file = self._names()
        counts = {"documents": self.documents, "tokens": self.tokens, "bytes": self.bytes}
        self.finished.append({"file": token_file, "index": index_file, **counts})
        self.files, self.documents, self.tokens, self.bytes = None, 0, 0, 0

    def _open(self, mode: str) -> None:
        """Open the current shard, cut to what is known to be in it."""
        token_name, index_name = self._names()
        token_file: Any = open(self.folder / token_name, mode)  # noqa: SIM115 - held while the shard grows
        index_file: Any = open(self.folder / index_name, mode)  # noqa: SIM115
        for file, size in ((token_file, self.tokens * self.dtype.itemsize), (index_file, self.documents * 8)):
            file.truncate(size)
            file.seek(size)
        self.files = token_file, index_file

    def _names(self) -> tuple[str, str]:
        stem = f"{self.split}-{len(self.finished):05d}"
        return f"{stem}.bin", f"{stem}.idx"


@contextlib.contextmanager
def _workplace(out: Path, request: dict[str, Any]) -> Iterator[Path]:
    """The hidden folder beside `out`, this process alone in it, its state.json fitting `request`.

    Wrong input leaves nothing behind; a kill, Ctrl-C or a full disk leaves what is needed to go on.
    """
    import fcntl

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not a prepared corpus: choose another --out")
    work = out.absolute().with_name(f".{out.absolute().name}.preparing")
    work.mkdir(parents=True, exist_ok=True)
    lock = os.open(work, os.O_RDONLY)
    try:
        for attempt in range(20, 0, -1):  # a second: the children of a process that was killed hold it a little longer
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if attempt == 1:
                    message = f"another process is preparing {out}: wait for it, or choose another --out"
                    raise UserError(message) from error
                time.sleep(0.05)
        for path in work.glob(".*.tmp"):  # files.write_atomically, killed in the middle
            path.unlink()
        if _begun_as(work) != request:
            for path in work.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            fresh = {"finished": [], "open": [0, 0, 0]}
            state = {"request": request, "boundary": None, "tokenizer": None, "documents": 0}
            write_json(work / "state.json", {**state, "splits": {"train": fresh, "val": fresh}})
        try:
            yield work
        except UserError as error:
            if not isinstance(error.__cause__, OSError):
                shutil.rmtree(work, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _begun_as(work: Path) -> Any:
    """The request that an earlier attempt in `work` was for; None where there was none."""
    for name in ("corpus.json", "state.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            return json.loads((work / name).read_text(encoding="utf-8"))["request"]
    return None


def _finished(out: Path, request: dict[str, Any], names: list[str]) -> dict[str, Any] | None:
    """What corpus.json of `out` says, if it is of this request; None if there is none yet."""
    if not (out / "corpus.json").is_file():
        return None
    try:
        info = json.loads((out / "corpus.json").read_text(encoding="utf-8"))
        before = info["request"]
        held = f"{', '.join(info['source'])} with tokenizer {info['tokenizer']['name']}"
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{out / 'corpus.json'} is damaged: delete {out} or choose another --out") from error
    if before != request:
        different = [key for key in request if before.get(key) != request[key]]
        what = "another version of it" if info["source"] == names and different == ["sources"] else held
        raise UserError(
            f"{out} already holds a corpus, prepared from {what} (different: {', '.join(different)}): "
            "choose another --out, or delete it"
        )
    return info


def _size_and_hash(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def _result(info: dict[str, Any], out: Path, seconds: float) -> dict[str, Any]:
    counts = ("documents", "tokens", "bytes")
    return {
        **{key: info[key] for key in counts},
        "skipped": info["skipped"],
        "removed": {
            f"{of['filter']}: {of['reason']}": of["documents"] for of in info.get("cleaning", {}).get("removed", [])
        },
        "removed_lines": {of["reason"]: of["lines"] for of in info.get("cleaning", {}).get("lines", [])},
        "splits": {
            name: {**{key: split[key] for key in counts}, "shards": len(split["shards"])}
            for name, split in info["splits"].items()
        },
        "tokenizer": info["tokenizer"]["name"],
        "vocab_size": info["tokenizer"]["vocab_size"],
        "hash": info["hash"],
        "path": str(out),
        "seconds": round(seconds, 3),
    }
