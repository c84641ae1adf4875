"""Embedding: a row of the table for each token.

forward    y[t] = E[token[t]]
backward   dE[v] = Σ over t with token[t] = v of dy[t]     (scatter-add)

The look-up is the product of a one-hot matrix with E, so its backward is that matrix transposed times dy: rows of
tokens that occur twice add up, rows of tokens that do not occur stay zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from yupana.anatomy.shapes import must_have, must_index


def forward(table: Tensor, tokens: Tensor) -> Tensor:
    """`table` [vocab, d_model], `tokens` [batch, seq] → [batch, seq, d_model]. Raises UserError on a misfit."""
    must_have("embedding", "table", table, ["vocab", "d_model"], [None, None])
    must_have("embedding", "tokens", tokens, ["batch", "seq"], [None, None])
    must_index("embedding", "tokens", tokens, table.shape[0], "vocabulary")
    return table[tokens]


def backward(dy: Tensor, table: Tensor, tokens: Tensor) -> Tensor:
    """`dy` [batch, seq, d_model] → the table's gradient [vocab, d_model]."""
    must_have("embedding", "dy", dy, ["batch", "seq", "d_model"], [*tokens.shape, table.shape[1]])
    return torch.zeros_like(table).index_add(0, tokens.flatten(), dy.flatten(0, 1))
