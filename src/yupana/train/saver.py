"""Checkpoints, written at once or while training goes on.

In the background a step waits only for a copy of this rank's parts in the host's memory; hashing, writing and the
manifest follow in a thread. The next checkpoint waits until the one before is complete, and so does the end of the run.
A kill in between loses that one checkpoint, as a kill during writing does: it never had a manifest.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from yupana.run import RunDirectory
from yupana.train import checkpoint
from yupana.train.interrupt import Interrupted
from yupana.train.ranks import Ranks
from yupana.train.shares import Share


class Saver:
    """Writes and prunes the checkpoints of a run; every rank has one and calls it together."""

    def __init__(self, run: RunDirectory, ranks: Ranks, keep: int, *, background: bool) -> None:
        self.run, self.keep, self.background = run, keep, background
        self.ranks = ranks.apart() if background else ranks  # the thread's collectives must not meet the step's
        self.copies: dict[str, torch.Tensor] = {}
        self.pending: Future[None] | None = None

    def __enter__(self) -> Saver:
        if self.background:
            self.thread = ThreadPoolExecutor(1, thread_name_prefix="yupana-save")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except Exception:
            if kind is None or issubclass(kind, Interrupted):  # else there is something worse to tell
                raise
        finally:
            if self.background:
                self.thread.shutdown()

    def save(self, step: int, tensors: dict[str, Share], about: dict[str, Any]) -> None:
        """Save checkpoint `step` and drop those no longer kept. Raises UserError, now or at the next call."""
        self.wait()
        if not self.background:
            self._write(step, tensors, about)
            return
        self.pending = self.thread.submit(self._write, step, self._copied(tensors), about)

    def wait(self) -> None:
        """Until what was begun is complete; raises what went wrong with it."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def _write(self, step: int, tensors: dict[str, Share], about: dict[str, Any]) -> None:
        checkpoint.save(self.run, step, tensors, about, self.ranks)
        self.ranks.at_first(lambda: checkpoint.prune(self.run, self.keep))

    def _copied(self, tensors: dict[str, Share]) -> dict[str, Share]:
        """The same in the host's memory, in buffers that are kept for the next time (pinned, for a GPU)."""
        copied = {}
        for name, share in tensors.items():
            if name not in self.copies:
                on_gpu = share.tensor.is_cuda
                self.copies[name] = torch.empty_like(share.tensor, device="cpu", pin_memory=on_gpu)
            self.copies[name].copy_(share.tensor, non_blocking=True)
            copied[name] = replace(share, tensor=self.copies[name])
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copied
