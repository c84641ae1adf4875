"""The same attention a tile at a time, so that the scores never exist whole (FlashAttention-2, 2307.08691, alg. 1, 2).

forward    for each tile of queries, over tiles of keys, with running maximum m, sum l and output A:
             m' = max(m, rowmax S)      P = exp(S - m')      c = exp(m - m')
             l ← c l + rowsum P         A ← c A + P v        m ← m'
           then O = A / l and, kept for the backward, L = m + log l
backward   D = rowsum(dO ⊙ O)             P = exp(S - L)       (S once more, a tile at a time)
           dv += Pᵀ dO                    dS = P ⊙ (dO vᵀ - D)
           dq += dS k / √head_dim         dk += dSᵀ q / √head_dim

D equals rowsum(dP ⊙ P) of plain attention, since Σ_j P_ij Σ_c dO_ic v_jc = Σ_c dO_ic O_ic: a number a query, known
before any tile. Tiles wholly above the diagonal are skipped, so tiles of s leave (seq + s) / (2 seq) of the products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from yupana.anatomy.attention import DIMENSIONS, grouped, must_fit
from yupana.anatomy.shapes import must_have
from yupana.errors import UserError


def forward(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, tile: int = 64) -> tuple[Tensor, Tensor]:
    """As attention.forward; also returns L = log Σ exp S of each query, [batch, n_heads, seq].

    `tile` is the side of a tile in tokens. Raises UserError on a misfit.
    """
    must_fit(q, k, seen)
    must_have("attention", "v", v, DIMENSIONS, list(k.shape))
    outputs, normalisers = [], []
    for rows in _tiles(q.shape[2], tile):
        q_tile = grouped(q[:, :, rows], k)  # [batch, n_kv_heads, group, rows, head_dim]
        maximum = q_tile.new_full((*q_tile.shape[:-1], 1), -torch.inf)
        total, out = torch.zeros_like(maximum), torch.zeros_like(q_tile)
        for columns in _tiles(rows.stop, tile):
            scores = _scores(q_tile, k, seen, rows, columns)
            raised = torch.maximum(maximum, scores.amax(-1, keepdim=True))
            finite = raised.masked_fill(raised == -torch.inf, 0.0)  # a query that has seen no key of its document yet
            p = (scores - finite).exp()
            correction = (maximum - finite).exp()
            total = total * correction + p.sum(-1, keepdim=True)
            out = out * correction + p @ v[:, :, None, columns]
            maximum = raised
        outputs.append((out / total).flatten(1, 2))
        normalisers.append((maximum + total.log()).flatten(1, 2).squeeze(-1))
    return torch.cat(outputs, dim=2), torch.cat(normalisers, dim=2)


def backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, seen: Tensor, out: Tensor, normaliser: Tensor, tile: int = 64
) -> tuple[Tensor, Tensor, Tensor]:
    """`do` and what `forward` returned (`out`, `normaliser`) → `dq`, `dk`, `dv`."""
    must_have("attention", "do", do, DIMENSIONS, list(q.shape))
    scale = 1 / math.sqrt(q.shape[-1])
    dq, dk, dv = torch.zeros_like(grouped(q, k)), torch.zeros_like(k), torch.zeros_like(v)
    along = (do * out).sum(-1, keepdim=True)  # D, [batch, n_heads, seq, 1]
    for rows in _tiles(q.shape[2], tile):
        q_tile, do_tile, d_tile = (grouped(x[:, :, rows], k) for x in (q, do, along))
        l_tile = grouped(normaliser[:, :, rows, None], k)
        for columns in _tiles(rows.stop, tile):
            p = (_scores(q_tile, k, seen, rows, columns) - l_tile).exp()
            dv[:, :, columns] += (p.transpose(-1, -2) @ do_tile).sum(2)
            dp = do_tile @ v[:, :, None, columns].transpose(-1, -2)
            ds = p * (dp - d_tile)
            dq[:, :, :, rows] += ds @ k[:, :, None, columns] * scale
            dk[:, :, columns] += (ds.transpose(-1, -2) @ q_tile).sum(2) * scale
    return dq.flatten(1, 2), dk, dv


def _tiles(end: int, tile: int) -> Iterator[slice]:
    if tile < 1:
        raise UserError(f"attention: tile must be at least 1, got {tile}")
    for start in range(0, end, tile):
        yield slice(start, min(start + tile, end))


def _scores(q_tile: Tensor, k: Tensor, seen: Tensor, rows: slice, columns: slice) -> Tensor:
    scores = q_tile @ k[:, :, None, columns].transpose(-1, -2) / math.sqrt(k.shape[-1])
    return scores.masked_fill(~seen[:, :, None, rows, columns], -torch.inf)
