"""Output head and cross-entropy in one, a few tokens at a time: the logits of all tokens never exist at once.

forward    z = h Wᵀ        loss = cross_entropy(z)
backward   dz as in cross_entropy        dh = dz W        dW = Σ over chunks of dzᵀ h

Both passes need the same z, so one walk over the chunks gives the loss and both gradients (Wijmans et al.
2411.09009; Hsu et al. 2410.10989). tokens × vocab logits would be the largest tensor of the step: 8 192 × 128 256
of them in bf16 are 2.1 GB, and as much again for their gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from yupana.anatomy import cross_entropy, linear
from yupana.anatomy.shapes import must_have
from yupana.errors import UserError


def forward_and_backward(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float = 0.0, rows: int = 64
) -> tuple[Tensor, Tensor, Tensor]:
    """`hidden` [tokens, d_model], `weight` [vocab, d_model], `targets` [tokens] → loss, `dhidden`, `dweight`.

    The gradients are of the loss itself (dloss = 1); `rows` of logits exist at once. Raises UserError on a misfit.
    """
    must_have("linear_cross_entropy", "hidden", hidden, ["tokens", "d_model"], [None, None])
    must_have("linear_cross_entropy", "targets", targets, ["tokens"], [hidden.shape[0]])
    if rows < 1:
        raise UserError(f"linear_cross_entropy: rows must be at least 1, got {rows}")
    loss = hidden.new_zeros(())
    dhidden, dweight = torch.empty_like(hidden), torch.zeros_like(weight)
    whole = cross_entropy.predictions(targets)
    for start in range(0, hidden.shape[0], rows):
        part = slice(start, start + rows)
        logits = linear.forward(hidden[part], weight)
        share = cross_entropy.predictions(targets[part]) / whole  # a chunk's mean counts by its predictions
        loss = loss + share * cross_entropy.forward(logits, targets[part], z_loss)
        dlogits = cross_entropy.backward(share, logits, targets[part], z_loss)
        dhidden[part], dweight_part = linear.backward(dlogits, hidden[part], weight)
        dweight += dweight_part
    return loss, dhidden, dweight
