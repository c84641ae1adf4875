"""What the hand-written operations are checked against: torch's own, differentiable by autograd.

Where torch has no such operation (the rotary embedding, the z-loss) it is written another way than in this folder.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from yupana.anatomy.cross_entropy import IGNORED
from yupana.anatomy.rope import Scaling


class Sizes(Protocol):
    """What the references need of a case's sizes."""

    @property
    def head_dim(self) -> int: ...  # noqa: D102
    @property
    def n_heads(self) -> int: ...  # noqa: D102
    @property
    def n_kv_heads(self) -> int: ...  # noqa: D102
    @property
    def rope_theta(self) -> float: ...  # noqa: D102
    @property
    def rope_scaling(self) -> Scaling | None: ...  # noqa: D102
    @property
    def norm_eps(self) -> float: ...  # noqa: D102
    @property
    def document_ids(self) -> Tensor | None: ...  # noqa: D102


def rms_norm(x: Tensor, weight: Tensor, s: Sizes) -> Tensor:
    """torch's RMSNorm."""
    return F.rms_norm(x, (x.shape[-1],), weight, s.norm_eps)


def turned(x: Tensor, s: Sizes) -> Tensor:
    """Pairs as complex numbers times e^{iφ}, the frequencies one by one as Meta's code has them."""
    angles = torch.outer(
        torch.arange(x.shape[2], dtype=torch.float64),
        torch.tensor([_frequency(pair, s) for pair in range(s.head_dim // 2)], dtype=torch.float64),
    )
    numbers = torch.complex(*x.chunk(2, dim=-1)) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([numbers.real, numbers.imag], dim=-1)


def _frequency(pair: int, s: Sizes) -> float:
    frequency = 1 / s.rope_theta ** (2 * pair / s.head_dim)
    scaling = s.rope_scaling
    if scaling is None:
        return frequency
    wavelength = 2 * math.pi / frequency
    if wavelength < scaling.original_context / scaling.high_freq_factor:
        return frequency
    if wavelength > scaling.original_context / scaling.low_freq_factor:
        return frequency / scaling.factor
    smooth = (scaling.original_context / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency


def attended(q: Tensor, k: Tensor, v: Tensor, s: Sizes) -> Tensor:
    """torch's attention, the mask looked up token by token."""
    ids = s.document_ids
    if ids is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    seen = torch.zeros(q.shape[0], 1, q.shape[2], q.shape[2], dtype=torch.bool)
    for row in range(q.shape[0]):
        for query in range(q.shape[2]):
            for key in range(query + 1):
                seen[row, 0, query, key] = ids[row, query] == ids[row, key]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)


def loss(logits: Tensor, targets: Tensor, z_loss: float) -> Tensor:
    """torch's cross-entropy, and the z-loss of every predicted token."""
    counted = targets != IGNORED
    if not counted.any():
        return 0 * logits.sum()
    return F.cross_entropy(logits, targets, ignore_index=IGNORED) + z_loss * logits[counted].logsumexp(-1).square().mean()


def block(x: Tensor, weights: dict[str, Tensor], s: Sizes) -> Tensor:
    """A block from the references above."""
    batch, seq, _ = x.shape
    widths = [s.n_heads * s.head_dim, s.n_kv_heads * s.head_dim, s.n_kv_heads * s.head_dim]
    projected = F.linear(rms_norm(x, weights["attention_norm.weight"], s), weights["attention.wqkv.weight"])
    q, k, v = (part.view(batch, seq, -1, s.head_dim).transpose(1, 2) for part in projected.split(widths, -1))
    out = attended(turned(q, s), turned(k, s), v, s).transpose(1, 2).reshape(batch, seq, -1)
    x = x + F.linear(out, weights["attention.wo.weight"])
    normed = rms_norm(x, weights["feed_forward_norm.weight"], s)
    gate, up = F.linear(normed, weights["feed_forward.w_gate_up.weight"]).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, weights["feed_forward.w_down.weight"])


def adamw(weight: Tensor, gradients: list[Tensor], lr: float, betas: tuple[float, float], decay: float) -> Tensor:
    """The weight after torch.optim.AdamW has seen these gradients in turn."""
    parameter = weight.detach().clone().requires_grad_()
    optimizer = torch.optim.AdamW([parameter], lr=lr, betas=betas, eps=1e-8, weight_decay=decay, foreach=False)
    for gradient in gradients:
        parameter.grad = gradient.detach().clone()
        optimizer.step()
    return parameter.detach()


def muon(weight: Tensor, gradients: list[Tensor], lr: float, coefficients: tuple[float, float, float]) -> Tensor:
    """The weight after Muon, its quintic applied to the singular values themselves (torch.linalg.svd)."""
    a, b, c = coefficients
    weight, buffer = weight.detach(), torch.zeros_like(weight)
    for gradient in gradients:
        buffer = torch.lerp(buffer, gradient.detach(), 0.05)
        left, values, right = torch.linalg.svd(torch.lerp(gradient.detach(), buffer, 0.95), full_matrices=False)
        values = values / values.square().sum().sqrt()
        for _ in range(5):
            values = a * values + b * values**3 + c * values**5
        stretch = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
        weight = weight - lr * 0.1 * weight - lr * stretch * (left * values) @ right
    return weight


def clipped(gradients: list[Tensor], limit: float) -> list[Tensor]:
    """The gradients after torch.nn.utils.clip_grad_norm_."""
    parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.detach().clone()
    torch.nn.utils.clip_grad_norm_(parameters, limit)
    return [p.grad for p in parameters if p.grad is not None]
