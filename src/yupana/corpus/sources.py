"""Documents from a source: a file, a folder, a hub dataset, or the Python installation's own library.

.txt .text .md .rst   in a folder a file is a document; a file named on its own, or one above 16 MiB, is cut where
                      blank lines end into documents of 4 KiB or more (64 KiB where no blank line comes); nothing is
                      dropped but a byte-order mark at the start
.py .c .h .rs … (CODE) the same: source code is text
.jsonl .ndjson .json  one JSON object a line, its text in one field
.parquet              a column of strings
…and each of them compressed, .gz or .zst
hf:NAME[:CONFIG]      the train split of a Hugging Face dataset, streamed
python                every module of Python's standard library, a module a document, without its tests and without
                      the character tables of `encodings`

One bad document never stops a corpus: it is skipped and counted with its reason. A source that is wrong as a whole
(missing, empty, binary, badly encoded, no such field) is a UserError; inside a folder such a file is skipped.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import hashlib
import io
import json
import os
import sysconfig
import tokenize
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from yupana.errors import UserError, did_you_mean

TEXT = {".txt", ".text", ".md", ".rst"}
CODE = {
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".cu", ".cuh", ".m", ".s", ".asm", ".rs", ".go",
    ".java", ".kt", ".scala", ".swift", ".js", ".jsx", ".ts", ".tsx", ".cs", ".php", ".rb", ".pl", ".pm", ".lua",
    ".r", ".jl", ".hs", ".ml", ".mli", ".clj", ".ex", ".erl", ".f", ".f90", ".sql", ".sh", ".bash", ".zsh", ".ps1",
    ".bat", ".html", ".css", ".scss", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".mk", ".cmake", ".tex",
    ".dts", ".dtsi",
}  # fmt: skip
JSON_LINES = {".jsonl", ".ndjson", ".json"}
COMPRESSED = {".gz", ".zst"}
SHORTEST, LONGEST, WHOLE = 4 << 10, 64 << 10, 16 << 20
"""Characters of a document cut from a text file, at least and (without blank lines) about; bytes of a file that may
be one document."""
PIECE = 1 << 20
"""A line longer than so many bytes is read, and may be cut, in pieces."""
NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "lib-dynload"}
NOT_LIBRARY |= {"test", "tests", "idle_test", "idlelib", "encodings"}

Document = tuple[str, str]
"""(where it comes from, its text)"""


@dataclass
class Skipped:
    """What was left out, by reason, and the first place of each."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        """Count one document or file."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, where)


def documents(
    sources: Sequence[str | Path],
    text_field: str = "text",
    skipped: Skipped | None = None,
    part: tuple[int, int] = (0, 1),
) -> Iterator[Document]:
    """Yield (id, text) of every document, always in the same order; what is skipped is counted in `skipped`.

    `part` (k, n): only the k-th part of n, so that n processes read all between them: every n-th file of a folder,
    or, of a file or a hub dataset, every n-th document (what is skipped there counts in part 0). Raises UserError for
    a source that is missing or wrong as a whole, and for one that yields nothing.
    """
    rank, parts = part
    skipped = Skipped() if skipped is None else skipped
    for source in map(str, sources):
        found = 0
        here = Skipped()
        by_file = source == "python" or Path(source).is_dir()
        for number, (name, text) in enumerate(_read(source, text_field, here, part if by_file else (0, 1))):
            if not text or text.isspace():
                here.add("empty document", name)
            elif not _is_unicode(text):
                here.add("bad encoding", name)
            else:
                found += 1
                if by_file or number % parts == rank:
                    yield name, text
        if not by_file and rank:
            here = Skipped()
        for reason, count in here.counts.items():
            skipped.counts[reason] = skipped.counts.get(reason, 0) + count
            skipped.first.setdefault(reason, here.first[reason])
        if not found and not (by_file and parts > 1):
            reasons = here.counts.items()
            why = "; ".join(f"{count} skipped: {reason}, the first at {here.first[reason]}" for reason, count in reasons)
            raise UserError(f"{source} holds no documents" + (f" ({why})" if why else "") + ": name a source with text")


