"""Rotary embedding (Su et al., arXiv 2104.09864, §3.2.2): queries and keys turned by an angle that grows with position.

forward    y₁ = x₁ cos φ - x₂ sin φ        y₂ = x₂ cos φ + x₁ sin φ          φ = position · frequency
backward   dx₁ = dy₁ cos φ + dy₂ sin φ     dx₂ = dy₂ cos φ - dy₁ sin φ       (the rotation by -φ)

Dimension i of the first half of a head is paired with dimension i of the second. A rotation is orthogonal, so its
transpose, which the backward pass needs, is its inverse. Frequencies are θ^(-2i/head_dim); Llama 3 (2407.21783)
divides the slow ones by `factor`, keeps the fast ones, and blends between: with `turns`, the number of times a wave
fits into the original context, kept = clamp((turns - low) / (high - low), 0, 1) and
f' = kept · f + (1 - kept) · f / factor.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from yupana.anatomy.shapes import must_be, must_have
from yupana.errors import UserError

Rope = tuple[Tensor, Tensor]  # cos and sin, each [seq, head_dim / 2]


class Scaling(Protocol):
    """Llama 3's frequency scaling; yupana.model.shapes.RopeScaling is one."""

    @property
    def factor(self) -> float: ...  # noqa: D102
    @property
    def low_freq_factor(self) -> float: ...  # noqa: D102
    @property
    def high_freq_factor(self) -> float: ...  # noqa: D102
    @property
    def original_context(self) -> int: ...  # noqa: D102


def frequencies(head_dim: int, theta: float, scaling: Scaling | None, dtype: torch.dtype = torch.float64) -> Tensor:
    """Radians per position of each pair, [head_dim / 2]. Raises UserError for an odd head_dim."""
    if head_dim % 2:
        raise UserError(f"rope: head_dim must be even (dimensions turn in pairs), got {head_dim}")
    plain = theta ** (-torch.arange(0, head_dim, 2, dtype=dtype) / head_dim)
    if scaling is None:
        return plain
    turns = scaling.original_context * plain / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return kept * plain + (1 - kept) * plain / scaling.factor


def table(seq: int, frequency: Tensor) -> Rope:
    """Cosine and sine at positions 0 … seq-1, each [seq, head_dim / 2]."""
    angles = torch.arange(seq, dtype=frequency.dtype, device=frequency.device)[:, None] * frequency
    return angles.cos(), angles.sin()


def forward(x: Tensor, rope: Rope) -> Tensor:
    """`x` [batch, heads, seq, head_dim] → the same shape, turned. Raises UserError on a misfit."""
    return _turn(x, rope[0], rope[1])


def backward(dy: Tensor, rope: Rope) -> Tensor:
    """`dy` [batch, heads, seq, head_dim] → `dx`: turned back."""
    return _turn(dy, rope[0], -rope[1])


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    must_have("rope", "x", x, ["batch", "heads", "seq", "head_dim"], [None, None, cos.shape[0], None])
    must_be("rope", "head_dim (twice the table's pairs)", 2 * cos.shape[1], x.shape[3])
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
