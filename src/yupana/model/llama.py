"""Llama's forward pass in plain PyTorch, top to bottom. It knows nothing of ranks, compilation or precision.

Sources: LLaMA (arXiv 2302.13971) for the architecture, GQA (2305.13245), RoPE (2104.09864), SwiGLU (2002.05202),
RMSNorm (1910.07467), Llama 3 (2407.21783) for the frequency scaling.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yupana.model.shapes import ModelShape, RopeScaling

INIT_STD = 0.02  # `initializer_range` in the config.json of every published Llama


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, computed in fp32 whatever x is (1910.07467, eq. 4)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] → [..., width]."""
        full = x.float()
        normed = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


class Attention(nn.Module):
    """Grouped-query causal self-attention; Q, K and V come out of one matrix product."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.widths = [shape.q_width, shape.kv_width, shape.kv_width]
        self.wqkv = nn.Linear(shape.d_model, sum(self.widths), bias=False)
        self.wo = nn.Linear(shape.q_width, shape.d_model, bias=False)
        self.attend: Attend = attend  # training may put a faster kernel in its place

    def forward(self, x: Tensor, rope: Rope, mask: Tensor | None, cache: LayerCache | None = None) -> Tensor:
        """[batch, seq, d_model] → [batch, seq, d_model]; `mask` is True where a token may look, None is causal."""
        batch, seq, _ = x.shape
        q, k, v = self.project(x)
        q = rotate(q, rope).transpose(1, 2)  # [batch, n_heads, seq, head_dim]
        k = rotate(k, rope).transpose(1, 2)  # [batch, n_kv_heads, seq, head_dim]
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.append(k, v)
        out = self.attend(q, k, v, mask)  # [batch, n_heads, seq, head_dim]
        return self.wo(out.transpose(1, 2).reshape(batch, seq, -1))

    def project(self, x: Tensor) -> Sequence[Tensor]:
        """[batch, seq, d_model] → queries [batch, seq, n_heads, head_dim], keys and values with n_kv_heads."""
        heads = self.wqkv(x).unflatten(-1, (-1, self.head_dim))  # split by heads: a row of all widths compiles to slow code
        return heads.split([width // self.head_dim for width in self.widths], dim=2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax(q kᵀ / √head_dim) v: q [batch, n_heads, seq, head_dim], k and v with n_kv_heads; causal without mask."""
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)


Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate x) * up x), gate and up from one matrix product (2002.05202, eq. 6)."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.w_gate_up = nn.Linear(shape.d_model, 2 * shape.d_ff, bias=False)
        self.w_down = nn.Linear(shape.d_ff, shape.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_model] → [..., d_model]."""
        gate, up = self.project(x)
        return self.w_down(F.silu(gate) * up)

    def project(self, x: Tensor) -> Sequence[Tensor]:
        """[..., d_model] → gate and up, each [..., d_ff]."""
        return self.w_gate_up(x).chunk(2, dim=-1)


class Block(nn.Module):
    """One transformer block: attention, then feed-forward, each on the normed residual stream and added to it."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(shape.d_model, shape.norm_eps)
        self.attention = Attention(shape)
        self.feed_forward_norm = RMSNorm(shape.d_model, shape.norm_eps)
        self.feed_forward = FeedForward(shape)

    def forward(self, x: Tensor, rope: Rope, mask: Tensor | None, cache: LayerCache | None = None) -> Tensor:
        """[batch, seq, d_model] → [batch, seq, d_model]."""
        x = x + self.attention(self.attention_norm(x), rope, mask, cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Llama(nn.Module):
    """Llama. `hidden` gives the normed residual stream, `forward` the logits."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.norm = RMSNorm(shape.d_model, shape.norm_eps)
        self.positions: Positions = consecutive  # other ones where ranks share a sequence
        self.mask: MakeMask = attention_mask  # belongs to the layers' `attend`
        self.output = None if shape.tie_embeddings else nn.Linear(shape.d_model, shape.vocab_size, bias=False)

    @property
    def output_weight(self) -> Tensor:
        """The head's matrix [vocab, d_model]: the embedding itself when tied."""
        return self.embedding.weight if self.output is None else self.output.weight

    def hidden(self, tokens: Tensor, document_ids: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Tokens [batch, seq] → hidden states [batch, seq, d_model], ready for the output head.

        With `document_ids` [batch, seq] no token attends across documents. With `cache`, `tokens` continue the
        tokens already in it.
        """
        start = 0 if cache is None else cache.length
        positions = self.positions(start, tokens.shape[1], tokens.device)
        rope = rope_table(self.shape, positions)
        mask = self.mask(positions, document_ids, start)
        x = self.embedding(tokens)
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, mask, None if cache is None else cache.layers[index])
        if cache is not None:
            cache.length = start + tokens.shape[1]
        return self.norm(x)

    def forward(self, tokens: Tensor, document_ids: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Tokens [batch, seq] → logits [batch, seq, vocab]."""
        return F.linear(self.hidden(tokens, document_ids, cache), self.output_weight)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Every matrix from N(0, 0.02²), every norm 1, as `LlamaPreTrainedModel` does with the published configs.

        Each parameter draws from its own generator, seeded by (seed, name), in fp32 on the CPU: the same weights
        whatever the device, the precision or the number of ranks.
        """
        for name, parameter in self.named_parameters():
            parameter.copy_(initial(name, parameter.shape, seed))


def initial(name: str, size: Sequence[int], seed: int) -> Tensor:
    """The initial value of the parameter `name`, in fp32 on the CPU: see Llama.initialise."""
    if name.endswith("norm.weight"):
        return torch.ones(tuple(size))
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(tuple(size)).normal_(0.0, INIT_STD, generator=generator)


Rope = tuple[Tensor, Tensor]  # cos and sin, each [seq, 1, head_dim / 2], fp32


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Angle per position of each pair of dimensions, [head_dim / 2], fp32 (2104.09864, §3.2.2)."""
    # Bit for bit as Meta and transformers compute it: one unit in the last place is 5e-4 rad at position 8 192.
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    # How many times the wave fits into the original context decides: 0 below low_freq_factor, 1 above high.
    kept = (scaling.original_context / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    kept = kept.clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def rope_table(shape: ModelShape, positions: Tensor) -> Rope:
    """Cosines and sines at `positions` [seq]; the first half of head_dim is paired with the second."""
    frequencies = rope_frequencies(shape.head_dim, shape.rope_theta, shape.rope_scaling).to(positions.device)
    angles = positions.float()[:, None, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotate the pairs of x [batch, seq, heads, head_dim], in fp32."""
    cos, sin = rope
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def consecutive(start: int, count: int, device: torch.device) -> Tensor:
    """Positions of `count` tokens from `start` on, [count]."""
    return torch.arange(start, start + count, device=device)


Positions = Callable[[int, int, torch.device], Tensor]


def attention_mask(positions: Tensor, document_ids: Tensor | None, cached: int) -> Tensor | None:
    """True where a query may look at a key: [batch or 1, 1, seq, cached + seq]; None stands for plain causal."""
    if document_ids is None and cached == 0:
        return None
    keys = torch.arange(cached + positions.numel(), device=positions.device)
    mask = (keys[None, :] <= positions[:, None])[None, None]
    if document_ids is not None:
        mask = mask & (document_ids[:, None, :, None] == document_ids[:, None, None, :])
    return mask


MakeMask = Callable[[Tensor, Tensor | None, int], Any]


class LayerCache:
    """Keys and values of one layer, [batch, n_kv_heads, room, head_dim], filled from the left."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.length = keys, values, 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values [batch, n_kv_heads, new, head_dim]; return all so far."""
        end = self.length + k.shape[2]
        self.keys[:, :, self.length : end], self.values[:, :, self.length : end] = k, v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Cache:
    """The keys and values of the tokens seen so far, for generation."""

    def __init__(self, shape: ModelShape, batch: int, room: int, like: Tensor) -> None:
        size = (batch, shape.n_kv_heads, room, shape.head_dim)
        self.layers = [LayerCache(like.new_empty(size), like.new_empty(size)) for _ in range(shape.n_layers)]
        self.length = 0
