"""Real Llama shapes: heads of 64 or 128, every width a multiple of 128, as deep for their width as Llama 3."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

from yupana.model.shapes import ModelShape

# d_model / n_layers of Llama 3: 128 for 1B and 8B, 110 for 3B, 102 for 70B, 130 for 405B.
NARROWEST, WIDEST = 96, 132
TIED_BELOW = 3.5e9  # parameters; Llama 3.2's 1B and 3B share embedding and head, 8B and larger do not


@functools.cache
def family(vocab_size: int) -> tuple[ModelShape, ...]:
    """Every shape from 128 to 24 576 wide whose aspect lies in Llama 3's band."""
    return tuple(_shapes(vocab_size))


def make_shape(d_model: int, n_layers: int, vocab_size: int) -> ModelShape:
    """A Llama of that width and depth: d_ff the multiple of 128 nearest 8/3·d_model, grouped K/V as in Llama 3.

    Heads of 64 below a width of 2 048, of 128 from there on; four query heads to a key/value head where that divides.
    """
    head_dim = 64 if d_model < 2048 else 128
    n_heads = d_model // head_dim
    groups = 4 if n_heads % 4 == 0 and n_heads >= 8 else (2 if n_heads % 2 == 0 and n_heads >= 4 else 1)
    shape = ModelShape(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads // groups,
        head_dim=head_dim,
        d_ff=128 * round(d_model * 8 / 3 / 128),
        vocab_size=vocab_size,
        tie_embeddings=True,
    )
    return shape if shape.parameters < TIED_BELOW else dataclasses.replace(shape, tie_embeddings=False)


def _shapes(vocab_size: int) -> Iterator[ModelShape]:
    for d_model in range(128, 24_576 + 1, 128):
        shallowest = max(1, round(d_model / WIDEST))
        for n_layers in range(shallowest, max(shallowest, round(d_model / NARROWEST)) + 1):
            yield make_shape(d_model, n_layers, vocab_size)
