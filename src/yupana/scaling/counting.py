"""Counting conventions: what a paper's N and C leave in or out, always named.

Parameters: `all` counts every weight (a tied embedding once); `non-embedding` leaves out the embedding look-up and the
output head (Kaplan, DeepSeek, Step Law); `matmul` leaves out the look-up and the norms and keeps the head, tied or
not (what a token's matrix products cost).

FLOPs of training: `6ND` is 6·N·D, with N in whichever parameter convention is named beside it; `palm` and `exact` come
from `yupana.flops.count` and add attention.
"""

from __future__ import annotations

from yupana.errors import UserError
from yupana.flops.count import flops_per_token
from yupana.model.shapes import ModelShape

PARAMETERS = ("all", "non-embedding", "matmul")
FLOPS = ("6ND", "palm", "exact")


def parameters(shape: ModelShape, convention: str) -> int:
    """Parameters of `shape` in a named convention ("all", "non-embedding" or "matmul")."""
    if convention == "all":
        return shape.parameters
    if convention == "matmul":
        return shape.matmul_parameters
    if convention == "non-embedding":
        return shape.matmul_parameters - shape.vocab_size * shape.d_model + (2 * shape.n_layers + 1) * shape.d_model
    raise UserError(f"parameters are counted as {', '.join(PARAMETERS)}, not '{convention}'")


def training_flops(shape: ModelShape, tokens: float, seq_len: int, convention: str, counted: str = "all") -> float:
    """FLOPs of training `shape` on `tokens` tokens: "6ND" (N as `counted`), "palm" or "exact"."""
    if convention == "6ND":
        return 6.0 * parameters(shape, counted) * tokens
    if convention in FLOPS:
        return float(flops_per_token(shape, seq_len)[convention]) * tokens
    raise UserError(f"FLOPs are counted as {', '.join(FLOPS)}, not '{convention}'")


def conversion(shape: ModelShape, seq_len: int) -> dict[str, float]:
    """How much each FLOP convention says for one token of `shape`, over 6·N with all parameters counted.

    `{"6ND all": 1, "6ND non-embedding": …, "6ND matmul": …, "palm": …, "exact": …}`. Multiply a budget in one
    convention by the ratio of two entries to have it in another.
    """
    whole = training_flops(shape, 1, seq_len, "6ND")
    ratios = {f"6ND {c}": training_flops(shape, 1, seq_len, "6ND", c) / whole for c in PARAMETERS}
    return ratios | {c: training_flops(shape, 1, seq_len, c) / whole for c in ("palm", "exact")}
