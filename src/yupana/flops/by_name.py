"""What an operation of anatomy/ costs in a model: the operations of the step that its name stands for."""

from __future__ import annotations

from yupana.flops import operations
from yupana.flops.operations import Operation, Sizes, step_operations
from yupana.model.shapes import ModelShape


def operations_of(name: str, shape: ModelShape, batch: int, seq_len: int, sizes: Sizes | None = None) -> list[Operation]:
    """The operations that `name` stands for over one step of `shape`, in order.

    A name of the step's own list (embedding, rmsnorm, linear, …) gives all that bear it; block is one block, llama
    the step without the optimiser; softmax is over attention's scores as if they stood in memory. clip and muon are
    not in the list: adamw clips as it goes, and muon takes its place.
    """
    sizes = sizes or Sizes()
    step = step_operations(shape, batch, seq_len, sizes)
    rows = batch * shape.n_heads * seq_len
    special = {
        "block": operations.block(shape, 1, batch, seq_len, sizes),
        "llama": [o for o in step if o.name != "adamw"],
        "tiled_attention": [o for o in step if o.name == "attention"],
        "linear_cross_entropy": [o for o in step if o.part in ("output", "cross_entropy")],
        "softmax": [operations.softmax(rows, seq_len, sizes)],
        "clip": [operations.clip(shape.parameters, sizes)],
        "muon": [operations.muon(shape, sizes)],
    }
    return special.get(name) or [o for o in step if o.name == name]
