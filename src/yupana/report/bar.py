"""What the user sees while something long is measured."""

from __future__ import annotations

from types import TracebackType
from typing import Any


class Bar:
    """A bar on standard error with what is being measured and the time left; nothing if nothing is measured."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Bar:
        return self

    def tell(self, what: str, share: float) -> None:
        """`share` of the whole is done, and `what` is being measured."""
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = [TextColumn("{task.description:<40}"), BarColumn(), TimeElapsedColumn(), TextColumn("left:"),
                       TimeRemainingColumn()]  # fmt: skip
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(what, total=1.0)
        self._bar.update(self._task, completed=share, description=what)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
