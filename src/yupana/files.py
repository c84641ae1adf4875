"""Writing files so that a reader sees the old content or the new, never a part: the one place for it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yupana.errors import UserError


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn "no space left", "read-only" and "permission denied" inside the block into a UserError.

    `what` names the thing being written, for example `"checkpoint step_100 of runs/demo"`.
    """
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full: free some space",
            errno.EDQUOT: "the disk quota is used up: free some space",
            errno.EFBIG: "a file of that size is not allowed here: raise ulimit -f or choose another folder",
            errno.EROFS: "the file system is read-only: choose another folder",
            errno.EACCES: "permission is denied: choose another folder or change its permissions",
        }
        if error.errno not in reasons:
            raise
        raise UserError(f"could not write {what}: {reasons[error.errno]}") from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` through a temporary file beside it, flushed to disk, then renamed."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(str(path)):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power failure (a no-op where folders cannot be opened)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal, read in 4 MiB pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(4 << 20):
            digest.update(block)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where yupana keeps what it can make again: $XDG_CACHE_HOME/yupana or ~/.cache/yupana."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yupana"
