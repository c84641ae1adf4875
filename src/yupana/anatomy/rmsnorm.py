"""RMSNorm (Zhang & Sennrich, arXiv 1910.07467, eq. 4): each token's vector scaled to root mean square 1.

forward    r = (mean(x²) + ε)^(-1/2)      n = r x      y = n ⊙ w
backward   dw = Σ over tokens of dy ⊙ n
           g = dy ⊙ w                     dx = r (g - n · mean(g ⊙ n))

The subtracted term is the projection of g on n: growing x along itself changes nothing (but for ε), so a gradient
along x must vanish. In training the mean square is taken in fp32: bf16 keeps 8 bits, and a sum of thousands of
squares would lose most of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from yupana.anatomy.shapes import must_be, must_have


def forward(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """`x` [..., d_model], `weight` [d_model] → [..., d_model]. Raises UserError on a misfit."""
    must_have("rmsnorm", "weight", weight, ["d_model"], [None])
    must_be("rmsnorm", "the last dimension of x (d_model, as weight has it)", weight.shape[0], x.shape[-1])
    return x * inverse_rms(x, eps) * weight


def backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """`dy` [..., d_model] → `dx` [..., d_model], `dweight` [d_model]."""
    must_be("rmsnorm", "the last dimension of dy (d_model)", x.shape[-1], dy.shape[-1])
    r = inverse_rms(x, eps)
    normed = x * r
    dweight = (dy * normed).reshape(-1, x.shape[-1]).sum(0)
    g = dy * weight
    dx = r * (g - normed * (g * normed).mean(-1, keepdim=True))
    return dx, dweight


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """(mean(x²) + ε)^(-1/2) of the last dimension: [..., 1]."""
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
