"""Context parallelism: ranks share a sequence in attention too, by gathering keys and values (Llama 3, 2407.21783 §3.3.2).

A sequence is cut into 2·cp chunks, and rank r has two: number r from the front and number r from the back. The early one
looks back at few keys and the late one at many, so that every rank has the same work. All but attention works on single
tokens and needs nothing else. In attention a rank gathers everybody's keys and values, which with grouped queries are
few, and its own queries look at them; going back their gradients are summed and scattered.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn.attention.bias import causal_lower_right

from yupana.corpus.batches import Batch
from yupana.model.llama import Attention, Llama
from yupana.train.ranks import Ranks

Chunks = tuple[int, int]  # the numbers of a rank's two, the early one first


def chunks_of(rank: int, cp: int) -> Chunks:
    """Which of the 2·cp chunks of a sequence are those of rank `rank` of `cp`."""
    return rank, 2 * cp - 1 - rank


def cut(batch: Batch, ranks: Ranks) -> Batch:
    """This rank's tokens and targets, [batch, seq / cp]; document ids stay whole, since keys come from everywhere."""
    cp = ranks.layout.cp
    if cp == 1:
        return batch

    def mine(whole: np.ndarray) -> np.ndarray:
        pieces = np.split(whole, 2 * cp, axis=1)
        return np.concatenate([pieces[chunk] for chunk in chunks_of(ranks.cp_rank, cp)], axis=1)

    return replace(batch, tokens=mine(batch.tokens), targets=mine(batch.targets))


def share_sequences(model: Llama, ranks: Ranks) -> None:
    """Have `model` work on this rank's chunks of each sequence, as `cut` gives them, in place."""
    assert ranks.sequences is not None
    chunks = chunks_of(ranks.cp_rank, ranks.layout.cp)
    model.positions = functools.partial(positions, chunks)
    model.mask = functools.partial(masks, chunks)
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = functools.partial(attend, chunks, ranks.sequences)


def positions(chunks: Chunks, start: int, count: int, device: torch.device) -> Tensor:
    """Where this rank's `count` tokens stand in the sequence, [count]."""
    size = count // 2
    return torch.cat([torch.arange(chunk * size, (chunk + 1) * size, device=device) for chunk in chunks])


def masks(chunks: Chunks, positions: Tensor, document_ids: Tensor | None, cached: int) -> list[Tensor]:
    """Of each chunk, where its queries may look among the keys from the first to its own last: what `attend` wants.

    `document_ids` [batch, seq] are those of the whole sequence; with them a mask is [batch, 1, queries, keys].
    """
    found = []
    for chunk, mine in zip(chunks, positions.chunk(2), strict=True):
        size, end = mine.numel(), (chunk + 1) * mine.numel()
        if document_ids is None:
            found.append(causal(size, end))
        else:
            earlier = torch.arange(end, device=mine.device)[None, :] <= mine[:, None]
            ids = document_ids[:, :end]
            found.append(earlier & (ids[:, None, -size:, None] == ids[:, None, None, :]))
    return found


@functools.cache
def causal(queries: int, keys: int) -> Tensor:
    """The last query sees all keys, the one before it all but the last: a GPU's kernels know that without a mask."""
    return causal_lower_right(queries, keys)


def attend(chunks: Chunks, mesh: DeviceMesh, q: Tensor, k: Tensor, v: Tensor, mask: list[Tensor]) -> Tensor:
    """`model.llama.attend` for this rank's queries: q [batch, n_heads, seq / cp, head_dim], k and v with n_kv_heads."""
    keys, values = gathered(torch.stack([k, v]), mesh)
    size, grouped, out = q.shape[2] // 2, q.shape[1] != k.shape[1], []
    for chunk, queries, seen in zip(chunks, q.chunk(2, dim=2), mask, strict=True):
        end = (chunk + 1) * size
        k, v = keys[:, :, :end], values[:, :, :end]
        out.append(F.scaled_dot_product_attention(queries, k, v, attn_mask=seen, enable_gqa=grouped))
    return torch.cat(out, dim=2)


def gathered(own: Tensor, mesh: DeviceMesh) -> Tensor:
    """Keys and values of whole sequences in their order, [2, batch, heads, seq, head_dim], from [… , seq / cp, …]."""
    spread = DTensor.from_local(own[None], mesh, [Shard(0)], run_check=False)
    whole = spread.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])  # [cp, 2, batch, …]
    early, late = whole.chunk(2, dim=4)
    return torch.cat([early, late.flip(0)]).permute(1, 2, 3, 0, 4, 5).flatten(3, 4)
