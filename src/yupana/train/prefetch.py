"""The next step's batch, read while this step computes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """`read(step)`, one step ahead in a thread of its own; what it returns is the same either way.

    While it is open, Python's garbage collector runs only when `tidy` is called: it stops every thread, at times of
    its own choosing, and on many ranks at different times.
    """

    def __init__(self, read: Callable[[int], T], total: int, ahead: bool) -> None:
        self.read, self.total, self.ahead = read, total, ahead
        self.waiting: tuple[int, Future[T]] | None = None

    def __enter__(self) -> Prefetch[T]:
        if self.ahead:
            self.thread = ThreadPoolExecutor(1, thread_name_prefix="yupana-data")
            self.collected = gc.isenabled()
            gc.disable()
            gc.collect()
            gc.freeze()  # what lives now lives to the end: `tidy` need not look through it again and again
        return self

    def __exit__(self, *_: object) -> None:
        if self.ahead:
            self.thread.shutdown(cancel_futures=True)
            gc.unfreeze()
            if self.collected:
                gc.enable()

    def __call__(self, step: int) -> T:
        """What `read(step)` gives; starts on the next step."""
        if not self.ahead:
            return self.read(step)
        read = self.waiting[1].result() if self.waiting and self.waiting[0] == step else self.read(step)
        self.waiting = (step + 1, self.thread.submit(self.read, step + 1)) if step + 1 < self.total else None
        return read

    def tidy(self) -> None:
        """A good moment to collect garbage: nobody is waiting for the next step."""
        if self.ahead:
            gc.collect()
