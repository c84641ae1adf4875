"""Softmax over the last dimension.

forward    y_i = exp(x_i - m) / Σ_j exp(x_j - m)      m = max x
backward   dx_i = y_i (dy_i - Σ_j dy_j y_j)

Subtracting the maximum changes nothing in exact arithmetic and keeps exp from overflowing (fp32 above 88, bf16 too).
∂y_i/∂x_j = y_i (δ_ij - y_j): the backward subtracts the mean of dy under y, because adding a constant to all x
changes no y.
"""

from __future__ import annotations

from torch import Tensor

from yupana.anatomy.shapes import must_be


def forward(x: Tensor) -> Tensor:
    """`x` [..., n], -inf where masked (not everywhere) → probabilities [..., n]."""
    exps = (x - x.amax(-1, keepdim=True)).exp()
    return exps / exps.sum(-1, keepdim=True)


def backward(dy: Tensor, y: Tensor) -> Tensor:
    """`dy` [..., n] and the probabilities `y` that forward returned → `dx` [..., n]. Raises UserError on a misfit."""
    must_be("softmax", "the last dimension of dy", y.shape[-1], dy.shape[-1])
    return y * (dy - (dy * y).sum(-1, keepdim=True))
