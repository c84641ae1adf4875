"""Ctrl-C and SIGTERM: finish the step, save, say how to go on."""

from __future__ import annotations

import contextlib
import signal
from typing import Any


class Interrupted(Exception):
    """Training was asked to stop, saved a checkpoint and did; the message says how to go on."""


class Interruption:
    """Ctrl-C and SIGTERM ask for a stop at the next step; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = ""

    def __enter__(self) -> Interruption:
        self.before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not the main thread: a notebook's own handling stays
                self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        self.asked = "interrupted" if number == signal.SIGINT else "asked to stop (SIGTERM)"
        signal.signal(number, self.before[number])
