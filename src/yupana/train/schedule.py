"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from yupana.config import OptimConfig


def learning_rate(step: int, total_steps: int, optim: OptimConfig) -> float:
    """The rate of step `step` (from 0): linear warm-up, then cosine, or stable and linear decay, or constant.

    The warm-up never takes more than half of a short run. The last step has lr · min_lr_ratio (but for `constant`).
    """
    warmup = min(optim.warmup_steps, total_steps // 2)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    least = optim.lr * optim.min_lr_ratio
    if optim.schedule == "cosine":
        progress = (step - warmup + 1) / (total_steps - warmup)
        return least + (optim.lr - least) * 0.5 * (1 + math.cos(math.pi * progress))
    if optim.schedule == "wsd":
        decay = max(1, round(optim.decay_fraction * total_steps))
        return optim.lr - (optim.lr - least) * max(0.0, (step + 1 - (total_steps - decay)) / decay)
    return optim.lr
