"""Counting the FLOPs of a training step. Every other part asks here; nobody else counts.

A multiply-add is two FLOPs. Forward and backward of a matrix product with W weights cost 2·W + 4·W a token.
Two conventions, always named:

`palm` (PaLM, arXiv 2204.02311, appendix B): 6·N_matmul + 12·n_layers·d·seq_len a token, with d the width of all
query heads. Attention counts in full although half of it is masked. This is what the literature quotes as MFU.

`exact`: the matrix products as executed, with causal attention at half: 6·N_matmul + 6·n_layers·d·seq_len.

In both, N_matmul leaves out the embedding look-up and includes the output head, tied or not; K and V count at the
size they have before they are shared among query heads; recomputation in the backward pass never counts.
"""

from __future__ import annotations

from yupana.errors import UserError
from yupana.model.shapes import ModelShape


def flops_per_token(shape: ModelShape, seq_len: int) -> dict[str, int]:
    """FLOPs of the forward and backward pass a token, `{"palm": …, "exact": …}`."""
    if seq_len < 1:
        raise UserError(f"seq_len must be at least 1, got {seq_len}")
    products = 6 * shape.matmul_parameters
    # Scores and weighted values: 2 products of 2·d·seq_len FLOPs forward, twice that backward.
    attention = 12 * shape.n_layers * shape.q_width * seq_len
    return {"palm": products + attention, "exact": products + attention // 2}


def breakdown(shape: ModelShape, seq_len: int) -> list[tuple[str, int, int]]:
    """(part, parameters, `palm` FLOPs a token) in the order of the forward pass; sums to the whole."""
    layers, width = shape.n_layers, shape.d_model
    attention = width * (shape.q_width + 2 * shape.kv_width) + shape.q_width * width
    head = shape.vocab_size * width
    return [
        ("embedding" if not shape.tie_embeddings else "embedding (shared with the head)", head, 0),
        ("attention projections", layers * attention, 6 * layers * attention),
        ("attention scores and values", 0, 12 * layers * shape.q_width * seq_len),
        ("feed-forward", layers * 3 * width * shape.d_ff, 6 * layers * 3 * width * shape.d_ff),
        ("norms", (2 * layers + 1) * width, 0),
        ("output head", 0 if shape.tie_embeddings else head, 6 * head),
    ]


def mfu(flops_per_second: float, peak: float) -> float:
    """Model FLOPs Utilization: the model's FLOPs a second over the hardware's peak, both for the same dtype."""
    return flops_per_second / peak
