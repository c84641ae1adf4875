"""Every operation of a training step, in order, with its matrix products, FLOPs and bytes moved.

FLOPs are those of matrix products alone (`exact`: causal attention at half), so that they sum to
`count.flops_per_token`; elementwise arithmetic stands beside them and never counts towards MFU.

Bytes are the least an operation can move: each input read once, each output written once, with elementwise chains
fused into one kernel (as torch.compile does) and attention in tiles that never write its scores (FlashAttention,
arXiv 2205.14135). Real kernels move that or more.
"""

from __future__ import annotations

from dataclasses import dataclass

from yupana.model.shapes import ModelShape


@dataclass(frozen=True)
class Product:
    """A matrix product [m, k] × [k, n]."""

    m: int
    n: int
    k: int

    @property
    def flops(self) -> int:
        """A multiply-add is two."""
        return 2 * self.m * self.n * self.k


@dataclass(frozen=True)
class Pass:
    """What one pass (forward or backward) of an operation does."""

    bytes: int = 0
    """Read and written, at least."""
    products: tuple[Product, ...] = ()
    """Plain matrix products."""
    attention_flops: int = 0
    """Matrix-product FLOPs inside the attention kernel, the masked half left out."""
    elementwise: int = 0
    """Additions, multiplications, exponentials and roots outside matrix products; about right, not exact."""

    @property
    def flops(self) -> int:
        """Matrix-product FLOPs, attention included."""
        return sum(product.flops for product in self.products) + self.attention_flops


@dataclass(frozen=True)
class Operation:
    """One operation of the step, `count` times alike (once a layer, or once)."""

    name: str
    """What it is called in anatomy/: rmsnorm, linear, rope, attention, …"""
    part: str
    """Which one it is: attention_norm, wqkv, …"""
    count: int
    forward: Pass
    backward: Pass

    @property
    def flops(self) -> int:
        """Matrix-product FLOPs of all `count`, forward and backward."""
        return self.count * (self.forward.flops + self.backward.flops)

    @property
    def bytes(self) -> int:
        """Bytes of all `count`, forward and backward."""
        return self.count * (self.forward.bytes + self.backward.bytes)

    @property
    def elementwise(self) -> int:
        """Elementwise operations of all `count`, forward and backward."""
        return self.count * (self.forward.elementwise + self.backward.elementwise)


@dataclass(frozen=True)
class Sizes:
    """Bytes an element: bf16 with fp32 masters is 2, 2 and 4."""

    activation: int = 2
    """Of what a block computes inside."""
    weight: int = 2
    gradient: int = 4
    """Of a weight, as the optimiser reads it."""
    state: int = 4
    """Of each moment and of the master copy."""
    masters: bool = True
    """Whether the optimiser keeps its own copy of the weights."""
    residual: int = 2
    """Of the residual stream: autocast keeps it in fp32."""

    @staticmethod
    def of(precision: str) -> Sizes:
        """Those of `train.precision`: fp32, tf32, bf16-autocast, bf16 or bf16-lean."""
        return {
            "fp32": Sizes(4, 4, 4, 4, masters=False, residual=4),
            "tf32": Sizes(4, 4, 4, 4, masters=False, residual=4),
            "bf16-autocast": Sizes(2, 4, 4, 4, masters=False, residual=4),
            "bf16": Sizes(),
            "bf16-lean": Sizes(2, 2, 2, 2, masters=False),
        }[precision]


def step_operations(shape: ModelShape, batch: int, seq_len: int, sizes: Sizes | None = None) -> list[Operation]:
    """The operations of one forward and backward pass over `batch` sequences, and of one AdamW step, in order."""
    sizes = sizes or Sizes()
    tokens, d = batch * seq_len, shape.d_model
    return [
        embedding(shape.vocab_size, tokens, d, sizes),
        *block(shape, shape.n_layers, batch, seq_len, sizes),
        rmsnorm("norm", 1, tokens, d, sizes),
        linear("output", 1, tokens, d, shape.vocab_size, sizes),
        cross_entropy(tokens, shape.vocab_size, sizes),
        adamw(shape.parameters, sizes),
    ]


