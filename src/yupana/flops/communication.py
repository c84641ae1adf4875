"""Every collective of a training step on many ranks: which, among whom, how often, how many bytes.

Counted from shapes as torch carries the layout out (train/parallel.py): a test compares the numbers and the bytes with
those of a real run on four processes. Bytes are of the whole tensor: what an all-gather puts out, what a reduce-scatter
takes in, what an all-reduce works on; a rank sends (n - 1) / n of that for the first two and twice as much for the
last (Thakur et al. 2005, ring algorithms).
"""

from __future__ import annotations

from dataclasses import dataclass

from yupana.flops.layout import Layout
from yupana.flops.memory import Setup
from yupana.model.shapes import ModelShape

GRADIENT = 4  # bytes: gradients are added up in fp32 whatever the weights are


@dataclass(frozen=True)
class Collective:
    """A kind of collective, all its repetitions in a step together."""

    name: str
    """all_gather, reduce_scatter or all_reduce."""
    what: str
    """What it carries."""
    over: str
    """Which direction of the layout its ranks lie in: replicate, shards (fsdp and cp together), cp, tp, or all."""
    count: int
    """Times in a step."""
    bytes: int
    """Of the whole tensor, all repetitions together."""


def step_collectives(setup: Setup, layout: Layout) -> list[Collective]:
    """The collectives of an optimiser step; `setup` is a rank's share: its micro-batch and its part of the batch."""
    if layout.ranks == 1:
        return []
    return [
        *data_collectives(setup, layout),
        *sequence_collectives(setup, layout),
        *tensor_collectives(setup, layout),
        *scalars(layout),
    ]


def data_collectives(setup: Setup, layout: Layout) -> list[Collective]:
    """Weights gathered and gradients reduced, block by block, once a micro-batch; what is around the blocks is one group.

    A block's weights are gathered for the forward and again for the backward pass, those around the blocks once.
    """
    layers, times, shards = setup.shape.n_layers, setup.accumulation, layout.shards
    block, around = (padded(of(setup.shape, layout.tp), shards) for of in (block_tensors, outer_tensors))
    numbers = layers * block + around
    found = []
    if shards > 1:
        gathered = (numbers + layers * block) * setup.sizes.weight
        found += [
            Collective("all_gather", "weights", "shards", times * (2 * layers + 1), times * gathered),
            Collective("reduce_scatter", "gradients", "shards", times * (layers + 1), times * numbers * GRADIENT),
        ]
    if layout.replicate > 1:
        reduced = times * numbers // shards * GRADIENT
        found.append(Collective("all_reduce", "gradients", "replicate", times * (layers + 1), reduced))
    return found


def sequence_collectives(setup: Setup, layout: Layout) -> list[Collective]:
    """Keys and values of whole sequences gathered in each block, and their gradients scattered."""
    if layout.cp == 1:
        return []
    times = setup.accumulation * setup.shape.n_layers
    size = times * 2 * setup.tokens * setup.shape.kv_width // layout.tp * setup.sizes.activation
    return [
        Collective("all_gather", "keys and values", "cp", times, size),
        Collective("reduce_scatter", "keys and values", "cp", times, size),
    ]


def tensor_collectives(setup: Setup, layout: Layout) -> list[Collective]:
    """Sequences gathered before the products and scattered after them, and the same backwards; the spread loss."""
    if layout.tp == 1:
        return []
    shape, s, times = setup.shape, setup.sizes, setup.accumulation
    tokens = setup.tokens // layout.cp
    layers, stream = shape.n_layers, tokens * shape.d_model
    norms = 2 * layers + 1
    rows = min(setup.head_rows * layout.tp, tokens)  # a chunk's logits keep their size: fewer columns, more rows
    chunks = -(-tokens // rows)
    gathered = (2 * layers + 1) * stream * (s.residual + s.activation)  # forward; backward, of what was scattered
    return [
        Collective("all_gather", "sequences", "tp", times * 2 * (2 * layers + 1), times * gathered),
        Collective("reduce_scatter", "sequences", "tp", times * 2 * (2 * layers + 1), times * gathered),
        Collective("all_reduce", "norm gradients", "tp", times * norms, times * norms * shape.d_model * s.weight),
        Collective("all_reduce", "loss", "tp", times * 2 * chunks, times * 3 * 4 * tokens),
    ]


def scalars(layout: Layout) -> list[Collective]:
    """The tokens that count and whether to stop (8 bytes each), the loss and the gradients' norm (4 each)."""
    return [Collective("all_reduce", "scalars", "all", 4, 24)]


def block_tensors(shape: ModelShape, tp: int) -> list[tuple[int, int]]:
    """(rows, columns) of a tp rank's part of each parameter of a block."""
    d, wide = shape.d_model, shape.q_width + 2 * shape.kv_width
    return [
        (d, 1), (wide // tp, d), (d, shape.q_width // tp),
        (d, 1), (2 * shape.d_ff // tp, d), (d, shape.d_ff // tp),
    ]  # fmt: skip


def outer_tensors(shape: ModelShape, tp: int) -> list[tuple[int, int]]:
    """(rows, columns) of a tp rank's part of the embedding, the last norm and an untied head."""
    table = (shape.vocab_size // tp, shape.d_model)
    return [table, (shape.d_model, 1), *([] if shape.tie_embeddings else [table])]


def padded(tensors: list[tuple[int, int]], shards: int) -> int:
    """Numbers in these tensors when the rows of each are filled up to a multiple of the ranks that share them."""
    return sum(-(-rows // shards) * shards * columns for rows, columns in tensors)


def sent_share(name: str, ranks: int) -> float:
    """What a rank sends of a collective's bytes with a ring."""
    return (2 if name == "all_reduce" else 1) * (ranks - 1) / ranks
