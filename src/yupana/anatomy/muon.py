"""One step of Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum made orthogonal, for matrices.

forward    B ← μ B + (1 - μ) g            U = (1 - μ) g + μ B                      (Nesterov)
           X = U / ‖U‖ ; five times:      A = X Xᵀ      X ← a X + (b A + c A²) X
           w ← w (1 - η λ) - η r X        r = √max(1, rows / columns)

The quintic acts on each singular value alone: with X = P diag(σ) Qᵀ, one turn gives P diag(a σ + b σ³ + c σ⁵) Qᵀ. So
five turns push all singular values towards 1 (into about 0.7 … 1.2) without computing them: the update moves every
direction of the matrix by about as much. For a tall matrix the transpose is turned, which makes A the smaller square.
Moonshot (2502.16982, eq. 4) has r = 0.2 √max(rows, columns) instead, which gives the update AdamW's usual size.
"""

from __future__ import annotations

import math

from torch import Tensor

from yupana.anatomy.shapes import must_have

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # a, b, c: Jordan's, steepest at 0 that stays bounded
TURNS = 5


def forward(
    weight: Tensor,
    gradient: Tensor,
    momentum_buffer: Tensor,
    lr: float,
    momentum: float = 0.95,
    weight_decay: float = 0.1,
    turns: int = TURNS,
    match_adamw: bool = False,
) -> tuple[Tensor, Tensor]:
    """The new weight and momentum buffer, [rows, columns]; `match_adamw` takes Moonshot's r.

    Raises UserError on a misfit.
    """
    must_have("muon", "weight", weight, ["rows", "columns"], [None, None])
    for name, tensor in (("gradient", gradient), ("momentum_buffer", momentum_buffer)):
        must_have("muon", name, tensor, ["rows", "columns"], list(weight.shape))
    buffer = momentum * momentum_buffer + (1 - momentum) * gradient
    update = orthogonalised((1 - momentum) * gradient + momentum * buffer, turns)
    rows, columns = weight.shape
    ratio = 0.2 * math.sqrt(max(rows, columns)) if match_adamw else math.sqrt(max(1.0, rows / columns))
    return weight * (1 - lr * weight_decay) - lr * ratio * update, buffer


def orthogonalised(matrix: Tensor, turns: int = TURNS) -> Tensor:
    """`matrix` [rows, columns] with its singular values driven towards 1 by `turns` of the quintic iteration."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp_min(1e-7)  # the largest singular value is at most the Frobenius norm
    for _ in range(turns):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x