def block(shape: ModelShape, layers: int, batch: int, seq_len: int, sizes: Sizes) -> list[Operation]:
    """The operations of `layers` blocks, in order."""
    tokens, d = batch * seq_len, shape.d_model
    q, kv = shape.q_width, shape.kv_width
    return [
        rmsnorm("attention_norm", layers, tokens, d, sizes),
        linear("wqkv", layers, tokens, d, q + 2 * kv, sizes),
        rope(layers, tokens, q + kv, sizes),
        attention(layers, batch, seq_len, shape.n_heads, shape.n_kv_heads, shape.head_dim, sizes),
        linear("wo", layers, tokens, q, d, sizes),
        residual("attention", layers, tokens, d, sizes),
        rmsnorm("feed_forward_norm", layers, tokens, d, sizes),
        linear("w_gate_up", layers, tokens, d, 2 * shape.d_ff, sizes),
        swiglu(layers, tokens, shape.d_ff, sizes),
        linear("w_down", layers, tokens, shape.d_ff, d, sizes),
        residual("feed_forward", layers, tokens, d, sizes),
    ]


def embedding(vocab: int, tokens: int, width: int, sizes: Sizes) -> Operation:
    """Rows gathered forward, added into a zeroed gradient of the whole table backward; ids are 8 bytes."""
    rows = tokens * width
    return Operation(
        "embedding", "embedding", 1,
        Pass(bytes=8 * tokens + rows * (sizes.weight + sizes.residual)),
        Pass(bytes=8 * tokens + rows * (sizes.residual + 2 * sizes.weight) + vocab * width * sizes.weight,
             elementwise=rows),
    )  # fmt: skip


def linear(part: str, count: int, tokens: int, inner: int, outer: int, sizes: Sizes) -> Operation:
    """y = x Wᵀ; backward dx = dy W and dW = dyᵀ x."""
    x, y, w = tokens * inner * sizes.activation, tokens * outer * sizes.activation, inner * outer * sizes.weight
    return Operation(
        "linear", part, count,
        Pass(bytes=x + w + y, products=(Product(tokens, outer, inner),)),
        Pass(bytes=(y + w + x) + (y + x + w), products=(Product(tokens, inner, outer), Product(outer, inner, tokens))),
    )  # fmt: skip


def rmsnorm(part: str, count: int, tokens: int, width: int, sizes: Sizes) -> Operation:
    """Forward x → y, backward (x, dy) → dx, dw; the weights' own bytes are small and counted."""
    x, y, w = tokens * width * sizes.residual, tokens * width * sizes.activation, width * sizes.weight
    return Operation(
        "rmsnorm", part, count,
        Pass(bytes=x + y + w, elementwise=4 * tokens * width),
        Pass(bytes=2 * x + y + 2 * w, elementwise=9 * tokens * width),
    )  # fmt: skip


def rope(count: int, tokens: int, width: int, sizes: Sizes) -> Operation:
    """Queries and keys rotated: two multiplications and an addition a number; backward is the inverse rotation."""
    moved = 2 * tokens * width * sizes.activation
    both = Pass(bytes=moved, elementwise=3 * tokens * width)
    return Operation("rope", "rope", count, both, both)


