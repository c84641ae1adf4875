"""Learning rate and batch from the size of a run, as published. Batches are in tokens.

Both laws were fitted for AdamW on dense Llama-like models with a decaying schedule. N counts no embeddings.
"""

from __future__ import annotations

from yupana.errors import UserError, did_you_mean
from yupana.flops.count import flops_per_token
from yupana.model.shapes import ModelShape
from yupana.scaling.counting import parameters


def step_law(n: float, tokens: float) -> tuple[float, float]:
    """(lr, batch) = (1.79 · N^-0.713 · D^0.307, 0.58 · D^0.571) (Step Law, 2503.04715; N non-embedding)."""
    return 1.79 * n**-0.713 * tokens**0.307, 0.58 * tokens**0.571


def deepseek_law(flops: float) -> tuple[float, float]:
    """(lr, batch) = (0.3118 · C^-0.1250, 0.2920 · C^0.3271) (DeepSeek LLM, 2401.02954, equation 1).

    C = M·D, with M = 72·n_layers·d² + 12·n_layers·d·seq_len the FLOPs a token without the embeddings and head.
    """
    return 0.3118 * flops**-0.1250, 0.2920 * flops**0.3271


LAWS = ("step", "deepseek")


def learning_rate_and_batch(law: str, shape: ModelShape, tokens: float, seq_len: int) -> tuple[float, float]:
    """Peak learning rate, and batch in tokens, by a named law. Raises UserError for an unknown name."""
    if law == "step":
        return step_law(parameters(shape, "non-embedding"), tokens)
    if law == "deepseek":
        head = 6 * shape.vocab_size * shape.d_model
        return deepseek_law((flops_per_token(shape, seq_len)["palm"] - head) * tokens)
    raise UserError(f"there is no learning-rate law '{law}'{did_you_mean(law, LAWS)}: there are {', '.join(LAWS)}")
