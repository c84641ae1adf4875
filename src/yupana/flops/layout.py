"""How ranks share a model: replicate × fsdp × cp × tp, and which models and batches a layout suits. Nothing heavy here."""

from __future__ import annotations

from dataclasses import dataclass

from yupana.errors import UserError
from yupana.model.shapes import ModelShape


@dataclass(frozen=True)
class Layout:
    """Ranks in each direction; neighbouring ranks differ in `tp` first, then in `cp`, `fsdp` and `replicate`."""

    replicate: int = 1
    """Copies of the model."""
    fsdp: int = 1
    """Ranks that share each copy's weights, gradients and optimiser."""
    tp: int = 1
    """Ranks that share each matrix product."""
    cp: int = 1
    """Ranks that share each sequence, in attention too; they share weights, gradients and optimiser as `fsdp` does."""

    @property
    def ranks(self) -> int:
        """All processes."""
        return self.replicate * self.fsdp * self.cp * self.tp

    @property
    def shards(self) -> int:
        """Ranks that share each copy's weights, gradients and optimiser."""
        return self.fsdp * self.cp

    @property
    def data(self) -> int:
        """Groups of ranks with sequences of their own."""
        return self.replicate * self.fsdp

    def __str__(self) -> str:
        cp = f" × cp {self.cp}" if self.cp > 1 else ""
        return f"replicate {self.replicate} × fsdp {self.fsdp}{cp} × tp {self.tp}"


def layout_of(replicate: int, fsdp: int, cp: int, tp: int, ranks: int) -> Layout:
    """The layout of `ranks` processes; `fsdp` -1 takes what the others leave. Raises UserError when they don't fit."""
    if fsdp == -1:
        if ranks % (replicate * cp * tp):
            count = "1 rank is" if ranks == 1 else f"{ranks} ranks are"
            raise UserError(
                f"{count} no multiple of parallel.replicate × parallel.cp × parallel.tp ({replicate} × {cp} × {tp}): start "
                "another number of processes, or change those"
            )
        fsdp = ranks // (replicate * cp * tp)
    layout = Layout(replicate, fsdp, tp, cp)
    if layout.ranks != ranks:
        raise UserError(
            f"the layout (parallel: {layout}) is one of {layout.ranks} ranks, but {ranks} {'is' if ranks == 1 else 'are'} "
            f"running: start {layout.ranks} processes, or leave parallel.fsdp at -1, which takes what the others leave"
        )
    return layout


def check_layout(
    layout: Layout, shape: ModelShape, seq_len: int, global_batch: int, micro_batch: int | None = None
) -> None:
    """Raise UserError, naming the setting, when the model or the batch cannot be divided among the ranks."""
    tp = layout.tp
    divided = {
        "model.n_heads": shape.n_heads,
        "model.n_kv_heads": shape.n_kv_heads,
        "model.d_ff": shape.d_ff,
        "model.vocab_size": shape.vocab_size,
    }
    for name, size in divided.items():
        if size % tp:
            raise UserError(f"parallel.tp ({tp}) must divide {name} ({size}): every rank has the same share of it")
    check_sequence(layout, seq_len, f"data.seq_len ({seq_len})")
    rows, what = (micro_batch or 1) * layout.data, f"the {layout.data} groups of ranks with sequences of their own"
    if global_batch % rows:
        each = f"train.micro_batch ({micro_batch}) times " if micro_batch else ""
        raise UserError(
            f"train.global_batch ({global_batch}) must be a multiple of {each}{what} (parallel: {layout}): "
            f"take {rows * max(1, round(global_batch / rows))}"
        )


def check_sequence(layout: Layout, length: int, what: str) -> None:
    """Raise UserError when `what`, a sequence of `length` tokens, cannot be cut into the shares of the ranks."""
    tp, cp = layout.tp, layout.cp
    if cp > 1 and length % (2 * cp):
        raise UserError(
            f"2 × parallel.cp ({2 * cp}) must divide {what}: every rank has two chunks of a sequence, one from either half"
        )
    if length // cp % tp:
        share = f", shared by {cp} ranks (parallel.cp)" if cp > 1 else ""
        raise UserError(f"parallel.tp ({tp}) must divide {what}{share}: every rank has the same share of it")
