"""Which attention a run uses, and those that are not torch's own: the slow twin, query blocks, FlexAttention.

Query blocks are for a CPU: torch's own CPU kernel reaches a quarter of the matrix-product rate at the head sizes
Llamas use; batched products with a compiled softmax between them reach more, and cutting the queries into blocks
skips most of the masked half (benchmarks/attention.py). The scores of one block exist whole, [batch, n_heads, BLOCK,
keys], so this is for sequences that are not long. Oracle of all: `F.scaled_dot_product_attention`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from yupana.errors import UserError
from yupana.model.llama import Attend, Attention, Llama, attend

BLOCK = 128  # queries at once: masked waste falls with it, the products' efficiency too
LONGEST = 1024  # beyond this many tokens the scores outgrow the cache, and torch's own kernel is ahead


def choose(model: Llama, wanted: str, device: str, compiled: bool, seq_len: int, packing: str) -> None:
    """Put the attention that `wanted` names (`fast.attention`) into every layer of `model`.

    "auto" is query blocks in a compiled bf16 model on a CPU while sequences are not long (in fp32 torch's own is
    ahead at most lengths); FlexAttention on a GPU where documents are kept apart, since its cost follows them;
    otherwise torch's own. It is a rule and not a race, because a race could end differently when a run is resumed.
    Raises UserError for a GPU's back end without a GPU.
    """
    if wanted == "auto":
        if device == "cpu":
            wanted = on_cpu(model.embedding.weight.dtype == torch.bfloat16, compiled, seq_len)
        else:
            wanted = "flex" if packing != "stream" and compiled else "sdpa"
    if wanted in ("flash", "cudnn", "flex") and device != "cuda":
        raise UserError(f"fast.attention is {wanted}, which trains on a GPU only: use auto, blocked or sdpa here")
    if wanted in ("flash", "cudnn"):
        only_back_end(wanted)
    if wanted == "flex":
        model.mask = flex_mask
    ways: dict[str, Attend] = {
        "unfused": unfused_attention,
        "blocked": blocked_causal_attention,
        "flex": flex_attention,
    }
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = ways.get(wanted, attend)


def on_cpu(bf16: bool, compiled: bool, seq_len: int) -> str:
    """What "auto" is on a CPU: "blocked" or "sdpa"."""
    return "blocked" if compiled and bf16 and seq_len <= LONGEST else "sdpa"


def only_back_end(name: str) -> None:
    """Leave scaled_dot_product_attention only "flash" or "cudnn" to choose from."""
    torch.backends.cuda.enable_flash_sdp(name == "flash")
    torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_math_sdp(False)


def unfused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """As the formula is written, scores whole and keys copied for each query head: the slow twin of all others."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    seq = q.shape[2]
    if mask is None:
        mask = torch.ones(seq, seq, dtype=torch.bool, device=q.device).tril()
    scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask, -torch.inf).softmax(-1).to(q.dtype) @ v


def flex_mask(positions: Tensor, document_ids: Tensor | None, cached: int) -> Any:
    """FlexAttention's block mask: causal, and inside documents where `document_ids` [batch, seq] are given."""
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        earlier = key <= query
        if document_ids is None:
            return earlier
        return earlier & (document_ids[batch, query] == document_ids[batch, key])

    seq, device = positions.numel(), positions.device.type
    batch = None if document_ids is None else document_ids.shape[0]
    return create_block_mask(seen, batch, None, seq, seq, device=device)


def flex_attention(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    """FlexAttention (2412.05496) with a mask from `flex_mask`: blocks that hold no pair of a document are skipped."""
    from torch.nn.attention import flex_attention as flex

    return flex.flex_attention(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def blocked_causal_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax(q kᵀ / √head_dim, causal) v; q [batch, n_heads, seq, head_dim], k and v with n_kv_heads.

    `mask` [batch, 1, seq, seq] replaces the causal one where given: True where a query may look.
    """
    batch, heads, seq, width = q.shape
    kv_heads = k.shape[1]
    # Queries that share a key head become rows of the same product: no copies of the keys.
    q = (q * (1 / math.sqrt(width))).reshape(batch, kv_heads, heads // kv_heads, seq, width)
    # Blocks are split off and joined, not sliced: the gradient of overlapping slices compiles to slow code.
    keys, values = k.split(BLOCK, dim=2), v.split(BLOCK, dim=2)
    positions = torch.arange(seq, device=q.device)
    blocks = []
    for index, block in enumerate(q.split(BLOCK, dim=3)):
        start, rows = index * BLOCK, block.shape[3]
        end = start + rows
        scores = block.reshape(batch, kv_heads, -1, width) @ torch.cat(keys[: index + 1], dim=2).transpose(-1, -2)
        seen = positions[:end] <= positions[start:end, None] if mask is None else mask[:, :, None, start:end, :end]
        bias = torch.where(seen, 0.0, -torch.inf)  # the compiler's code for masked_fill is slower
        scores = scores.float().view(batch, kv_heads, -1, rows, end) + bias
        # Softmax is divided by its sum after the product with v, where there is less to divide (2205.14135, §3.1). Its
        # value does not depend on the largest score, so neither does its gradient.
        weights = (scores - scores.detach().amax(-1, keepdim=True)).exp().to(q.dtype)
        total = weights.float().sum(-1).view(batch, heads, rows, 1)
        out = weights.view(batch, kv_heads, -1, end) @ torch.cat(values[: index + 1], dim=2)
        blocks.append((out.view(batch, heads, rows, width) / total).to(q.dtype))
    return torch.cat(blocks, dim=2)
