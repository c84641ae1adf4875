"""Peak memory of a training step, from shapes alone: nothing is allocated.

The step is walked through as it runs, tensor by tensor, and what lives at the fullest moment is the peak: after the
last layer's forward pass, or in the output head, or where the gradients have gathered, or in the optimiser,
whichever is more. What a compiled block keeps for its backward pass is what torch's partitioner chooses to keep
(tests/test_predict.py compares it with the tensors that torch really saves).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from yupana.errors import UserError
from yupana.flops.operations import Sizes
from yupana.model.shapes import ModelShape

USABLE = 0.95  # of a memory: the rest goes to the driver, to fragmentation, to whoever else is there
LEAN_CHUNK = 1 << 23  # parameters that the lean optimiser converts to fp32 at once
PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "workspace", "runtime")


@dataclass(frozen=True)
class Setup:
    """A training step: the model, the batch, and how it is carried out."""

    shape: ModelShape
    seq_len: int
    micro_batch: int
    """Sequences in one forward and backward pass."""
    global_batch: int
    """Sequences in an optimiser step."""
    precision: str
    """fp32, bf16-autocast, bf16 or bf16-lean."""
    head_rows: int
    """Tokens whose logits exist at once."""
    attention_block: int | None = None
    """Queries whose scores exist at once, and are kept for the backward pass; None: they never exist (flash)."""
    runtime_bytes: int = 0
    """Held by the process beside its tensors."""

    def __post_init__(self) -> None:
        for name in ("seq_len", "micro_batch", "global_batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.global_batch % self.micro_batch:
            raise UserError(f"global_batch ({self.global_batch}) must be a multiple of micro_batch ({self.micro_batch})")

    @property
    def tokens(self) -> int:
        """In one forward and backward pass."""
        return self.micro_batch * self.seq_len

    @property
    def accumulation(self) -> int:
        """Forward and backward passes in an optimiser step."""
        return self.global_batch // self.micro_batch

    @property
    def sizes(self) -> Sizes:
        """Bytes an element."""
        return Sizes.of(self.precision)


def memory_bytes(setup: Setup) -> dict[str, int]:
    """Bytes at the fullest moment of the step: `total` and what it is made of."""
    walk = Walk(setup)
    for number in range(min(2, setup.accumulation)):  # the second adds to gradients that are there; later ones too
        walk.micro_batch(first=number == 0)
    walk.optimizer_step()
    return {"total": sum(walk.peak.values()), **walk.peak}


def largest_micro_batch(setup: Setup, capacity: float) -> int:
    """The most sequences a micro-batch can hold in `capacity` bytes, of which USABLE are used; 0 if not even one."""

    def fits(batch: int) -> bool:
        return memory_bytes(replace(setup, micro_batch=batch, global_batch=batch))["total"] <= USABLE * capacity

    return most_that_fits(fits)


def most_that_fits(fits: Callable[[int], bool]) -> int:
    """The largest number, 1 or more, that `fits` is true of, where it is of every smaller one; 0 if not even of 1."""
    if not fits(1):
        return 0
    high = 2
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def check(setup: Setup, capacity: float, device: str) -> None:
    """Raise UserError, naming the largest micro-batch that fits, when this one doesn't fit into `capacity` bytes."""
    needed = memory_bytes(setup)["total"]
    if needed <= USABLE * capacity:
        return
    largest = largest_micro_batch(setup, capacity)
    advice = (
        f"the largest that fits is {largest}" if largest
        else "not even one sequence fits: take a smaller model, shorter sequences or --precision bf16-lean"
    )  # fmt: skip
    raise UserError(
        f"a micro-batch of {setup.micro_batch} × {setup.seq_len:,} tokens needs {needed / 1e9:.1f} GB in "
        f"{setup.precision}, and {device} has {capacity / 1e9:.1f} GB, of which {USABLE:.0%} can be used: {advice}"
    )


