"""Following runs while they train: their pages are written again as metrics come in, and load themselves again."""

from __future__ import annotations

import time
from collections.abc import Callable

from yupana.run import RunDirectory


def follow(runs: list[RunDirectory], write: Callable[[int | None], None], seconds: int = 5) -> None:
    """Call `write(seconds)` whenever a run has logged something new, until none is training or Ctrl-C.

    `write(None)` comes last, however it ends: a page that no longer loads itself again.
    """
    seen: object = None
    pause = 1.0
    try:
        while any(run.held for run in runs):
            now = [_stamp(run) for run in runs]
            if now != seen:
                begun = time.process_time()
                write(seconds)
                seen, pause = now, max(1.0, 10 * (time.process_time() - begun))  # the training needs the processor
            time.sleep(pause)
    finally:
        write(None)


def _stamp(run: RunDirectory) -> tuple[int, int] | None:
    """What changes when metrics are written."""
    try:
        about = run.metrics_file.stat()
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns
