"""Linear layer without bias: the operation that nearly all FLOPs of a Llama are spent in.

forward    y = x Wᵀ                        y[t,o] = Σ_i x[t,i] W[o,i]
backward   dx = dy W      dW = dyᵀ x       dx[t,i] = Σ_o dy[t,o] W[o,i]      dW[o,i] = Σ_t dy[t,o] x[t,i]

One product of tokens × d_in × d_out multiply-adds forward, two backward: 2 + 4 FLOPs a weight and token. That is
where the 6 in 6·N comes from.
"""

from __future__ import annotations

from torch import Tensor

from yupana.anatomy.shapes import must_be, must_have


def forward(x: Tensor, weight: Tensor) -> Tensor:
    """`x` [..., d_in], `weight` [d_out, d_in] → [..., d_out]. Raises UserError on a misfit."""
    must_have("linear", "weight", weight, ["d_out", "d_in"], [None, None])
    must_be("linear", "the last dimension of x (d_in, as weight has it)", weight.shape[1], x.shape[-1])
    return x @ weight.T


def backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """`dy` [..., d_out] → `dx` [..., d_in], `dweight` [d_out, d_in]."""
    must_be("linear", "the last dimension of dy (d_out, as weight has it)", weight.shape[0], dy.shape[-1])
    dx = dy @ weight
    dweight = dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    return dx, dweight