def fingerprint(source: str | Path) -> str:
    """A SHA-256 that changes when the source does: of its files' names, sizes and content.

    Of a file above 1 MiB sixteen pieces of 64 KiB are read, so that it takes no time; a hub dataset is known by its
    name alone. Raises UserError for a source that does not exist or holds no file.
    """
    source = str(source)
    digest = hashlib.sha256()
    if source.startswith("hf:"):
        digest.update(source.encode())
        return digest.hexdigest()
    for name, path in _files(source):
        if not path.is_file():
            digest.update(f"{name}\0".encode(errors="surrogateescape"))
            continue
        size = path.stat().st_size
        digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
        with _readable(path), open(path, "rb") as file:
            if size <= PIECE:
                digest.update(file.read())
                continue
            for number in range(16):
                file.seek((size - (64 << 10)) * number // 15)
                digest.update(file.read(64 << 10))
    return digest.hexdigest()


def total_bytes(source: str | Path) -> int | None:
    """Bytes of a local source's files, to tell how far a reading is; None where they do not say (hub, compressed)."""
    if str(source).startswith("hf:"):
        return None
    paths = [path for _, path in _files(str(source))]
    packed = any(path.suffix.lower() in {*COMPRESSED, ".parquet"} for path in paths)
    return None if packed else sum(path.stat().st_size for path in paths if path.is_file())


class _Bad(Exception):
    """A file that cannot be read: a UserError where it was named, skipped and counted inside a folder."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason, self.message = reason, message


def _read(source: str, text_field: str, skipped: Skipped, part: tuple[int, int]) -> Iterator[Document]:
    if source.startswith("hf:"):
        yield from _hub(source, text_field, skipped)
        return
    alone = source != "python" and Path(source).is_file()
    for name, path in _files(source)[part[0] :: part[1]]:
        try:
            if source == "python":
                yield name, _module(path)
            else:
                yield from _file(path, name, text_field, skipped, alone)
        except _Bad as bad:
            if alone:
                raise UserError(bad.message) from bad
            skipped.add(bad.reason, str(path))


def _files(source: str) -> list[tuple[str, Path]]:
    """(name, path) of the files of a local source, sorted by name."""
    if source == "python":
        return _library()
    path = Path(source)
    if path.is_file():
        return [(path.name, path)]
    if not path.is_dir():
        known = [str(path.parent / other.name) for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"the source '{source}' does not exist{did_you_mean(source, [*known, 'python'])}: give a file, a folder, "
            "'python' for the Python library, or hf:NAME for a hub dataset"
        )
    found = [(name, file) for name, file in _walk(path, lambda name: name.startswith(".")) if not file.name.startswith(".")]
    if not found:
        raise UserError(f"the folder {source} is empty: put text files into it")
    return sorted(found)


def _library() -> list[tuple[str, Path]]:
    """The modules of Python's standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    found = [
        (name, path)
        for name, path in _walk(root, lambda name: name in NOT_LIBRARY or name.startswith("config-"))
        if path.suffix == ".py" and not path.name.startswith("_sysconfigdata")  # how this machine built Python
    ]
    if not found:
        raise UserError(f"this Python has no library in source form ({root}): name a file or a folder of text instead")
    return sorted(found)


def _walk(root: Path, left_out: Any) -> Iterator[tuple[str, Path]]:
    """(path inside `root`, path) of every file; a hundred thousand of them take a second.

    A link to a folder is not followed, but is among them: it is then skipped and counted, as every other file that is none.
    """
    for folder, inner, files in os.walk(root, onerror=_unreadable_folder):
        inner[:] = [name for name in inner if not left_out(name)]
        files += [name for name in inner if os.path.islink(os.path.join(folder, name))]
        inside = Path(folder).relative_to(root).as_posix()
        yield from ((name if inside == "." else f"{inside}/{name}", Path(folder, name)) for name in files)


def _unreadable_folder(error: OSError) -> None:
    raise UserError(f"the folder {error.filename} may not be read: change its permissions") from error