class Walk:
    """What lives now, by part, and what lived at the fullest moment so far."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.sizes, self.shape = setup, setup.sizes, setup.shape
        self.live = dict.fromkeys(PARTS, 0)
        self.peak = dict(self.live)
        n, s = self.shape.parameters, self.sizes
        self.take("runtime", setup.runtime_bytes)
        self.take("weights", n * s.weight)
        self.take("optimizer", n * s.state * (3 if s.masters else 2))

    def take(self, part: str, count: int) -> None:
        """Allocate."""
        self.live[part] += count
        if sum(self.live.values()) > sum(self.peak.values()):
            self.peak = dict(self.live)

    def give(self, part: str, count: int) -> None:
        """Free."""
        self.live[part] -= count

    def briefly(self, part: str, count: int) -> None:
        """Allocate and free at once."""
        self.take(part, count)
        self.give(part, count)

    def micro_batch(self, *, first: bool) -> None:
        """One forward and backward pass; `first` of its step, when there is no gradient to add to."""
        setup, shape, s, tokens = self.setup, self.shape, self.sizes, self.setup.tokens
        x = tokens * shape.d_model * s.residual  # the residual stream once
        rope = setup.seq_len * shape.head_dim * 4  # cosines and sines of half the dimensions, fp32
        layer = layer_bytes(setup)
        self.take("activations", rope)
        for _ in range(shape.n_layers):
            self.take("activations", layer)
        norm = final_norm_bytes(setup)
        self.take("activations", norm)

        head = shape.vocab_size * shape.d_model
        hidden = tokens * shape.d_model * s.activation
        if setup.precision == "bf16-autocast":
            self.take("workspace", 2 * head + hidden)  # the head's weight and its input in bf16
        self.take("activations", hidden)  # the gradient with respect to the hidden states
        logits = min(setup.head_rows, tokens) * shape.vocab_size * s.activation
        self.take("logits", 2 * logits)  # and their gradient
        self.give("logits", logits)  # the gradient alone is left when the weight's is made from it
        self.take("gradients", head * s.activation)
        self.give("logits", logits)
        if tokens > setup.head_rows:  # later chunks add to the weight's gradient
            self.briefly("logits", 2 * logits)
        if setup.precision == "bf16-autocast":
            self.give("workspace", 2 * head + hidden)
            self.take("gradients", head * (s.weight - s.activation))  # to fp32
        if not (first or shape.tie_embeddings):
            self.added(head)
        self.give("activations", norm + hidden)
        self.take("activations", x)  # the gradient that runs down the layers
        self.gradient(shape.d_model, first=first)  # the last norm's

        for _ in range(shape.n_layers):
            self.briefly("workspace", backward_workspace(setup))
            self.give("activations", layer)
            self.gradient(shape.layer_matmul_parameters + 2 * shape.d_model, first=first)
        self.give("activations", x + rope)
        table = shape.vocab_size * shape.d_model
        self.take("gradients", table * s.weight)  # the embedding's, dense
        if shape.tie_embeddings:
            self.give("gradients", table * s.weight)  # added to the head's
        if not first:
            self.added(table)
        if s.masters:
            self.collect(first=first)

    def gradient(self, count: int, *, first: bool) -> None:
        """`count` weights' gradient comes to be."""
        self.take("gradients", count * self.sizes.weight)
        if not first:
            self.added(count)

    def added(self, count: int) -> None:
        """`count` weights' new gradient is added to the one that was there; masters have that one in fp32."""
        if not self.sizes.masters:
            self.give("gradients", count * self.sizes.weight)

    def collect(self, *, first: bool) -> None:
        """bf16 gradients become fp32 ones, or are added to them, tensor by tensor."""
        for count in tensors(self.shape):
            if first:
                self.take("gradients", count * self.sizes.gradient)
            self.give("gradients", count * self.sizes.weight)

    def optimizer_step(self) -> None:
        """Updating needs nothing, but for the lean optimiser's chunk in fp32 (five tensors of it, and one in bf16)."""
        if self.setup.precision == "bf16-lean":
            largest = self.shape.vocab_size * self.shape.d_model
            self.briefly("workspace", 22 * min(LEAN_CHUNK, largest))


def tensors(shape: ModelShape) -> list[int]:
    """Weights in each parameter tensor, in the model's order."""
    d, table = shape.d_model, shape.vocab_size * shape.d_model
    layer = [d, d * (shape.q_width + 2 * shape.kv_width), shape.q_width * d, d, 2 * d * shape.d_ff, d * shape.d_ff]
    return [table, *layer * shape.n_layers, d, *([] if shape.tie_embeddings else [table])]


def layer_bytes(setup: Setup) -> int:
    """What one compiled block keeps for its backward pass, its input included."""
    shape, s, tokens = setup.shape, setup.sizes, setup.tokens
    inside = 3 * shape.d_model + shape.q_width + 3 * shape.d_ff  # two norms, wo; attention; gate, up and their product
    kept = tokens * (shape.d_model * s.residual + inside * s.activation + 2 * 4) + attention_bytes(setup)
    if setup.precision == "bf16-autocast":
        kept += shape.layer_matmul_parameters * s.activation  # the weights in bf16
    return kept


def attention_bytes(setup: Setup) -> int:
    """What attention keeps: queries, keys, values and the normalisers (flash), or blocks of queries with what they see."""
    shape, s, tokens = setup.shape, setup.sizes, setup.tokens
    if setup.attention_block is None:  # rotated q and k; v is a part of wqkv's output, which is kept whole
        qkv = shape.q_width + 2 * shape.kv_width
        return tokens * ((shape.q_width + shape.kv_width + qkv) * s.activation + 4 * shape.n_heads)
    blocks = blocks_of(setup.seq_len, setup.attention_block)
    kept = tokens * 2 * shape.q_width * s.activation  # queries, and the product before it is divided
    kept += setup.micro_batch * 2 * shape.kv_width * sum(keys for _, keys in blocks) * s.activation  # each has its own copy
    scores = sum(rows * keys for rows, keys in blocks)
    kept += setup.micro_batch * shape.n_heads * scores * 2 * s.activation  # and as many weights
    kept += tokens * shape.n_heads * 8  # the largest score and the sum of a row, fp32
    return kept + 4 * sum(rows * keys for rows, keys in blocks[1:])  # masks, fp32; the first is computed anew


def blocks_of(seq_len: int, block: int) -> list[tuple[int, int]]:
    """(queries, keys) of each block of queries."""
    return [(min(block, seq_len - start), min(start + block, seq_len)) for start in range(0, seq_len, block)]


def final_norm_bytes(setup: Setup) -> int:
    """The last norm, not compiled: its input, its fp32 steps, and its output, which the head reads."""
    d, s = setup.shape.d_model, setup.sizes
    if s.residual == 4:
        return setup.tokens * (4 * 3 * d + 8)
    return setup.tokens * (4 * d + 2 * 2 * d + 8)


def backward_workspace(setup: Setup) -> int:
    """What a block's backward pass holds at its fullest beside what was kept: gradients of gate, up and their product."""
    shape, s = setup.shape, setup.sizes
    return setup.tokens * (shape.d_model + 3 * shape.d_ff) * s.activation
