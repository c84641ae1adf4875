"""Causal attention for a CPU: query blocks against the keys they may see, as plain batched matrix products.

torch's own CPU kernel reaches a quarter of the matrix-product rate at the head sizes Llamas use; batched products
with a compiled softmax between them reach more, and cutting the queries into blocks skips most of the masked half
(benchmarks/attention.py). The scores of one block exist whole, [batch, n_heads, BLOCK, keys], so this is for
sequences that are not long. Oracle: `F.scaled_dot_product_attention`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 128  # queries at once: masked waste falls with it, the products' efficiency too
LONGEST = 1024  # beyond this many tokens the scores outgrow the cache, and torch's own kernel is ahead


def blocked_causal_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax(q kᵀ / √head_dim, causal) v; q [batch, n_heads, seq, head_dim], k and v with n_kv_heads.

    `mask` [batch, 1, seq, seq] replaces the causal one where given: True where a query may look.
    """
    batch, heads, seq, width = q.shape
    kv_heads = k.shape[1]
    # Queries that share a key head become rows of the same product: no copies of the keys.
    q = (q * (1 / math.sqrt(width))).reshape(batch, kv_heads, heads // kv_heads, seq, width)
    blocks = []
    for start in range(0, seq, BLOCK):
        end = min(start + BLOCK, seq)
        rows = q[:, :, :, start:end].reshape(batch, kv_heads, -1, width)
        scores = (rows @ k[:, :, :end].transpose(-1, -2)).float()
        scores = scores.view(batch, kv_heads, -1, end - start, end)
        if mask is None:
            seen = torch.ones(end - start, end, dtype=torch.bool, device=q.device).tril(start)
        else:
            seen = mask[:, :, None, start:end, :end]
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).to(q.dtype)
        out = weights.view(batch, kv_heads, -1, end) @ v[:, :, :end]
        blocks.append(out.view(batch, heads, end - start, width))
    return torch.cat(blocks, dim=2)
