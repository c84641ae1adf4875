"""What the user sees while a corpus is prepared."""

from __future__ import annotations

import sys
import time


class PrepareProgress:
    """Documents and tokens so far, on standard error: one live line on a terminal, a line every 10 s elsewhere."""

    def __init__(self) -> None:
        self.began = self.shown = time.monotonic()
        self.live = sys.stderr.isatty()

    def __call__(self, stage: str, documents: int, tokens: int) -> None:
        """Called by corpus.prepare.prepare as it goes."""
        now = time.monotonic()
        if now - self.shown < (0.2 if self.live else 10):
            return
        self.shown = now
        rate = tokens / max(now - self.began, 1e-9)
        line = f"{stage}: {documents:,} documents, {tokens:,} tokens, {rate:,.0f}/s" if documents else f"{stage} …"
        print(f"\r{line}\033[K" if self.live else line, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def __enter__(self) -> PrepareProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