def _module(path: Path) -> str:
    """The text of a Python file, decoded as its coding line says (PEP 263)."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise _Bad("bad encoding", f"{path} cannot be decoded: {error}") from error
    except PermissionError as error:
        raise _Bad("unreadable file", f"{path} may not be read: change its permissions") from error


def _file(path: Path, name: str, text_field: str, skipped: Skipped, alone: bool) -> Iterator[Document]:
    suffix = path.with_suffix("").suffix.lower() if path.suffix.lower() in COMPRESSED else path.suffix.lower()
    if not path.is_file():
        raise _Bad("linked folder, broken link, pipe or device", f"{path} is no file: name one")
    if path.stat().st_size == 0:
        raise _Bad("empty file", f"{path} is empty: name a file with text")
    with _readable(path):
        if suffix == ".parquet":
            yield from _parquet(path, name, text_field, skipped, alone)
        elif suffix in JSON_LINES:
            yield from _json_lines(path, name, text_field, skipped, alone)
        elif suffix in TEXT or suffix in CODE or alone:
            yield from _text(path, name, alone)
        else:
            skipped.add("not a text, code, JSON lines or Parquet file", str(path))


def _text(path: Path, name: str, alone: bool) -> Iterator[Document]:
    if not alone and path.suffix.lower() not in COMPRESSED and path.stat().st_size <= WHOLE:
        yield name, _whole(path)
        return
    group: list[str] = []
    size, begin, after_blank = 0, 1, False
    for line, text in _lines(path, PIECE):
        blank = not text.strip()
        if size >= LONGEST or (size >= SHORTEST and after_blank and not blank):
            yield f"{name}:{begin}", "".join(group)
            group, size, begin = [], 0, line
        group.append(text)
        size += len(text)
        after_blank = blank
    yield f"{name}:{begin}", "".join(group)


def _whole(path: Path) -> str:
    """The text of a small file, read at once; line by line where it is wrong, to say where."""
    data = path.read_bytes()
    with contextlib.suppress(UnicodeDecodeError):
        if b"\0" not in data:
            return data.decode().removeprefix("\ufeff")
    return "".join(text for _, text in _lines(path, PIECE))


def _json_lines(path: Path, name: str, text_field: str, skipped: Skipped, alone: bool) -> Iterator[Document]:
    first = True
    for line, text in _lines(path):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            skipped.add("malformed JSON line", f"{path} line {line}")
            first = False
            continue
        if isinstance(value, dict) and isinstance(value.get(text_field), str):
            yield f"{name}:{line}", value[text_field]
        elif first and alone:
            raise _Bad("missing field", _no_field(f"{path} line {line}", text_field, value))
        else:
            skipped.add("missing field", f"{path} line {line}")
        first = False


def _no_field(where: str, text_field: str, value: Any) -> str:
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a string", type(None): "null"}.get(type(value), "a number or truth value")
        return f"{where} is {kind}, not an object: give one JSON object a line"
    if text_field in value:
        return f"{where} has no string in its field '{text_field}': name the field that holds the text (--text_field)"
    return (
        f"{where} has no field '{text_field}'{did_you_mean(text_field, value)}: "
        f"it has {', '.join(value) or 'none'}; name the one that holds the text (--text_field)"
    )


def _parquet(path: Path, name: str, text_field: str, skipped: Skipped, alone: bool) -> Iterator[Document]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"reading {path} needs pyarrow: pip install 'yupana[corpus]'") from error
    try:
        whole = None if path.suffix.lower() == ".parquet" else _open(path).read()
        table = parquet.ParquetFile(path if whole is None else pyarrow.BufferReader(whole))
        schema = table.schema_arrow
        if text_field not in schema.names:
            raise _Bad("missing field", _no_field(str(path), text_field, dict.fromkeys(schema.names)))
        kind = schema.field(text_field).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise _Bad("missing field", f"the column '{text_field}' of {path} holds {kind}, not strings")
        row = 0
        for batch in table.iter_batches(batch_size=256, columns=[text_field]):
            for text in batch.column(0):
                row += 1
                try:
                    value = text.as_py()
                except UnicodeDecodeError:
                    skipped.add("bad encoding", f"{path} row {row}")
                    continue
                if value is None:
                    skipped.add("missing field", f"{path} row {row}")
                else:
                    yield f"{name}:{row}", value
    except (pyarrow.ArrowInvalid, pyarrow.ArrowIOError) as error:
        what = " ".join(str(error).split())[:120]
        raise _Bad("damaged file", f"{path} is no Parquet file, or damaged ({what}): fetch it again") from error


def _hub(source: str, text_field: str, skipped: Skipped) -> Iterator[Document]:
    name, _, config = source.removeprefix("hf:").partition(":")
    if not name:
        raise UserError(f"'{source}' names no dataset: write hf:NAME or hf:NAME:CONFIG")
    advice = (
        "check the name and the network, log in (hf auth login) if it asks for that, or give a local file, a folder, or "
        "'python'"
    )
    for row, example in enumerate(hub_rows(source, name, config or None, "train", advice), start=1):
        text = example.get(text_field)
        if isinstance(text, str):
            yield f"{name}:{row}", text
        elif row == 1:
            raise UserError(_no_field(f"the dataset {source}", text_field, example))
        else:
            skipped.add("missing field", f"{source} row {row}")


def hub_rows(source: str, name: str, config: str | None, split: str, advice: str) -> Iterator[dict[str, Any]]:
    """The rows of a hub dataset, or of a folder that `datasets` reads, streamed.

    Raises UserError, which names `source` as it was given and ends with `advice`, when a row cannot be had.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError(f"reading {source} needs the datasets package: pip install 'yupana[corpus]'") from error
    row = 0
    try:
        for example in load_dataset(name, config, split=split, streaming=True):
            row += 1
            yield example
    except Exception as error:  # the hub's client has dozens of ways to fail; to the user they are one
        what = (" ".join(str(error).split()) or type(error).__name__)[:160]
        raise UserError(
            f"the hub dataset {source} could not be read{f' beyond row {row}' if row else ''} ({what}): {advice}"
        ) from error


