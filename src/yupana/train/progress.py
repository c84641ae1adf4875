"""What the user sees while training: one live line on a terminal and in a notebook, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:
    from yupana.train.session import Session

PLAIN_SECONDS = 10.0  # between lines where the screen is not a terminal
CELL_SECONDS = 0.5  # between changes of the line in a notebook


class Progress:
    """Step, loss, tokens/s, MFU, memory and the time left, on standard error."""

    def __init__(self, session: Session, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, quiet=not session.ranks.first)
        self.session, self.total = session, session.config.total_steps
        self.live = Live(console=self.console, refresh_per_second=4, transient=True)
        self.began, self.first, self.printed = time.monotonic(), session.start, float("-inf")
        self.validation = ""
        self.cell: Any = None  # the line in a notebook

    def __enter__(self) -> Progress:
        session, shape = self.session, self.session.config.model
        peaks = session.peaks
        sheet = f"{peaks.data_sheet / 1e12:.1f} TFLOP/s data sheet, " if peaks.data_sheet else ""
        self.console.print(
            f"[bold]{shape.parameters / 1e6:,.1f} M parameters[/] · {self.total:,} steps of "
            f"{session.config.train.global_batch} × {session.config.data.seq_len} tokens · {session.precision}"
            f"{', compiled' if session.compiled != 'off' else ''} · {peaks.device}, {sheet}"
            f"{peaks.measured / 1e12:.3g} TFLOP/s measured"
            + (f" · {session.ranks.count} ranks: {session.ranks.layout}" if session.ranks.count > 1 else ""),
            highlight=False,
            soft_wrap=True,
        )
        for text in session.notes:
            self.note(text)
        if session.compiled != "off":
            self.console.print("[dim]the first step compiles: about half a minute the first time[/]")
        if self.console.is_terminal:
            self.live.start()
        elif self.console.is_jupyter:
            from IPython.display import display

            self.cell = display({"text/plain": "…"}, raw=True, display_id=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def note(self, text: str) -> None:
        """Show a warning; it stays on the screen."""
        self.console.print(f"[yellow]{text}[/]", highlight=False)

    def stepped(self, metrics: dict[str, Any]) -> None:
        """Show a line of metrics."""
        if self.console.is_terminal:
            self.live.update(self._bar(metrics))
            return
        between = CELL_SECONDS if self.cell else PLAIN_SECONDS
        if time.monotonic() - self.printed <= between and metrics["step"] != self.total:
            return
        self.printed = time.monotonic()
        if self.cell:
            self.cell.update({"text/plain": f"{bar(metrics['step'] / self.total)}  {self._line(metrics)}"}, raw=True)
        else:
            self.console.print(self._line(metrics), highlight=False, soft_wrap=True)

    def evaluated(self, metrics: dict[str, Any]) -> None:
        """Show an evaluation; it stays on the screen."""
        self.validation = f"val {metrics['val_loss']:.3f}"
        self.console.print(
            f"step {metrics['step']:>6,}  validation loss {metrics['val_loss']:.4f} nats/token, "
            f"{metrics['val_bpb']:.4f} bits/byte"
            + "".join(f", {name} {found['val_loss']:.4f}" for name, found in metrics.get("val_by_source", {}).items()),
            highlight=False,
        )

    def _line(self, metrics: dict[str, Any]) -> str:
        return (
            f"step {metrics['step']:>6,}/{self.total:,}  loss {metrics['loss']:.4f}  "
            f"{metrics['tokens_per_second']:,.0f} tokens/s  MFU {100 * metrics['mfu']:.1f} %  "
            f"{metrics['memory_bytes'] / 1e9:.2f} GB  {self._left(metrics['step'])} left"
        )

    def _bar(self, metrics: dict[str, Any]) -> Table:
        row = Table.grid(padding=(0, 2))
        row.add_row(
            f"[cyan]{bar(metrics['step'] / self.total)}[/] {metrics['step']:,}/{self.total:,}",
            f"loss [bold]{metrics['loss']:.4f}[/]",
            self.validation,
            f"{metrics['tokens_per_second']:,.0f} tok/s",
            f"MFU [bold]{100 * metrics['mfu']:.1f} %[/]",
            f"{metrics['memory_bytes'] / 1e9:.2f} GB",
            f"{self._left(metrics['step'])} left",
        )
        return row

    def _left(self, step: int) -> str:
        pace = (time.monotonic() - self.began) / max(step - self.first, 1)
        seconds = round(pace * (self.total - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def bar(done: float, width: int = 24) -> str:
    """A share as a line of characters."""
    full = round(done * width)
    return "━" * full + "─" * (width - full)
