"""Clipping by the global norm (Pascanu et al., arXiv 1211.5063, alg. 1): all gradients shortened together.

forward    norm = √(Σ over all gradients of g²)      g ← g · min(1, limit / (norm + 1e-6))

The direction stays; only a gradient longer than `limit` is shortened to it. The norm is one number over all
parameters, so it is the one place where every parameter waits for every other. torch adds the same 1e-6.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from yupana.errors import UserError


def forward(gradients: Mapping[str, Tensor], limit: float) -> tuple[dict[str, Tensor], Tensor]:
    """The clipped gradients and the norm before clipping (a scalar). Raises UserError for a limit that is not positive."""
    if not limit > 0:
        raise UserError(f"clip: the largest norm must be positive, got {limit:g}")
    norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    return {name: g * scale for name, g in gradients.items()}, norm