def _lines(path: Path, limit: int = -1) -> Iterator[tuple[int, str]]:
    """(line number, text) of a file in UTF-8, line ends kept; lines longer than `limit` bytes in several pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line, pending = 0, 1, 0
    advice = "give UTF-8 text (convert another encoding with: iconv -f ENCODING -t UTF-8)"
    with _open(path) as file:
        while True:
            piece = file.readline(limit)
            if b"\0" in piece:
                where = f"a zero byte at byte {offset + piece.find(0)}, line {line}"
                raise _Bad("binary file", f"{path} is binary, not text ({where}): {advice}")
            try:
                if not pending and piece.endswith(b"\n"):  # whole, as nearly all are
                    text = piece.decode()
                else:
                    text = decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                where = f"byte {offset - pending + error.start}, line {line}"
                raise _Bad("bad encoding", f"{path} is not UTF-8 ({where}): {advice}") from error
            if not piece:
                return
            if pending or not piece.endswith(b"\n"):
                pending = len(decoder.getstate()[0])
            yield line, text.removeprefix("\ufeff") if offset == 0 else text
            offset += len(piece)
            line += piece.endswith(b"\n")


def _open(path: Path) -> IO[bytes]:
    """The bytes of a file, decompressed as its name says."""
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(_Zstandard(path), PIECE)
    return open(path, "rb")


class _Zstandard(io.RawIOBase):
    """A .zst file as bytes: frames one after the other, and an error where the last one is cut short."""

    def __init__(self, path: Path):
        try:
            import zstandard
        except ImportError as error:
            raise UserError(f"reading {path} needs zstandard: pip install 'yupana[corpus]'") from error
        self._file = open(path, "rb")  # noqa: SIM115 - held while frames are left
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None
        self._ready, self._left, self._error = b"", b"", zstandard.ZstdError

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._left or self._file.read(64 << 10)
            if not chunk:
                if self._frame is not None:
                    raise EOFError("the last frame is cut short")
                return 0
            self._frame = self._frame or self._new_frame()
            try:
                self._ready = self._frame.decompress(chunk)
            except self._error as error:
                raise EOFError(str(error)) from error
            self._left = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _readable:
    """Turn the ways in which reading a file fails inside the block into _Bad."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, PermissionError):
            raise _Bad("unreadable file", f"{self.path} may not be read: change its permissions") from error
        if isinstance(error, gzip.BadGzipFile | EOFError | zlib.error):
            raise _Bad("damaged file", f"{self.path} is damaged or cut short ({error}): fetch it again") from error


def _is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8: half of a surrogate pair, as JSON can spell it, cannot."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
