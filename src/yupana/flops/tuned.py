"""Counting the FLOPs of a training step in which some weights are frozen, and sequences differ in length.

A weight of a matrix product costs 2 FLOPs a token forward; backward 2 more where its input needs a gradient, and 2
more where the weight itself is trained (so 6 in pretraining, and 4 for most of a model under LoRA, arXiv 2106.09685).
Counting 6 for frozen weights would overstate the MFU of LoRA by up to a half. The output head counts for the tokens
that have a label: a prompt's logits are not needed. Attention has no weights and counts in full. Where every weight
is trained and every token has a label, this is `count.flops_per_token`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Products:
    """What a model multiplies: read off a model once, before any token is counted."""

    body: int
    """FLOPs a token of the products with weights in the blocks, forward and backward."""
    head: int
    """The same of the output head, a labelled token."""
    attention_width: int
    """n_layers times the width of all query heads."""


def weight_flops(size: int, *, input_needs_gradient: bool, trained: bool) -> int:
    """FLOPs a token, forward and backward, of one matrix product with `size` weights."""
    return size * (2 + 2 * input_needs_gradient + 2 * trained)


def flops_of_sequences(products: Products, lengths: Iterable[int], labelled: int) -> dict[str, int]:
    """FLOPs of the forward and backward pass over sequences of these lengths, `{"palm": …, "exact": …}`.

    Tokens attend within their own sequence: a packed row counts as the documents in it. `labelled` is the tokens that
    have a label.
    """
    tokens = pairs = 0
    for length in lengths:
        tokens += length
        pairs += length * length
    weights = products.body * tokens + products.head * labelled
    attention = 12 * products.attention_width * pairs
    return {"palm": weights + attention, "exact": weights + attention // 2}
