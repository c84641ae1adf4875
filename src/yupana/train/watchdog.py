"""A rank that hangs stops all others without a word: they wait for it inside a collective. The watchdog speaks up.

A thread in each process notices that nothing has been finished for `timeout` seconds. Then every rank prints where its
main thread stands, and rank 0 names the one that is not waiting for the others; a rank that answers nothing is named
too. All end with exit code 1, so that a launcher can start them again from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from yupana.train.ranks import Ranks

ANSWER_SECONDS = 5.0  # the ranks notice at about the same time
COLLECTIVE = os.path.join("torch", "distributed")


class Watchdog:
    """Watches the thread that makes it; does nothing where there is one rank."""

    def __init__(self, ranks: Ranks, timeout: float) -> None:
        self.ranks, self.timeout = ranks, timeout
        self.what, self.when, self.watched = "the start", time.monotonic(), threading.get_ident()
        self.done = threading.Event()

    def __enter__(self) -> Watchdog:
        if self.ranks.count > 1:
            # A connection of its own: the process group's may be waiting inside a call.
            store: Any = dist.distributed_c10d._get_default_store()
            self.store = store.clone()
            self.thread = threading.Thread(target=self._watch, name="yupana-watchdog", daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()

    def seen(self, what: str) -> None:
        """Something was finished."""
        self.what, self.when = what, time.monotonic()

    def _watch(self) -> None:
        while not self.done.wait(min(1.0, self.timeout / 4)):
            if time.monotonic() - self.when > self.timeout:
                self._report()

    def _report(self) -> None:
        place, waiting, stack = where(self.watched)
        answer = f"{'waits for the others' if waiting else 'hangs'} in {place}"
        with contextlib.suppress(Exception):  # the store's process may be gone
            self.store.set(f"watchdog/{self.ranks.rank}", answer)
        print(f"--- rank {self.ranks.rank}: {answer}\n{stack}", file=sys.stderr, flush=True)
        if self.ranks.first:
            print(f"yupana: {self._verdict()}", file=sys.stderr, flush=True)
        else:
            time.sleep(2 * ANSWER_SECONDS)  # until rank 0, whose process may keep the store, has read the answers
        os._exit(1)

    def _verdict(self) -> str:
        """One sentence: who holds the others up."""
        guilty = []
        for rank in range(self.ranks.count):
            try:
                self.store.wait([f"watchdog/{rank}"], timedelta(seconds=ANSWER_SECONDS))
                answer = self.store.get(f"watchdog/{rank}").decode()
            except Exception:
                answer = "does not answer"
            if not answer.startswith("waits"):
                guilty.append(f"rank {rank} {answer}")
        return (
            f"no step for {self.timeout:.0f} s since {self.what}: {'; '.join(guilty) or 'all ranks wait for each other'}; "
            "the stacks are above, parallel.timeout sets the patience, and --resume goes on from the last checkpoint"
        )


def where(thread: int) -> tuple[str, bool, str]:
    """Where a thread of this process stands: "file:line function", whether in a collective, and its whole stack."""
    frames = traceback.extract_stack(sys._current_frames()[thread])
    ours = [frame for frame in frames if f"{os.sep}yupana{os.sep}" in frame.filename] or frames
    last = ours[-1]
    waiting = any(COLLECTIVE in frame.filename for frame in frames[-3:])  # FSDP's hooks stand around the whole model
    return f"{os.path.basename(last.filename)}:{last.lineno} {last.name}", waiting, "".join(traceback.format_list(frames))
