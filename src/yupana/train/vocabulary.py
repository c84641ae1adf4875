"""Cross-entropy over logits whose vocabulary is spread over ranks: no rank ever sees a row of logits whole.

With z the logits of a row, softmax and loss need its largest logit, Σ exp(z - largest) and the target's logit: two
all-reduces, of one and of two numbers a row, instead of the row itself (Megatron-LM, 1909.08053 §3).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from yupana.train.loss import IGNORED


def cross_entropy_of_spread_logits(
    logits: Tensor, targets: Tensor, scale: Tensor, *, first: int, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """`loss.softmax_gradient` for this rank's columns `first` … of the logits: the same loss on every rank of `group`.

    `logits` [rows, vocab / ranks], `targets` [rows] in the whole vocabulary. Returns the summed cross-entropy of the
    rows in nats and this rank's columns of `scale` times its gradient, in the logits' dtype.
    """
    full = logits.float()
    largest = full.amax(-1)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group)
    exponentials = (full - largest[:, None]).exp()
    here = (targets >= first) & (targets < first + logits.shape[1])
    index = torch.where(here, targets - first, 0)[:, None]
    at_target = torch.where(here, full.gather(-1, index)[:, 0] - largest, 0.0)
    sums = torch.stack([exponentials.sum(-1), at_target])
    dist.all_reduce(sums, dist.ReduceOp.SUM, group)
    total, at_target = sums
    log_target = at_target - total.log()
    counted = targets != IGNORED
    scales = torch.where(counted, scale, 0.0)[:, None]
    gradient = exponentials * (scales / total[:, None])
    correct = torch.where(here[:, None], log_target.expm1()[:, None] * scales, gradient.gather(-1, index))
    loss = -torch.where(counted, log_target, 0.0).sum()
    return loss, gradient.scatter(-1, index, correct).to(logits.dtype)
