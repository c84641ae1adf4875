"""Residual connection: a branch's output is added to the stream that it read.

forward    y = x + branch(x)
backward   the gradient reaches both unchanged: d(stream) = dy, d(branch) = dy

In a block the branch itself reads x, so the stream's whole gradient is dy + the branch's dx: the term that lets a
gradient reach the first layer however many layers there are.
"""

from __future__ import annotations

from torch import Tensor

from yupana.anatomy.shapes import must_have


def forward(x: Tensor, branch: Tensor) -> Tensor:
    """`x` and `branch` [batch, seq, d_model] → their sum. Raises UserError on a misfit."""
    must_have("residual", "branch", branch, ["batch", "seq", "d_model"], list(x.shape))
    return x + branch


def backward(dy: Tensor) -> tuple[Tensor, Tensor]:
    """`dy` → the gradients of the stream and of the branch."""
    return dy, dy
