"""One step of AdamW (Kingma & Ba 1412.6980, alg. 1; Loshchilov & Hutter 1711.05101, alg. 2, decoupled decay).

forward    m ← β₁ m + (1 - β₁) g          v ← β₂ v + (1 - β₂) g²
           m̂ = m / (1 - β₁ᵗ)              v̂ = v / (1 - β₂ᵗ)
           w ← w (1 - η λ) - η m̂ / (√v̂ + ε)

m and v start at 0 and so lean towards it: after t steps their weights sum to 1 - βᵗ, which the division makes up for.
The decay acts on w itself and not through g: inside g it would be divided by √v̂ and decay frequent weights less.
Of a constant gradient every step is η: |m̂| = √v̂.
"""

from __future__ import annotations

from torch import Tensor

from yupana.anatomy.shapes import must_have
from yupana.errors import UserError


def forward(
    weight: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor]:
    """The new weight and moments after step t = `step` (the first is 1); all tensors of the weight's shape.

    Raises UserError on a misfit.
    """
    if step < 1:
        raise UserError(f"adamw: step must be at least 1 (the first step's correction divides by 1 - β), got {step}")
    dimensions = [f"dimension {i}" for i in range(weight.ndim)]
    for name, tensor in (("gradient", gradient), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        must_have("adamw", name, tensor, dimensions, list(weight.shape))
    beta1, beta2 = betas
    m = beta1 * exp_avg + (1 - beta1) * gradient
    v = beta2 * exp_avg_sq + (1 - beta2) * gradient.square()
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    return weight * (1 - lr * weight_decay) - lr * m_hat / (v_hat.sqrt() + eps), m, v
