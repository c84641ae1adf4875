"""Ctrl-C and SIGTERM: finish the step, save, say how to go on."""

from __future__ import annotations

import contextlib
import signal
from typing import Any


class Interrupted(Exception):
    """Training was asked to stop, saved a checkpoint and did; the message says how to go on."""


SIGNALS = {1: "interrupted", 2: "asked to stop (SIGTERM)"}
"""What a number in Interruption.asked stands for."""


class Interruption:
    """Ctrl-C and SIGTERM ask for a stop at the next step; a second one stops at once.

    A launcher passes on what the terminal has sent to all already, so a `patient` process ignores the second: the
    launcher ends it when it takes too long.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.asked, self.patient = 0, patient

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
        self.asked = 1 if number == signal.SIGINT else 2
        if not self.patient:
            signal.signal(number, self.before[number])
