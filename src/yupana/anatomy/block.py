"""A transformer block: attention, then feed-forward, each on the normed residual stream and added to it.

forward    a = rmsnorm(x, w₁)      q, k, v = split(a W_qkvᵀ)      o = attention(rope(q), rope(k), v)
           h = x + o W_oᵀ
           b = rmsnorm(h, w₂)      gate, up = split(b W_guᵀ)      y = h + (silu(gate) ⊙ up) W_downᵀ
backward   the same operations from the last to the first; where the stream forks, its gradients add:
           dh = dy + (through the feed-forward)      dx = dh + (through the attention)

forward keeps what backward needs, as training does; each operation recomputes only what is cheap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from yupana.anatomy import attention, linear, residual, rmsnorm, rope, swiglu
from yupana.anatomy.rope import Rope
from yupana.anatomy.shapes import must_be, must_have
from yupana.errors import UserError

Weights = Mapping[str, Tensor]  # by the names of yupana.model.llama's parameters, without "layers.N." for a block


@dataclass(frozen=True)
class Kept:
    """What a block's forward pass keeps for its backward pass."""

    x: Tensor
    """The residual stream that came in, [batch, seq, d_model]."""
    a: Tensor
    """Normed, into attention."""
    q: Tensor
    """Turned queries, [batch, n_heads, seq, head_dim]."""
    k: Tensor
    """Turned keys, [batch, n_kv_heads, seq, head_dim]."""
    v: Tensor
    """Values, [batch, n_kv_heads, seq, head_dim]."""
    o: Tensor
    """Attention's output, heads side by side, [batch, seq, n_heads · head_dim]."""
    h: Tensor
    """The stream after attention, [batch, seq, d_model]."""
    b: Tensor
    """Normed, into the feed-forward."""
    gate: Tensor
    """[batch, seq, d_ff]."""
    up: Tensor
    """[batch, seq, d_ff]."""


def forward(x: Tensor, weights: Weights, rotation: Rope, seen: Tensor, eps: float = 1e-5) -> tuple[Tensor, Kept]:
    """`x` [batch, seq, d_model] → the same shape, and what backward needs. Raises UserError on a misfit."""
    must_have("block", "x", x, ["batch", "seq", "d_model"], [None, rotation[0].shape[0], None])
    head_dim = 2 * rotation[0].shape[1]
    q_width = weights["attention.wo.weight"].shape[1]
    qkv_width = weights["attention.wqkv.weight"].shape[0]
    kv_width = (qkv_width - q_width) // 2
    if kv_width < 1 or q_width % head_dim or kv_width % head_dim or q_width + 2 * kv_width != qkv_width:
        raise UserError(
            f"block: the rows of wqkv ({qkv_width}) must be those of q (n_heads · head_dim, the columns of wo: "
            f"{q_width}) and of k and v, in heads of {head_dim}"
        )
    a = rmsnorm.forward(x, weights["attention_norm.weight"], eps)
    q, k, v = linear.forward(a, weights["attention.wqkv.weight"]).split([q_width, kv_width, kv_width], dim=-1)
    q, k = (rope.forward(into_heads(part, head_dim), rotation) for part in (q, k))
    v = into_heads(v, head_dim)
    o = out_of_heads(attention.forward(q, k, v, seen))
    h = residual.forward(x, linear.forward(o, weights["attention.wo.weight"]))
    b = rmsnorm.forward(h, weights["feed_forward_norm.weight"], eps)
    gate, up = linear.forward(b, weights["feed_forward.w_gate_up.weight"]).chunk(2, dim=-1)
    y = residual.forward(h, linear.forward(swiglu.forward(gate, up), weights["feed_forward.w_down.weight"]))
    return y, Kept(x, a, q, k, v, o, h, b, gate, up)


def backward(
    dy: Tensor, kept: Kept, weights: Weights, rotation: Rope, seen: Tensor, eps: float = 1e-5
) -> tuple[Tensor, dict[str, Tensor]]:
    """`dy` [batch, seq, d_model] → `dx`, and the gradient of every weight by its name."""
    must_have("block", "dy", dy, ["batch", "seq", "d_model"], list(kept.x.shape))
    gradients = {}
    dh, dbranch = residual.backward(dy)
    acted = swiglu.forward(kept.gate, kept.up)
    dacted, gradients["feed_forward.w_down.weight"] = linear.backward(
        dbranch, acted, weights["feed_forward.w_down.weight"]
    )
    dgate_up = cat(*swiglu.backward(dacted, kept.gate, kept.up))
    db, gradients["feed_forward.w_gate_up.weight"] = linear.backward(
        dgate_up, kept.b, weights["feed_forward.w_gate_up.weight"]
    )
    dh_branch, gradients["feed_forward_norm.weight"] = rmsnorm.backward(
        db, kept.h, weights["feed_forward_norm.weight"], eps
    )
    dx, dbranch = residual.backward(dh + dh_branch)
    do, gradients["attention.wo.weight"] = linear.backward(dbranch, kept.o, weights["attention.wo.weight"])
    dq, dk, dv = attention.backward(into_heads(do, kept.q.shape[-1]), kept.q, kept.k, kept.v, seen)
    dq, dk = rope.backward(dq, rotation), rope.backward(dk, rotation)
    dqkv = cat(*(out_of_heads(part) for part in (dq, dk, dv)))
    da, gradients["attention.wqkv.weight"] = linear.backward(dqkv, kept.a, weights["attention.wqkv.weight"])
    dx_branch, gradients["attention_norm.weight"] = rmsnorm.backward(
        da, kept.x, weights["attention_norm.weight"], eps
    )
    return dx + dx_branch, gradients


def into_heads(x: Tensor, head_dim: int) -> Tensor:
    """[batch, seq, heads · head_dim] → [batch, heads, seq, head_dim]."""
    must_be("block", "the remainder of the width over head_dim", 0, x.shape[-1] % head_dim)
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def out_of_heads(x: Tensor) -> Tensor:
    """[batch, heads, seq, head_dim] → [batch, seq, heads · head_dim]."""
    return x.transpose(1, 2).flatten(2)


def cat(*parts: Tensor) -> Tensor:
    """Side by side along the last dimension."""
    return torch.cat(parts, dim=-1)