def attention(
    count: int, batch: int, seq_len: int, n_heads: int, n_kv_heads: int, head_dim: int, sizes: Sizes
) -> Operation:
    """Causal grouped-query attention in tiles: two products forward; backward four more and the scores once more.

    The recomputed product of scores is not counted: recomputation never is.
    """
    pairs = batch * n_heads * seq_len * seq_len  # of query and key; half of them masked
    q = batch * seq_len * n_heads * head_dim * sizes.activation
    kv = 2 * batch * seq_len * n_kv_heads * head_dim * sizes.activation
    normaliser = 4 * batch * seq_len * n_heads
    return Operation(
        "attention", "attention", count,
        Pass(bytes=2 * q + kv + normaliser, attention_flops=2 * pairs * head_dim, elementwise=5 * pairs // 2),
        Pass(bytes=4 * q + 2 * kv + 2 * normaliser, attention_flops=4 * pairs * head_dim, elementwise=4 * pairs),
    )  # fmt: skip


def residual(part: str, count: int, tokens: int, width: int, sizes: Sizes) -> Operation:
    """x + branch forward; backward the gradient reaches both unchanged and the two that meet are added."""
    moved = tokens * width * (2 * sizes.residual + sizes.activation)
    both = Pass(bytes=moved, elementwise=tokens * width)
    return Operation("residual", f"{part}_residual", count, both, both)


def swiglu(count: int, tokens: int, width: int, sizes: Sizes) -> Operation:
    """silu(gate) · up; backward reads gate, up and the gradient and writes two."""
    one = tokens * width * sizes.activation
    return Operation(
        "swiglu", "swiglu", count,
        Pass(bytes=3 * one, elementwise=5 * tokens * width),
        Pass(bytes=5 * one, elementwise=12 * tokens * width),
    )  # fmt: skip


def cross_entropy(tokens: int, vocab: int, sizes: Sizes) -> Operation:
    """The loss over logits that exist a chunk at a time: read for the loss, then turned into their gradient."""
    logits = tokens * vocab * sizes.activation
    return Operation(
        "cross_entropy", "cross_entropy", 1,
        Pass(bytes=logits + 8 * tokens, elementwise=3 * tokens * vocab),
        Pass(bytes=2 * logits + 8 * tokens, elementwise=3 * tokens * vocab),
    )  # fmt: skip


def adamw(parameters: int, sizes: Sizes) -> Operation:
    """One update: gradient read (twice: norm, then update), moments and weights read and written."""
    state = 2 * sizes.gradient + 4 * sizes.state + (2 * sizes.state if sizes.masters else sizes.weight) + sizes.weight
    return Operation("adamw", "adamw", 1, Pass(), Pass(bytes=parameters * state, elementwise=14 * parameters))


def softmax(rows: int, width: int, sizes: Sizes) -> Operation:
    """Of numbers that stand in memory (inside attention and the loss it moves nothing): x → y; (y, dy) → dx."""
    one = rows * width * sizes.activation
    return Operation(
        "softmax", "softmax", 1,
        Pass(bytes=2 * one, elementwise=4 * rows * width),
        Pass(bytes=3 * one, elementwise=4 * rows * width),
    )  # fmt: skip


def clip(parameters: int, sizes: Sizes) -> Operation:
    """Gradients read for the norm, then read and written scaled; inside `adamw` the update does the scaling."""
    return Operation("clip", "clip", 1, Pass(), Pass(bytes=3 * parameters * sizes.gradient, elementwise=3 * parameters))


def muon(shape: ModelShape, sizes: Sizes, turns: int = 5) -> Operation:
    """One Muon update of the blocks' matrices, Q, K, V, gate and up each its own; AdamW keeps the rest.

    A turn on [r, c], r ≤ c, multiplies X Xᵀ, its square, and their sum with X: 4·r²·c + 2·r³ FLOPs. No MFU counts
    them.
    """
    d, q, kv, ff = shape.d_model, shape.q_width, shape.kv_width, shape.d_ff
    products: list[Product] = []
    moved, numbers = 0, 0
    for rows, columns in ((q, d), (kv, d), (kv, d), (d, q), (ff, d), (ff, d), (d, ff)):
        r, c = sorted((rows, columns))
        products += turns * [Product(r, r, c), Product(r, r, r), Product(r, c, r)]
        turn = (r * c + r * r) + 2 * r * r + (r * r + 2 * r * c)  # each product's inputs and output, once
        state = sizes.gradient + 2 * sizes.state + (2 * sizes.state if sizes.masters else sizes.weight) + sizes.weight
        moved += turns * turn * sizes.activation + r * c * state
        numbers += r * c
    return Operation(
        "muon", "muon", shape.n_layers,
        Pass(), Pass(bytes=moved, products=tuple(products), elementwise=(10 + 2 * turns) * numbers),
    )  # fmt: skip
