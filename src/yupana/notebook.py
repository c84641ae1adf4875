"""For notebooks: a cell that is run before those above it says so."""

from __future__ import annotations

from types import TracebackType
from typing import Any

TOLD = "'{name}' is not there yet: a cell above this one makes it. Run the notebook from its top (Run All Above)"


def in_order() -> None:
    """From now on a name that no cell has made yet ends in that sentence; nothing happens outside IPython."""
    from IPython import get_ipython

    if (shell := get_ipython()) is not None:
        shell.set_custom_exc((NameError,), _tell)


def _tell(shell: Any, kind: type[NameError], error: NameError, trace: TracebackType, tb_offset: int | None = None) -> None:
    """Show the error; with the sentence where it is the notebook's own code that lacks the name."""
    last = trace
    while last.tb_next is not None:
        last = last.tb_next
    if kind is NameError and last.tb_frame.f_globals is shell.user_ns:
        error = NameError(TOLD.format(name=error.name))
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
