"""Grouped-query causal attention (Vaswani et al. 1706.03762, eq. 1; Ainslie et al. 2305.13245), scores in full.

forward    S = q kᵀ / √head_dim, -∞ where a query may not look      P = softmax(S)      O = P v
backward   dv = Pᵀ dO                      dP = dO vᵀ               dS = P ⊙ (dP - rowsum(dP ⊙ P))
           dq = dS k / √head_dim           dk = dSᵀ q / √head_dim   dk and dv summed over the queries of a group

n_heads / n_kv_heads query heads share one key and value head: forward copies them, so backward adds. Two products
forward, four backward (and the scores once more, if they were not kept). The causal half of each is masked.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from yupana.anatomy import softmax
from yupana.anatomy.shapes import must_be, must_have
from yupana.errors import UserError


def mask(seq: int, document_ids: Tensor | None = None) -> Tensor:
    """True where a query may look at a key, [batch or 1, 1, seq, seq]: not ahead, and not into another document."""
    seen = torch.ones(seq, seq, dtype=torch.bool).tril()[None, None]
    if document_ids is None:
        return seen
    must_have("attention", "document_ids", document_ids, ["batch", "seq"], [None, seq])
    return seen & (document_ids[:, None, :, None] == document_ids[:, None, None, :])


def forward(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """`q` [batch, n_heads, seq, head_dim], `k`, `v` [batch, n_kv_heads, seq, head_dim] → the shape of q.

    `seen` comes from `mask`. Raises UserError on a misfit.
    """
    p = probabilities(q, k, seen)
    must_have("attention", "v", v, DIMENSIONS, list(k.shape))
    return (p @ v[:, :, None]).flatten(1, 2)


def backward(do: Tensor, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`do` of q's shape → `dq`, `dk`, `dv`, each of its tensor's shape."""
    must_have("attention", "do", do, DIMENSIONS, list(q.shape))
    scale = 1 / math.sqrt(q.shape[-1])
    p = probabilities(q, k, seen)  # [batch, n_kv_heads, group, seq, seq]
    q, do = grouped(q, k), grouped(do, k)
    dv = (p.transpose(-1, -2) @ do).sum(2)
    dp = do @ v[:, :, None].transpose(-1, -2)
    ds = softmax.backward(dp, p)
    dq = (ds @ k[:, :, None]) * scale
    dk = (ds.transpose(-1, -2) @ q).sum(2) * scale
    return dq.flatten(1, 2), dk, dv


def probabilities(q: Tensor, k: Tensor, seen: Tensor) -> Tensor:
    """How each query weighs each key, [batch, n_kv_heads, group, seq, seq]; each row sums to 1."""
    must_fit(q, k, seen)
    scores = grouped(q, k) @ k[:, :, None].transpose(-1, -2) / math.sqrt(q.shape[-1])
    return softmax.forward(scores.masked_fill(~seen[:, :, None], -torch.inf))


def grouped(x: Tensor, k: Tensor) -> Tensor:
    """[batch, n_heads, seq, head_dim] → [batch, n_kv_heads, group, seq, head_dim]."""
    return x.unflatten(1, (k.shape[1], -1))


DIMENSIONS = ["batch", "heads", "seq", "head_dim"]


def must_fit(q: Tensor, k: Tensor, seen: Tensor) -> None:
    """Raise UserError unless queries, keys and mask fit together."""
    must_have("attention", "q", q, DIMENSIONS, [None, None, None, None])
    batch, heads, seq, width = q.shape
    must_have("attention", "k", k, DIMENSIONS, [batch, None, seq, width])
    if heads % k.shape[1]:
        raise UserError(f"attention: n_heads ({heads}) must be a multiple of n_kv_heads ({k.shape[1]})")
    must_have("attention", "seen", seen, ["batch", "1", "query", "key"], [None, 1, seq, seq])
    if seen.shape[0] != 1:
        must_be("attention", "the batch of seen (or 1)", batch, seen.shape[0])
