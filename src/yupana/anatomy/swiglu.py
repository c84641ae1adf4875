"""SwiGLU (Shazeer, arXiv 2002.05202, eq. 5): a gate times a value, s(x) = 1 / (1 + exp(-x)) the logistic function.

forward    y = silu(gate) ⊙ up             silu(x) = x s(x)
backward   dup = dy ⊙ silu(gate)           dgate = dy ⊙ up ⊙ s(gate) ⊙ (1 + gate ⊙ (1 - s(gate)))

from silu'(x) = s + x s' and s' = s (1 - s).
"""

from __future__ import annotations

import torch
from torch import Tensor

from yupana.anatomy.shapes import must_be


def forward(gate: Tensor, up: Tensor) -> Tensor:
    """`gate` and `up` [..., d_ff] → [..., d_ff]. Raises UserError on a misfit."""
    must_be("swiglu", "the last dimension of up (d_ff, as gate has it)", gate.shape[-1], up.shape[-1])
    return gate * torch.sigmoid(gate) * up


def backward(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """`dy` [..., d_ff] → `dgate` and `dup` [..., d_ff]."""
    must_be("swiglu", "the last dimension of dy (d_ff)", gate.shape[-1], dy.shape[-1])
    s = torch.sigmoid(gate)
    dgate = dy * up * s * (1 + gate * (1 - s))
    dup = dy * gate * s
    return dgate, dup
