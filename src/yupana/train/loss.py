"""The output head and the cross-entropy in one, a chunk of tokens at a time, so that the logits never exist whole.

The forward pass computes the gradient as well (both need the same logits, which are then thrown away), so nothing
is recomputed: with logits z = h Wᵀ and p = softmax(z), dz = (p - onehot(target)) / n, dh = dz W, dW = dzᵀ h.
A bf16 head's gradient is rounded once a chunk: over 16 chunks its error against float64 grows from 0.26 % to
0.51 % (tests/test_loss.py), small beside the 1 % that bf16 activations leave in any gradient, and an fp32 copy
would cost a gigabyte at 128 256 × 2 048.

The oracle is `F.cross_entropy(F.linear(h, W))`; the idea is in Wijmans et al. 2411.09009 and Hsu et al. 2410.10989.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # a target that counts for nothing: the next token belongs to another document

# A chunk's logits take rows × vocabulary × (4 + 2) bytes; this many elements keeps that near 400 MB while the
# products stay large enough to run at full rate.
CHUNK_ELEMENTS = 1 << 26

PIECE = 8192  # words that a bf16 product on a CPU sums over at once; 4 096 to 8 192 are fastest of 4 096 to 32 768

Kernel = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
LossFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (hidden, weight, targets, scale) → loss


def chunk_rows(tokens: int, vocab_size: int) -> int:
    """Rows of logits that exist at once: a power of two, at least 256."""
    rows = max(256, 1 << ((CHUNK_ELEMENTS // vocab_size).bit_length() - 1))
    return min(tokens, rows)


def softmax_gradient(logits: Tensor, targets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of a chunk (fp32) and `scale` times its gradient, in the logits' dtype.

    `logits` [rows, vocab], `targets` [rows] (IGNORED counts for nothing), `scale` a scalar tensor. Elementwise but
    for one reduction, so torch.compile makes it two passes over the chunk.
    """
    full = logits.float()
    counted = targets != IGNORED
    index = targets.clamp_min(0)[:, None]
    largest = full.amax(-1, keepdim=True)
    exponentials = (full - largest).exp()  # once, for the sum and for the gradient
    total = exponentials.sum(-1, keepdim=True)
    log_target = full.gather(-1, index) - largest - total.log()
    scales = torch.where(counted, scale, 0.0)[:, None]
    gradient = (exponentials * (scales / total)).to(logits.dtype)
    at_target = (log_target.expm1() * scales).to(logits.dtype)
    loss = -torch.where(counted[:, None], log_target, 0.0).sum()
    return loss, gradient.scatter(-1, index, at_target)


def times_weight(d_logits: Tensor, weight: Tensor, out: Tensor) -> None:
    """`d_logits @ weight` into `out` [rows, d_model], summed over the vocabulary: in pieces where that is faster.

    oneDNN's bf16 product of 512 × 128 256 with 128 256 × 2 048 runs at 763 GFLOP/s, in pieces at 846 (2 cores, AMD EPYC
    with bf16 instructions). In fp32 and for short vocabularies there is nothing to gain; a GPU's kernels split such sums
    themselves. The pieces are added in fp32, so that all of them together cost one rounding more (0.24 % of error instead of
    0.17, tests/test_loss.py).
    """
    if out.device.type != "cpu" or out.dtype != torch.bfloat16 or weight.shape[0] < 2 * PIECE:
        torch.mm(d_logits, weight, out=out)
        return
    total = torch.zeros(out.shape)
    for part, words in zip(d_logits.split(PIECE, 1), weight.split(PIECE), strict=True):
        total += part @ words
    out.copy_(total)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, kernel: Kernel) -> Tensor:
        rows = chunk_rows(hidden.shape[0], weight.shape[0])
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden, d_weight = torch.empty_like(hidden), None
        for start in range(0, hidden.shape[0], rows):
            h = hidden[start : start + rows]
            chunk_loss, d_logits = kernel(F.linear(h, weight), targets[start : start + rows], scale)
            loss += chunk_loss
            times_weight(d_logits, weight, d_hidden[start : start + rows])
            if d_weight is None:
                d_weight = d_logits.T @ h
            else:
                d_weight.addmm_(d_logits.T, h)  # adds in fp32, rounds to the weight's dtype once a chunk
            del d_logits
        ctx.save_for_backward(d_hidden, d_weight)
        return loss * scale

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        if d_loss.device.type != "cpu" or d_loss != 1:  # on a GPU looking at the value would cost a wait
            d_hidden, d_weight = d_hidden * d_loss, d_weight * d_loss
        return d_hidden, d_weight, None, None, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, kernel: Kernel = softmax_gradient
) -> Tensor:
    """`scale` times the summed cross-entropy of `hidden @ weight.T` against `targets`, in nats, as an fp32 scalar.

    `hidden` [tokens, d_model], `weight` [vocab, d_model], `targets` [tokens] with IGNORED where nothing is
    predicted. `kernel` is softmax_gradient, possibly compiled.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    return _LinearCrossEntropy.apply(hidden, weight, targets, scale, kernel)


def full_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
    """The same with all logits at once, in fp32: the slow twin of `linear_cross_entropy`, and what most loops do."""
    logits = F.linear(hidden, weight).float()
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum") * scale


@torch.no_grad()
def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The summed cross-entropy alone, in chunks, for evaluation: fp32 scalar, nats."""
    rows = chunk_rows(hidden.shape[0], weight.shape[0])
    parts = [
        F.cross_entropy(F.linear(h, weight).float(), t, ignore_index=IGNORED, reduction="sum")
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.stack(parts).sum()
